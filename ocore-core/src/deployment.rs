//! One deployment: what was asked, what came of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    environment::Environment,
    failure::{Cause, Failure},
    id::{DeploymentId, Seq},
    machine::{self, Outcome, Serving, State, Status, Step},
    name::{EnvironmentName, InstanceName},
    release::{Commit, Image, Live, Snapshot, Window},
    request::{Goal, NewDeployment, Request, Trigger},
};

/// One deployment, as the history shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Deployment {
    /// Its name, everywhere.
    pub id: DeploymentId,
    /// Its lane.
    pub environment: EnvironmentName,
    /// What was asked, and who asked.
    pub request: Request,
    /// When it was accepted.
    pub requested_at: DateTime<Utc>,
    /// When a worker first claimed it.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was last written.
    pub updated_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// How long its parts took.
    pub timings: Timings,
    /// The commit, once it is known.
    pub commit: Option<Commit>,
    /// The image, once there is one.
    pub image: Option<Image>,
    /// The snapshots that it took.
    pub snapshots: BTreeMap<InstanceName, Snapshot>,
    /// For each snapshot taken before the stop, whether something was written after it.
    pub windows: BTreeMap<InstanceName, Window>,
    /// The instances whose data was put back from those snapshots, on the way back or before another attempt.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub restored: BTreeSet<InstanceName>,
    /// The deployment that was live before and that this one replaced, and whose data its snapshots hold. `None` after
    /// something stranded was acknowledged: nobody knows what the data was like then.
    pub replaced: Option<DeploymentId>,
    /// The queued pushes whose place it took.
    pub superseded: Vec<DeploymentId>,
    /// Where it stands: alone decides what happens next.
    pub state: State,
    /// What only the store writes.
    pub kept_by_store: KeptByStore,
}

/// The part of a record that the store keeps in step with the lane; a commit changes none of it but the version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KeptByStore {
    /// The place in the lane.
    pub seq: Seq,
    /// 1 when accepted; one more at every commit.
    pub version: u64,
    /// Whether a worker has begun the step.
    pub begun: bool,
    /// Who asked to cancel it, if somebody did.
    pub cancel: Option<String>,
}

/// How long the parts of a deployment took, by monotonic clocks where one worker did them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Timings {
    /// From the request to the first claim: the time between two time stamps, made by different processes.
    pub queue_wait: Duration,
    /// Fetch and build, waits for retries included.
    pub build: Duration,
    /// From the snapshot to the end, an undo included.
    pub deployment: Duration,
    /// While nothing served that had served before.
    pub downtime: Duration,
}

impl Deployment {
    /// A deployment as it is accepted: stores make them.
    #[must_use]
    pub fn accepted(new: NewDeployment, seq: Seq, at: DateTime<Utc>) -> Self {
        Self {
            id: new.id,
            environment: new.environment,
            request: new.request,
            requested_at: at,
            started_at: None,
            updated_at: at,
            finished_at: None,
            timings: Timings::default(),
            commit: None,
            image: None,
            snapshots: BTreeMap::new(),
            windows: BTreeMap::new(),
            restored: BTreeSet::new(),
            replaced: None,
            superseded: Vec::new(),
            state: State::Queued,
            kept_by_store: KeptByStore { seq, version: 1, begun: false, cancel: None },
        }
    }

    /// The status that people see.
    #[must_use]
    pub const fn status(&self) -> Status {
        match self.state.status(self.kept_by_store.begun) {
            // The cause is that of the deployment that it undoes: the recovery itself neither failed nor was cancelled.
            Status::Cancelled | Status::Failed if self.is_done_recovery() => Status::RolledBack,
            status => status,
        }
    }

    const fn is_done_recovery(&self) -> bool {
        matches!(self.request.trigger, Trigger::Recovery { .. })
            && matches!(self.state.outcome(), Some(Outcome::Undone { .. }))
    }

    /// The step that is under way or waits to run; a queued deployment and one that is over have none.
    #[must_use]
    pub const fn step(&self) -> Option<Step> {
        self.state.step()
    }

    /// How it ended, if it is over.
    #[must_use]
    pub const fn outcome(&self) -> Option<&Outcome> {
        self.state.outcome()
    }

    /// Why it did not end Running, or is being undone; `None` for a cancel.
    #[must_use]
    pub const fn failure(&self) -> Option<&Failure> {
        match self.state.cause() {
            Some(cause) => cause.failure(),
            None => None,
        }
    }

