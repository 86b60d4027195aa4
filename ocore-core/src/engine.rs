//! The engine: the only place where decisions meet the world.
//!
//! [`Engine`] is what a host holds: it asks for deployments, reads their history, and runs workers. Asking returns
//! at once; the work is done by whatever process runs [`Engine::run_until`] on the same store.
//!
//! | file | what it does |
//! |---|---|
//! | `builder` | puts an engine together, with its timing |
//! | `environments`, `requests`, `rollback` | what a host asks for |
//! | `history`, `watch` | what a host reads |
//! | `snapshots` | which snapshots there are, which are kept and why, pins |
//! | `worker` | claims lanes, keeps the lease, drains |
//! | `drive` | takes one deployment from step to step |
//! | `perform` | does one step, for all instances |
//! | `healthy` | watches what was started |
//! | `call` | one call of a port: deadline, cancellation, panic |
//! | `sink` | log lines and progress on their way to the store |
//! | `upkeep` | removes what retention does not want any more |

mod builder;
mod call;
mod drive;
mod environments;
mod error;
mod healthy;
mod history;
mod perform;
mod requests;
mod rollback;
mod sink;
mod snapshots;
mod upkeep;
mod watch;
mod worker;

use std::{fmt, sync::Arc};

use tokio::sync::Notify;

pub use self::{
    builder::{EngineBuilder, Incomplete, Timing},
    environments::Resolution,
    error::EngineError,
    history::Details,
    requests::{Accepted, Pushed, RetryRequest},
    rollback::{Loss, RollbackPreview, RollbackRequest},
    snapshots::{PinRequest, Planned},
    watch::Watch,
};
use crate::{
    executor::Executor,
    name::PoolName,
    port::{Builder, HealthProbe, LogLimit, Runtime, Snapshotter, Source, Store},
    secret::Redactor,
};

/// The deployment engine over six adapters. Cheap to clone; all clones are one engine.
///
/// Any number of engines, in any number of processes, may run on one store.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

/// What all parts of one engine share.
pub(crate) struct Shared {
    store: Arc<dyn Store>,
    source: Arc<dyn Source>,
    builder: Arc<dyn Builder>,
    snapshotter: Arc<dyn Snapshotter>,
    runtime: Arc<dyn Runtime>,
    probe: Arc<dyn HealthProbe>,
    executor: Arc<dyn Executor>,
    redactor: Redactor,
    pools: Vec<PoolName>,
    workers: usize,
    timing: Timing,
    log_limit: LogLimit,
    /// Something happened in this process that its watchers may want to know.
    nudge: Notify,
    /// Something happened in this process that may have given its workers something to claim, or to cancel.
    work: Notify,
    cleaned: upkeep::Cleaned,
    clock: upkeep::Clock,
}

impl Shared {
    /// Tells those of this process who wait for news or for work. Other processes learn of it from the store.
    fn tell_of_work(&self) {
        self.nudge.notify_waiters();
        self.work.notify_waiters();
    }
}

impl Engine {
    /// Begins to put an engine together.
    ///
    /// ```compile_fail,E0277
    /// # use ocore_core::engine::Engine;
    /// Engine::builder().store("not a store"); // an adapter is whatever implements its port
    /// ```
    pub fn builder() -> EngineBuilder {
        EngineBuilder::new()
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { pools, workers, timing, .. } = &*self.shared;
        f.debug_struct("Engine")
            .field("pools", pools)
            .field("workers", workers)
            .field("timing", timing)
            .finish_non_exhaustive()
    }
}
