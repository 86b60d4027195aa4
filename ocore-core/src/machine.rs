//! The state machine of a deployment. Pure.
//!
//! **A state is a step waiting to run, and it owns exactly what doing it and undoing it need.** The stored state
//! alone says what happens next; there is no list of pending effects, and so no recovery code: take the lane, run
//! the step again.
//!
//! ```text
//! deploy     Queued → Fetch → Build → Snapshot → Stop → Update? → Start → Probe → Running
//! rollback   Queued → Locate (Fetch, Build if the image is gone) → Snapshot → Stop → Restore? → Start → Probe → Running
//! too late   Stop, claimed long after the snapshot → Snapshot → Stop, or Stop → Snapshot
//! again      Update, Start: Withdraw → Restore → Update?, Start (never migrates the same data twice)
//! give up    Fetch, Build, Snapshot → Failed            Stop → Revive → RolledBack
//!            Restore, Update, Start, Probe → Withdraw → Restore → Revive → RolledBack
//!            Withdraw, Restore, Revive on the way back → stranded
//! ```
//!
//! What must not happen cannot be written. A restore without a snapshot:
//!
//! ```compile_fail,E0451
//! use ocore_core::machine::Restore;
//! fn restore_without_a_snapshot() -> Restore {
//!     Restore { ..panic!() } // the fields are private: only a state that owns snapshots becomes a Restore
//! }
//! ```
//!
//! A start without a release:
//!
//! ```compile_fail,E0599
//! use ocore_core::machine::Start;
//! let start = Start::new(); // there is no such function: Stop, Restore and Update become a Start
//! ```
//!
//! The continuation of a finished deployment:
//!
//! ```compile_fail,E0599
//! use ocore_core::machine::{Finished, Report};
//! fn go_on(finished: Finished) {
//!     finished.fold(Report::Done(()), std::time::Duration::ZERO); // a finished deployment folds nothing
//! }
//! ```
//!
//! The use of a state after its transition:
//!
//! ```compile_fail,E0382
//! use ocore_core::{machine::{Build, Fold, Report}, release::Image};
//! fn twice(build: Build, image: Image) {
//!     build.fold(Report::Done(image.clone()), std::time::Duration::ZERO);
//!     build.fold(Report::Done(image), std::time::Duration::ZERO); // consumed by the first
//! }
//! ```

mod fold;
mod forward;
mod job;
#[cfg(test)]
pub(crate) mod tests;
mod undo;

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

pub(crate) use self::job::begin;
pub use self::{
    fold::{Decision, Fold, Report},
    forward::{Build, Fetch, Locate, Located, Probe, Snapshot, Start, Stop, Stopped, Update},
    job::{Aim, Cutover, Job},
    undo::{Restore, Revive, Toward, Undo, Withdraw},
};
use crate::{
    failure::{Cause, Failure},
    release::Live,
};

/// How long snapshots that were taken before the stop may wait for a worker that goes on.
pub const SNAPSHOT_IDLE_MAX: Duration = Duration::from_secs(5 * 60);

/// The verbs of a deployment, in the order of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Step {
    /// Find an earlier release and its data.
    Locate,
    /// Resolve the revision and bring the repository here.
    Fetch,
    /// Make an image of the commit.
    Build,
    /// Copy the data of every instance.
    Snapshot,
    /// Stop what serves.
    Stop,
    /// Put data back.
    Restore,
    /// Run the release's own migration.
    Update,
    /// Start the release.
    Start,
    /// Wait until it is healthy.
    Probe,
    /// Remove what this deployment started.
    Withdraw,
    /// Start again what served before.
    Revive,
}

impl Step {
    /// Every step, in the order of the plan.
    pub const ALL: [Self; 11] = [
        Self::Locate,
        Self::Fetch,
        Self::Build,
        Self::Snapshot,
        Self::Stop,
        Self::Restore,
        Self::Update,
        Self::Start,
        Self::Probe,
        Self::Withdraw,
        Self::Revive,
    ];

    /// The step as one lower-case word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Locate => "locate",
            Self::Fetch => "fetch",
            Self::Build => "build",
            Self::Snapshot => "snapshot",
            Self::Stop => "stop",
            Self::Restore => "restore",
            Self::Update => "update",
            Self::Start => "start",
            Self::Probe => "probe",
            Self::Withdraw => "withdraw",
            Self::Revive => "revive",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What is shown of a deployment. Derived from its state, never stored beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Status {
    /// Waiting in its lane.
    Queued,
    /// Fetching or building; nothing has been touched.
    Building,
    /// From the snapshot on, an undo included.
    Deploying,
    /// Healthy, and live until a later deployment replaces it.
    Running,
    /// Ended before anything was touched, or needs attention; or the first deployment of its environment, undone:
    /// nothing serves, as before.
    Failed,
    /// Undone completely: what served before serves again. Also a recovery that has done its work, even if nothing had
    /// served before the deployment that it undid.
    RolledBack,
    /// Ended because somebody asked for it or a newer push took its place.
    Cancelled,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Building,
        Self::Deploying,
        Self::Running,
        Self::Failed,
        Self::RolledBack,
        Self::Cancelled,
    ];

