use async_trait::async_trait;

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
    /// rollback or recovery of it waits or is under way; none of a deployment that is not over.
    async fn retire_snapshots(
        &self,
        environment: &EnvironmentName,
        references: &[String],
    ) -> StoreResult<Vec<String>>;

    /// Forgets snapshots that have been retired and removed.
    async fn forget_snapshots(&self, environment: &EnvironmentName, references: &[String])
    -> StoreResult<()>;
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
}

impl SnapshotRecord {
    /// A snapshot that can be used.
    #[must_use]
    pub const fn new(
        environment: EnvironmentName,
        deployment: DeploymentId,
        instance: InstanceName,
        snapshot: Snapshot,
        window: Option<Window>,
    ) -> Self {
        Self { environment, deployment, instance, snapshot, window, state: SnapshotState::Kept }
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
