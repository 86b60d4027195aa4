use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};

use super::StoreResult;
use crate::{
    id::DeploymentId,
    name::{EnvironmentName, InstanceName},
    release::{Snapshot, Window},
};

/// The snapshots that exist.
#[async_trait]
pub trait SnapshotStore: Send + Sync + 'static {
    /// The environment's snapshots, retired ones included, oldest deployment first.
    async fn snapshots(&self, environment: &EnvironmentName) -> StoreResult<Vec<SnapshotRecord>>;

    /// Marks snapshots as retired, by their references, so that they may be removed; says which of them are
    /// retired now. **None** while the environment needs attention, or nothing became Running since it did, or a
    /// rollback or recovery of it waits or is under way; none of a deployment that is not over, or whose snapshots
    /// have a pin that [holds](SnapshotPin::holds) at `at`.
    async fn retire_snapshots(
        &self,
        environment: &EnvironmentName,
        references: &[String],
        at: DateTime<Utc>,
    ) -> StoreResult<Vec<String>>;

    /// Forgets snapshots that have been retired and removed.
    async fn forget_snapshots(&self, environment: &EnvironmentName, references: &[String])
    -> StoreResult<()>;

    /// Pins all snapshots of the deployment, those too that it records later, in place of the pin that they have.
    /// `false`, and no change, if it has none in this environment, or one of them is retired already. A pin is
    /// forgotten with the last of them.
    async fn pin_snapshots(
        &self,
        environment: &EnvironmentName,
        deployment: DeploymentId,
        pin: &SnapshotPin,
    ) -> StoreResult<bool>;
}

/// A snapshot and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotRecord {
    /// The environment.
    pub environment: EnvironmentName,
    /// The deployment before which it was taken.
    pub deployment: DeploymentId,
    /// The instance whose data it holds.
    pub instance: InstanceName,
    /// The snapshot; its reference is unique in the environment.
    pub snapshot: Snapshot,
    /// Whether something was written between the snapshot and the stop; `None` before the stop.
    pub window: Option<Window>,
    /// Whether it can be used.
    pub state: SnapshotState,
    /// The pin of its deployment's snapshots, also one that has ended. It is the store's: what a commit says of it
    /// changes nothing.
    pub pin: Option<SnapshotPin>,
}

impl SnapshotRecord {
    /// A snapshot that can be used, without a pin.
    #[must_use]
    pub const fn new(
        environment: EnvironmentName,
        deployment: DeploymentId,
        instance: InstanceName,
        snapshot: Snapshot,
        window: Option<Window>,
    ) -> Self {
        Self { environment, deployment, instance, snapshot, window, state: SnapshotState::Kept, pin: None }
    }
}

/// Whether a snapshot can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotState {
    /// It can be restored.
    Kept,
    /// It is being removed.
    Retired,
}

/// A person's word that the snapshots of a deployment are kept, whatever the rules of retention say.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotPin {
    /// Who wants it.
    pub by: String,
    /// Why, for those who find it later.
    pub why: String,
    /// Since when.
    pub at: DateTime<Utc>,
    /// Until when it holds; `None` until somebody takes it away.
    pub until: Option<DateTime<Utc>>,
    /// Who took it away. It holds on for [`SnapshotPin::GRACE`] after that.
    pub unpinned_by: Option<String>,
}

impl SnapshotPin {
    /// How long a pin holds on after somebody took it away: for those who notice that it was theirs. A day.
    pub const GRACE: TimeDelta = TimeDelta::days(1);

    /// A pin that holds until somebody takes it away.
    #[must_use]
    pub fn new(by: impl Into<String>, why: impl Into<String>, at: DateTime<Utc>) -> Self {
        Self { by: by.into(), why: why.into(), at, until: None, unpinned_by: None }
    }

    /// The same pin, which ends by itself.
    #[must_use]
    pub fn until(self, until: DateTime<Utc>) -> Self {
        Self { until: Some(until), ..self }
    }

    /// The same pin, taken away by somebody at `at`. It ends a [`SnapshotPin::GRACE`] later, and never later than before.
    #[must_use]
    pub fn unpinned(self, by: impl Into<String>, at: DateTime<Utc>) -> Self {
        let grace = at.checked_add_signed(Self::GRACE).unwrap_or(DateTime::<Utc>::MAX_UTC);
        let until = self.until.map_or(grace, |until| until.min(grace));
        Self { until: Some(until), unpinned_by: Some(by.into()), ..self }
    }

    /// Whether it keeps the snapshots at this time.
    #[must_use]
    pub fn holds(&self, at: DateTime<Utc>) -> bool {
        self.until.is_none_or(|until| at < until)
    }
}
