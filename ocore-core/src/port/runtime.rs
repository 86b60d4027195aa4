use async_trait::async_trait;

use super::{Context, Result};
use crate::{
    environment::Instance,
    release::{LiveInstance, Release, Started},
};

/// Runs instances.
///
/// Each method that changes something refuses a call whose fence is older than one served before for the
/// instance, where the resource allows it ([`Error::fenced`](super::Error::fenced)).
///
/// *Laws*: `runtime_laws!` in the `testing` feature.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Stops a live instance: gracefully, then by force, with all its children. It does not come back by itself,
    /// and is kept so that it can be [revived](Self::revive).
    ///
    /// *Called again*, or already stopped: succeeds.
    async fn stop(&self, context: &Context, live: &LiveInstance) -> Result<()>;

    /// Runs the release's own migration on the instance's data and waits for its end.
    ///
    /// *Called again*: only after the data has been put back as it was.
    ///
    /// *Errors*: a migration that fails: permanent, with the last lines of its output.
    async fn update(&self, context: &Context, instance: &Instance, release: &Release) -> Result<()>;

    /// Starts the release in the instance, under a name made of deployment, instance and fence. Returns when it
    /// has been started; whether it is healthy is for the probe.
    ///
    /// *Called again* by the same deployment: finds what is running, or starts it anew; never runs it twice.
    ///
    /// *Errors*: a port or name that something else has: permanent if it will not go away by itself, and it is named.
    async fn start(&self, context: &Context, instance: &Instance, release: &Release) -> Result<Started>;

    /// Stops and removes everything that the context's deployment started or updated in the instance, under
    /// whatever fence, running or not.
    ///
    /// *Called again*, or nothing is there: succeeds.
    async fn withdraw(&self, context: &Context, instance: &Instance) -> Result<()>;

    /// Runs again what [`stop`](Self::stop) stopped: starts what was kept, or makes it anew from the release.
    ///
    /// *Called again*, or it was never stopped: finds it running.
    async fn revive(&self, context: &Context, live: &LiveInstance, release: &Release) -> Result<Started>;

    /// What can be seen of a started instance. Changes nothing.
    async fn inspect(&self, context: &Context, instance: &Instance, started: &Started)
    -> Result<Observation>;

    /// The last lines that a started instance wrote to its own log, at most `lines` of them, oldest first; also of
    /// one that has ended. Changes nothing.
    async fn tail(
        &self,
        context: &Context,
        instance: &Instance,
        started: &Started,
        lines: usize,
    ) -> Result<Vec<String>>;
}

/// What can be seen of a started instance.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Observation {
    /// It runs.
    Up,
    /// It does not run.
    Down {
        /// How it ended, in words: an exit code, a signal, "not there".
        reason: String,
        /// The last lines of its own log.
        log_tail: Vec<String>,
    },
}
