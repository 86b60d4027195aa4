//! The store in one SQLite file.

mod claim;
mod commit;
mod database;
mod environments;
mod error;
mod history;
mod lane;
mod log;
mod open;
mod queue;
mod row;
mod snapshots;

#[cfg(test)]
mod tests;

use std::{fmt, path::Path, pin::Pin, sync::Arc};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
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
};

pub use self::open::Durability;
use self::{database::Database, open::Clock};

/// A store in one SQLite file, which any number of processes of one machine may share.
///
/// The file is made and brought up to date when it is opened; one that a newer ocore has written is refused. A
/// call is one transaction, and one that writes is one `fsync`; it happens wholly or not at all, also if its
/// future is dropped. Leases are counted by the machine's monotonic clock since boot, so that setting the wall
/// clock changes nothing; after a reboot every lease has run out and every wait is over.
///
/// The file must be on a local disk: the processes that share it also share memory beside it. A record that this
/// version cannot read is left to one that can: its lane is not claimed, and an error is logged.
///
/// Clones are the same client. A client lives as long as the tokio runtime that opened it.
#[derive(Clone)]
pub struct SqliteStore {
    database: Arc<Database>,
}

impl SqliteStore {
    /// Opens the file, or makes it, with [`Durability::Full`].
    ///
    /// # Errors
    /// Says what is wrong with the file, or with its directory, and what to do about it.
    pub async fn open(path: impl AsRef<Path>) -> StoreResult<Self> {
        Self::open_with(path, Durability::Full).await
    }

    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_with(path: impl AsRef<Path>, durability: Durability) -> StoreResult<Self> {
        Self::open_on(path.as_ref(), durability, Clock::Boot).await
    }

    async fn open_on(path: &Path, durability: Durability, clock: Clock) -> StoreResult<Self> {
        let database = Database::open(path, durability, clock).await?;
        Ok(Self { database })
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.database.path()).finish_non_exhaustive()
    }
}

#[async_trait]
impl EnvironmentStore for SqliteStore {
    async fn save_environment(&self, environment: &Environment) -> StoreResult<Saved> {
        let environment = environment.clone();
        self.database
            .write("save the environment", move |db, _| Box::pin(environments::save(db, environment)))
            .await
    }

    async fn environment(&self, name: &EnvironmentName) -> StoreResult<Option<EnvironmentRecord>> {
        let name = name.clone();
        self.database.read("read the environment", move |db| Box::pin(environments::find(db, name))).await
    }

    async fn environments(&self) -> StoreResult<Vec<EnvironmentRecord>> {
        self.database.read("read the environments", |db| Box::pin(environments::all(db))).await
    }

    async fn set_paused(&self, name: &EnvironmentName, by: Option<String>) -> StoreResult<bool> {
        let name = name.clone();
        self.database
            .write("pause or resume the environment", move |db, _| {
                Box::pin(environments::set_paused(db, name, by))
            })
            .await
    }

    async fn acknowledge(
        &self,
        name: &EnvironmentName,
        stranded: DeploymentId,
        actor: &str,
        at: DateTime<Utc>,
    ) -> StoreResult<Acknowledged> {
        let (name, actor) = (name.clone(), actor.to_owned());
        self.database
            .write("acknowledge the stranded deployment", move |db, _| {
                Box::pin(environments::acknowledge(db, name, stranded, actor, at))
            })
            .await
    }
}

#[async_trait]
impl QueueStore for SqliteStore {
    async fn enqueue(&self, new: NewDeployment, at: DateTime<Utc>) -> StoreResult<Enqueued> {
        self.database
            .write("enqueue the deployment", move |db, _| Box::pin(queue::enqueue(db, new, at)))
            .await
    }

    async fn heartbeat(&self, worker: &Worker) -> StoreResult<Beat> {
        let worker = worker.clone();
        self.database
            .write_silently("extend the worker's lease", move |db, now| {
                Box::pin(claim::heartbeat(db, worker, now))
            })
            .await
    }

    async fn claim(&self, worker: &Worker, busy: &[EnvironmentName]) -> StoreResult<Claimed> {
        let (worker, busy, fence_min) = (worker.clone(), busy.to_vec(), self.database.fence_min());
        self.database
            .write_silently("claim a lane", move |db, now| {
                Box::pin(claim::claim(db, worker, busy, fence_min, now))
            })
            .await
    }

