//! Time, chance and tasks as handles, so that the whole engine also runs under a virtual clock.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;

/// What the engine needs of its host: clocks, sleep, chance, tasks.
///
/// [`TokioExecutor`] is the one for production. The simulation has its own.
pub trait Executor: Send + Sync + 'static {
    /// Monotonic time since some fixed moment. Durations are differences of this.
    fn now(&self) -> Duration;

    /// The wall clock, for time stamps that people read. It may jump: all that is decided by it is whether snapshots
    /// have waited too long for a worker ([`State::claimed`](crate::machine::State::claimed)), where a jump takes
    /// them again.
    fn utc(&self) -> DateTime<Utc>;

    /// Completes after `duration` of monotonic time.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;

    /// Starts a task. It ends when it is done; the engine wraps what it must be able to stop.
    fn spawn(&self, task: BoxFuture<'static, ()>);

    /// 64 random bits.
    fn random(&self) -> u64;
}

/// The executor for production: tokio's clock and tasks, the operating system's randomness.
///
/// # Panics
/// Its methods panic outside of a tokio runtime, as tokio's own do.
#[derive(Debug)]
#[non_exhaustive]
pub struct TokioExecutor {
    started: tokio::time::Instant,
}

impl TokioExecutor {
    /// An executor whose monotonic time begins now.
    #[must_use]
    pub fn new() -> Self {
        Self { started: tokio::time::Instant::now() }
    }
}

impl Default for TokioExecutor {
    fn default() -> Self {
        Self::new()
    }
}

impl Executor for TokioExecutor {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn utc(&self) -> DateTime<Utc> {
        Utc::now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        drop(tokio::spawn(task));
    }

    fn random(&self) -> u64 {
        let bytes = *uuid::Uuid::new_v4().as_bytes();
        // Bytes 6 and 8 of a version 4 UUID hold fixed bits; the other fourteen are random.
        u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[7], bytes[9]])
    }
}
