use async_trait::async_trait;

use super::StoreResult;
use crate::{
    event::{Event, NewEvent},
    id::{DeploymentId, EventSeq, Fence},
    name::EnvironmentName,
};

/// The events of every deployment.
#[async_trait]
pub trait LogStore: Send + Sync + 'static {
    /// Appends events to the active deployment of a lane. `false`, and nothing is written, if the fence is not
    /// the lane's. Afterwards the deployment's log is within `limit`.
    async fn append(
        &self,
        environment: &EnvironmentName,
        deployment: DeploymentId,
        fence: Fence,
        events: Vec<NewEvent>,
        limit: LogLimit,
    ) -> StoreResult<bool>;

    /// The deployment's events with a number above `after`, in order, at most `limit` of them.
    async fn events(
        &self,
        deployment: DeploymentId,
        after: EventSeq,
        limit: usize,
    ) -> StoreResult<Vec<Event>>;
}

/// How much of a deployment's output is kept.
///
/// Counted by [`EventKind::log_bytes`](crate::event::EventKind::log_bytes). The first lines up to `head_bytes` stay
/// for ever; after them, the newest lines up to `tail_bytes`. What falls out of the middle leaves a gap in the
/// events' numbers. A store may let the tail grow by a quarter before it cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogLimit {
    /// What is kept from the beginning, in bytes.
    pub head_bytes: u64,
    /// What is kept from the end, in bytes.
    pub tail_bytes: u64,
}

impl LogLimit {
    /// 1 MiB from the beginning and 3 MiB from the end.
    pub const DEFAULT: Self = Self { head_bytes: 1 << 20, tail_bytes: 3 << 20 };

    /// A limit.
    #[must_use]
    pub const fn new(head_bytes: u64, tail_bytes: u64) -> Self {
        Self { head_bytes, tail_bytes }
    }

    /// The size of the tail at which a store must cut it back to `tail_bytes`.
    #[must_use]
    pub const fn tail_bytes_max(self) -> u64 {
        self.tail_bytes + self.tail_bytes / 4
    }
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::DEFAULT
    }
}
