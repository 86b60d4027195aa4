use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{LogLimit, SnapshotRecord, StoreResult};
use crate::{
    deployment::{Deployment, KeptByStore},
    environment::Environment,
    event::NewEvent,
    id::{DeploymentId, Fence, WorkerId},
    machine::{State, Status},
    name::{EnvironmentName, PoolName},
    release::Live,
    request::NewDeployment,
};

/// The queue: a lane per environment, strictly first in, first out, one deployment active at a time.
///
/// A lane is claimed as a whole. Its holder is the worker, for as long as the worker's heartbeats keep its lease
/// alive; then anyone may rescue it. The lane's fence grows at every claim and whenever the holder asks for a
/// fresh one; a write with an older fence changes nothing.
#[async_trait]
pub trait QueueStore: Send + Sync + 'static {
    /// Accepts a deployment at the end of its lane, and cancels what it supersedes
    /// ([`queue::supersedes`](crate::queue::supersedes)), in one transaction. `at` stamps the record.
    ///
    /// *Called again* with the same id, or with a key that the environment has seen: [`Enqueued::Existing`].
    async fn enqueue(&self, new: NewDeployment, at: DateTime<Utc>) -> StoreResult<Enqueued>;

    /// Registers the worker or extends its lease, and tells what it holds. A worker whose lease has run out is
    /// refused for ever ([`Beat::Expired`]).
    async fn heartbeat(&self, worker: &Worker) -> StoreResult<Beat>;

    /// Claims a lane for the worker, which must be registered: first one that it holds already but does not know
    /// of (`busy` lists those that it knows; an earlier answer was lost), then one whose holder's lease has run
    /// out, then the first deployment of a free lane ([`LaneQueue::runnable`]). Takes a new fence.
    async fn claim(&self, worker: &Worker, busy: &[EnvironmentName]) -> StoreResult<Claimed>;

    /// Writes a deployment's next state, with everything that belongs to it, if the fence is still the lane's and
    /// the record's version follows the stored one.
    ///
    /// *Called again* after [`Unknown`](super::StoreErrorKind::Unknown), with the same argument: the answer that
    /// the first call would have given.
    async fn commit(&self, commit: &Commit) -> StoreResult<Committed>;

    /// Cancels a queued deployment at once; marks an active one, so that the next heartbeat or commit of its
    /// worker tells it.
    async fn request_cancel(
        &self,
        deployment: DeploymentId,
        actor: &str,
        at: DateTime<Utc>,
    ) -> StoreResult<CancelAnswer>;

    /// The worker ends: what it still holds can be rescued at once.
    async fn retire(&self, worker: WorkerId) -> StoreResult<()>;

    /// The environment's lane as it is now. `None` if there is no such environment.
    async fn lane(&self, environment: &EnvironmentName) -> StoreResult<Option<LaneQueue>>;

    /// Completes when something may have changed: work to claim, a cancel, an event. Only a hint: it may complete
    /// for nothing or never; the engine polls as well.
    async fn changed(&self);
}

/// A worker process, as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Worker {
    /// Its id: fresh per process start, and after every loss of the lease.
    pub id: WorkerId,
    /// The pools that it serves.
    pub pools: Vec<PoolName>,
    /// How long a heartbeat keeps its lanes.
    pub lease: Duration,
}

impl Worker {
    /// A worker.
    #[must_use]
    pub const fn new(id: WorkerId, pools: Vec<PoolName>, lease: Duration) -> Self {
        Self { id, pools, lease }
    }
}

/// The answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Beat {
    /// The lease is extended; these lanes are the worker's.
    Alive(Vec<Held>),
    /// The lease has run out: stop everything, and begin again under a new id.
    Expired,
}

/// A lane that a worker holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Held {
    /// The lane.
    pub environment: EnvironmentName,
    /// Its active deployment.
    pub deployment: DeploymentId,
    /// Its fence.
    pub fence: Fence,
    /// Whether a cancel is wanted.
    pub cancel: bool,
}

impl Held {
    /// A held lane.
    #[must_use]
    pub const fn new(
        environment: EnvironmentName,
        deployment: DeploymentId,
        fence: Fence,
        cancel: bool,
    ) -> Self {
        Self { environment, deployment, fence, cancel }
    }
}

/// The answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Claimed {
    /// A lane to work on.
    Work(Box<Claim>),
    /// There is nothing to do now.
    Idle {
        /// When the next wait of a lane of these pools ends, if one is waiting.
        next: Option<Duration>,
    },
    /// The worker's lease has run out.
    Expired,
}

/// A lane that a worker has just taken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claim {
    /// Its active deployment, marked as begun.
    pub deployment: Deployment,
    /// The environment's present settings.
    pub environment: Arc<Environment>,
    /// What it serves.
    pub live: Option<Arc<Live>>,
    /// The stranded deployments that were acknowledged since a deployment last ended Running, oldest first.
    pub acknowledged: Vec<DeploymentId>,
    /// The lane's new fence.
    pub fence: Fence,
    /// Whether another worker had begun the step and never reported back.
    pub lost_worker: bool,
}