    /// Whether the deployment is over.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Running | Self::Failed | Self::RolledBack | Self::Cancelled)
    }

    /// The status as it is written everywhere.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "Queued",
            Self::Building => "Building",
            Self::Deploying => "Deploying",
            Self::Running => "Running",
            Self::Failed => "Failed",
            Self::RolledBack => "RolledBack",
            Self::Cancelled => "Cancelled",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What serves after a deployment has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Serving {
    /// The release of this deployment.
    New,
    /// What served before; it was stopped and is back.
    Previous,
    /// What served before; it was never touched.
    Unchanged,
    /// Nothing.
    Down,
}

/// The state of a deployment: a step waiting to run, or the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
#[non_exhaustive]
pub enum State {
    /// Waiting in the lane; its goal is in the request.
    Queued,
    /// Find an earlier release and its data.
    Locate(Locate),
    /// Resolve the revision and bring the repository here.
    Fetch(Fetch),
    /// Make an image of the commit.
    Build(Build),
    /// Copy the data of every instance.
    Snapshot(Snapshot),
    /// Stop what serves.
    Stop(Stop),
    /// Put data back.
    Restore(Restore),
    /// Run the release's own migration.
    Update(Update),
    /// Start the release.
    Start(Start),
    /// Wait until it is healthy.
    Probe(Probe),
    /// Remove what this deployment started.
    Withdraw(Withdraw),
    /// Start again what served before.
    Revive(Revive),
    /// Over.
    Finished(Finished),
}

/// The end of a deployment: nothing can be folded into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Finished {
    /// How it ended.
    pub outcome: Outcome,
}

/// How a deployment ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// The release is live.
    Running(Live),
    /// It ended before anything was touched.
    Untouched(Cause),
    /// Everything is back.
    Undone {
        /// Why it was undone.
        cause: Cause,
        /// What serves again; nothing if nothing served before.
        live: Option<Live>,
    },
    /// The undo itself was hopeless: a person is needed.
    Stranded {
        /// Why it was to be undone.
        cause: Cause,
        /// Why it could not be.
        failure: Failure,
        /// The step to go on with when the undo is resumed.
        undo: Box<Undo>,
    },
}

impl Outcome {
    const fn status(&self) -> Status {
        match self {
            Self::Running(_) => Status::Running,
            Self::Undone { cause: Cause::Failed(_), live: Some(_) } => Status::RolledBack,
            Self::Untouched(Cause::Failed(_)) | Self::Undone { cause: Cause::Failed(_), .. } => {
                Status::Failed
            }
            Self::Untouched(_) | Self::Undone { .. } => Status::Cancelled,
            Self::Stranded { .. } => Status::Failed,
        }
    }

    /// What serves now.
    #[must_use]
    pub const fn serving(&self) -> Serving {
        match self {
            Self::Running(_) => Serving::New,
            Self::Untouched(_) => Serving::Unchanged,
            Self::Undone { live: Some(_), .. } => Serving::Previous,
            Self::Undone { live: None, .. } | Self::Stranded { .. } => Serving::Down,
        }
    }

    /// Why it did not end Running.
    #[must_use]
    pub const fn cause(&self) -> Option<&Cause> {
        match self {
            Self::Running(_) => None,
            Self::Untouched(cause) | Self::Undone { cause, .. } | Self::Stranded { cause, .. } => Some(cause),
        }
    }
}

/// What a request to cancel means in a state.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cancel {
    /// The deployment goes on in this state, which ends or undoes it.
    Accepted(State),
    /// It is being undone already, or is over: nothing changes.
    TooLate(State),
}

impl State {
    /// The status that people see. `begun` says that a worker has begun the step.
    #[must_use]
    pub const fn status(&self, begun: bool) -> Status {
        match self {
            Self::Queued if !begun => Status::Queued,
            Self::Queued | Self::Locate(_) | Self::Fetch(_) | Self::Build(_) => Status::Building,
            Self::Finished(finished) => finished.outcome.status(),
            _ => Status::Deploying,
        }
    }

    /// The step that waits to run. A queued deployment and one that is over have none.
    #[must_use]
    pub const fn step(&self) -> Option<Step> {
        Some(match self {
            Self::Queued | Self::Finished(_) => return None,
            Self::Locate(_) => Step::Locate,
            Self::Fetch(_) => Step::Fetch,
            Self::Build(_) => Step::Build,
            Self::Snapshot(_) => Step::Snapshot,
            Self::Stop(_) => Step::Stop,
            Self::Restore(_) => Step::Restore,
            Self::Update(_) => Step::Update,
            Self::Start(_) => Step::Start,
            Self::Probe(_) => Step::Probe,
            Self::Withdraw(_) => Step::Withdraw,
            Self::Revive(_) => Step::Revive,
        })
    }

    /// How it ended, if it is over.
    #[must_use]
    pub const fn outcome(&self) -> Option<&Outcome> {
        match self {
            Self::Finished(finished) => Some(&finished.outcome),
            _ => None,
        }
    }

