//! What every call of a port gets beside its arguments.

use std::{fmt, sync::Arc};

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use crate::{
    environment::Environment,
    event::{Progress, Stream},
    id::{DeploymentId, Fence},
    name::InstanceName,
    secret::Secret,
};

/// Where a call's log lines and progress go.
pub trait Sink: Send + Sync {
    /// Takes one line, without its line end. Lines are redacted, limited in length and made printable.
    fn log(&self, instance: Option<&InstanceName>, stream: Stream, line: &str);
    /// Takes the present progress. May be called often: it is thinned out.
    fn progress(&self, instance: Option<&InstanceName>, progress: Progress);
    /// From now on this value appears nowhere.
    fn hide(&self, secret: &Secret);
}

/// For whom and in what circumstances a call is made.
#[derive(Clone)]
pub struct Context {
    deployment: DeploymentId,
    environment: Arc<Environment>,
    instance: Option<InstanceName>,
    fence: Fence,
    cancellation: CancellationToken,
    sink: Arc<dyn Sink>,
}

impl Context {
    /// A context. The engine makes them; tests of adapters do too.
    pub fn new(
        deployment: DeploymentId,
        environment: Arc<Environment>,
        fence: Fence,
        cancellation: CancellationToken,
        sink: Arc<dyn Sink>,
    ) -> Self {
        Self { deployment, environment, instance: None, fence, cancellation, sink }
    }

    /// The same context, with its log lines and progress attributed to an instance.
    #[must_use]
    pub fn for_instance(&self, instance: &InstanceName) -> Self {
        Self { instance: Some(instance.clone()), ..self.clone() }
    }

    /// The deployment that names what is made.
    #[must_use]
    pub const fn deployment(&self) -> DeploymentId {
        self.deployment
    }

    /// The environment, as it was when the deployment started.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The lane's fencing token.
    #[must_use]
    pub const fn fence(&self) -> Fence {
        self.fence
    }

    /// Whether the work should stop. Then stop it, really, and return [`Error::cancelled`](super::Error::cancelled).
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancellation.is_cancelled()
    }

    /// Completes when the work should stop.
    pub fn cancelled(&self) -> WaitForCancellationFuture<'_> {
        self.cancellation.cancelled()
    }

    /// The token itself, for work that runs in threads.
    #[must_use]
    pub const fn cancellation(&self) -> &CancellationToken {
        &self.cancellation
    }

    /// Logs one line of the adapter's own.
    pub fn log(&self, line: impl AsRef<str>) {
        self.output(Stream::Engine, line);
    }

    /// Logs one line that a program wrote.
    pub fn output(&self, stream: Stream, line: impl AsRef<str>) {
        self.sink.log(self.instance.as_ref(), stream, line.as_ref());
    }

    /// Reports progress.
    pub fn progress(&self, progress: Progress) {
        self.sink.progress(self.instance.as_ref(), progress);
    }

    /// Makes a secret known, so that it is removed from whatever is logged, stored or shown from now on.
    pub fn hide(&self, secret: &Secret) {
        self.sink.hide(secret);
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("deployment", &self.deployment)
            .field("environment", self.environment.name())
            .field("instance", &self.instance)
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}
