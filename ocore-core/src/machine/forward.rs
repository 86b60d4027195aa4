//! The steps on the way forward.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Aim, Cutover, Fold, Job, Outcome, State, Step};
use crate::{
    environment::SnapshotWhen,
    failure::Cause,
    name::InstanceName,
    release::{self, Commit, Image, Release, Started, Window},
    request::Revision,
    retry::Tally,
};

macro_rules! into_state {
    ($($state:ident),*) => {$(
        impl From<$state> for State {
            fn from(state: $state) -> Self {
                Self::$state(state)
            }
        }
    )*};
}
into_state!(Locate, Fetch, Build, Snapshot, Stop, Update, Start, Probe);

/// Nothing has been touched: the end.
const fn untouched(cause: Cause) -> State {
    State::finished(Outcome::Untouched(cause))
}

/// Find an earlier release and its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locate {
    pub(super) job: Job,
    tally: Tally,
    with_data: bool,
}

/// What [`Locate`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Located {
    /// The earlier deployment's release.
    pub release: Release,
    /// Whether its image is still there.
    pub image_present: bool,
    /// The data that belongs to it, if it is wanted.
    pub load: Option<BTreeMap<InstanceName, release::Snapshot>>,
}

impl Located {
    /// What was found.
    #[must_use]
    pub const fn new(
        release: Release,
        image_present: bool,
        load: Option<BTreeMap<InstanceName, release::Snapshot>>,
    ) -> Self {
        Self { release, image_present, load }
    }
}

impl Locate {
    pub(super) fn new(job: Job, with_data: bool) -> Self {
        Self { job, tally: Tally::default(), with_data }
    }

    /// Whether the data is wanted too.
    #[must_use]
    pub const fn with_data(&self) -> bool {
        self.with_data
    }
}

impl Fold for Locate {
    const STEP: Step = Step::Locate;
    type Evidence = Located;
    type Kept = ();

    fn job(&self) -> &Job {
        &self.job
    }
    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
    fn succeed(mut self, found: Located) -> State {
        if let Aim::Rollback { load, .. } = &mut self.job.aim {
            *load = found.load.map(Arc::new);
        }
        if found.image_present {
            prepared(self.job, Arc::new(found.release))
        } else {
            Fetch::new(self.job, Revision::Commit(found.release.commit.sha)).into()
        }
    }
    fn keep(&mut self, (): ()) {}
    fn again(self, _dirty: bool) -> State {
        self.into()
    }
    fn give_up(self, cause: Cause) -> State {
        untouched(cause)
    }
}

/// Resolve the revision and bring the repository here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    pub(super) job: Job,
    tally: Tally,
    revision: Revision,
}

impl Fetch {
    pub(super) fn new(job: Job, revision: Revision) -> Self {
        Self { job, tally: Tally::default(), revision }
    }

    /// What to resolve.
    #[must_use]
    pub const fn revision(&self) -> &Revision {
        &self.revision
    }
}

impl Fold for Fetch {
    const STEP: Step = Step::Fetch;
    type Evidence = Commit;
    type Kept = ();

    fn job(&self) -> &Job {
        &self.job
    }
    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
    fn succeed(self, commit: Commit) -> State {
        Build { job: self.job, tally: Tally::default(), commit }.into()
    }
    fn keep(&mut self, (): ()) {}
    fn again(self, _dirty: bool) -> State {
        self.into()
    }
    fn give_up(self, cause: Cause) -> State {
        untouched(cause)
    }
}

/// Make an image of the commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    pub(super) job: Job,
    tally: Tally,
    commit: Commit,
}

impl Build {
    /// What to build.
    #[must_use]
    pub const fn commit(&self) -> &Commit {
        &self.commit
    }
}

impl Fold for Build {
    const STEP: Step = Step::Build;
    type Evidence = Image;
    type Kept = ();

    fn job(&self) -> &Job {
        &self.job
    }
    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
    fn succeed(self, image: Image) -> State {
        let release = Release::new(self.job.id, self.commit, image);
        prepared(self.job, Arc::new(release))
    }
    fn keep(&mut self, (): ()) {}
    fn again(self, _dirty: bool) -> State {
        self.into()
    }
    fn give_up(self, cause: Cause) -> State {
        untouched(cause)
    }
}

