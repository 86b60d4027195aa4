//! Blocking work in a thread of its own, which stops when its caller is cancelled or dropped.

use std::panic;

use ocore_core::port::{Context, Error, Result};
use tokio_util::sync::CancellationToken;

/// Whether blocking work should stop.
pub(crate) struct Cancel(CancellationToken);

impl Cancel {
    /// An error if the work should stop.
    pub(crate) fn check(&self) -> Result<()> {
        if self.0.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
    }

    #[cfg(test)]
    pub(crate) fn never() -> Self {
        Self(CancellationToken::new())
    }
}

/// Runs `work` in a thread where it may block. It is told to stop when the context is cancelled, and also when the
/// returned future is dropped.
pub(crate) async fn run<T: Send + 'static>(
    context: &Context,
    work: impl FnOnce(&Cancel) -> Result<T> + Send + 'static,
) -> Result<T> {
    let token = context.cancellation().child_token();
    let _stop_on_drop = token.clone().drop_guard();
    match tokio::task::spawn_blocking(move || work(&Cancel(token))).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::cancelled()),
    }
}
