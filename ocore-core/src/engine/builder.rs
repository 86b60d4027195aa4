use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use super::{
    Engine, Shared,
    upkeep::{Cleaned, Clock},
};
use crate::{
    executor::{Executor, TokioExecutor},
    name::PoolName,
    port::{Builder, HealthProbe, LogLimit, Runtime, Snapshotter, Source, Store},
    secret::{Redactor, Secret},
};

/// Puts an [`Engine`] together.
#[must_use = "an engine is made by build()"]
pub struct EngineBuilder {
    store: Option<Arc<dyn Store>>,
    source: Option<Arc<dyn Source>>,
    builder: Option<Arc<dyn Builder>>,
    snapshotter: Option<Arc<dyn Snapshotter>>,
    runtime: Option<Arc<dyn Runtime>>,
    probe: Option<Arc<dyn HealthProbe>>,
    executor: Option<Arc<dyn Executor>>,
    redactor: Redactor,
    pools: Vec<PoolName>,
    workers: usize,
    timing: Timing,
    log_limit: LogLimit,
}

/// What is missing, or does not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the engine is not complete: {}", reasons.join("; "))]
#[non_exhaustive]
pub struct Incomplete {
    /// One sentence per mistake.
    pub reasons: Vec<String>,
}

macro_rules! adapter {
    ($(#[$doc:meta])* $field:ident: $port:ident) => {
        $(#[$doc])*
        pub fn $field(mut self, $field: impl $port) -> Self {
            self.$field = Some(Arc::new($field));
            self
        }
    };
}

impl EngineBuilder {
    pub(super) fn new() -> Self {
        Self {
            store: None,
            source: None,
            builder: None,
            snapshotter: None,
            runtime: None,
            probe: None,
            executor: None,
            redactor: Redactor::default(),
            pools: vec![PoolName::default()],
            workers: 4,
            timing: Timing::default(),
            log_limit: LogLimit::DEFAULT,
        }
    }

    adapter!(
        /// Where everything is kept.
        store: Store
    );
    adapter!(
        /// Where the source comes from.
        source: Source
    );
    adapter!(
        /// What makes images.
        builder: Builder
    );
    adapter!(
        /// What copies data and puts it back.
        snapshotter: Snapshotter
    );
    adapter!(
        /// What runs instances.
        runtime: Runtime
    );
    adapter!(
        /// What asks instances whether they are well.
        probe: HealthProbe
    );

    /// Time, chance and tasks; [`TokioExecutor`] unless said otherwise.
    pub fn executor(mut self, executor: Arc<dyn Executor>) -> Self {
        self.executor = Some(executor);
        self
    }

    /// How many deployments this process works on at the same time. 4 by default.
    pub const fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// The pools that this process serves; the default pool unless said otherwise.
    pub fn pools(mut self, pools: impl IntoIterator<Item = PoolName>) -> Self {
        self.pools = pools.into_iter().collect();
        self
    }

    /// How long things take and wait.
    pub const fn timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// How much of a deployment's output is kept.
    pub const fn log_limit(mut self, limit: LogLimit) -> Self {
        self.log_limit = limit;
        self
    }

    /// A value that must appear nowhere. Adapters add those that they know by themselves.
    pub fn secret(self, secret: &Secret) -> Self {
        self.redactor.hide(secret);
        self
    }

    /// The engine.
    ///
    /// # Errors
    /// [`Incomplete`] lists every adapter that is missing and every timing that contradicts another.
    pub fn build(self) -> Result<Engine, Incomplete> {
        let mut reasons = self.timing.contradictions();
        let mut missing = |absent: bool, what: &str| {
            if absent {
                reasons.push(format!("no {what} was given"));
            }
        };
        missing(self.pools.is_empty() || self.workers == 0, "pool, or no worker,");
        missing(self.store.is_none(), "store");
        missing(self.source.is_none(), "source");
        missing(self.builder.is_none(), "builder");
        missing(self.snapshotter.is_none(), "snapshotter");
        missing(self.runtime.is_none(), "runtime");
        missing(self.probe.is_none(), "probe");
        let (Some(store), Some(source), Some(builder), Some(snapshotter), Some(runtime), Some(probe), true) = (
            self.store,
            self.source,
            self.builder,
            self.snapshotter,
            self.runtime,
            self.probe,
            reasons.is_empty(),
        ) else {
            return Err(Incomplete { reasons });
        };
        let executor = self.executor.unwrap_or_else(|| Arc::new(TokioExecutor::new()));
        let clock = Clock::new(executor.clone());
        let Self { redactor, pools, workers, timing, log_limit, .. } = self;
        let shared = Shared {
            store,
            source,
            builder,
            snapshotter,
            runtime,
            probe,
            executor,
            redactor,
            pools,
            workers,
            timing,
            log_limit,
            nudge: Notify::new(),
            work: Notify::new(),
            cleaned: Cleaned::default(),
            clock,
        };
        Ok(Engine { shared: Arc::new(shared) })
    }
}

/// How long things take and wait.
///
/// The lease lasts at least three heartbeats, so that two may get lost; the worker stops itself at `watchdog`, with
/// time to spare before anyone else may take its lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timing {
    /// From one heartbeat to the next. 3 s.
    pub heartbeat: Duration,
    /// How long a heartbeat keeps a worker's lanes. 10 s.
    pub lease: Duration,
    /// A worker stops its work this long after it sent its last heartbeat that was answered. 7 s.
    pub watchdog: Duration,
    /// A worker looks for work this often, and after thirty looks in vain a third as often; hints make it look sooner. 1 s,
    /// jittered by a quarter.
    pub poll: Duration,
    /// The deadline of a call of the store. 5 s.
    pub store_call: Duration,
    /// Log lines are collected for this long. 100 ms.
    pub flush: Duration,
    /// How long a cancelled call may take to stop by itself before it is dropped. 30 s.
    pub cancel_grace: Duration,
    /// After a shutdown, deployments may still go on for this long; then they are handed over at the next step
    /// boundary. 10 s.
    pub drain: Duration,
    /// After a shutdown, the step itself is interrupted after this long. 60 s.
    pub interrupt: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(3),
            lease: Duration::from_secs(10),
            watchdog: Duration::from_secs(7),
            poll: Duration::from_secs(1),
            store_call: Duration::from_secs(5),
            flush: Duration::from_millis(100),
            cancel_grace: Duration::from_secs(30),
            drain: Duration::from_secs(10),
            interrupt: Duration::from_secs(60),
        }
    }
}

