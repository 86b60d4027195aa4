//! What the store accepted, in order, checked at that moment against the world as it is then.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ocore_core::{
    deployment::Deployment,
    engine::{EngineError, Timing},
    environment::Environment,
    event::EventKind,
    executor::Executor,
    id::{DeploymentId, Fence},
    machine::{Aim, Outcome, State as Machine, Step},
    name::{EnvironmentName, InstanceName},
    port::{CancelAnswer, Claim, Commit, Committed, Enqueued, Next, StoreErrorKind},
    release::Live,
    request::{Goal, RollbackMode, Trigger},
    stored,
    testing::{
        fakes::{Data, Running, Schema, World},
        faults::{Fault, Issued},
        sim::SimExecutor,
    },
};
use tokio::sync::Notify;

/// More commits than any deployment can need: attempts are limited.
const COMMITS_MAX: u32 = 120;

/// More retries of one step than the policies allow: three attempts at each of three ways forward, four on the way
/// back.
const RETRIES_MAX: usize = 9;

/// What was accepted of one deployment.
#[derive(Debug, Clone)]
pub(crate) struct Track {
    pub(crate) record: Deployment,
    pub(crate) began_at: Option<Duration>,
    pub(crate) finished_at: Option<Duration>,
    /// The snapshots that were put back, and until when that may have been.
    pub(crate) restores: Vec<(Duration, Moments)>,
    /// For a rollback, when the snapshots were taken that it puts back on its way forward.
    pub(crate) loads: Moments,
    /// Whether it may have begun to stop what is live. (A snapshot that waited too long for its stop is taken again.)
    stops: bool,
    cancel: bool,
    commits: u32,
    /// How often each step was tried again.
    retries: BTreeMap<Step, usize>,
}

/// When each instance's snapshot was taken, counted as the users' writes are.
pub(crate) type Moments = BTreeMap<InstanceName, u64>;

/// A user's write that was acknowledged.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) number: u64,
    pub(crate) instance: InstanceName,
    pub(crate) at: Duration,
    /// Who had started what acknowledged it.
    pub(crate) by: DeploymentId,
}

