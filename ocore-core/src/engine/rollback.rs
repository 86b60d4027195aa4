use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::{Accepted, Engine, EngineError, Shared};
use crate::{
    deployment::Deployment,
    environment::{Environment, Instance},
    id::DeploymentId,
    machine::{Job, Outcome},
    name::InstanceName,
    port::{Filter, SnapshotState, StoreResult},
    release::{Commit, Snapshot, Window},
    request::{Goal, Request, RollbackMode, Trigger},
};

/// A request to make an earlier deployment's release live again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a request does nothing until it is passed to Engine::roll_back"]
pub struct RollbackRequest {
    to: DeploymentId,
    mode: RollbackMode,
    actor: String,
    key: Option<String>,
}

impl RollbackRequest {
    /// Back to this deployment's release and its data.
    pub const fn to(to: DeploymentId) -> Self {
        Self { to, mode: RollbackMode::CodeAndData, actor: String::new(), key: None }
    }

    /// Back to the release only; the data stays as it is.
    pub const fn code_only(mut self) -> Self {
        self.mode = RollbackMode::CodeOnly;
        self
    }

    /// Who asks, for the history.
    pub fn actor(mut self, actor: impl Into<String>) -> Self {
        self.actor = actor.into();
        self
    }

    /// A second request with the same key returns the first one's deployment.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }
}

/// What a rollback will do, as far as it can be told before it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RollbackPreview {
    /// The deployment whose release is to run again.
    pub to: DeploymentId,
    /// Its commit.
    pub commit: Commit,
    /// What will be lost.
    pub loss: Loss,
}

/// What a rollback loses. A safety snapshot is taken first, so that the rollback itself can be undone.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loss {
    /// Nothing: the data stays as it is.
    Nothing,
    /// Everything that was written since these moments.
    Since {
        /// For each instance, the moment of the snapshot that is restored.
        moments: BTreeMap<InstanceName, DateTime<Utc>>,
        /// For each instance, whether even the replaced deployment's last writes are missing from it.
        windows: BTreeMap<InstanceName, Window>,
    },
    /// The deployment is live still; the deployments that wait before the rollback decide.
    SinceTheNextDeployment,
    /// The rollback was accepted before, under the same key: what it loses was in the answer then.
    SaidBefore,
}

impl Engine {
    /// What a rollback would do. Changes nothing.
    ///
    /// # Errors
    /// [`EngineError::NoSuchDeployment`]; [`EngineError::LiveAlready`]; [`EngineError::CannotRollBack`] with the
    /// reason and what can be done instead.
    pub async fn preview_rollback(&self, request: &RollbackRequest) -> Result<RollbackPreview, EngineError> {
        let id = request.to;
        let target = self.deployment(id).await?;
        let Some(live) = target.live() else {
            let status = target.status();
            let reason = format!("it was never live; it is {status}. Choose a deployment that ended Running");
            return Err(EngineError::CannotRollBack { id, reason });
        };
        let preview = |loss| RollbackPreview { to: id, commit: live.release.commit.clone(), loss };
        let record = self.environment(target.environment.as_str()).await?;
        let live = record.live.as_ref().is_some_and(|live| live.deployment == id);
        if let Some(stranded) = record.attention.filter(|_| live) {
            let reason = format!(
                "it does not serve: {stranded} could not be undone. Resume its rollback, or acknowledge it, first"
            );
            return Err(EngineError::CannotRollBack { id, reason });
        }
        if live && record.acknowledged.is_empty() {
            let alone = record.active.is_none() && record.queued == 0;
            return if alone {
                Err(EngineError::LiveAlready { id })
            } else {
                Ok(preview(Loss::SinceTheNextDeployment))
            };
        }
        if request.mode == RollbackMode::CodeOnly {
            return Ok(preview(Loss::Nothing));
        }
        match self
            .shared
            .in_time(self.shared.data_of(&target, &record.environment, &record.acknowledged))
            .await?
        {
            Ok(data) => {
                let moments = data.snapshots.iter().map(|(name, snapshot)| (name.clone(), snapshot.taken_at));
                Ok(preview(Loss::Since { moments: moments.collect(), windows: data.windows }))
            }
            Err(reason) => Err(EngineError::CannotRollBack { id, reason }),
        }
    }

