use std::{fmt, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::BoxFuture;

use super::{
    core::{Blow, Core, ProcessId},
    sleep::Sleep,
    task::PollReached,
};
use crate::executor::Executor;

/// A group of tasks that live and die together: one worker, the database server, the outside world.
#[derive(Clone)]
pub struct Process {
    core: Arc<Core>,
    id: ProcessId,
}

impl Process {
    pub(super) const fn new(core: Arc<Core>, id: ProcessId) -> Self {
        Self { core, id }
    }

    /// A new process of the same simulation.
    #[must_use]
    pub fn sibling(&self, name: &str) -> Self {
        Self::new(self.core.clone(), self.core.add_process(name))
    }

    /// The process's clock, chance and tasks. Its wall clock is right.
    #[must_use]
    pub fn executor(&self) -> Arc<SimExecutor> {
        self.executor_with_skew(TimeDelta::zero())
    }

    /// The same, with a wall clock that every five seconds jumps by `skew`, and then back again.
    #[must_use]
    pub fn executor_with_skew(&self, skew: TimeDelta) -> Arc<SimExecutor> {
        Arc::new(SimExecutor { core: self.core.clone(), process: self.id, skew })
    }

    /// Starts a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.core.spawn(self.id, Box::pin(task));
    }

    /// Kills the process now: its tasks are dropped, and it starts nothing any more.
    pub fn kill(&self) {
        self.core.strike(self.id, Blow::Kill);
    }

    /// Kills the process before its poll number `poll`, counted from zero.
    pub fn kill_at(&self, poll: u64) {
        self.core.plan_blow(self.id, poll, Blow::Kill);
    }

    /// Freezes the process now, for this long.
    pub fn freeze(&self, duration: Duration) {
        self.core.strike(self.id, Blow::Freeze(duration));
    }

    /// Freezes the process before its poll number `poll`, counted from zero, for this long.
    pub fn freeze_at(&self, poll: u64, duration: Duration) {
        self.core.plan_blow(self.id, poll, Blow::Freeze(duration));
    }

    /// Ends a freeze.
    pub fn thaw(&self) {
        self.core.thaw(self.id);
    }

    /// Whether it was killed.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.core.is_dead(self.id)
    }

    /// Completes when tasks of any process have been polled `polls` times in all: a moment to cancel something at.
    pub fn poll_reached(&self, polls: u64) -> impl Future<Output = ()> + Send + 'static {
        PollReached::new(self.core.clone(), polls)
    }

    /// How often tasks of all processes have been polled.
    #[must_use]
    pub fn polls_of_all(&self) -> u64 {
        self.core.polls()
    }

    /// How often its tasks have been polled.
    #[must_use]
    pub fn polls(&self) -> u64 {
        self.core.process_polls(self.id)
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("id", &self.id).finish_non_exhaustive()
    }
}

/// An executor on virtual time, for one process of a simulation.
pub struct SimExecutor {
    core: Arc<Core>,
    process: ProcessId,
    skew: TimeDelta,
}

/// Virtual time zero on the wall clock.
const EPOCH_SECONDS: i64 = 1_800_000_000;

impl Executor for SimExecutor {
    fn now(&self) -> Duration {
        self.core.now()
    }

    fn utc(&self) -> DateTime<Utc> {
        let now = self.core.now();
        let since = TimeDelta::from_std(now).unwrap_or(TimeDelta::MAX);
        let skew = if now.as_secs() % 10 < 5 { self.skew } else { TimeDelta::zero() };
        DateTime::from_timestamp(EPOCH_SECONDS, 0).unwrap_or_default() + since + skew
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(Sleep::new(self.core.clone(), duration))
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.core.spawn(self.process, task);
    }

    fn random(&self) -> u64 {
        self.core.random()
    }
}

impl SimExecutor {
    /// Adds something to the trace, as [`Sim::note`](super::Sim::note) does.
    pub fn note(&self, code: u64, text: impl FnOnce() -> String) {
        self.core.note(code, text);
    }
}

impl fmt::Debug for SimExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimExecutor").field("process", &self.process).finish_non_exhaustive()
    }
}
