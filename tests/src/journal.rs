//! What the store accepted, in order, checked at that moment against the world as it is then.

mod accepted;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ocore_core::{
    deployment::Deployment,
    engine::{EngineError, Timing},
    environment::Environment,
    executor::Executor,
    id::DeploymentId,
    machine::{Outcome, State as Machine, Step},
    name::{EnvironmentName, InstanceName},
    port::{CancelAnswer, Claim, Commit, Committed, Enqueued, StoreErrorKind},
    release::Live,
    request::{Goal, Trigger},
    testing::{
        fakes::{Data, Running, World},
        faults::{Fault, Issued},
        sim::SimExecutor,
    },
};
use tokio::sync::Notify;

pub(crate) use self::accepted::{Accepted, Moments, Track, Write};
use self::accepted::{moments, name};

/// More commits than any deployment can need: attempts are limited.
const COMMITS_MAX: u32 = 120;

/// The journal of one environment.
pub struct Journal {
    accepted: Mutex<Accepted>,
    world: World,
    clock: Arc<SimExecutor>,
    environment: EnvironmentName,
    instances: Vec<InstanceName>,
    thorough: bool,
    timing: Timing,
    signals: Arc<Signals>,
}

/// What those who wait are told of.
#[derive(Debug, Default)]
struct Signals {
    /// There may be work for somebody, or a cancel.
    changed: Notify,
    /// A deployment has ended, or a lane has become quiet in another way.
    ended: Notify,
}

/// The journals of all environments.
#[derive(Debug)]
pub(crate) struct Journals {
    journals: Vec<Journal>,
    signals: Arc<Signals>,
}

impl Journals {
    pub(crate) fn new(
        world: &World,
        clock: &Arc<SimExecutor>,
        environments: &[Environment],
        thorough: bool,
        timing: Timing,
    ) -> Self {
        let signals = Arc::<Signals>::default();
        let journal = |environment: &Environment| Journal {
            accepted: Mutex::default(),
            world: world.clone(),
            clock: clock.clone(),
            environment: environment.name().clone(),
            instances: environment.instances().iter().map(|instance| instance.name.clone()).collect(),
            thorough,
            timing,
            signals: signals.clone(),
        };
        Self { journals: environments.iter().map(journal).collect(), signals: signals.clone() }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Journal> {
        self.journals.iter()
    }

    pub(crate) fn of(&self, environment: &EnvironmentName) -> &Journal {
        self.all().find(|journal| journal.environment == *environment).unwrap_or_else(|| self.first())
    }

    /// That of the environment that nearly everything is about.
    pub(crate) fn first(&self) -> &Journal {
        &self.journals[0]
    }

    pub(crate) fn enqueued(&self, answer: &Enqueued) {
        match answer {
            Enqueued::Accepted { deployment, .. } => self.of(&deployment.environment).enqueued(answer),
            _ => self.first().enqueued(answer),
        }
    }

    pub(crate) fn cancelled(&self, id: DeploymentId, answer: &CancelAnswer) {
        let journal = self.all().find(|journal| journal.lock().tracks.contains_key(&id));
        journal.unwrap_or_else(|| self.first()).cancelled(id, answer);
    }

    /// Completes when there may be work for somebody, or a cancel.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> + Send {
        self.signals.changed.notified()
    }

    /// Completes when a deployment has ended, or a lane has become quiet in another way.
    pub(crate) fn ended(&self) -> impl Future<Output = ()> + Send {
        self.signals.ended.notified()
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("environment", &self.environment).finish_non_exhaustive()
    }
}

impl Journal {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Accepted> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn instances(&self) -> &[InstanceName] {
        &self.instances
    }

    pub(crate) const fn environment(&self) -> &EnvironmentName {
        &self.environment
    }

    pub(crate) const fn world(&self) -> &World {
        &self.world
    }

    /// Users write to whatever serves.
    pub(crate) fn users_write(&self) {
        let at = self.clock.now();
        for instance in &self.instances {
            if let Some((number, by)) = self.world.write(&self.environment, instance) {
                let write = Write { number, instance: instance.clone(), at, by };
                self.lock().writes.push(write);
            }
        }
    }

