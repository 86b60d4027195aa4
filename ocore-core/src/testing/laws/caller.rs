//! Who calls an adapter in a test: makes contexts, and keeps what was told.

use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::{
    environment::{Environment, Instance},
    event::{Progress, Stream},
    id::{DeploymentId, Fence},
    name::InstanceName,
    port::{Context, Leftovers, Sink},
    secret::Secret,
};

/// Makes the contexts of calls, and keeps the lines that were logged.
#[derive(Debug, Clone)]
pub struct Caller {
    environment: Arc<Environment>,
    told: Arc<Told>,
}

/// What was told to the contexts of one [`Caller`].
#[derive(Debug, Default)]
struct Told {
    lines: Mutex<Vec<(Stream, String)>>,
    hidden: Mutex<Vec<String>>,
    progress: Mutex<Vec<Progress>>,
}

impl Sink for Told {
    fn log(&self, _instance: Option<&InstanceName>, stream: Stream, line: &str) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push((stream, line.to_owned()));
    }
    fn progress(&self, _instance: Option<&InstanceName>, progress: Progress) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).push(progress);
    }
    fn hide(&self, secret: &Secret) {
        let value = secret.expose().to_owned();
        self.hidden.lock().unwrap_or_else(PoisonError::into_inner).push(value);
    }
}

impl Caller {
    /// A caller for this environment.
    #[must_use]
    pub fn new(environment: Arc<Environment>) -> Self {
        Self { environment, told: Arc::default() }
    }

    /// The environment's first instance.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.environment.instances()[0]
    }

    /// A call for a deployment, with a fence.
    #[must_use]
    pub fn call(&self, deployment: u128, fence: u64) -> Context {
        self.cancellable(deployment, fence, &CancellationToken::new())
    }

    /// A call that can be cancelled.
    #[must_use]
    pub fn cancellable(&self, deployment: u128, fence: u64, cancellation: &CancellationToken) -> Context {
        let deployment = DeploymentId::from_u128(deployment);
        let environment = self.environment.clone();
        Context::new(deployment, environment, Fence::new(fence), cancellation.clone(), self.told.clone())
    }

    /// A call that was cancelled before it was made.
    #[must_use]
    pub fn cancelled(&self, deployment: u128, fence: u64) -> Context {
        let cancellation = CancellationToken::new();
        cancellation.cancel();
        self.cancellable(deployment, fence, &cancellation)
    }

    /// Everything that was shown of the progress so far.
    #[must_use]
    pub fn progress(&self) -> Vec<Progress> {
        self.told.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every line that was logged so far, with where it came from.
    #[must_use]
    pub fn lines(&self) -> Vec<(Stream, String)> {
        self.told.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every secret that was to be hidden so far.
    #[must_use]
    pub fn hidden(&self) -> Vec<String> {
        self.told.hidden.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How long [`eventually`] asks, in seconds. The fakes of this crate's own tests, many of which never come round, are
/// quick.
const PATIENCE_SECONDS: u64 = if cfg!(test) { 2 } else { 20 };

/// Asks until the answer is yes.
///
/// # Panics
/// If it is still no after 20 seconds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    let began = tokio::time::Instant::now();
    while !ask().await {
        let patient = began.elapsed().as_secs() < PATIENCE_SECONDS;
        assert!(patient, "not within {PATIENCE_SECONDS} seconds: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// What is left of these deployments, beside what is recorded.
pub(super) fn leftovers<const N: usize>(ended: &[u128], recorded: [&String; N]) -> Leftovers {
    let ended = ended.iter().map(|id| DeploymentId::from_u128(*id)).collect();
    Leftovers::new(ended, recorded.into_iter().cloned().collect())
}

/// Polls a call until it has been at work for a moment, then drops it.
pub(super) async fn drop_early<F: Future>(call: F) {
    let moment = std::time::Duration::from_millis(3);
    drop(tokio::time::timeout(moment, call).await);
}