/// The release is there; the environment's policy says what comes first.
fn prepared(job: Job, release: Arc<Release>) -> State {
    let after_stop = job.environment.policy().snapshot == SnapshotWhen::AfterStop;
    if after_stop && job.is_occupied() {
        Stop::new(job, release, None).into()
    } else {
        Snapshot::new(job, release, false).into()
    }
}

/// Copy the data of every instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub(super) job: Job,
    tally: Tally,
    release: Arc<Release>,
    pub(super) after_stop: bool,
    taken: BTreeMap<InstanceName, release::Snapshot>,
}

impl Snapshot {
    fn new(job: Job, release: Arc<Release>, after_stop: bool) -> Self {
        Self { job, tally: Tally::default(), release, after_stop, taken: BTreeMap::new() }
    }

    /// Takes all snapshots again, if what they were taken of is written to.
    pub(super) fn anew(self) -> Self {
        if self.is_without_window() { self } else { Self { taken: BTreeMap::new(), ..self } }
    }

    /// Whether nothing serves that could write between the snapshot and the stop.
    #[must_use]
    pub const fn is_without_window(&self) -> bool {
        self.after_stop || !self.job.is_occupied()
    }

    /// The snapshots that earlier attempts took.
    #[must_use]
    pub const fn taken(&self) -> &BTreeMap<InstanceName, release::Snapshot> {
        &self.taken
    }
}

impl Fold for Snapshot {
    const STEP: Step = Step::Snapshot;
    type Evidence = BTreeMap<InstanceName, release::Snapshot>;
    type Kept = Self::Evidence;

    fn job(&self) -> &Job {
        &self.job
    }
    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
    fn succeed(mut self, taken: Self::Evidence) -> State {
        self.taken.extend(taken);
        if self.job.is_occupied() && !self.after_stop {
            Stop::new(self.job, self.release, Some(self.taken)).into()
        } else {
            Cutover::new(self.job, self.release, self.taken).go()
        }
    }
    fn keep(&mut self, taken: Self::Kept) {
        self.taken.extend(taken);
    }
    fn again(self, _dirty: bool) -> State {
        self.into()
    }
    fn give_up(self, cause: Cause) -> State {
        if self.after_stop { self.job.revive(cause) } else { untouched(cause) }
    }
}

/// Stop what serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    pub(super) job: Job,
    tally: Tally,
    release: Arc<Release>,
    /// `None` where they are taken after the stop.
    snapshots: Option<BTreeMap<InstanceName, release::Snapshot>>,
    stopped: BTreeSet<InstanceName>,
    /// Whether an attempt was interrupted: it may have stopped something.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    interrupted: bool,
}

/// What [`Stop`] observed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stopped {
    /// For each snapshot taken before the stop, whether something was written after it.
    pub windows: BTreeMap<InstanceName, Window>,
}

impl Stopped {
    /// What was observed.
    #[must_use]
    pub const fn new(windows: BTreeMap<InstanceName, Window>) -> Self {
        Self { windows }
    }
}

impl Stop {
    fn new(
        job: Job,
        release: Arc<Release>,
        snapshots: Option<BTreeMap<InstanceName, release::Snapshot>>,
    ) -> Self {
        let (tally, stopped) = (Tally::default(), BTreeSet::new());
        Self { job, tally, release, snapshots, stopped, interrupted: false }
    }

    /// Forgets the snapshots that were taken before. They are taken again before the stop, or after it where something
    /// may have been stopped already.
    pub(super) fn anew(self) -> State {
        let untouched = self.tally == Tally::default() && self.stopped.is_empty() && !self.interrupted;
        if self.snapshots.is_some() && untouched {
            Snapshot::new(self.job, self.release, false).into()
        } else {
            Self { snapshots: None, ..self }.into()
        }
    }

    pub(super) fn interrupted(self) -> State {
        Self { interrupted: true, ..self }.into()
    }

    /// The instances that earlier attempts stopped.
    #[must_use]
    pub const fn stopped(&self) -> &BTreeSet<InstanceName> {
        &self.stopped
    }

    /// The snapshots that were taken before.
    #[must_use]
    pub const fn snapshots(&self) -> Option<&BTreeMap<InstanceName, release::Snapshot>> {
        self.snapshots.as_ref()
    }
}

impl Fold for Stop {
    const STEP: Step = Step::Stop;
    type Evidence = Stopped;
    type Kept = BTreeSet<InstanceName>;