    /// A call is made, or a late one has its effect.
    pub(crate) fn issued(&self, issued: Issued) {
        let mut accepted = self.lock();
        if issued.lands {
            let before = accepted.late.get(&issued.index).copied().unwrap_or_default();
            let fenced = accepted.fence > before;
            return accepted.mark(if fenced { LANDED_AFTER_A_FENCE } else { "a late effect landed" });
        }
        if issued.fault.is_some_and(Fault::is_late) {
            let fence = accepted.fence;
            accepted.late.insert(issued.index, fence);
        }
        self.check_that_live_serves(&mut accepted);
        // Discarding one's own checkout is harmless.
        if issued.call.port != "store" && issued.call.method != "discard" {
            self.check_trust(&mut accepted, issued);
        }
    }

    /// A worker that may have lost its lease does nothing any more.
    fn check_trust(&self, accepted: &mut Accepted, issued: Issued) {
        let now = self.clock.now();
        let trusted = accepted.heartbeats.get(&issued.caller).map(|at| *at + self.timing.watchdog);
        if trusted.is_none_or(|until| now > until) {
            accepted.blame(format!("I16: {} by worker {} whose lease is over", issued.call, issued.caller));
        }
    }

    /// As long as no deployment has come to its stop, what is live serves (L3).
    fn check_that_live_serves(&self, accepted: &mut Accepted) {
        let active = accepted.active.and_then(|id| accepted.tracks.get(&id));
        let state = active.map(|track| &track.record.state);
        let recovers = active.is_some_and(|track| matches!(track.record.request.goal, Goal::Recover(_)));
        let untouched = active.is_none_or(|track| !track.stops) && !recovers;
        let Some(live) = accepted.live.as_ref().filter(|_| untouched && accepted.attention.is_none()) else {
            return;
        };
        let down = live.instances.iter().find(|(instance, live)| {
            !self.world.serves(&self.environment, instance, &live.started.reference)
        });
        if let Some((instance, live)) = down {
            let (what, step) = (&live.started.reference, state.map_or("nothing", name));
            let what = format!("L3: {instance} does not run {what} while {step} is under way");
            accepted.blame(what);
        }
    }

    /// A person has put right by hand what could not be undone, and says so.
    pub(crate) fn acknowledged(&self, stranded: DeploymentId) {
        let now = self.clock.now();
        let mut accepted = self.lock();
        accepted.mark("acknowledged");
        accepted.entries += 1;
        accepted.attention = None;
        let (live, schema, fence) = (accepted.live.clone(), accepted.schema_of_live(), accepted.fence);
        let snapshots = accepted.snapshots_of(stranded);
        for instance in &self.instances {
            let data = self.world.data(&self.environment, instance).unwrap_or_default();
            if data.half_written || data.schema != schema {
                let reference = snapshots.get(instance).map_or("", String::as_str);
                self.world.load(&self.environment, instance, reference);
            }
            let live = live.as_ref().and_then(|live| {
                let reference = live.instances.get(instance)?.started.reference.clone();
                Some(Running::new(reference, live.deployment, fence, live.release.commit.sha.clone()))
            });
            self.world.run_only(&self.environment, instance, fence, live);
        }
        let moments = moments(snapshots.iter());
        if let Some(track) = accepted.tracks.get_mut(&stranded) {
            track.restores.push((now, moments));
        }
        self.signals.changed.notify_waiters();
    }

    /// A person wants these snapshots to be kept.
    pub(crate) fn pinned(&self, references: impl Iterator<Item = String>) {
        let mut accepted = self.lock();
        accepted.mark("pinned");
        accepted.pinned.extend(references);
    }

    pub(crate) fn paused(&self, paused: bool) {
        let mut accepted = self.lock();
        accepted.paused = paused;
        accepted.mark(if paused { "paused" } else { "resumed" });
        self.signals.changed.notify_waiters();
        self.signals.ended.notify_waiters();
    }

    /// Only a store that cannot work at all is a reason; then the worker is started again.
    pub(crate) fn worker_gave_up(&self, error: &EngineError) {
        let mut accepted = self.lock();
        match error {
            EngineError::Store(error) if error.kind() == StoreErrorKind::Broken => {
                accepted.mark("a worker gave up");
            }
            error => accepted.blame(format!("a worker gave up: {error}")),
        }
    }

    pub(crate) fn heartbeat(&self, caller: usize) {
        let now = self.clock.now();
        self.lock().heartbeats.insert(caller, now);
    }

