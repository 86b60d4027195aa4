use async_trait::async_trait;

use super::{Context, Leftovers, Result};
use crate::{environment::Instance, release::Snapshot};

/// Copies an instance's data, and puts a copy back.
///
/// *Laws*: `snapshotter_laws!` in the `testing` feature.
#[async_trait]
pub trait Snapshotter: Send + Sync + 'static {
    /// Takes a full copy of the instance's data as it is at one moment, on stable storage when this returns, and
    /// verified. An instance without data yet gives a snapshot of that: restoring it removes the data.
    ///
    /// *Called again*: takes another one, under another name, and removes what an earlier call of this deployment
    /// left unfinished. The name is made of deployment, instance and fence.
    ///
    /// *Must not* disturb the running application.
    async fn take(&self, context: &Context, instance: &Instance) -> Result<Snapshot>;

    /// Puts the instance's data back exactly as the snapshot holds it, atomically: killed at any moment, there is
    /// the old data or the new, never neither and never a mixture. The caller has stopped the application.
    ///
    /// *Called again*: the same result.
    ///
    /// *Errors*: a snapshot that is not there, or whose checksum is wrong: permanent, and the data is untouched.
    /// An older fence than one seen before: [`Error::fenced`](super::Error::fenced).
    async fn restore(&self, context: &Context, instance: &Instance, snapshot: &Snapshot) -> Result<()>;

    /// Whether anything was written to the instance's data since the snapshot was taken, as far as can be told:
    /// `true` where it cannot.
    async fn changed_since(
        &self,
        context: &Context,
        instance: &Instance,
        snapshot: &Snapshot,
    ) -> Result<bool>;

    /// Removes the snapshot.
    ///
    /// *Called again*: succeeds if it is gone.
    async fn remove(&self, context: &Context, snapshot: &Snapshot) -> Result<()>;

    /// Removes the snapshots, finished or not, that these leftovers include. [`Context::deployment`] is one of the
    /// deployments that are over, and says nothing more.
    ///
    /// *Called again*: removes what has been left since.
    ///
    /// *Must not* touch anything else: a snapshot is taken for another deployment meanwhile.
    async fn sweep(&self, context: &Context, leftovers: &Leftovers) -> Result<()>;
}
