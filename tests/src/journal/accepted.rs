//! What the store has accepted of one environment, and the rules that each piece of it is held to by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ocore_core::{
    deployment::Deployment,
    event::EventKind,
    id::{DeploymentId, Fence},
    machine::{Aim, Outcome, State as Machine, Step},
    name::InstanceName,
    port::{Claim, Commit, Next},
    release::Live,
    request::{Goal, RollbackMode, Trigger},
    stored,
    testing::fakes::Schema,
};

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
    pub(super) stops: bool,
    pub(super) cancel: bool,
    pub(super) commits: u32,
    /// How often each step was tried again.
    pub(super) retries: BTreeMap<Step, usize>,
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
    /// The snapshots that somebody pinned.
    pub(crate) pinned: BTreeSet<String>,
    pub(crate) marks: BTreeMap<&'static str, u64>,
    pub(super) paused: bool,
    pub(super) fence: Fence,
    /// The lane's fence when a call was made whose effect comes late.
    pub(super) late: BTreeMap<u64, Fence>,
    pub(super) keys: BTreeMap<String, DeploymentId>,
    pub(super) heartbeats: BTreeMap<usize, Duration>,
}

/// When snapshots were taken: the fake snapshotter counts them with the users' writes, and puts the number last.
pub(super) fn moments<'a, R: AsRef<str> + 'a>(
    snapshots: impl Iterator<Item = (&'a InstanceName, &'a R)>,
) -> Moments {
    let moment = |reference: &str| reference.rsplit('-').next()?.parse().ok();
    snapshots.filter_map(|(name, it)| Some((name.clone(), moment(it.as_ref())?))).collect()
}

impl Track {
    /// Counts the retries that a commit tells of; whether there are too many.
    pub(super) fn count_retries(&mut self, commit: &Commit) -> bool {
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
    pub(super) fn note_restore(&mut self, from: &Machine, resumed: Moments, now: Duration) {
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
    pub(super) fn snapshots_of(&self, stranded: DeploymentId) -> BTreeMap<InstanceName, String> {
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
    pub(super) fn learn_schema(&mut self, record: &Deployment, live: &Live) {
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

    pub(super) fn raise_fence(&mut self, fence: Fence) {
        if fence < self.fence {
            self.blame(format!("I9: the fence went down from {} to {fence}", self.fence));
        }
        self.fence = fence;
    }

    pub(super) fn claim(&mut self, claim: &Claim, now: Duration) {
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
    pub(super) fn check_stored_form(&mut self, deployment: &Deployment) {
        let mut read = stored::decode::<Deployment>(&stored::encode(deployment));
        if let Ok(read) = &mut read {
            read.kept_by_store = deployment.kept_by_store.clone();
        }
        if read.as_ref().ok() != Some(deployment) {
            self.blame(format!("{} is read back as {read:?}, not as {deployment:?}", deployment.id));
        }
    }

    pub(super) fn check_commit(&mut self, commit: &Commit, before: &Track) {
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

pub(super) fn name(state: &Machine) -> &'static str {
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
        // Where nothing was live there is nothing to revive: only what had been acknowledged was to be stopped.
        "stop" if matches!(to.outcome(), Some(Outcome::Undone { live: None, .. })) => &["finished"],
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
