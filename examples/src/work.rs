//! A worker that runs only as long as something is waited for.

use std::future::Future;

use ocore_core::engine::Engine;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::Result;

/// How [`until_done`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there is no third way")]
pub enum Ended<T> {
    /// The task is done.
    Done(T),
    /// Ctrl-C or SIGTERM came first. The engine has handed over: whatever was under way is in the store, and the
    /// next worker goes on with it.
    Interrupted,
}

/// Runs the engine's worker until `task` is done or a signal comes, then shuts it down gracefully.
///
/// # Errors
/// The task's own, or the store cannot work at all.
pub async fn until_done<T>(engine: &Engine, task: impl Future<Output = Result<T>>) -> Result<Ended<T>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let signalled = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let shutdown = CancellationToken::new();
    let worker = engine.run_until(shutdown.cancelled());
    tokio::pin!(worker);
    let ended = tokio::select! {
        result = &mut worker => return result.map_err(Into::into).and(Err("the worker ended by itself".into())),
        done = task => done.map(Ended::Done),
        () = signalled => Ok(Ended::Interrupted),
    };
    shutdown.cancel();
    worker.await?;
    ended
}
