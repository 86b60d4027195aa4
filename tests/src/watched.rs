use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use ocore_core::{
    deployment::Deployment,
    environment::Environment,
    event::{Event, NewEvent},
    id::{DeploymentId, EventSeq, Fence, WorkerId},
    name::EnvironmentName,
    port::{
        Acknowledged, Beat, CancelAnswer, Claimed, Commit, Committed, Enqueued, EnvironmentRecord,
        EnvironmentStore, Filter, HistoryStore, LaneQueue, LogLimit, LogStore, Page, QueueStore, Saved,
        SnapshotPin, SnapshotRecord, SnapshotStore, StoreResult, Worker,
    },
    request::NewDeployment,
    testing::memory::MemoryStore,
};

use crate::journal::Journals;

/// A store that tells the journal what it has accepted, at the moment when it does so.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    pub(crate) store: MemoryStore,
    pub(crate) journals: Arc<Journals>,
    /// Whose connection it is.
    pub(crate) caller: usize,
}

#[async_trait]
impl QueueStore for Watched {
    async fn enqueue(&self, new: NewDeployment, at: DateTime<Utc>) -> StoreResult<Enqueued> {
        let answer = self.store.enqueue(new, at).await?;
        self.journals.enqueued(&answer);
        Ok(answer)
    }

    async fn heartbeat(&self, worker: &Worker) -> StoreResult<Beat> {
        let answer = self.store.heartbeat(worker).await?;
        if matches!(answer, Beat::Alive(_)) {
            self.journals.all().for_each(|journal| journal.heartbeat(self.caller));
        }
        Ok(answer)
    }

    async fn claim(&self, worker: &Worker, busy: &[EnvironmentName]) -> StoreResult<Claimed> {
        let answer = self.store.claim(worker, busy).await?;
        if let Claimed::Work(claim) = &answer {
            self.journals.of(claim.environment.name()).claimed(claim);
        }
        Ok(answer)
    }

    async fn commit(&self, commit: &Commit) -> StoreResult<Committed> {
        let answer = self.store.commit(commit).await?;
        self.journals.of(&commit.deployment.environment).committed(commit, &answer);
        Ok(answer)
    }

    async fn request_cancel(
        &self,
        deployment: DeploymentId,
        actor: &str,
        at: DateTime<Utc>,
    ) -> StoreResult<CancelAnswer> {
        let answer = self.store.request_cancel(deployment, actor, at).await?;
        self.journals.cancelled(deployment, &answer);
        Ok(answer)
    }

    async fn retire(&self, worker: WorkerId) -> StoreResult<()> {
        self.store.retire(worker).await
    }

    async fn lane(&self, environment: &EnvironmentName) -> StoreResult<Option<LaneQueue>> {
        self.store.lane(environment).await
    }

    /// Hints at work and at cancels, not at every commit: with a hint per commit, a third of all polls would be those
    /// of idle workers that find nothing.
    fn changed<'life0, 'async_trait>(&'life0 self) -> BoxFuture<'async_trait, ()>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(self.journals.changed())
    }
}

#[async_trait]
impl EnvironmentStore for Watched {
    async fn save_environment(&self, environment: &Environment) -> StoreResult<Saved> {
        self.store.save_environment(environment).await
    }

    async fn environment(&self, name: &EnvironmentName) -> StoreResult<Option<EnvironmentRecord>> {
        self.store.environment(name).await
    }

    async fn environments(&self) -> StoreResult<Vec<EnvironmentRecord>> {
        self.store.environments().await
    }

    async fn set_paused(&self, name: &EnvironmentName, by: Option<String>) -> StoreResult<bool> {
        let paused = by.is_some();
        let known = self.store.set_paused(name, by).await?;
        self.journals.of(name).paused(paused);
        Ok(known)
    }

    async fn acknowledge(
        &self,
        name: &EnvironmentName,
        stranded: DeploymentId,
        actor: &str,
        at: DateTime<Utc>,
    ) -> StoreResult<Acknowledged> {
        let answer = self.store.acknowledge(name, stranded, actor, at).await?;
        if answer == Acknowledged::Done {
            self.journals.of(name).acknowledged(stranded);
        }
        Ok(answer)
    }
}

#[async_trait]
impl HistoryStore for Watched {
    async fn deployment(&self, id: DeploymentId) -> StoreResult<Option<Deployment>> {
        self.store.deployment(id).await
    }

    async fn history(
        &self,
        filter: &Filter,
        before: Option<DeploymentId>,
        limit: usize,
    ) -> StoreResult<Page> {
        self.store.history(filter, before, limit).await
    }
}

#[async_trait]
impl LogStore for Watched {
    async fn append(
        &self,
        environment: &EnvironmentName,
        deployment: DeploymentId,
        fence: Fence,
        events: Vec<NewEvent>,
        limit: LogLimit,
    ) -> StoreResult<bool> {
        self.store.append(environment, deployment, fence, events, limit).await
    }

    async fn events(
        &self,
        deployment: DeploymentId,
        after: EventSeq,
        limit: usize,
    ) -> StoreResult<Vec<Event>> {
        self.store.events(deployment, after, limit).await
    }
}

#[async_trait]
impl SnapshotStore for Watched {
    async fn snapshots(&self, environment: &EnvironmentName) -> StoreResult<Vec<SnapshotRecord>> {
        self.store.snapshots(environment).await
    }

    async fn retire_snapshots(
        &self,
        environment: &EnvironmentName,
        references: &[String],
        at: DateTime<Utc>,
    ) -> StoreResult<Vec<String>> {
        self.store.retire_snapshots(environment, references, at).await
    }

    async fn forget_snapshots(
        &self,
        environment: &EnvironmentName,
        references: &[String],
    ) -> StoreResult<()> {
        self.store.forget_snapshots(environment, references).await
    }

    async fn pin_snapshots(
        &self,
        environment: &EnvironmentName,
        deployment: DeploymentId,
        pin: &SnapshotPin,
    ) -> StoreResult<bool> {
        let pinned = self.store.pin_snapshots(environment, deployment, pin).await?;
        if pinned {
            let snapshots = self.store.snapshots(environment).await?;
            let snapshots = snapshots.into_iter().filter(|it| it.deployment == deployment);
            let references = snapshots.map(|it| it.snapshot.reference);
            self.journals.of(environment).pinned(references);
        }
        Ok(pinned)
    }
}
