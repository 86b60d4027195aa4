//! The steps that put things back: ordinary steps, retried like the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Cutover, Fold, Job, Outcome, State, Step};
use crate::{
    environment::Policy,
    failure::Cause,
    name::InstanceName,
    release::{Live, LiveInstance, Snapshot, Started},
    retry::{RetryPolicy, Tally},
};

/// Where a step that puts things back leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Toward {
    /// To another attempt, on data as it was before the last one.
    Forward,
    /// Back to what served before.
    Back(Cause),
}

impl Toward {
    pub(super) const fn is_back(&self) -> bool {
        matches!(self, Self::Back(_))
    }

    fn policy(&self, job: &Job) -> RetryPolicy {
        let policy = job.environment.policy();
        if self.is_back() { policy.undo_retry } else { policy.retry }
    }

    fn lost_max(&self, job: &Job) -> u32 {
        if self.is_back() { job.environment.policy().undo_retry.attempts_max } else { super::fold::LOST_MAX }
    }
}

/// A step of an undo that was given up, from which the undo can be resumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Undo {
    /// Remove what the deployment started.
    Withdraw(Withdraw),
    /// Put the data back.
    Restore(Restore),
    /// Start again what served before.
    Revive(Revive),
}

impl Undo {
    /// The undo's next step, with its attempts not yet used up.
    pub(super) fn resume(self) -> State {
        match self {
            Self::Withdraw(state) => Withdraw { tally: Tally::default(), ..state }.into(),
            Self::Restore(state) => Restore { tally: Tally::default(), ..state }.into(),
            // What was revived may have gone since then.
            Self::Revive(state) => Revive::new(state.job, state.previous, state.cause).into(),
        }
    }

    /// What is being undone.
    #[must_use]
    pub const fn job(&self) -> &Job {
        match self {
            Self::Withdraw(state) => &state.cutover.job,
            Self::Restore(state) => &state.cutover.job,
            Self::Revive(state) => &state.job,
        }
    }

    /// The same undo under other rules, as a deadline that was too short may be why it was given up. The instances
    /// are those that it has to put back.
    pub(super) fn under(mut self, policy: &Policy) -> Self {
        let job = match &mut self {
            Self::Withdraw(state) => &mut state.cutover.job,
            Self::Restore(state) => &mut state.cutover.job,
            Self::Revive(state) => &mut state.job,
        };
        job.environment = Arc::new(job.environment.under(policy));
        self
    }
}

/// The undo is given up: the first cause is why it was begun, the second why it did not work.
fn stranded(first: Cause, second: Cause, undo: Undo) -> State {
    match second {
        Cause::Failed(failure) => {
            State::finished(Outcome::Stranded { cause: first, failure, undo: Box::new(undo) })
        }
        // A cancel never reaches an undo (`State::cancel`): the undo simply goes on.
        Cause::Cancelled | Cause::Superseded { .. } => undo.resume(),
    }
}

/// Remove everything that this deployment started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdraw {
    pub(super) cutover: Cutover,
    pub(super) toward: Toward,
    tally: Tally,
    withdrawn: BTreeSet<InstanceName>,
}

impl Withdraw {
    pub(super) const fn new(cutover: Cutover, toward: Toward) -> Self {
        Self {
            cutover,
            toward,
            tally: Tally { failures: 0, lost: 0, spent: std::time::Duration::ZERO },
            withdrawn: BTreeSet::new(),
        }
    }

    /// What it owns.
    #[must_use]
    pub const fn cutover(&self) -> &Cutover {
        &self.cutover
    }

    /// Where it leads.
    #[must_use]
    pub const fn toward(&self) -> &Toward {
        &self.toward
    }

    /// The instances that earlier attempts withdrew.
    #[must_use]
    pub const fn withdrawn(&self) -> &BTreeSet<InstanceName> {
        &self.withdrawn
    }
}

impl From<Withdraw> for State {
    fn from(state: Withdraw) -> Self {
        Self::Withdraw(state)
    }
}

impl Fold for Withdraw {
    const STEP: Step = Step::Withdraw;
    type Evidence = ();
    type Kept = BTreeSet<InstanceName>;

    fn job(&self) -> &Job {
        &self.cutover.job
    }
    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
    fn policy(&self) -> RetryPolicy {
        self.toward.policy(&self.cutover.job)
    }
    fn lost_max(&self) -> u32 {
        self.toward.lost_max(&self.cutover.job)
    }
    fn succeed(self, (): ()) -> State {
        match self.toward {
            Toward::Back(cause) if planted!(RestoreSkippedOnUndo) => self.cutover.revive(cause),
            toward => Restore::new(self.cutover, toward).into(),
        }
    }
    fn keep(&mut self, withdrawn: Self::Kept) {
        self.withdrawn.extend(withdrawn);
    }
    fn again(self, _dirty: bool) -> State {
        self.into()
    }
    fn give_up(self, cause: Cause) -> State {
        match self.toward.clone() {
            Toward::Forward => self.cutover.undo(true, cause),
            Toward::Back(first) => stranded(first, cause, Undo::Withdraw(self)),
        }
    }
}

