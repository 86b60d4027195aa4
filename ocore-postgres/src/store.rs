//! The store in PostgreSQL, for any number of workers on any number of machines.

mod batch;
mod claim;
mod commit;
mod database;
mod environments;
mod error;
mod hint;
mod history;
mod lane;
mod log;
mod migrate;
mod queue;
mod row;
mod snapshots;
mod sql;

#[cfg(test)]
mod tests;

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

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
        SnapshotPin, SnapshotRecord, SnapshotStore, StoreError, StoreErrorKind, StoreResult, Worker,
    },
    request::NewDeployment,
};
use sqlx::{
    PgConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};

pub use self::migrate::{MIGRATIONS, Migration};
use self::{batch::Batches, claim::Unreadable, database::Database, sql::Sql};

/// A store in one schema of a PostgreSQL database, 13 or newer.
///
/// Any number of processes on any number of machines share it. A call is one transaction; claims, heartbeats and commits
/// are one statement, and commits of more than four lanes at the same time share one. A call happens wholly or not at all, also
/// if its future is dropped. Leases and waits go by the server's clock alone.
///
/// **Connections**: a pool of at most [`connections_max`](Builder::connections_max), one for heartbeats, and one that
/// listens for changes unless [`hints`](Builder::hints) are off.
///
/// **Lost connections**, restarts, failovers, servers that are full: the call says so ([`StoreErrorKind`]), and the engine
/// tries it again, more and more rarely while claims fail. Conflicts with other transactions are tried again here. After a
/// failover nothing is missing if the standby is a synchronous one (`synchronous_standby_names`); of an asynchronous one the
/// last commits may be, and what they did in the world is done again or undone.
///
/// A record that this version cannot read is left to one that can: its lane is given back, and an error is logged.
///
/// Clones are the same client. A client lives as long as the tokio runtime that opened it.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use ocore_postgres::store::PostgresStore;
///
/// let store = PostgresStore::builder("postgres://ocore@db.example.org/ocore".parse()?).migrate().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct PostgresStore {
    database: Arc<Database>,
    batches: Arc<Batches>,
    unreadable: Arc<Unreadable>,
}

/// How a [`PostgresStore`] is opened.
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    options: PgConnectOptions,
    schema: String,
    connections_max: u32,
    connect_timeout: Duration,
    prepared: bool,
    hints: bool,
    listener: Option<PgConnectOptions>,
}

impl Builder {
    /// The schema that holds everything; `ocore` unless said otherwise.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// How many connections the pool has at most; 8 unless said otherwise. One more listens, one more beats.
    pub const fn connections_max(mut self, connections: u32) -> Self {
        self.connections_max = connections;
        self
    }

    /// How long a call waits for a connection; 5 seconds unless said otherwise.
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// For poolers that hand every transaction to another connection, such as PgBouncer in transaction mode: no statement is
    /// prepared, none runs outside of a transaction, and nothing is set when a connection begins. A session that listens
    /// cannot go through one: hints are off until there is a [`listener`](Self::listener) of its own.
    ///
    /// PgBouncer refuses parameters that it does not know: it needs `ignore_startup_parameters = extra_float_digits`.
    pub const fn behind_pooler(mut self) -> Self {
        self.prepared = false;
        self.hints = false;
        self
    }

    /// Where to listen for changes, and turns hints on: the server itself, for a client that is behind a pooler.
    pub fn listener(mut self, options: PgConnectOptions) -> Self {
        self.listener = Some(options.application_name("ocore"));
        self.hints = true;
        self
    }

    /// Whether changes are told to other processes, and theirs heard, by `NOTIFY` and `LISTEN`. Without, they are found by
    /// polling.
    pub const fn hints(mut self, hints: bool) -> Self {
        self.hints = hints;
        self
    }

    /// Opens the store, whose schema must be up to date.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses; or the schema is older, or newer than this ocore.
    pub async fn open(self) -> StoreResult<PostgresStore> {
        let store = self.build()?;
        migrate::check(&store.database).await?;
        Ok(store)
    }

    /// Brings the schema up to date, and opens the store. Several processes may do so at the same time.
    ///
    /// # Errors
    /// As [`open`](Self::open); or the role may not change the schema.
    pub async fn migrate(self) -> StoreResult<PostgresStore> {
        let store = self.build()?;
        migrate::up(&store.database).await?;
        migrate::check(&store.database).await?;
        Ok(store)
    }

    /// Takes the schema back to an older version, 0 being none at all: **with what it holds**.
    ///
    /// # Errors
    /// As [`migrate`](Self::migrate).
    pub async fn revert_to(self, version: u32) -> StoreResult<()> {
        migrate::down(&self.build()?.database, version).await
    }