    pub(crate) fn enqueued(&self, answer: &Enqueued) {
        let mut accepted = self.lock();
        let (record, superseded) = match answer {
            Enqueued::Accepted { deployment, superseded } => (deployment.as_ref(), superseded),
            Enqueued::Existing(_) => return accepted.mark("accepted before"),
            _ => return,
        };
        self.signals.changed.notify_waiters();
        accepted.entries += 1;
        if let Some(key) = record.request.key.clone()
            && accepted.keys.insert(key.clone(), record.id).is_some()
        {
            accepted.blame(format!("I1: {key} made two deployments"));
        }
        for id in superseded {
            accepted.mark("superseded");
            let push =
                |track: &Track| track.record.request.trigger == Trigger::Push && track.began_at.is_none();
            let track = accepted.tracks.remove(id);
            if !track.as_ref().is_some_and(push) || record.request.trigger != Trigger::Push {
                accepted.blame(format!("{id} was superseded, and must not have been"));
            }
        }
        let track = Track {
            record: record.clone(),
            began_at: None,
            finished_at: None,
            restores: Vec::new(),
            loads: Moments::new(),
            stops: false,
            cancel: false,
            commits: 0,
            retries: BTreeMap::new(),
        };
        accepted.tracks.insert(record.id, track);
    }

    pub(crate) fn cancelled(&self, id: DeploymentId, answer: &CancelAnswer) {
        let mut accepted = self.lock();
        match answer {
            CancelAnswer::Cancelled => {
                accepted.entries += 1;
                accepted.mark("cancelled in the queue");
                self.signals.ended.notify_waiters();
                if accepted.tracks.remove(&id).is_none_or(|track| track.began_at.is_some()) {
                    accepted.blame(format!("I2: {id} was cancelled as if it had been queued"));
                }
            }
            CancelAnswer::Requested => {
                accepted.mark("cancel requested");
                self.signals.changed.notify_waiters();
                if let Some(track) = accepted.tracks.get_mut(&id) {
                    track.cancel = true;
                }
            }
            _ => {}
        }
    }

    pub(crate) fn claimed(&self, claim: &Claim) {
        let now = self.clock.now();
        let mut accepted = self.lock();
        accepted.claim(claim, now);
    }

    pub(crate) fn committed(&self, commit: &Commit, answer: &Committed) {
        let now = self.clock.now();
        let mut accepted = self.lock();
        match answer {
            Committed::Fenced => return accepted.mark("fenced"),
            Committed::CancelPending => return accepted.mark("cancel before the verdict"),
            _ => {}
        }
        let id = commit.deployment.id;
        let Some(mut track) = accepted.tracks.remove(&id) else {
            return accepted.blame(format!("I2: a commit of {id}, which is not open"));
        };
        let version = commit.deployment.kept_by_store.version;
        if version == track.record.kept_by_store.version {
            accepted.tracks.insert(id, track);
            return accepted.mark("applied already");
        }
        accepted.entries += 1;
        accepted.check_commit(commit, &track);
        // To read a record takes as long as a good part of a schedule.
        if self.thorough && accepted.entries.is_multiple_of(4) {
            accepted.check_stored_form(&commit.deployment);
        }
        self.check_snapshots(&mut accepted, &track, commit);
        let before = std::mem::replace(&mut track.record, commit.deployment.clone());
        track.commits += 1;
        let resumed = match before.request.trigger {
            Trigger::Recovery { of } if before.state == Machine::Queued => accepted.snapshots_of(of),
            _ => BTreeMap::new(),
        };
        track.stops |= !matches!(
            track.record.state,
            Machine::Queued
                | Machine::Locate(_)
                | Machine::Fetch(_)
                | Machine::Build(_)
                | Machine::Snapshot(_)
                | Machine::Finished(_)
        );
        track.note_restore(&before.state, moments(resumed.iter()), now);
        if track.commits == COMMITS_MAX {
            accepted.blame(format!("I10: {id} needs more than {COMMITS_MAX} commits"));
        }
        if track.count_retries(commit) {
            accepted.blame(format!("I10: a step of {id} is tried again and again"));
        }
        if track.record.outcome().is_some() {
            track.finished_at = Some(now);
        }
        accepted.tracks.insert(id, track);
        if let Some(outcome) = commit.deployment.outcome() {
            self.signals.ended.notify_waiters();
            self.finish(&mut accepted, &commit.deployment, outcome);
        }
        if !matches!(answer, Committed::Continued { .. }) {
            self.signals.changed.notify_waiters();
        }
        match answer {
            Committed::Continued { fence, .. } => accepted.raise_fence(*fence),
            Committed::Finished { successor: Some(claim) } => {
                accepted.mark("successor");
                accepted.claim(claim, now);
            }
            _ => {}
        }
    }

