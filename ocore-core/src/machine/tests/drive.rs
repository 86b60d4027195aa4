//! Deployments driven by hand: what each attempt at a step does is said by the test.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, TimeZone, Utc};

use crate::{
    environment::{Environment, EnvironmentSpec, InstanceSpec, SnapshotWhen},
    failure::{Failure, FailureClass},
    id::DeploymentId,
    machine::{Cancel, Fold, Located, Report, State, Step, Stopped, begin},
    name::InstanceName,
    release::{Commit, Image, Live, LiveInstance, Release, Snapshot, Started, Window},
    request::{Goal, Revision, RollbackMode},
};

/// The deployment that is driven.
pub(crate) const ID: DeploymentId = DeploymentId::from_u128(0x5eed);
/// What was live before.
pub(crate) const BEFORE: DeploymentId = DeploymentId::from_u128(0xbef0);
/// What a rollback goes back to.
pub(crate) const EARLIER: DeploymentId = DeploymentId::from_u128(0xea71);

const TOOK: Duration = Duration::from_millis(1500);

/// What a deployment finds, and what is asked of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) previous: bool,
    pub(crate) update: bool,
    pub(crate) when: SnapshotWhen,
    pub(crate) aim: PlannedAim,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum PlannedAim {
    Deploy,
    Rollback { mode: RollbackMode, image_present: bool },
}

impl Plan {
    /// A deployment over a previous one, without a migration.
    pub(crate) const DEPLOY: Self =
        Self { previous: true, update: false, when: SnapshotWhen::BeforeStop, aim: PlannedAim::Deploy };
    /// A deployment over a previous one, with a migration.
    pub(crate) const UPDATE: Self = Self { update: true, ..Self::DEPLOY };
    /// The first deployment of an environment.
    pub(crate) const FIRST: Self = Self { previous: false, ..Self::UPDATE };
    /// A rollback with data, whose image is there.
    pub(crate) const ROLLBACK: Self = Self {
        update: true,
        aim: PlannedAim::Rollback { mode: RollbackMode::CodeAndData, image_present: true },
        ..Self::DEPLOY
    };

    pub(crate) const fn after_stop(self) -> Self {
        Self { when: SnapshotWhen::AfterStop, ..self }
    }

    /// The first step.
    pub(crate) fn begin(self) -> State {
        self.begin_after(Vec::new())
    }

    /// The same, where these stranded and were acknowledged.
    pub(crate) fn begin_after(self, acknowledged: Vec<DeploymentId>) -> State {
        let previous = self.previous.then(|| Arc::new(live(BEFORE)));
        begin(ID, &self.goal(), Arc::new(environment(self.when)), previous, acknowledged)
    }

    fn goal(self) -> Goal {
        match self.aim {
            PlannedAim::Deploy => Goal::Deploy(Revision::Branch("main".into())),
            PlannedAim::Rollback { mode, .. } => Goal::Rollback { to: EARLIER, mode },
        }
    }

    fn image(self) -> Image {
        Image::new("image-of-5eed").with_update(self.update).with_setting("web", "serve $PORT")
    }

    fn located(self) -> Located {
        let PlannedAim::Rollback { mode, image_present } = self.aim else {
            unreachable!("only a rollback locates a release");
        };
        let release = Release::new(EARLIER, commit(), self.image());
        let load = (mode == RollbackMode::CodeAndData).then(|| snapshots("load"));
        Located::new(release, image_present, load)
    }
}

/// What comes of one attempt.
#[derive(Debug, Clone)]
pub(crate) enum Attempt {
    /// It is done.
    Done,
    /// It failed; these instances were done all the same, and their evidence is kept.
    Failed(FailureClass, BTreeSet<InstanceName>),
    /// Its worker died while it was under way.
    Lost,
    /// It was interrupted by a graceful shutdown.
    Interrupted,
    /// It was given back, and claimed the next day.
    ClaimedLate,
    /// It was cancelled, before or after it was begun.
    Cancelled { begun: bool },
}

impl Attempt {
    pub(crate) const TRANSIENT: Self = Self::Failed(FailureClass::Transient, BTreeSet::new());
    pub(crate) const UNANSWERED: Self = Self::Failed(FailureClass::Unanswered, BTreeSet::new());
    pub(crate) const PERMANENT: Self = Self::Failed(FailureClass::Permanent, BTreeSet::new());

    /// The first instance was done, the second was not.
    pub(crate) fn partly(class: FailureClass) -> Self {
        Self::Failed(class, instances().into_iter().take(1).collect())
    }
}