    fn build(self) -> StoreResult<PostgresStore> {
        let sql = Sql::new(&self.schema, self.prepared);
        let sql = sql.map_err(|wrong| StoreError::new(StoreErrorKind::Broken, wrong))?;
        let options = if self.prepared {
            // Single statements are transactions of this isolation too, whatever is the server's default.
            self.options.options([("default_transaction_isolation", "read committed")])
        } else {
            self.options.statement_cache_capacity(0)
        };
        let pool =
            PgPoolOptions::new().max_connections(self.connections_max).acquire_timeout(self.connect_timeout);
        let listener = self.hints.then(|| self.listener.unwrap_or_else(|| options.clone()));
        let database = Database::new(options, sql, pool, listener);
        Ok(PostgresStore { database, batches: Arc::default(), unreadable: Arc::default() })
    }
}

impl PostgresStore {
    /// A store on this database.
    pub fn builder(options: PgConnectOptions) -> Builder {
        Builder {
            options: options.application_name("ocore"),
            schema: "ocore".to_owned(),
            connections_max: 8,
            connect_timeout: Duration::from_secs(5),
            prepared: true,
            hints: true,
            listener: None,
        }
    }

    /// How [`Engine::deploy_with`](ocore_core::engine::Engine::deploy_with) enqueues within a transaction of the host: accepted
    /// if that commits, and as if it had never been asked for if not. The engine's own checks are as with any request; it
    /// reads the environment outside of the transaction.
    ///
    /// The lane stays locked until the transaction ends, so end it soon. Workers find the deployment when they look next;
    /// [`told`](Self::told) after the commit makes that at once. After a store's error the transaction is to be rolled back.
    ///
    /// ```no_run
    /// # async fn example(
    /// #     store: ocore_postgres::store::PostgresStore,
    /// #     engine: ocore_core::engine::Engine,
    /// #     pool: sqlx::PgPool,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// use ocore_core::request::DeployRequest;
    ///
    /// let mut transaction = pool.begin().await?;
    /// sqlx::query("UPDATE orders SET state = 'deployed' WHERE id = 7").execute(&mut *transaction).await?;
    /// engine.deploy_with(DeployRequest::api("shop"), store.deploy_in(&mut transaction)).await?;
    /// transaction.commit().await?;
    /// store.told();
    /// # Ok(()) }
    /// ```
    pub fn deploy_in<'t>(
        &'t self,
        transaction: &'t mut PgConnection,
    ) -> impl FnOnce(NewDeployment, DateTime<Utc>) -> BoxFuture<'t, StoreResult<Enqueued>> + Send + 't {
        move |new, at| {
            Box::pin(async move {
                let enqueued = queue::enqueue(transaction, &self.database.sql, new, at).await;
                enqueued.map_err(|error| error::describe("enqueue the deployment", error, error::Doubt::None))
            })
        }
    }

    /// Tells all workers that something may have changed.
    pub fn told(&self) {
        self.database.tell();
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("schema", &self.database.sql.schema()).finish_non_exhaustive()
    }
}

#[async_trait]
impl EnvironmentStore for PostgresStore {
    async fn save_environment(&self, environment: &Environment) -> StoreResult<Saved> {
        let environment = Arc::new(environment.clone());
        let saved = self.database.transact("save the environment", move |db, sql| {
            Box::pin(environments::save(db, sql, environment.clone()))
        });
        let saved = saved.await;
        self.database.tell();
        saved
    }

    async fn environment(&self, name: &EnvironmentName) -> StoreResult<Option<EnvironmentRecord>> {
        let name = name.clone();
        self.database
            .call("read the environment", move |db, sql| Box::pin(environments::find(db, sql, name.clone())))
            .await
    }

    async fn environments(&self) -> StoreResult<Vec<EnvironmentRecord>> {
        self.database.call("read the environments", |db, sql| Box::pin(environments::all(db, sql))).await
    }

    async fn set_paused(&self, name: &EnvironmentName, by: Option<String>) -> StoreResult<bool> {
        let name = name.clone();
        let paused = self.database.transact("pause or resume the environment", move |db, sql| {
            Box::pin(environments::set_paused(db, sql, name.clone(), by.clone()))
        });
        let paused = paused.await;
        self.database.tell();
        paused
    }

    async fn acknowledge(
        &self,
        name: &EnvironmentName,
        stranded: DeploymentId,
        actor: &str,
        at: DateTime<Utc>,
    ) -> StoreResult<Acknowledged> {
        let (name, actor) = (name.clone(), actor.to_owned());
        let acknowledged = self.database.transact("acknowledge the stranded deployment", move |db, sql| {
            Box::pin(environments::acknowledge(db, sql, name.clone(), stranded, actor.clone(), at))
        });
        let acknowledged = acknowledged.await;
        self.database.tell();
        acknowledged
    }
}

