//! What the laws work with: a store, and short words for what is done to it. Tests of one store alone can use them
//! too.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};

use super::Fixture;
use crate::{
    deployment::Deployment,
    environment::{Environment, EnvironmentSpec, InstanceSpec, Policy},
    event::{Event, EventKind, LogLine, NewEvent, Stream},
    failure::{Cause, Failure, FailureClass},
    id::{DeploymentId, EventSeq, WorkerId},
    machine::{Fold, Outcome, Report, State, Step},
    name::{EnvironmentName, PoolName},
    port::{
        Beat, Claim, Claimed, Commit, Committed, Enqueued, EnvironmentRecord, Finish, Held, Next, Saved,
        Store, Worker,
    },
    release::{self, Image, Live, LiveInstance, Release, Started},
    request::{Goal, NewDeployment, Request, Revision, RollbackMode, Trigger},
};

/// A store under test.
pub(super) struct Lab<F> {
    fixture: F,
    pub(super) store: Arc<dyn Store>,
    drawn: AtomicU64,
}

/// Longer than any law takes.
const LONG: u32 = 10_000;

/// The environment's name.
///
/// # Panics
/// If it is not allowed.
#[must_use]
pub fn name(text: &str) -> EnvironmentName {
    EnvironmentName::new(text).expect("the laws use names that are allowed")
}

/// A time stamp of the laws: whole seconds after a fixed moment.
#[must_use]
pub fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(20_000) + TimeDelta::seconds(seconds)
}

/// The id with this number.
#[must_use]
pub fn id(number: u64) -> DeploymentId {
    DeploymentId::from_u128(u128::from(number))
}

/// An environment of this name with the settings that `change` gives it; with one instance if it gives it none.
///
/// # Panics
/// If the settings are not valid.
#[must_use]
pub fn environment(text: &str, change: impl FnOnce(EnvironmentSpec) -> EnvironmentSpec) -> Environment {
    let spec = EnvironmentSpec::new(text, "https://git.example.org/shop.git");
    let mut spec = change(spec);
    if spec.instances.is_empty() {
        spec = spec.instance(InstanceSpec::new("web"));
    }
    Environment::try_from(spec).expect("the laws use environments that are valid")
}

/// A line of output.
#[must_use]
pub fn line(text: &str) -> NewEvent {
    let line = LogLine::new(Step::Fetch, None, Stream::Engine, text.to_owned());
    NewEvent::new(at(0), EventKind::Log(line))
}

/// A milestone.
#[must_use]
pub const fn began(step: Step) -> NewEvent {
    NewEvent::new(DateTime::UNIX_EPOCH, EventKind::Began { step })
}

/// What a deployment of this environment makes live.
#[must_use]
pub fn live(environment: &Environment, deployment: DeploymentId) -> Live {
    let commit = release::Commit::new(&"a".repeat(40), "Say hello", "Ada", at(0));
    let release = Release::new(deployment, commit, Image::new("image"));
    let instances = environment.instances().iter().map(|instance| {
        let live = LiveInstance { instance: instance.clone(), started: Started::new("process") };
        (instance.name.clone(), live)
    });
    Live { deployment, release: Arc::new(release), instances: instances.collect::<BTreeMap<_, _>>() }
}

/// A deployment that can be enqueued, with this number as its id.
#[must_use]
pub fn new_deployment(number: u64, lane: &EnvironmentName, trigger: Trigger) -> NewDeployment {
    let goal = match trigger {
        Trigger::Rollback { to } => Goal::Rollback { to, mode: RollbackMode::CodeAndData },
        _ => Goal::Deploy(Revision::Branch("main".to_owned())),
    };
    let request = Request { trigger, actor: "ada".to_owned(), goal, key: None };
    NewDeployment { id: id(number), environment: lane.clone(), request }
}

impl<F: Fixture> Lab<F> {
    pub(super) async fn new(fixture: F) -> Self {
        let store = fixture.client().await;
        Self { fixture, store, drawn: AtomicU64::new(0) }
    }

    /// A lab with one environment of the name `a`.
    pub(super) async fn with_lane(fixture: F) -> (Self, EnvironmentName) {
        let lab = Self::new(fixture).await;
        let lane = lab.lane("a").await;
        (lab, lane)
    }

    pub(super) async fn client(&self) -> Arc<dyn Store> {
        self.fixture.client().await
    }

