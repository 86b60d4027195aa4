//! The rules of a lane: order, superseding, cancelling, waiting. Pure; every store obeys them.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    deployment::Deployment,
    event::{EventKind, NewEvent},
    failure::Cause,
    id::DeploymentId,
    machine::State,
    port::{CancelAnswer, LaneQueue},
    request::Trigger,
};

impl LaneQueue {
    /// The deployment that is to be started next: the first one; while the environment needs attention, only
    /// the recovery of the deployment that it waits for; none while another is under way or the environment is
    /// paused (a recovery is started all the same).
    #[must_use]
    pub fn runnable(&self) -> Option<DeploymentId> {
        if self.active.is_some() {
            return None;
        }
        match self.attention {
            Some(stranded) => {
                let mut waiting = self.waiting.iter();
                waiting.find(|(_, recovers)| *recovers == Some(stranded)).map(|(id, _)| *id)
            }
            None if self.paused => None,
            None if planted!(LastInFirstOut) => self.waiting.last().map(|(id, _)| *id),
            None => self.waiting.first().map(|(id, _)| *id),
        }
    }

    /// Why a queued deployment waits. `None` if it is not queued here.
    #[must_use]
    pub fn waiting(&self, id: DeploymentId) -> Option<Waiting> {
        let ahead = self.waiting.iter().position(|(waiting, _)| *waiting == id)?;
        let runnable = self.runnable() == Some(id);
        let reason = match (self.attention, self.active) {
            _ if runnable => WaitReason::Worker,
            (Some(stranded), None) => WaitReason::Attention { stranded },
            (_, Some(active)) => WaitReason::Active { deployment: active },
            (None, None) if self.paused => WaitReason::Paused,
            (None, None) => WaitReason::Ahead,
        };
        Some(Waiting { position: ahead as u64 + 1, reason })
    }
}

/// Why a queued deployment has not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Waiting {
    /// 1 for the first one that waits.
    pub position: u64,
    /// What it waits for.
    pub reason: WaitReason,
}

/// What a queued deployment waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WaitReason {
    /// A worker of the environment's pool with a free slot.
    Worker,
    /// The deployment that is under way.
    Active {
        /// Its id.
        deployment: DeploymentId,
    },
    /// The deployments before it.
    Ahead,
    /// The environment to be resumed.
    Paused,
    /// A person who looks after a stranded deployment.
    Attention {
        /// The stranded deployment.
        stranded: DeploymentId,
    },
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "position {}: ", self.position)?;
        match self.reason {
            WaitReason::Worker => f.write_str("waits for a worker"),
            WaitReason::Active { deployment } => write!(f, "waits for {deployment}, which is under way"),
            WaitReason::Ahead => f.write_str("waits for the deployments before it"),
            WaitReason::Paused => f.write_str("the environment is paused; resume it"),
            WaitReason::Attention { stranded } => {
                write!(f, "{stranded} could not be undone; resume its rollback, or acknowledge it")
            }
        }
    }
}

/// Whether a newly accepted deployment takes a queued one's place: automatic pushes supersede each other, if the
/// environment's policy says so; nothing else is ever superseded, and nothing that has been begun.
#[must_use]
pub fn supersedes(new: &Trigger, policy: bool, queued: &Deployment) -> bool {
    policy
        && *new == Trigger::Push
        && (queued.request.trigger == Trigger::Push || planted!(SupersedeManual))
        && queued.state == State::Queued
        && !queued.kept_by_store.begun
}

/// What a request to cancel does to a deployment.
#[must_use]
pub fn cancel_answer(deployment: &Deployment) -> CancelAnswer {
    let status = deployment.status();
    if status.is_final() {
        CancelAnswer::Over(status)
    } else if deployment.state.is_undo() || is_recovery(deployment) && deployment.kept_by_store.begun {
        CancelAnswer::Undoing
    } else if deployment.state == State::Queued && !deployment.kept_by_store.begun {
        CancelAnswer::Cancelled
    } else {
        CancelAnswer::Requested
    }
}

/// Ends a queued deployment: the record, its version raised, and the event that goes with it.
#[must_use]
pub fn end_in_queue(deployment: Deployment, cause: Cause, at: DateTime<Utc>) -> (Deployment, NewEvent) {
    let (reason, superseded_by) = match &cause {
        Cause::Superseded { by } => ("a newer push took its place".to_owned(), Some(*by)),
        Cause::Failed(failure) => (failure.to_string(), None),
        Cause::Cancelled => match &deployment.kept_by_store.cancel {
            Some(actor) => (format!("cancelled by {actor} while it waited"), None),
            None => ("cancelled while it waited".to_owned(), None),
        },
    };
    let ended = deployment.ended_in_queue(cause, at);
    let finished = EventKind::Finished { status: ended.status(), reason: Some(reason), superseded_by };
    (ended, NewEvent::new(at, finished))
}

const fn is_recovery(deployment: &Deployment) -> bool {
    matches!(deployment.request.trigger, Trigger::Recovery { .. })
}

/// The stranded deployment that a recovery recovers.
#[must_use]
pub const fn recovers(deployment: &Deployment) -> Option<DeploymentId> {
    match deployment.request.trigger {
        Trigger::Recovery { of } => Some(of),
        _ => None,
    }
}

/// Whether an unfinished deployment forbids that snapshots of its environment are removed: what it is to achieve
/// decides, not who asked for it, so that another try of a rollback does as the rollback did.
#[must_use]
pub const fn pins_snapshots(deployment: &Deployment) -> bool {
    deployment.rolls_back_to().is_some() || recovers(deployment).is_some()
}