    /// Why it could not be undone, if it is stranded: [`failure`](Self::failure) says why it was to be.
    #[must_use]
    pub const fn undo_failure(&self) -> Option<&Failure> {
        match self.outcome() {
            Some(Outcome::Stranded { failure, .. }) => Some(failure),
            _ => None,
        }
    }

    /// The instances that have lost writes: something was written after the snapshot and before the stop, and the
    /// snapshot was put back. With each the length of that window. A deployment that ended Running can have lost some
    /// too, if a step had to be tried again.
    pub fn lost_writes(&self) -> impl Iterator<Item = (&InstanceName, Duration)> {
        self.restored.iter().filter_map(|name| match self.windows.get(name) {
            Some(Window::Open(length)) => Some((name, *length)),
            _ => None,
        })
    }

    /// What serves after it; `None` while it goes on.
    #[must_use]
    pub const fn serving(&self) -> Option<Serving> {
        match self.outcome() {
            Some(outcome) => Some(outcome.serving()),
            None => None,
        }
    }

    /// The push that took its place in the queue.
    #[must_use]
    pub const fn superseded_by(&self) -> Option<DeploymentId> {
        match self.outcome() {
            Some(Outcome::Untouched(Cause::Superseded { by })) => Some(*by),
            _ => None,
        }
    }

    /// The deployment that its trigger answers: the target of a rollback, what it tries again or recovers.
    #[must_use]
    pub const fn answers(&self) -> Option<DeploymentId> {
        match self.request.trigger {
            Trigger::Rollback { to } => Some(to),
            Trigger::Retry { of } | Trigger::Recovery { of } => Some(of),
            Trigger::Push | Trigger::Manual | Trigger::Api => None,
        }
    }

    /// The deployment whose release it is to make live again: of a rollback, and of another try of one.
    #[must_use]
    pub const fn rolls_back_to(&self) -> Option<DeploymentId> {
        match self.request.goal {
            Goal::Rollback { to, .. } => Some(to),
            Goal::Deploy(_) | Goal::Recover(_) => None,
        }
    }

    /// What this deployment made live, if it ended Running.
    #[must_use]
    pub const fn live(&self) -> Option<&Live> {
        match self.outcome() {
            Some(Outcome::Running(live)) => Some(live),
            _ => None,
        }
    }

    /// The queued deployment, ended by a request to cancel it or by a newer push. Stores call this.
    #[must_use]
    pub fn ended_in_queue(mut self, cause: Cause, at: DateTime<Utc>) -> Self {
        debug_assert!(self.state == State::Queued, "only a queued deployment ends in the queue");
        self.timings.queue_wait = between(self.requested_at, at);
        self.enter(State::finished(Outcome::Untouched(cause)), at);
        self.kept_by_store.version += 1;
        self
    }

    /// Begins the first step of a queued deployment that a worker has claimed.
    pub(crate) fn begin(
        &mut self,
        environment: Arc<Environment>,
        live: Option<Arc<Live>>,
        acknowledged: Vec<DeploymentId>,
        at: DateTime<Utc>,
    ) {
        self.started_at = Some(at);
        self.timings.queue_wait = between(self.requested_at, at);
        self.state = machine::begin(self.id, &self.request.goal, environment, live, acknowledged);
    }

    /// Counts time for the state that the deployment is in.
    pub(crate) const fn spend(&mut self, elapsed: Duration) {
        let timings = &mut self.timings;
        match self.state.status(true) {
            Status::Building => timings.build = timings.build.saturating_add(elapsed),
            Status::Deploying => timings.deployment = timings.deployment.saturating_add(elapsed),
            _ => return,
        }
        if self.state.is_downtime() {
            timings.downtime = timings.downtime.saturating_add(elapsed);
        }
    }

    /// Enters the next state.
    pub(crate) fn enter(&mut self, state: State, at: DateTime<Utc>) {
        if let Some(Outcome::Running(_)) = state.outcome() {
            let job = self.state.job().filter(|job| job.acknowledged.is_empty());
            self.replaced = job.and_then(|job| job.previous.as_ref()).map(|live| live.deployment);
        }
        self.finished_at = state.outcome().map(|_| at);
        self.updated_at = at;
        self.state = state;
    }
}

/// From one reading of the wall clock to another; zero if the clock was set back.
pub(crate) fn between(from: DateTime<Utc>, to: DateTime<Utc>) -> Duration {
    (to - from).to_std().unwrap_or_default()
}
