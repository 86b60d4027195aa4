//! A seeded executor with a virtual clock: whole clusters in one thread, the same for the same seed.
//!
//! A [`Sim`] runs tasks of several processes. Which of the ready tasks is polled next is drawn from the seed; when
//! none is ready, the clock jumps to the next timer. A process can be killed (its tasks are dropped, and nothing
//! that they spawn runs) or frozen (its tasks are not polled until later: a zombie that goes on with what it
//! believed before), at a given poll or at once.
//!
//! ```
//! use std::time::Duration;
//! use ocore_core::{executor::Executor, testing::sim::{Sim, SimOptions}};
//!
//! let sim = Sim::new(SimOptions::seed(7));
//! let worker = sim.process("worker");
//! let executor = worker.executor();
//! worker.spawn({
//!     let executor = executor.clone();
//!     async move { executor.sleep(Duration::from_secs(3600)).await }
//! });
//! sim.run_until(Duration::from_secs(7200), || false);
//! assert_eq!(executor.now(), Duration::from_secs(3600)); // an hour, in no time
//! ```

mod chance;
mod core;
mod process;
mod sleep;
mod task;
mod timers;
mod trace;

use std::{fmt, sync::Arc, time::Duration};

use self::core::Core;
pub use self::{
    chance::Chance,
    process::{Process, SimExecutor},
    task::yield_now,
    trace::Trace,
};

/// How a simulation runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SimOptions {
    /// Everything that is left to chance follows from this.
    pub seed: u64,
    /// In which order ready tasks are polled.
    pub order: Order,
    /// Whether the trace is kept as text, beside its hash.
    pub keep_trace: bool,
}

impl SimOptions {
    /// Tasks in random order, the trace as a hash only.
    #[must_use]
    pub const fn seed(seed: u64) -> Self {
        Self { seed, order: Order::Random, keep_trace: false }
    }

    /// The same options with another order.
    #[must_use]
    pub const fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// The same options, with the trace kept as text or not.
    #[must_use]
    pub const fn keep_trace(mut self, keep: bool) -> Self {
        self.keep_trace = keep;
        self
    }
}

/// In which order ready tasks are polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// Drawn from the seed.
    Random,
    /// The task that was spawned last goes first: the work before the lease that it is done under.
    NewestFirst,
    /// The task that was spawned first goes first.
    OldestFirst,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// The condition that was waited for has come true.
    Done,
    /// No task is ready and no timer is set: nothing will ever happen.
    Idle,
    /// The virtual clock has reached the limit.
    OutOfTime,
    /// More polls than any run may need: tasks wake each other for ever.
    OutOfPolls,
}

/// The polls that one run may take: far more than a schedule needs, few enough to end a livelock soon.
const POLLS_MAX: u64 = 5_000_000;

/// A simulated cluster. When it is dropped, so are all its tasks.
pub struct Sim {
    core: Arc<Core>,
}

impl Sim {
    /// A simulation at time zero, without tasks.
    #[must_use]
    pub fn new(options: SimOptions) -> Self {
        Self { core: Arc::new(Core::new(options)) }
    }

    /// A new process: a group of tasks that can be killed and frozen together.
    #[must_use]
    pub fn process(&self, name: &str) -> Process {
        Process::new(self.core.clone(), self.core.add_process(name))
    }

    /// Runs until `done` says so, nothing can happen any more, or the virtual clock reaches `limit`. `done` is asked
    /// after every poll, so it must be cheap.
    pub fn run_until(&self, limit: Duration, done: impl FnMut() -> bool) -> Ended {
        self.core.run_until(limit, done)
    }

    /// Virtual time.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.core.now()
    }

    /// How often tasks have been polled.
    #[must_use]
    pub fn polls(&self) -> u64 {
        self.core.polls()
    }

    /// Draws from the seed.
    #[must_use]
    pub fn random(&self) -> u64 {
        self.core.random()
    }

    /// Adds something to the trace: `code` to its hash, and `text` to its lines if they are kept.
    pub fn note(&self, code: u64, text: impl FnOnce() -> String) {
        self.core.note(code, text);
    }

    /// What has happened so far.
    #[must_use]
    pub fn trace(&self) -> Trace {
        self.core.trace()
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // Tasks hold executors, and those the scheduler with its tasks: this breaks the circle.
        self.core.shut_down();
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("now", &self.now()).field("polls", &self.polls()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