/// Makes one attempt at the step that waits to run.
pub(crate) fn attempt(plan: Plan, state: State, attempt: &Attempt) -> State {
    match state {
        State::Queued | State::Finished(_) => unreachable!("no step waits to run"),
        State::Locate(state) => fold(state, attempt, |_| plan.located(), |_| ()),
        State::Fetch(state) => fold(state, attempt, |_| commit(), |_| ()),
        State::Build(state) => fold(state, attempt, |_| plan.image(), |_| ()),
        State::Snapshot(state) => fold(state, attempt, snapshots_of, snapshots_of),
        State::Stop(state) => fold(state, attempt, |_| Stopped::new(windows()), BTreeSet::clone),
        State::Restore(state) => fold(state, attempt, |_| (), BTreeSet::clone),
        State::Update(state) => fold(state, attempt, |_| (), |_| ()),
        State::Start(state) => fold(state, attempt, started, started),
        State::Probe(state) => fold(state, attempt, |_| (), |_| ()),
        State::Withdraw(state) => fold(state, attempt, |_| (), BTreeSet::clone),
        State::Revive(state) => fold(state, attempt, started, started),
    }
}

fn fold<F: Fold>(
    state: F,
    attempt: &Attempt,
    evidence: impl Fn(&BTreeSet<InstanceName>) -> F::Evidence,
    kept: impl Fn(&BTreeSet<InstanceName>) -> F::Kept,
) -> State {
    match attempt {
        Attempt::Done => state.fold(Report::Done(evidence(&instances())), TOOK).state,
        Attempt::Failed(class, done) => {
            let failures = vec![failure(F::STEP, *class)];
            state.fold(Report::Failed { kept: kept(done), failures }, TOOK).state
        }
        Attempt::Lost => state.into().lost_worker(),
        Attempt::Interrupted => state.into().interrupted(),
        Attempt::ClaimedLate => state.into().claimed(Duration::from_secs(24 * 3600)),
        Attempt::Cancelled { begun } => match state.into().cancel(*begun) {
            Cancel::Accepted(state) | Cancel::TooLate(state) => state,
        },
    }
}

pub(crate) fn failure(step: Step, class: FailureClass) -> Failure {
    Failure::new(step, class, format!("planted: {step}"))
}

pub(crate) fn instances() -> BTreeSet<InstanceName> {
    ["a", "b"].into_iter().map(|name| InstanceName::new(name).unwrap()).collect()
}

pub(crate) fn environment(when: SnapshotWhen) -> Environment {
    let instance = |name: &str, port| {
        InstanceSpec::new(name)
            .port(port)
            .database(format!("shop_{name}"))
            .data_directory(format!("/srv/shop/{name}"))
            .variable("WORKERS", "2")
    };
    let spec = EnvironmentSpec::new("shop", "https://git.example.org/shop.git")
        .pool("server-1")
        .branch("release/*")
        .instance(instance("a", 8069))
        .instance(instance("b", 8070))
        .policy(|policy| {
            policy.snapshot = when;
            // As the golden files have it, whatever the default is today.
            policy.deadlines.fetch = Duration::from_secs(600);
            policy.health.host = Some("shop.example.org".into());
        });
    Environment::try_from(spec).unwrap()
}

/// A moment, so many seconds after the beginning of 2026.
pub(crate) fn at(seconds: i64) -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 1, 1, 0, 0, 0).unwrap() + chrono::TimeDelta::seconds(seconds)
}

pub(crate) fn commit() -> Commit {
    Commit::new(&"0123456789".repeat(4), "Sell hats\n\nAnd gloves.", "Ada", at(-1))
}

pub(crate) fn live(deployment: DeploymentId) -> Live {
    let release = Release::new(deployment, commit(), Image::new("image-before"));
    let environment = environment(SnapshotWhen::BeforeStop);
    let instances = environment.instances().iter().map(|instance| {
        let started = Started::new(format!("{}-before", instance.name));
        (instance.name.clone(), LiveInstance { instance: instance.clone(), started })
    });
    Live { deployment, release: Arc::new(release), instances: instances.collect() }
}

/// Snapshots of all instances, named after `kind`.
pub(crate) fn snapshots(kind: &str) -> BTreeMap<InstanceName, Snapshot> {
    let snapshot = |name: &InstanceName| Snapshot::new(format!("{kind}-{name}"), at(5), 4096);
    instances().iter().map(|name| (name.clone(), snapshot(name))).collect()
}

fn snapshots_of(which: &BTreeSet<InstanceName>) -> BTreeMap<InstanceName, Snapshot> {
    snapshots("before").into_iter().filter(|(name, _)| which.contains(name)).collect()
}

pub(crate) fn windows() -> BTreeMap<InstanceName, Window> {
    let window = |name: &InstanceName| match name.as_str() {
        "a" => Window::Empty,
        _ => Window::Open(Duration::from_secs(2)),
    };
    instances().into_iter().map(|name| (name.clone(), window(&name))).collect()
}

fn started(which: &BTreeSet<InstanceName>) -> BTreeMap<InstanceName, Started> {
    which.iter().map(|name| (name.clone(), Started::new(format!("{name}-5eed")))).collect()
}