impl Claim {
    /// A claim in an environment where nothing stranded was acknowledged.
    #[must_use]
    pub const fn new(
        deployment: Deployment,
        environment: Arc<Environment>,
        live: Option<Arc<Live>>,
        fence: Fence,
        lost_worker: bool,
    ) -> Self {
        Self { deployment, environment, live, acknowledged: Vec::new(), fence, lost_worker }
    }
}

/// A deployment's next state, and everything that is written with it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Commit {
    /// The worker that holds the lane.
    pub worker: WorkerId,
    /// The fence that it holds.
    pub fence: Fence,
    /// The record as it is to be, its version one above the stored one. Of [`Deployment::kept_by_store`] only the
    /// version counts.
    pub deployment: Deployment,
    /// What becomes of the lane.
    pub next: Next,
    /// Events to append.
    pub events: Vec<NewEvent>,
    /// The limit on the deployment's log.
    pub log_limit: LogLimit,
    /// Snapshots to record, or to record anew.
    pub snapshots: Vec<SnapshotRecord>,
}

impl Commit {
    /// A commit without events and snapshots so far.
    #[must_use]
    pub const fn new(worker: WorkerId, fence: Fence, deployment: Deployment, next: Next) -> Self {
        Self {
            worker,
            fence,
            deployment,
            next,
            events: Vec::new(),
            log_limit: LogLimit::DEFAULT,
            snapshots: Vec::new(),
        }
    }

    /// The record as a store writes it: what the store keeps comes from the stored record, and whether the next
    /// step counts as begun from what becomes of the lane. A deployment that was claimed is not queued any more,
    /// even if it is given back before its first step.
    #[must_use]
    pub fn record(&self, stored: &KeptByStore) -> Deployment {
        let mut deployment = self.deployment.clone();
        let version = deployment.kept_by_store.version;
        let begun = matches!(self.next, Next::Continue { .. }) || deployment.state == State::Queued;
        deployment.kept_by_store = KeptByStore { version, begun, ..stored.clone() };
        deployment
    }
}

/// What becomes of the lane.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Next {
    /// The worker goes on with the next step, which counts as begun.
    Continue {
        /// The lane takes a new fence first.
        fresh_fence: bool,
    },
    /// The worker gives the lane back; the step is begun by whoever claims it, not before `after` has passed.
    Release {
        /// The wait.
        after: Duration,
    },
    /// The deployment is over.
    Finish(Finish),
}

/// What a finished deployment changes in its environment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Finish {
    /// What serves now, if that has changed.
    pub live: Option<Live>,
    /// The environment needs a person (`Some(true)`), or does not any more (`Some(false)`).
    pub attention: Option<bool>,
    /// Claim the next deployment of the lane for the same worker.
    pub claim_next: bool,
    /// `true` if the deployment ends Running: refused while a cancel is pending. What was acknowledged is forgotten.
    pub verdict: bool,
}

/// The answer to a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Committed {
    /// Written; go on.
    Continued {
        /// The lane's fence now.
        fence: Fence,
        /// Whether a cancel is wanted.
        cancel: bool,
    },
    /// Written; the lane is given back.
    Released,
    /// Written; the deployment is over.
    Finished {
        /// The lane's next deployment, claimed.
        successor: Option<Box<Claim>>,
    },
    /// Nothing was written: a cancel came before the verdict.
    CancelPending,
    /// Nothing was written: the lane is not the worker's any more. Stop, and write nothing more.
    Fenced,
}

/// The answer to an enqueue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Enqueued {
    /// Accepted.
    Accepted {
        /// The record.
        deployment: Box<Deployment>,
        /// The queued pushes whose place it took.
        superseded: Vec<DeploymentId>,
    },
    /// It was accepted before.
    Existing(Box<Deployment>),
    /// There is no such environment.
    NoSuchEnvironment,
    /// The queue is full.
    Full {
        /// The environment's limit.
        length_max: usize,
    },
    /// The recovery of a deployment that the environment does not wait for.
    NotWaiting,
}

/// The answer to a request to cancel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CancelAnswer {
    /// It was queued and is cancelled.
    Cancelled,
    /// It is under way: it will be stopped, and undone if it has touched anything.
    Requested,
    /// It is being undone already.
    Undoing,
    /// It is over.
    Over(Status),
    /// There is no such deployment.
    NoSuchDeployment,
}

/// A lane as the queue's rules see it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LaneQueue {
    /// Whether the environment is paused.
    pub paused: bool,
    /// The stranded deployment that the environment waits for.
    pub attention: Option<DeploymentId>,
    /// The deployment that is under way.
    pub active: Option<DeploymentId>,
    /// The deployments that wait, in order, and for recoveries the stranded deployment that they recover.
    pub waiting: Vec<(DeploymentId, Option<DeploymentId>)>,
}