    pub(super) fn units(&self, count: u32) -> Duration {
        self.fixture.unit() * count
    }

    pub(super) async fn pass(&self, units: u32) {
        self.fixture.pass(self.units(units)).await;
    }

    pub(super) fn draw(&self) -> u64 {
        1000 + self.drawn.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) async fn save(&self, environment: &Environment) -> Saved {
        self.store.save_environment(environment).await.expect("an environment can be saved")
    }

    pub(super) async fn lane(&self, text: &str) -> EnvironmentName {
        self.lane_with(text, |_| {}).await
    }

    pub(super) async fn lane_with(&self, text: &str, change: impl FnOnce(&mut Policy)) -> EnvironmentName {
        assert_eq!(self.save(&environment(text, |spec| spec.policy(change))).await, Saved::Created);
        name(text)
    }

    pub(super) async fn environment(&self, lane: &EnvironmentName) -> EnvironmentRecord {
        let record = self.store.environment(lane).await.expect("an environment can be read");
        record.expect("the environment was saved")
    }

    /// A registered worker whose lease lasts as long as the law.
    pub(super) async fn worker(&self) -> Worker {
        self.worker_for(LONG).await
    }

    /// A registered worker whose lease lasts for so many units.
    pub(super) async fn worker_for(&self, units: u32) -> Worker {
        let id = WorkerId::from_u128(u128::from(self.draw()));
        let worker = Worker::new(id, vec![PoolName::default()], self.units(units));
        assert_eq!(self.beat(&worker).await, Beat::Alive(Vec::new()), "a new worker holds nothing");
        worker
    }

    pub(super) async fn beat(&self, worker: &Worker) -> Beat {
        self.store.heartbeat(worker).await.expect("a heartbeat is answered")
    }

    pub(super) async fn held(&self, worker: &Worker) -> Vec<Held> {
        match self.beat(worker).await {
            Beat::Alive(held) => held,
            Beat::Expired => panic!("the worker's lease has not run out"),
        }
    }

    pub(super) fn new_deployment(&self, lane: &EnvironmentName, trigger: Trigger) -> NewDeployment {
        new_deployment(self.draw(), lane, trigger)
    }

    pub(super) async fn try_enqueue(&self, new: NewDeployment) -> Enqueued {
        self.store.enqueue(new, at(0)).await.expect("an enqueue is answered")
    }

    pub(super) async fn enqueue(&self, lane: &EnvironmentName, trigger: Trigger) -> DeploymentId {
        match self.try_enqueue(self.new_deployment(lane, trigger)).await {
            Enqueued::Accepted { deployment, .. } => deployment.id,
            other => panic!("the deployment is not accepted: {other:?}"),
        }
    }

    pub(super) async fn manual(&self, lane: &EnvironmentName) -> DeploymentId {
        self.enqueue(lane, Trigger::Manual).await
    }

    pub(super) async fn deployment(&self, id: DeploymentId) -> Deployment {
        let deployment = self.store.deployment(id).await.expect("a deployment can be read");
        deployment.unwrap_or_else(|| panic!("{id} was accepted and is not there"))
    }

    pub(super) async fn events(&self, id: DeploymentId) -> Vec<Event> {
        self.store.events(id, EventSeq::default(), 10_000).await.expect("events can be read")
    }

    pub(super) async fn try_claim(&self, worker: &Worker, busy: &[EnvironmentName]) -> Claimed {
        self.store.claim(worker, busy).await.expect("a claim is answered")
    }

    /// Claims; there must be something to claim.
    pub(super) async fn claim(&self, worker: &Worker, busy: &[EnvironmentName]) -> Claim {
        match self.try_claim(worker, busy).await {
            Claimed::Work(claim) => *claim,
            other => panic!("nothing is claimed: {other:?}"),
        }
    }

    /// Claims; there must be nothing to claim. How long to wait.
    pub(super) async fn idle(&self, worker: &Worker, busy: &[EnvironmentName]) -> Option<Duration> {
        match self.try_claim(worker, busy).await {
            Claimed::Idle { next } => next,
            other => panic!("there is something to claim: {other:?}"),
        }
    }

    pub(super) async fn commit(&self, commit: &Commit) -> Committed {
        self.store.commit(commit).await.expect("a commit is answered")
    }