    fn job(&self) -> &Job {
        &self.job
    }
    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
    fn succeed(self, _windows: Stopped) -> State {
        match self.snapshots {
            Some(snapshots) => Cutover::new(self.job, self.release, snapshots).go(),
            None => Snapshot::new(self.job, self.release, true).into(),
        }
    }
    fn keep(&mut self, stopped: Self::Kept) {
        self.stopped.extend(stopped);
    }
    fn again(self, _dirty: bool) -> State {
        self.into()
    }
    fn give_up(self, cause: Cause) -> State {
        self.job.revive(cause)
    }
}

/// Run the release's own migration, in every instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    pub(super) cutover: Cutover,
}

impl Update {
    /// What it owns.
    #[must_use]
    pub const fn cutover(&self) -> &Cutover {
        &self.cutover
    }
}

impl Fold for Update {
    const STEP: Step = Step::Update;
    type Evidence = ();
    type Kept = ();

    fn job(&self) -> &Job {
        &self.cutover.job
    }
    fn tally(&mut self) -> &mut Tally {
        &mut self.cutover.redo
    }
    fn succeed(self, (): ()) -> State {
        Start::new(self.cutover.touched()).into()
    }
    fn keep(&mut self, (): ()) {}
    /// A migration that failed may have written half of what it meant to, whatever it says: never migrate twice.
    fn again(self, _dirty: bool) -> State {
        if planted!(UpdateRetriedWithoutRestore) { self.into() } else { self.cutover.redo() }
    }
    fn give_up(self, cause: Cause) -> State {
        self.cutover.undo(true, cause)
    }
}

/// Start the release, in every instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    pub(super) cutover: Cutover,
    started: BTreeMap<InstanceName, Started>,
}

impl Start {
    pub(super) const fn new(cutover: Cutover) -> Self {
        Self { cutover, started: BTreeMap::new() }
    }

    /// What it owns.
    #[must_use]
    pub const fn cutover(&self) -> &Cutover {
        &self.cutover
    }

    /// The instances that earlier attempts started.
    #[must_use]
    pub const fn started(&self) -> &BTreeMap<InstanceName, Started> {
        &self.started
    }
}

impl Fold for Start {
    const STEP: Step = Step::Start;
    type Evidence = BTreeMap<InstanceName, Started>;
    type Kept = Self::Evidence;

    fn job(&self) -> &Job {
        &self.cutover.job
    }
    fn tally(&mut self) -> &mut Tally {
        &mut self.cutover.redo
    }
    fn succeed(mut self, started: Self::Evidence) -> State {
        self.started.extend(started);
        Probe { cutover: self.cutover.touched(), tally: Tally::default(), started: self.started }.into()
    }
    fn keep(&mut self, started: Self::Kept) {
        self.started.extend(started);
    }
    /// A start that was refused wrote nothing and is simply tried again. One that may have happened may have
    /// written: the data is put back first, because applications migrate when they start.
    fn again(self, dirty: bool) -> State {
        match self {
            _ if dirty => self.cutover.redo(),
            Self { started, cutover } if !started.is_empty() => {
                Self { cutover: cutover.touched(), started }.into()
            }
            state => state.into(),
        }
    }
    fn give_up(self, cause: Cause) -> State {
        self.cutover.undo(true, cause)
    }
}

/// Wait until every instance is healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub(super) cutover: Cutover,
    tally: Tally,
    started: BTreeMap<InstanceName, Started>,
}

impl Probe {
    /// What it owns.
    #[must_use]
    pub const fn cutover(&self) -> &Cutover {
        &self.cutover
    }

    /// What was started.
    #[must_use]
    pub const fn started(&self) -> &BTreeMap<InstanceName, Started> {
        &self.started
    }
}

impl Fold for Probe {
    const STEP: Step = Step::Probe;
    type Evidence = ();
    type Kept = ();

    fn job(&self) -> &Job {
        &self.cutover.job
    }
    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
    fn succeed(self, (): ()) -> State {
        let live = self.cutover.live(&self.started);
        State::finished(Outcome::Running(live))
    }
    fn keep(&mut self, (): ()) {}
    fn again(self, _dirty: bool) -> State {
        self.into()
    }
    fn give_up(self, cause: Cause) -> State {
        self.cutover.undo(true, cause)
    }
}