    /// Asks for a rollback: a new deployment of the earlier release, with its data or without. Returns at once, and
    /// says what will be lost. Asked again with the same key, it answers with what was accepted then, whatever has
    /// become of it.
    ///
    /// # Errors
    /// As [`preview_rollback`](Self::preview_rollback), and [`EngineError::QueueFull`].
    pub async fn roll_back(
        &self,
        request: RollbackRequest,
    ) -> Result<(Accepted, RollbackPreview), EngineError> {
        let target = self.deployment(request.to).await?;
        if let Some(accepted) = self.accepted_before(&target.environment, request.key.as_deref()).await? {
            let commit = target.live().map(|live| live.release.commit.clone()).or(target.commit);
            let no_commit =
                || EngineError::CannotRollBack { id: target.id, reason: "it was never live".into() };
            let (commit, loss) = (commit.ok_or_else(no_commit)?, Loss::SaidBefore);
            return Ok((accepted, RollbackPreview { to: target.id, commit, loss }));
        }
        let preview = self.preview_rollback(&request).await?;
        let RollbackRequest { to, mode, actor, key } = request;
        let environment = target.environment;
        let (trigger, goal) = (Trigger::Rollback { to }, Goal::Rollback { to, mode });
        let accepted = self.enqueue(environment, Request { trigger, actor, goal, key }).await?;
        Ok((accepted, preview))
    }
}

/// The data that belongs to a deployment.
pub(super) struct DataOf {
    pub(super) snapshots: BTreeMap<InstanceName, Snapshot>,
    pub(super) windows: BTreeMap<InstanceName, Window>,
}

impl Shared {
    /// The data that belongs to a deployment that was live: the snapshot taken by the deployment that replaced it.
    ///
    /// The snapshot that a deployment takes is the data *before* it. And a deployment that came later but was
    /// undone did not end anything: what was written after it belongs to the target too, so that what counts is
    /// the one that replaced the target for good. The inner error says why there is no such data.
    ///
    /// Where a deployment was stranded on top of the target and acknowledged, that is the one: what came of the data
    /// since then, by its migration or by hand, nobody knows.
    ///
    /// An instance that the environment has now, and did not have then, has no such data: nobody can say what it
    /// should become, so that the answer is no. Instances that the environment has no more are left out.
    pub(super) async fn data_of(
        &self,
        target: &Deployment,
        environment: &Environment,
        acknowledged: &[DeploymentId],
    ) -> StoreResult<Result<DataOf, String>> {
        let filter = Filter { replaced: Some(target.id), ..Filter::environment(target.environment.clone()) };
        let successor = match self.stranded_on(target.id, acknowledged).await? {
            Some(stranded) => Some(stranded),
            None => self.newest(&filter).await?,
        };
        if planted!(RollbackOffByOne) {
            return Ok(Ok(DataOf { snapshots: target.snapshots.clone(), windows: BTreeMap::new() }));
        }
        let Some(successor) = successor else {
            let reason = "no later deployment has a snapshot of its data; roll back the code only".to_owned();
            return Ok(Err(reason));
        };
        let records = self.store.snapshots(&target.environment).await?;
        let kept = |snapshot: &Snapshot| {
            records.iter().any(|record| {
                record.snapshot.reference == snapshot.reference && record.state == SnapshotState::Kept
            })
        };
        if successor.snapshots.is_empty() || !successor.snapshots.values().all(kept) {
            return Ok(Err(format!(
                "the snapshot that {} took of its data has been removed by retention; roll back the code only",
                successor.id
            )));
        }
        let mut data = DataOf { snapshots: BTreeMap::new(), windows: BTreeMap::new() };
        for Instance { name, .. } in environment.instances() {
            let Some(snapshot) = successor.snapshots.get(name) else {
                return Ok(Err(format!(
                    "instance {name} was added later, so that there is no data of it to put back; roll back the code \
                     only, or save the environment without {name} first"
                )));
            };
            data.snapshots.insert(name.clone(), snapshot.clone());
            data.windows.extend(successor.windows.get(name).map(|window| (name.clone(), *window)));
        }
        Ok(Ok(data))
    }

    /// What the stranded deployment worked for, or the one that it was to recover.
    pub(super) async fn stranded(&self, id: DeploymentId) -> StoreResult<Option<Job>> {
        let stranded = self.store.deployment(id).await?;
        Ok(stranded.and_then(|stranded| match stranded.outcome() {
            Some(Outcome::Stranded { undo, .. }) => Some(undo.job().clone()),
            _ => None,
        }))
    }

    /// The first of these stranded deployments that was to replace the target.
    async fn stranded_on(
        &self,
        target: DeploymentId,
        acknowledged: &[DeploymentId],
    ) -> StoreResult<Option<Deployment>> {
        for id in acknowledged {
            let Some(job) = self.stranded(*id).await? else { continue };
            if job.previous.is_some_and(|live| live.deployment == target) {
                return self.store.deployment(job.id).await;
            }
        }
        Ok(None)
    }
}