    /// Commits what must be accepted.
    pub(super) async fn write(&self, commit: &Commit) -> Committed {
        let committed = self.commit(commit).await;
        assert!(committed != Committed::Fenced, "the holder is refused: {commit:?}");
        committed
    }

    /// The claimed deployment goes on with its next step; afterwards it is what the worker has of it.
    pub(super) async fn go_on(&self, worker: &Worker, claim: &mut Claim) {
        let commit = go_on(worker, claim);
        let Committed::Continued { fence, .. } = self.write(&commit).await else {
            panic!("the deployment does not go on")
        };
        claim.deployment = commit.deployment;
        claim.fence = fence;
    }

    pub(super) async fn finish(&self, worker: &Worker, claim: &Claim) {
        let commit = fail(worker, claim, Finish::default());
        assert_eq!(self.write(&commit).await, Committed::Finished { successor: None });
    }

    /// Claims the lane's next deployment and lets it become live.
    pub(super) async fn make_live(&self, worker: &Worker) -> Live {
        let claim = self.claim(worker, &[]).await;
        let live = live(&claim.environment, claim.deployment.id);
        let finished = self.write(&succeed(worker, &claim, &live)).await;
        assert_eq!(finished, Committed::Finished { successor: None });
        live
    }

    /// Claims the lane's next deployment and lets it strand: the environment needs a person.
    pub(super) async fn strand(&self, worker: &Worker) -> DeploymentId {
        let claim = self.claim(worker, &[]).await;
        let finish = Finish { attention: Some(true), ..Finish::default() };
        let finished = self.write(&fail(worker, &claim, finish)).await;
        assert_eq!(finished, Committed::Finished { successor: None });
        claim.deployment.id
    }
}

/// The claimed deployment's record, one version on, in the state that `enter` makes of it.
fn written(claim: &Claim, enter: impl FnOnce(&mut Deployment)) -> Deployment {
    let mut deployment = claim.deployment.clone();
    enter(&mut deployment);
    deployment.kept_by_store.version += 1;
    deployment
}

fn next_state(claim: &Claim) -> impl FnOnce(&mut Deployment) {
    |deployment| {
        if deployment.state == State::Queued {
            deployment.begin(
                claim.environment.clone(),
                claim.live.clone(),
                claim.acknowledged.clone(),
                at(1),
            );
            return;
        }
        let next = match deployment.state.clone() {
            State::Fetch(fetch) => {
                let commit = release::Commit::new(&"b".repeat(40), "Say hello", "Ada", at(0));
                fetch.fold(Report::Done(commit), Duration::ZERO).state
            }
            state => state.interrupted(),
        };
        deployment.enter(next, at(2));
    }
}

/// The commit with which the claimed deployment goes on with its next step.
#[must_use]
pub fn go_on(worker: &Worker, claim: &Claim) -> Commit {
    let deployment = written(claim, next_state(claim));
    Commit::new(worker.id, claim.fence, deployment, Next::Continue { fresh_fence: false })
}

/// The commit that gives the lane back for so long.
#[must_use]
pub fn release(worker: &Worker, claim: &Claim, after: Duration) -> Commit {
    let deployment = written(claim, next_state(claim));
    Commit::new(worker.id, claim.fence, deployment, Next::Release { after })
}

fn end(worker: &Worker, claim: &Claim, outcome: Outcome, finish: Finish) -> Commit {
    let deployment = written(claim, |it| it.enter(State::finished(outcome), at(3)));
    Commit::new(worker.id, claim.fence, deployment, Next::Finish(finish))
}

/// The commit with which the claimed deployment fails.
#[must_use]
pub fn fail(worker: &Worker, claim: &Claim, finish: Finish) -> Commit {
    let failure = Failure::new(Step::Fetch, FailureClass::Permanent, "no such repository");
    end(worker, claim, Outcome::Untouched(Cause::Failed(failure)), finish)
}

/// The commit with which the claimed deployment becomes live.
#[must_use]
pub fn succeed(worker: &Worker, claim: &Claim, live: &Live) -> Commit {
    let finish = Finish { live: Some(live.clone()), verdict: true, ..Finish::default() };
    end(worker, claim, Outcome::Running(live.clone()), finish)
}

/// A finish that asks for the lane's next deployment.
pub(super) fn and_claim_next() -> Finish {
    Finish { claim_next: true, ..Finish::default() }
}