#[derive(Default)]
pub(crate) struct Accepted {
    pub(crate) violations: Vec<String>,
    /// How many writes the store has accepted.
    pub(crate) entries: u64,
    pub(crate) tracks: BTreeMap<DeploymentId, Track>,
    pub(crate) active: Option<DeploymentId>,
    pub(crate) attention: Option<DeploymentId>,
    pub(crate) live: Option<Live>,
    /// What the schema must be while a deployment is live.
    pub(crate) schemas: BTreeMap<DeploymentId, Vec<Schema>>,
    pub(crate) writes: Vec<Write>,
    pub(crate) marks: BTreeMap<&'static str, u64>,
    paused: bool,
    fence: Fence,
    /// The lane's fence when a call was made whose effect comes late.
    late: BTreeMap<u64, Fence>,
    keys: BTreeMap<String, DeploymentId>,
    heartbeats: BTreeMap<usize, Duration>,
}

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
        // Removing what nobody needs is harmless.
        if issued.call.port != "store" && !matches!(issued.call.method, "remove" | "discard") {
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

/// When snapshots were taken: the fake snapshotter counts them with the users' writes, and puts the number last.
fn moments<'a, R: AsRef<str> + 'a>(snapshots: impl Iterator<Item = (&'a InstanceName, &'a R)>) -> Moments {
    let moment = |reference: &str| reference.rsplit('-').next()?.parse().ok();
    snapshots.filter_map(|(name, it)| Some((name.clone(), moment(it.as_ref())?))).collect()
}

impl Track {
    /// Counts the retries that a commit tells of; whether there are too many.
    fn count_retries(&mut self, commit: &Commit) -> bool {
        let mut too_many = false;
        for event in &commit.events {
            if let EventKind::Retrying { failure, .. } = &event.kind {
                let retries = self.retries.entry(failure.step).or_default();
                *retries += 1;
                too_many |= *retries > RETRIES_MAX;
            }
        }
        too_many
    }

    /// Notes when data was put back: from then on what was written after its snapshot may be gone. A recovery may
    /// go on where the restore was, before its first commit.
    fn note_restore(&mut self, from: &Machine, resumed: Moments, now: Duration) {
        if let Machine::Restore(restore) = from {
            let data = restore.data();
            let references = data.iter().map(|(name, it)| (name, &it.reference));
            self.restores.push((now, moments(references)));
        }
        if !resumed.is_empty() {
            self.restores.push((now, resumed));
        }
        if let Some(Aim::Rollback { load: Some(load), .. }) = self.record.state.job().map(|job| &job.aim) {
            self.loads = moments(load.iter().map(|(name, it)| (name, &it.reference)));
        }
    }
}

impl Accepted {
    pub(crate) fn blame(&mut self, what: String) {
        // The first few say it all; a livelock would say it for ever.
        if self.violations.len() < 20 {
            self.violations.push(what);
        }
    }

    pub(crate) fn mark(&mut self, what: &'static str) {
        *self.marks.entry(what).or_default() += 1;
    }

    pub(crate) fn schema_of_live(&self) -> Vec<Schema> {
        let live = self.live.as_ref().map(|live| live.deployment);
        live.and_then(|id| self.schemas.get(&id).cloned()).unwrap_or_default()
    }

    /// The references of the snapshots that the undo of a stranded deployment goes back to: its own, or those of the
    /// deployment that it tried to recover.
    fn snapshots_of(&self, stranded: DeploymentId) -> BTreeMap<InstanceName, String> {
        let tracks = self.tracks.get(&stranded).into_iter().flat_map(|track| self.recovered_by(track));
        let snapshots = tracks.map(|track| &track.record.snapshots).find(|it| !it.is_empty());
        let references = snapshots.into_iter().flatten();
        references.map(|(name, it)| (name.clone(), it.reference.clone())).collect()
    }

    /// A deployment, and those whose undo it goes on with.
    pub(crate) fn recovered_by<'a>(&'a self, track: &'a Track) -> impl Iterator<Item = &'a Track> {
        std::iter::successors(Some(track), |track| match track.record.request.trigger {
            Trigger::Recovery { of } => self.tracks.get(&of),
            _ => None,
        })
    }

    /// The schema that a deployment leaves behind when it becomes Running.
    fn learn_schema(&mut self, record: &Deployment, live: &Live) {
        let rolls_back = match record.request.goal {
            Goal::Rollback { to, mode } => Some((to, mode)),
            _ => None,
        };
        let loaded = rolls_back.filter(|(_, mode)| *mode == RollbackMode::CodeAndData);
        let loaded = loaded.and_then(|(to, _)| self.schemas.get(&to).cloned());
        let mut schema = loaded.unwrap_or_else(|| self.schema_of_live());
        if live.release.image.has_update && rolls_back.is_none() {
            schema.push(Schema::Updated(record.id));
        }
        schema.push(Schema::Started(record.id));
        self.schemas.insert(record.id, schema);
    }

    fn raise_fence(&mut self, fence: Fence) {
        if fence < self.fence {
            self.blame(format!("I9: the fence went down from {} to {fence}", self.fence));
        }
        self.fence = fence;
    }

    fn claim(&mut self, claim: &Claim, now: Duration) {
        self.entries += 1;
        let id = claim.deployment.id;
        if claim.fence < self.fence {
            self.blame(format!("I9: {id} was claimed with fence {}, after {}", claim.fence, self.fence));
        }
        self.raise_fence(claim.fence);
        if claim.lost_worker {
            self.mark("takeover");
        }
        let Some(track) = self.tracks.get(&id) else {
            return self.blame(format!("I2: {id} was claimed, and is not open"));
        };
        let (over, fresh) = (track.finished_at.is_some(), track.began_at.is_none());
        if over {
            self.blame(format!("I2: {id} was claimed, and is over"));
        }
        if fresh {
            self.first_claim(&claim.deployment, now);
        } else if self.active != Some(id) {
            self.blame(format!("I3: {id} was claimed while {:?} is active", self.active));
        }
    }

    fn first_claim(&mut self, claimed: &Deployment, now: Duration) {
        let (id, seq) = (claimed.id, claimed.kept_by_store.seq);
        if let Some(active) = self.active {
            self.blame(format!("I3: {id} was started while {active} is active"));
        }
        let recovers = match claimed.request.trigger {
            Trigger::Recovery { of } => Some(of),
            _ => None,
        };
        if self.attention.is_some() && recovers != self.attention {
            self.blame(format!("I14: {id} was started while the environment needs attention"));
        }
        if self.paused && recovers.is_none() {
            self.blame(format!("{id} was started in a pause"));
        }
        let waiting = |other: &&Track| other.began_at.is_none() && other.record.kept_by_store.seq < seq;
        if recovers.is_none() && self.tracks.values().any(|other| waiting(&other)) {
            self.blame(format!("I4: {id} has overtaken another"));
        }
        self.active = Some(id);
        if let Some(track) = self.tracks.get_mut(&id) {
            track.began_at = Some(now);
        }
    }

    /// What is stored is read back as it was.
    fn check_stored_form(&mut self, deployment: &Deployment) {
        let mut read = stored::decode::<Deployment>(&stored::encode(deployment));
        if let Ok(read) = &mut read {
            read.kept_by_store = deployment.kept_by_store.clone();
        }
        if read.as_ref().ok() != Some(deployment) {
            self.blame(format!("{} is read back as {read:?}, not as {deployment:?}", deployment.id));
        }
    }

    fn check_commit(&mut self, commit: &Commit, before: &Track) {
        let id = commit.deployment.id;
        let (from, to) = (&before.record.state, &commit.deployment.state);
        let version = commit.deployment.kept_by_store.version;
        if version != before.record.kept_by_store.version + 1 {
            self.blame(format!(
                "I2: version {version} of {id} follows {}",
                before.record.kept_by_store.version
            ));
        }
        if commit.fence != self.fence {
            self.blame(format!("I9: a commit of {id} with fence {} at fence {}", commit.fence, self.fence));
        }
        if self.active != Some(id) {
            self.blame(format!("I3: a commit of {id} while {:?} is active", self.active));
        }
        if !is_edge(from, to) {
            self.blame(format!("I2: {id} went from {} to {}", name(from), name(to)));
        }
        let running = matches!(to.outcome(), Some(Outcome::Running(_)));
        if running && before.cancel {
            self.blame(format!("{id} became Running although its cancel had been accepted"));
        }
        if running != matches!(&commit.next, Next::Finish(finish) if finish.verdict) {
            self.blame(format!("{id}: the verdict is not said to be one"));
        }
    }
}

fn name(state: &Machine) -> &'static str {
    match state {
        Machine::Queued => "queued",
        Machine::Finished(_) => "finished",
        state => state.step().map_or("nothing", Step::as_str),
    }
}