#[async_trait]
impl QueueStore for PostgresStore {
    async fn enqueue(&self, new: NewDeployment, at: DateTime<Utc>) -> StoreResult<Enqueued> {
        let enqueued = self.database.transact("enqueue the deployment", move |db, sql| {
            Box::pin(queue::enqueue(db, sql, new.clone(), at))
        });
        let enqueued = enqueued.await;
        self.database.tell();
        enqueued
    }

    async fn heartbeat(&self, worker: &Worker) -> StoreResult<Beat> {
        let worker = worker.clone();
        self.database
            .beat("extend the worker's lease", move |db, sql| {
                Box::pin(claim::heartbeat(db, sql, worker.clone()))
            })
            .await
    }

    async fn claim(&self, worker: &Worker, busy: &[EnvironmentName]) -> StoreResult<Claimed> {
        claim::claim(&self.database, &self.unreadable, worker, busy).await
    }

    async fn commit(&self, commit: &Commit) -> StoreResult<Committed> {
        let committed = commit::commit(&self.database, &self.batches, &self.unreadable, commit).await;
        self.database.tell();
        committed
    }

    async fn request_cancel(
        &self,
        deployment: DeploymentId,
        actor: &str,
        at: DateTime<Utc>,
    ) -> StoreResult<CancelAnswer> {
        let actor = actor.to_owned();
        let requested = self.database.transact("request the cancel", move |db, sql| {
            Box::pin(queue::request_cancel(db, sql, deployment, actor.clone(), at))
        });
        let requested = requested.await;
        self.database.tell();
        requested
    }

    async fn retire(&self, worker: WorkerId) -> StoreResult<()> {
        let retired = self
            .database
            .transact("retire the worker", move |db, sql| Box::pin(claim::retire(db, sql, worker)));
        let retired = retired.await;
        self.database.tell();
        retired
    }

    async fn lane(&self, environment: &EnvironmentName) -> StoreResult<Option<LaneQueue>> {
        let name = environment.clone();
        self.database
            .transact("read the lane", move |db, sql| Box::pin(environments::lane(db, sql, name.clone())))
            .await
    }

    /// Wakes up for everything that changes after this call, not only after the first poll of its future.
    fn changed<'life0, 'async_trait>(&'life0 self) -> Pin<Box<dyn Future<Output = ()> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(self.database.changed())
    }
}

#[async_trait]
impl HistoryStore for PostgresStore {
    async fn deployment(&self, id: DeploymentId) -> StoreResult<Option<Deployment>> {
        self.database
            .call("read the deployment", move |db, sql| Box::pin(history::deployment(db, sql, id)))
            .await
    }

    async fn history(
        &self,
        filter: &Filter,
        before: Option<DeploymentId>,
        limit: usize,
    ) -> StoreResult<Page> {
        let filter = filter.clone();
        self.database
            .call("read the history", move |db, sql| {
                Box::pin(history::page(db, sql, filter.clone(), before, limit))
            })
            .await
    }
}

#[async_trait]
impl LogStore for PostgresStore {
    async fn append(
        &self,
        environment: &EnvironmentName,
        deployment: DeploymentId,
        fence: Fence,
        events: Vec<NewEvent>,
        limit: LogLimit,
    ) -> StoreResult<bool> {
        let (name, events) = (environment.clone(), Arc::new(events));
        let appended = self.database.transact("append to the log", move |db, sql| {
            Box::pin(log::append_fenced(db, sql, name.clone(), deployment, fence, events.clone(), limit))
        });
        let appended = appended.await;
        self.database.tell();
        appended
    }

    async fn events(
        &self,
        deployment: DeploymentId,
        after: EventSeq,
        limit: usize,
    ) -> StoreResult<Vec<Event>> {
        self.database
            .call("read the log", move |db, sql| Box::pin(log::read(db, sql, deployment, after, limit)))
            .await
    }
}

#[async_trait]
impl SnapshotStore for PostgresStore {
    async fn snapshots(&self, environment: &EnvironmentName) -> StoreResult<Vec<SnapshotRecord>> {
        let name = environment.clone();
        self.database
            .call("read the snapshots", move |db, sql| Box::pin(snapshots::all(db, sql, name.clone())))
            .await
    }

    async fn retire_snapshots(
        &self,
        environment: &EnvironmentName,
        references: &[String],
        at: DateTime<Utc>,
    ) -> StoreResult<Vec<String>> {
        let (name, references) = (environment.clone(), references.to_vec());
        self.database
            .transact("retire the snapshots", move |db, sql| {
                Box::pin(snapshots::retire(db, sql, name.clone(), references.clone(), at))
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
            .call("forget the snapshots", move |db, sql| {
                Box::pin(snapshots::forget(db, sql, name.clone(), references.clone()))
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
            .transact("pin the snapshots", move |db, sql| {
                Box::pin(snapshots::pin(db, sql, name.clone(), deployment, pin.clone()))
            })
            .await
    }
}