impl Timing {
    /// The default timing, for a program that somebody waits for: a cancel is noticed within a second, and a shutdown
    /// interrupts the step at once. A disk that is busy for seconds does no harm.
    #[must_use]
    pub fn foreground() -> Self {
        let heartbeat = Duration::from_secs(1);
        Self { heartbeat, drain: Duration::ZERO, interrupt: Duration::ZERO, ..Self::default() }
    }

    /// For tests, and for one machine whose disk never waits: a crash is noticed within two seconds, and a shutdown
    /// interrupts the step at once.
    #[must_use]
    pub fn tight() -> Self {
        Self {
            heartbeat: Duration::from_millis(400),
            lease: Duration::from_millis(1500),
            watchdog: Duration::from_millis(1000),
            poll: Duration::from_millis(200),
            store_call: Duration::from_millis(900),
            cancel_grace: Duration::from_secs(10),
            drain: Duration::ZERO,
            interrupt: Duration::ZERO,
            ..Self::default()
        }
    }

    fn contradictions(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let mut refuse = |wrong: bool, reason: &str| {
            if wrong {
                reasons.push(reason.to_owned());
            }
        };
        refuse(
            self.heartbeat.is_zero() || self.poll.is_zero(),
            "heartbeat and poll must be longer than zero",
        );
        refuse(self.lease < self.heartbeat * 3, "the lease must last at least three heartbeats");
        refuse(self.watchdog >= self.lease, "the watchdog must be shorter than the lease");
        refuse(self.watchdog <= self.heartbeat, "the watchdog must be longer than a heartbeat");
        refuse(self.store_call.is_zero(), "store_call must be longer than zero");
        reasons
    }
}
