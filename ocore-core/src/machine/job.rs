//! What a deployment works for, and what it owns from the moment when it begins to change things.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Locate, Outcome, Restore, Revive, Start, State, Toward, Update, Withdraw, forward::Fetch};
use crate::{
    environment::Environment,
    failure::Cause,
    id::DeploymentId,
    name::InstanceName,
    release::{Live, LiveInstance, Release, Snapshot, Started},
    request::{Goal, RollbackMode},
    retry::Tally,
};

/// What a deployment works for: its settings are those of the moment when it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Job {
    /// The deployment that names everything that is made. For a recovery this is the stranded deployment.
    pub id: DeploymentId,
    /// The environment as it was when the deployment started; an undo that is resumed goes by the rules of that moment.
    pub environment: Arc<Environment>,
    /// What is to become live.
    pub aim: Aim,
    /// What served when the deployment started.
    pub previous: Option<Arc<Live>>,
    /// The stranded deployments that had been acknowledged by then: what still runs of them is withdrawn by Stop.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acknowledged: Vec<DeploymentId>,
}

/// What is to become live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Aim {
    /// A new release.
    Deploy,
    /// The release of an earlier deployment.
    Rollback {
        /// The earlier deployment.
        to: DeploymentId,
        /// The data to put back before the start; `None` leaves the data as it is.
        load: Option<Arc<BTreeMap<InstanceName, Snapshot>>>,
    },
}

/// A deployment's first step.
pub(crate) fn begin(
    id: DeploymentId,
    goal: &Goal,
    environment: Arc<Environment>,
    previous: Option<Arc<Live>>,
    acknowledged: Vec<DeploymentId>,
) -> State {
    let job = |aim| Job { id, environment: environment.clone(), aim, previous, acknowledged };
    match goal {
        Goal::Deploy(revision) => Fetch::new(job(Aim::Deploy), revision.clone()).into(),
        Goal::Rollback { to, mode } => {
            let aim = Aim::Rollback { to: *to, load: None };
            Locate::new(job(aim), *mode == RollbackMode::CodeAndData).into()
        }
        Goal::Recover(undo) => undo.as_ref().clone().under(environment.policy()).resume(),
    }
}

/// What a deployment owns once everything is prepared: enough to go forward, and to put everything back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Cutover {
    /// What it works for.
    pub job: Job,
    /// What is to run.
    pub release: Arc<Release>,
    /// The data as it was before, for each of the environment's instances.
    pub snapshots: Arc<BTreeMap<InstanceName, Snapshot>>,
    /// Whether data may have been written, or a new instance started.
    pub(super) touched: bool,
    /// What the attempts at Update and Start have used up.
    pub(super) redo: Tally,
}

impl Cutover {
    pub(super) fn new(job: Job, release: Arc<Release>, snapshots: BTreeMap<InstanceName, Snapshot>) -> Self {
        Self { job, release, snapshots: Arc::new(snapshots), touched: false, redo: Tally::default() }
    }

    /// The way forward from the moment when nothing serves any more.
    pub(super) fn go(self) -> State {
        match self.job.aim {
            Aim::Rollback { load: Some(_), .. } => Restore::new(self, Toward::Forward).into(),
            _ => self.update_or_start(),
        }
    }

    pub(super) fn update_or_start(self) -> State {
        let deploys = matches!(self.job.aim, Aim::Deploy);
        if deploys && self.release.image.has_update {
            Update { cutover: self }.into()
        } else {
            Start::new(self).into()
        }
    }

    pub(super) const fn touched(mut self) -> Self {
        self.touched = true;
        self
    }

    /// Puts the data back and goes forward once more.
    pub(super) fn redo(self) -> State {
        Withdraw::new(self.touched(), Toward::Forward).into()
    }

    /// The way back. Data is restored only if something may have been written.
    pub(super) fn undo(self, begun: bool, cause: Cause) -> State {
        if self.touched || begun && !planted!(BegunForgotten) {
            Withdraw::new(self.touched(), Toward::Back(cause)).into()
        } else {
            self.revive(cause)
        }
    }

    pub(super) fn revive(self, cause: Cause) -> State {
        self.job.revive(cause)
    }

    /// What an attempt on the way forward begins with: the data to go back to, or the data before.
    pub(super) fn data(&self, toward: &Toward) -> Arc<BTreeMap<InstanceName, Snapshot>> {
        match (&self.job.aim, toward) {
            (Aim::Rollback { load: Some(load), .. }, Toward::Forward) => load.clone(),
            _ => self.snapshots.clone(),
        }
    }

    pub(super) fn live(self, started: &BTreeMap<InstanceName, Started>) -> Live {
        let instances = self.job.environment.instances().iter().filter_map(|instance| {
            let started = started.get(&instance.name)?.clone();
            Some((instance.name.clone(), LiveInstance { instance: instance.clone(), started }))
        });
        Live { deployment: self.job.id, instances: instances.collect(), release: self.release }
    }
}

impl Job {
    /// Whether something may run that is to be stopped.
    pub(super) const fn is_occupied(&self) -> bool {
        self.previous.is_some() || !self.acknowledged.is_empty()
    }

    /// Starts again what served before, or ends if nothing did.
    pub(super) fn revive(self, cause: Cause) -> State {
        match self.previous.clone() {
            Some(previous) if planted!(ReviveSkipped) => {
                State::finished(Outcome::Undone { cause, live: Some(previous.as_ref().clone()) })
            }
            Some(previous) => Revive::new(self, previous, cause).into(),
            None => State::finished(Outcome::Undone { cause, live: None }),
        }
    }
}