    /// What the step works with, and for; `None` while queued and when it is over.
    #[must_use]
    pub const fn job(&self) -> Option<&Job> {
        Some(match self {
            Self::Queued | Self::Finished(_) => return None,
            Self::Locate(state) => &state.job,
            Self::Fetch(state) => &state.job,
            Self::Build(state) => &state.job,
            Self::Snapshot(state) => &state.job,
            Self::Stop(state) => &state.job,
            Self::Restore(state) => &state.cutover.job,
            Self::Update(state) => &state.cutover.job,
            Self::Start(state) => &state.cutover.job,
            Self::Probe(state) => &state.cutover.job,
            Self::Withdraw(state) => &state.cutover.job,
            Self::Revive(state) => &state.job,
        })
    }

    /// Why it is being undone, or did not end Running.
    #[must_use]
    pub const fn cause(&self) -> Option<&Cause> {
        match self {
            Self::Withdraw(Withdraw { toward: Toward::Back(cause), .. })
            | Self::Restore(Restore { toward: Toward::Back(cause), .. })
            | Self::Revive(Revive { cause, .. }) => Some(cause),
            Self::Finished(finished) => finished.outcome.cause(),
            _ => None,
        }
    }

    /// Whether what served before is, or may be, stopped in this state.
    #[must_use]
    pub const fn is_downtime(&self) -> bool {
        match self {
            Self::Queued | Self::Locate(_) | Self::Fetch(_) | Self::Build(_) | Self::Finished(_) => false,
            Self::Snapshot(snapshot) => snapshot.after_stop,
            _ => match self.job() {
                Some(job) => job.previous.is_some(),
                None => false,
            },
        }
    }

    /// Whether the state is one of an undo, where a cancel is refused.
    #[must_use]
    pub const fn is_undo(&self) -> bool {
        match self {
            Self::Withdraw(state) => state.toward.is_back(),
            Self::Restore(state) => state.toward.is_back(),
            Self::Revive(_) => true,
            _ => false,
        }
    }

    /// A cancel was requested. `begun` says whether the step has been begun, so that something may have been
    /// written; its work must have stopped.
    #[must_use]
    pub fn cancel(self, begun: bool) -> Cancel {
        let cause = Cause::Cancelled;
        Cancel::Accepted(match self {
            Self::Queued | Self::Locate(_) | Self::Fetch(_) | Self::Build(_) => {
                Self::finished(Outcome::Untouched(cause))
            }
            Self::Snapshot(state) => state.give_up(cause),
            Self::Stop(state) => state.give_up(cause),
            Self::Update(state) => state.cutover.undo(begun, cause),
            Self::Start(state) => state.cutover.undo(begun, cause),
            Self::Probe(state) => state.give_up(cause),
            Self::Restore(state) if !state.toward.is_back() => state.cutover.undo(begun, cause),
            Self::Withdraw(state) if !state.toward.is_back() => state.give_up(cause),
            Self::Withdraw(_) | Self::Restore(_) | Self::Revive(_) if planted!(CancelStopsUndo) => {
                Self::finished(Outcome::Untouched(cause))
            }
            Self::Withdraw(_) | Self::Restore(_) | Self::Revive(_) | Self::Finished(_) => {
                return Cancel::TooLate(self);
            }
        })
    }

    /// The worker that had begun the step died, or lost its lease: counts the loss, and gives the step up when
    /// it has lost too many workers. What it may have written is put back before it is tried again.
    #[must_use]
    pub fn lost_worker(self) -> Self {
        match self {
            Self::Queued | Self::Finished(_) => self,
            Self::Locate(state) => state.lose(),
            Self::Fetch(state) => state.lose(),
            Self::Build(state) => state.lose(),
            Self::Snapshot(state) => state.lose(),
            Self::Stop(state) => state.lose(),
            Self::Restore(state) => state.lose(),
            Self::Update(state) => state.lose(),
            Self::Start(state) => state.lose(),
            Self::Probe(state) => state.lose(),
            Self::Withdraw(state) => state.lose(),
            Self::Revive(state) => state.lose(),
        }
    }

    /// A worker has claimed the lane; the state was entered, or tried last, so long ago by the wall clock, or lies so
    /// far in its future. Snapshots of data that may have been served meanwhile are taken again if that is longer than
    /// [`SNAPSHOT_IDLE_MAX`]: to put them back would lose what was written since, for hours or days.
    #[must_use]
    pub fn claimed(self, idle: Duration) -> Self {
        match self {
            _ if idle <= SNAPSHOT_IDLE_MAX => self,
            Self::Snapshot(state) => state.anew().into(),
            Self::Stop(state) => state.anew(),
            state => state,
        }
    }

    /// The step was interrupted by a graceful shutdown: it is begun anew without using up an attempt.
    #[must_use]
    pub fn interrupted(self) -> Self {
        match self {
            Self::Stop(state) => state.interrupted(),
            Self::Update(state) => state.again(true),
            Self::Start(state) => state.again(true),
            Self::Restore(state) => state.again(true),
            state => state,
        }
    }

    pub(crate) const fn finished(outcome: Outcome) -> Self {
        Self::Finished(Finished { outcome })
    }
}
