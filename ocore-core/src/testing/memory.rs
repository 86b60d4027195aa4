//! A whole store in memory: the reference model that the laws and the other stores are checked against.
//!
//! A full citizen: everything that [`port::Store`](crate::port::Store) promises holds, but for outliving the
//! process. Leases and waits are counted by the executor's monotonic clock. A claim costs a logarithm of the
//! number of lanes and a pass over the workers that hold one, whatever the length of the history.
//!
//! Where the contract leaves a choice, this store says what is right, and the laws hold the others to it:
//!
//! * Among the lanes that can be claimed, the one whose worker has been lost longest comes first, then the one
//!   whose wait has been over longest, then the free lane that has waited longest for a worker. A lane that has
//!   just finished a deployment goes to the end of that line.
//! * A commit is judged by the lane's holder and fence alone: a holder whose lease has run out can still commit,
//!   as long as nobody has rescued the lane.
//! * A worker that claims a lane which it holds already gets what the lost answer told it: `lost_worker` is what
//!   it was then, because a step whose claim was never received was never begun. After a commit in between the
//!   worker must have known of the lane, so that the step may have been begun: then it is `true`.
//! * A wait is over when a cancel is wanted.
//! * A recovery that strands again is what the environment waits for from then on.

mod environments;
mod history;
mod lanes;
mod log;
#[cfg(test)]
mod mutant;
mod queue;
mod snapshots;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::sync::Notify;

use self::{lanes::Lanes, log::Log};
use crate::{
    deployment::Deployment,
    environment::Environment,
    event::{Event, NewEvent},
    executor::Executor,
    id::{DeploymentId, EventSeq, Fence, WorkerId},
    name::EnvironmentName,
    port::{
        Acknowledged, Beat, CancelAnswer, Claimed, Commit, Committed, Enqueued, EnvironmentRecord,
        EnvironmentStore, Filter, HistoryStore, LaneQueue, LogLimit, LogStore, Page, QueueStore, Saved,
        SnapshotPin, SnapshotRecord, SnapshotStore, StoreError, StoreErrorKind, StoreResult, Worker,
    },
    request::NewDeployment,
};

/// A store in memory. Clones share one state, as several clients of a server do.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

struct Shared {
    executor: Arc<dyn Executor>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Clone, Default)]
struct State {
    lanes: Lanes,
    records: BTreeMap<DeploymentId, Record>,
    /// Every deployment, in the order of acceptance.
    accepted: Vec<DeploymentId>,
    /// The environments whose commits fail.
    broken: BTreeSet<EnvironmentName>,
}

/// A deployment and what belongs to it.
#[derive(Debug, Clone)]
struct Record {
    deployment: Deployment,
    /// Its place in the order of acceptance.
    place: usize,
    /// What the last commit was answered, for when it is made again.
    receipt: Option<Receipt>,
    log: Log,
}

#[derive(Debug, Clone)]
struct Receipt {
    worker: WorkerId,
    fence: Fence,
    answer: Answered,
}

#[derive(Debug, Clone, Copy)]
enum Answered {
    Continued { fence: Fence },
    Released,
    Finished { successor: Option<(DeploymentId, Fence)> },
}