    async fn commit(&self, commit: &Commit) -> StoreResult<Committed> {
        let commit = commit.clone();
        self.database
            .write("commit the deployment's next state", move |db, now| {
                Box::pin(commit::commit(db, commit, now))
            })
            .await
    }

    async fn request_cancel(
        &self,
        deployment: DeploymentId,
        actor: &str,
        at: DateTime<Utc>,
    ) -> StoreResult<CancelAnswer> {
        let actor = actor.to_owned();
        self.database
            .write("request the cancel", move |db, now| {
                Box::pin(queue::request_cancel(db, deployment, actor, at, now))
            })
            .await
    }

    async fn retire(&self, worker: WorkerId) -> StoreResult<()> {
        self.database
            .write("retire the worker", move |db, now| Box::pin(claim::retire(db, worker, now)))
            .await
    }

    async fn lane(&self, environment: &EnvironmentName) -> StoreResult<Option<LaneQueue>> {
        let name = environment.clone();
        self.database.read("read the lane", move |db| Box::pin(environments::lane(db, name))).await
    }

    /// Wakes up for everything that changes after this call, not only after the first poll of its future. What
    /// other processes change is noticed within 40 milliseconds.
    fn changed<'life0, 'async_trait>(&'life0 self) -> Pin<Box<dyn Future<Output = ()> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(self.database.changed())
    }
}

#[async_trait]
impl HistoryStore for SqliteStore {
    async fn deployment(&self, id: DeploymentId) -> StoreResult<Option<Deployment>> {
        self.database.read("read the deployment", move |db| Box::pin(history::deployment(db, id))).await
    }

    async fn history(
        &self,
        filter: &Filter,
        before: Option<DeploymentId>,
        limit: usize,
    ) -> StoreResult<Page> {
        let filter = filter.clone();
        self.database
            .read("read the history", move |db| Box::pin(history::page(db, filter, before, limit)))
            .await
    }
}

#[async_trait]
impl LogStore for SqliteStore {
    async fn append(
        &self,
        environment: &EnvironmentName,
        deployment: DeploymentId,
        fence: Fence,
        events: Vec<NewEvent>,
        limit: LogLimit,
    ) -> StoreResult<bool> {
        let name = environment.clone();
        self.database
            .write("append to the log", move |db, _| {
                Box::pin(log::append_fenced(db, name, deployment, fence, events, limit))
            })
            .await
    }

    async fn events(
        &self,
        deployment: DeploymentId,
        after: EventSeq,
        limit: usize,
    ) -> StoreResult<Vec<Event>> {
        self.database.read("read the log", move |db| Box::pin(log::read(db, deployment, after, limit))).await
    }
}

#[async_trait]
impl SnapshotStore for SqliteStore {
    async fn snapshots(&self, environment: &EnvironmentName) -> StoreResult<Vec<SnapshotRecord>> {
        let name = environment.clone();
        self.database.read("read the snapshots", move |db| Box::pin(snapshots::all(db, name))).await
    }

    async fn retire_snapshots(
        &self,
        environment: &EnvironmentName,
        references: &[String],
        at: DateTime<Utc>,
    ) -> StoreResult<Vec<String>> {
        let (name, references) = (environment.clone(), references.to_vec());
        self.database
            .write_silently("retire the snapshots", move |db, _| {
                Box::pin(snapshots::retire(db, name, references, at))
            })
            .await
    }

    async fn forget_snapshots(
        &self,
        environment: &EnvironmentName,
        references: &[String],
    ) -> StoreResult<()> {
        let (name, references) = (environment.clone(), references.to_vec());
        self.database
            .write_silently("forget the snapshots", move |db, _| {
                Box::pin(snapshots::forget(db, name, references))
            })
            .await
    }
    async fn pin_snapshots(
        &self,
        environment: &EnvironmentName,
        deployment: DeploymentId,
        pin: &SnapshotPin,
    ) -> StoreResult<bool> {
        let (name, pin) = (environment.clone(), pin.clone());
        self.database
            .write_silently("pin the snapshots", move |db, _| {
                Box::pin(snapshots::pin(db, name, deployment, pin))
            })
            .await
    }
}