    /// Before anything may be written, there is a finished snapshot of the data as it was.
    fn check_snapshots(&self, accepted: &mut Accepted, before: &Track, commit: &Commit) {
        let deployment = &commit.deployment;
        let from = before.record.state.step();
        let writes = matches!(deployment.state.step(), Some(Step::Update | Step::Start | Step::Restore));
        if !writes || !matches!(from, Some(Step::Snapshot | Step::Stop)) {
            return;
        }
        let expected = accepted.schema_of_live();
        for instance in &self.instances {
            let reference = deployment.snapshots.get(instance).map(|snapshot| snapshot.reference.as_str());
            let is_good = |held: Option<&Data>| {
                let schema = held.map_or(&[][..], |data| &data.schema);
                !held.is_some_and(|data| data.half_written) && *schema == *expected
            };
            let good = reference.and_then(|reference| self.world.with_snapshot(reference, is_good));
            if good != Some(true) {
                let held = reference.map(|reference| self.world.snapshot(reference));
                let what =
                    format!("I12: {} goes on without a snapshot of {instance} as it was", deployment.id);
                accepted.blame(format!("{what}: {held:?}, not {expected:?}"));
            }
        }
    }

    fn finish(&self, accepted: &mut Accepted, record: &Deployment, outcome: &Outcome) {
        accepted.active = None;
        match outcome {
            Outcome::Running(live) => {
                accepted.mark("Running");
                accepted.learn_schema(record, live);
                accepted.live = Some(live.clone());
                self.check_healthy(accepted, live);
            }
            Outcome::Undone { live, .. } => {
                accepted.mark("Undone");
                accepted.live.clone_from(live);
                if matches!(record.request.trigger, Trigger::Recovery { .. }) {
                    accepted.mark("recovered");
                    accepted.attention = None;
                }
            }
            Outcome::Untouched(_) => accepted.mark("Untouched"),
            Outcome::Stranded { .. } => {
                accepted.mark("Stranded");
                accepted.attention = Some(record.id);
                return;
            }
            _ => {}
        }
        let what = format!("I11: at the end of {} ({})", record.id, record.status());
        self.check_world(accepted, &what);
    }

    /// Running is written only after every instance has answered.
    fn check_healthy(&self, accepted: &mut Accepted, live: &Live) {
        for instance in &self.instances {
            let seen = |mut up: &mut dyn Iterator<Item = &Running>| {
                Iterator::all(&mut up, |process| process.passed >= 2)
            };
            if !self.world.with_running(&self.environment, instance, seen) {
                accepted.blame(format!(
                    "I11: {} is Running, but {instance} was not seen healthy",
                    live.deployment
                ));
            }
        }
    }

    /// What runs is exactly what is live, on data with exactly its schema.
    pub(crate) fn check_world(&self, accepted: &mut Accepted, what: &str) {
        let schema = accepted.schema_of_live();
        for instance in &self.instances {
            let live = accepted.live.as_ref().and_then(|live| live.instances.get(instance));
            let wanted = live.map(|live| live.started.reference.as_str());
            let only = |up: &mut dyn Iterator<Item = &Running>| {
                up.map(|process| process.reference.as_str()).eq(wanted)
            };
            if !self.world.with_running(&self.environment, instance, only) {
                let running = self.world.running(&self.environment, instance);
                let wanted = wanted.map(str::to_owned);
                accepted.blame(format!("{what}: {instance} runs {running:?}, not {wanted:?} (I5)"));
            }
            let good = |data: Option<&Data>| {
                let now = data.map_or(&[][..], |data| &data.schema);
                !data.is_some_and(|data| data.half_written) && *now == *schema
            };
            if !self.world.with_data(&self.environment, instance, good) {
                let data = self.world.data(&self.environment, instance);
                accepted.blame(format!("{what}: the data of {instance} is {data:?}, not {schema:?} (I7)"));
            }
        }
    }
}

/// The mark that shows that the fences are needed.
pub const LANDED_AFTER_A_FENCE: &str = "a late effect landed after a new fence";