/// Put data back: before another attempt, on the way back, or the data that a rollback asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    pub(super) cutover: Cutover,
    pub(super) toward: Toward,
    tally: Tally,
    restored: BTreeSet<InstanceName>,
}

impl Restore {
    pub(super) fn new(cutover: Cutover, toward: Toward) -> Self {
        Self { cutover, toward, tally: Tally::default(), restored: BTreeSet::new() }
    }

    /// What it owns.
    #[must_use]
    pub const fn cutover(&self) -> &Cutover {
        &self.cutover
    }

    /// The snapshots to restore.
    #[must_use]
    pub fn data(&self) -> Arc<BTreeMap<InstanceName, Snapshot>> {
        self.cutover.data(&self.toward)
    }

    /// Whether that is the data as it was before the deployment, and not what a rollback asked for.
    #[must_use]
    pub fn puts_back(&self) -> bool {
        Arc::ptr_eq(&self.data(), &self.cutover.snapshots)
    }

    /// Where it leads.
    #[must_use]
    pub const fn toward(&self) -> &Toward {
        &self.toward
    }

    /// The instances that earlier attempts restored.
    #[must_use]
    pub const fn restored(&self) -> &BTreeSet<InstanceName> {
        &self.restored
    }
}

impl From<Restore> for State {
    fn from(state: Restore) -> Self {
        Self::Restore(state)
    }
}

impl Fold for Restore {
    const STEP: Step = Step::Restore;
    type Evidence = ();
    type Kept = BTreeSet<InstanceName>;

    fn job(&self) -> &Job {
        &self.cutover.job
    }
    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
    fn policy(&self) -> RetryPolicy {
        self.toward.policy(&self.cutover.job)
    }
    fn lost_max(&self) -> u32 {
        self.toward.lost_max(&self.cutover.job)
    }
    fn succeed(self, (): ()) -> State {
        match self.toward {
            Toward::Forward => self.cutover.touched().update_or_start(),
            Toward::Back(cause) => self.cutover.revive(cause),
        }
    }
    fn keep(&mut self, restored: Self::Kept) {
        self.restored.extend(restored);
    }
    /// The last attempt may have replaced the data of some instances: whatever is decided next, that is undone.
    fn again(self, _dirty: bool) -> State {
        Self { cutover: self.cutover.touched(), ..self }.into()
    }
    fn give_up(self, cause: Cause) -> State {
        match self.toward.clone() {
            Toward::Forward => self.cutover.undo(true, cause),
            Toward::Back(first) => stranded(first, cause, Undo::Restore(self)),
        }
    }
}

/// Start again what served before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revive {
    pub(super) job: Job,
    previous: Arc<Live>,
    pub(super) cause: Cause,
    tally: Tally,
    revived: BTreeMap<InstanceName, Started>,
}

impl Revive {
    pub(super) fn new(job: Job, previous: Arc<Live>, cause: Cause) -> Self {
        Self { job, previous, cause, tally: Tally::default(), revived: BTreeMap::new() }
    }

    /// What served before.
    #[must_use]
    pub fn previous(&self) -> &Live {
        &self.previous
    }

    /// The instances that the last attempt revived. The next one revives all of them again: one that runs goes on.
    #[must_use]
    pub const fn revived(&self) -> &BTreeMap<InstanceName, Started> {
        &self.revived
    }
}

impl From<Revive> for State {
    fn from(state: Revive) -> Self {
        Self::Revive(state)
    }
}

impl Fold for Revive {
    const STEP: Step = Step::Revive;
    type Evidence = BTreeMap<InstanceName, Started>;
    type Kept = Self::Evidence;

    fn job(&self) -> &Job {
        &self.job
    }
    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
    fn policy(&self) -> RetryPolicy {
        self.job.environment.policy().undo_retry
    }
    fn lost_max(&self) -> u32 {
        self.job.environment.policy().undo_retry.attempts_max
    }
    fn succeed(self, revived: Self::Evidence) -> State {
        let instances = self.previous.instances.iter().map(|(name, live)| {
            let started = revived.get(name).unwrap_or(&live.started).clone();
            (name.clone(), LiveInstance { instance: live.instance.clone(), started })
        });
        let live = Live { instances: instances.collect(), ..self.previous.as_ref().clone() };
        State::finished(Outcome::Undone { cause: self.cause, live: Some(live) })
    }
    fn keep(&mut self, revived: Self::Kept) {
        self.revived = revived;
    }
    fn again(self, _dirty: bool) -> State {
        self.into()
    }
    fn give_up(self, cause: Cause) -> State {
        stranded(self.cause.clone(), cause, Undo::Revive(self))
    }
}