impl MemoryStore {
    /// An empty store whose leases and waits are counted by the executor's clock.
    #[must_use]
    pub fn new(executor: Arc<dyn Executor>) -> Self {
        let shared = Shared { executor, state: Mutex::default(), changed: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Another store that holds what this one holds now, and shares nothing with it. Leases and waits end when they would have
    /// ended here.
    #[must_use]
    pub fn fork(&self, executor: Arc<dyn Executor>) -> Self {
        let state = Mutex::new(self.state().clone());
        Self { shared: Arc::new(Shared { executor, state, changed: Notify::new() }) }
    }

    /// All that it holds, in words: what has the same contents says the same from here on, but for the clock.
    #[must_use]
    pub fn contents(&self) -> String {
        format!("{:?}", self.state())
    }

    /// From now on the commits of the environment fail as if its rows were damaged, or no longer.
    pub fn damage(&self, environment: &EnvironmentName, damaged: bool) {
        let mut state = self.state();
        if damaged {
            state.broken.insert(environment.clone());
        } else {
            state.broken.remove(environment);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic of one call leaves the state as a broken invariant found it; the others show what it was.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.shared.executor.now()
    }

    /// Wakes everybody who waits for a change.
    fn tell<T>(&self, answer: T) -> StoreResult<T> {
        self.shared.changed.notify_waiters();
        Ok(answer)
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let deployments = self.state().records.len();
        f.debug_struct("MemoryStore").field("deployments", &deployments).finish_non_exhaustive()
    }
}

#[async_trait]
impl EnvironmentStore for MemoryStore {
    async fn save_environment(&self, environment: &Environment) -> StoreResult<Saved> {
        let saved = self.state().save_environment(environment);
        self.tell(saved)
    }

    async fn environment(&self, name: &EnvironmentName) -> StoreResult<Option<EnvironmentRecord>> {
        Ok(self.state().environment(name))
    }

    async fn environments(&self) -> StoreResult<Vec<EnvironmentRecord>> {
        Ok(self.state().environments())
    }

    async fn set_paused(&self, name: &EnvironmentName, by: Option<String>) -> StoreResult<bool> {
        let known = self.state().set_paused(name, by);
        self.tell(known)
    }

    async fn acknowledge(
        &self,
        name: &EnvironmentName,
        stranded: DeploymentId,
        actor: &str,
        at: DateTime<Utc>,
    ) -> StoreResult<Acknowledged> {
        let acknowledged = self.state().acknowledge(name, stranded, actor, at);
        self.tell(acknowledged)
    }
}

#[async_trait]
impl QueueStore for MemoryStore {
    async fn enqueue(&self, new: NewDeployment, at: DateTime<Utc>) -> StoreResult<Enqueued> {
        let enqueued = self.state().enqueue(new, at);
        self.tell(enqueued)
    }

    async fn heartbeat(&self, worker: &Worker) -> StoreResult<Beat> {
        let now = self.now();
        Ok(self.state().heartbeat(worker, now))
    }

    async fn claim(&self, worker: &Worker, busy: &[EnvironmentName]) -> StoreResult<Claimed> {
        let now = self.now();
        Ok(self.state().claim(worker, busy, now))
    }

    async fn commit(&self, commit: &Commit) -> StoreResult<Committed> {
        let now = self.now();
        if self.state().broken.contains(&commit.deployment.environment) {
            return Err(StoreError::new(
                StoreErrorKind::Broken,
                "write a commit: the environment is damaged",
            ));
        }
        let committed = self.state().commit(commit, now);
        self.tell(committed)
    }

    async fn request_cancel(
        &self,
        deployment: DeploymentId,
        actor: &str,
        at: DateTime<Utc>,
    ) -> StoreResult<CancelAnswer> {
        let now = self.now();
        let answer = self.state().request_cancel(deployment, actor, at, now);
        self.tell(answer)
    }

    async fn retire(&self, worker: WorkerId) -> StoreResult<()> {
        let now = self.now();
        self.state().lanes.retire(worker, now);
        self.tell(())
    }

    async fn lane(&self, environment: &EnvironmentName) -> StoreResult<Option<LaneQueue>> {
        Ok(self.state().lanes.find(environment).map(|lane| lane.queue.clone()))
    }

    /// Wakes up for everything that changes after this call, not only after the first poll of its future.
    fn changed<'life0, 'async_trait>(&'life0 self) -> Pin<Box<dyn Future<Output = ()> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(self.shared.changed.notified())
    }
}

#[async_trait]
impl HistoryStore for MemoryStore {
    async fn deployment(&self, id: DeploymentId) -> StoreResult<Option<Deployment>> {
        Ok(self.state().records.get(&id).map(|record| record.deployment.clone()))
    }

    async fn history(
        &self,
        filter: &Filter,
        before: Option<DeploymentId>,
        limit: usize,
    ) -> StoreResult<Page> {
        Ok(self.state().history(filter, before, limit))
    }
}

#[async_trait]
impl LogStore for MemoryStore {
    async fn append(
        &self,
        environment: &EnvironmentName,
        deployment: DeploymentId,
        fence: Fence,
        events: Vec<NewEvent>,
        limit: LogLimit,
    ) -> StoreResult<bool> {
        let appended = self.state().append(environment, deployment, fence, events, limit);
        self.tell(appended)
    }

    async fn events(
        &self,
        deployment: DeploymentId,
        after: EventSeq,
        limit: usize,
    ) -> StoreResult<Vec<Event>> {
        Ok(self.state().events(deployment, after, limit))
    }
}

#[async_trait]
impl SnapshotStore for MemoryStore {
    async fn snapshots(&self, environment: &EnvironmentName) -> StoreResult<Vec<SnapshotRecord>> {
        Ok(self.state().snapshots(environment))
    }

    async fn retire_snapshots(
        &self,
        environment: &EnvironmentName,
        references: &[String],
        at: DateTime<Utc>,
    ) -> StoreResult<Vec<String>> {
        Ok(self.state().retire_snapshots(environment, references, at))
    }

    async fn forget_snapshots(
        &self,
        environment: &EnvironmentName,
        references: &[String],
    ) -> StoreResult<()> {
        self.state().forget_snapshots(environment, references);
        Ok(())
    }

    async fn pin_snapshots(
        &self,
        environment: &EnvironmentName,
        deployment: DeploymentId,
        pin: &SnapshotPin,
    ) -> StoreResult<bool> {
        Ok(self.state().pin_snapshots(environment, deployment, pin))
    }
}
