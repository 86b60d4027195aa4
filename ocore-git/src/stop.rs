//! How work on threads is stopped.

use std::time::{Duration, Instant};

use ocore_core::port::{Classify, Context, Error, Result};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The wait for a thread after it was told to stop. It looks after every file, every packet and every callback.
const GRACE: Duration = Duration::from_secs(5);

/// Tells work on threads when to stop: the context was cancelled, the call's future was dropped, or the time is up.
#[derive(Debug, Clone)]
pub(crate) struct Stop {
    token: CancellationToken,
    deadline: Instant,
    time_max: Duration,
}

impl Stop {
    /// A stop that lasts as long as the guard: dropping it stops the work.
    pub(crate) fn new(context: &Context, time_max: Duration) -> (Self, DropGuard) {
        let token = context.cancellation().child_token();
        let guard = token.clone().drop_guard();
        let deadline = Instant::now() + time_max;
        (Self { token, deadline, time_max }, guard)
    }

    #[cfg(test)]
    pub(crate) fn for_test(time_max: Duration) -> Self {
        Self { token: CancellationToken::new(), deadline: Instant::now() + time_max, time_max }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.token.is_cancelled() {
            return Err(Error::cancelled());
        }
        if Instant::now() >= self.deadline {
            return Err(self.too_late());
        }
        Ok(())
    }

    fn too_late(&self) -> Error {
        let seconds = self.time_max.as_secs();
        Error::permanent(format!(
            "it takes longer than the limit time_max, {seconds} s; raise it in the policy of the Source, and \
             policy.deadlines.fetch of the environment above it"
        ))
    }

    /// Completes, with the reason, when the work should stop.
    pub(crate) async fn stopped(&self) -> Error {
        tokio::select! {
            () = self.token.cancelled() => Error::cancelled(),
            () = tokio::time::sleep_until(self.deadline.into()) => self.too_late(),
        }
    }

    /// Runs blocking work on a thread of its own. It must [check](Self::check) often.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.check()?;
        let stop = self.clone();
        let mut thread = tokio::task::spawn_blocking(move || work(&stop));
        let joined = tokio::select! {
            joined = &mut thread => joined,
            _ = self.stopped() => match tokio::time::timeout(GRACE, thread).await {
                Ok(joined) => joined,
                Err(_) => return Err(Error::unanswered("stop the work on the repository: a thread hangs")),
            },
        };
        joined.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime shuts down, and with it this call.
            Err(error) => Err(error).transient("work on the repository"),
        })
    }
}