/// Whether a deployment may go from one state to the other in one commit.
fn is_edge(from: &Machine, to: &Machine) -> bool {
    let next: &[&str] = match name(from) {
        "queued" => {
            &["locate", "fetch", "build", "snapshot", "stop", "withdraw", "restore", "revive", "finished"]
        }
        "locate" => &["fetch", "snapshot", "stop", "finished"],
        "fetch" => &["build", "finished"],
        "build" => &["snapshot", "stop", "finished"],
        "snapshot" => &["stop", "restore", "update", "start", "revive", "finished"],
        "stop" => &["snapshot", "restore", "update", "start", "revive"],
        "restore" => &["update", "start", "withdraw", "revive", "finished"],
        "update" => &["start", "withdraw", "revive", "finished"],
        "start" => &["probe", "withdraw", "revive", "finished"],
        "probe" => &["withdraw", "finished"],
        "withdraw" => &["restore", "finished"],
        "revive" => &["finished"],
        _ => &[],
    };
    let stays = name(from) == name(to) && name(from) != "finished";
    let only_probe = !matches!(to.outcome(), Some(Outcome::Running(_))) || name(from) == "probe";
    let stays_back = !from.is_undo() || to.is_undo() || matches!(to, Machine::Finished(_));
    (stays || next.contains(&name(to))) && only_probe && stays_back
}
