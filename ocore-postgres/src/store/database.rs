//! The connections: a pool for calls, one for heartbeats, one that listens.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use ocore_core::port::{StoreError, StoreErrorKind, StoreResult};
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{
    sync::{Mutex, futures::Notified},
    task::JoinHandle,
    time::timeout,
};

use super::{
    error::{self, Doubt},
    hint::Hints,
    sql::Sql,
};

/// How often a transaction is made again that the server has rolled back for another one's sake.
const CONFLICTS_MAX: usize = 5;

/// A connection that was idle for so long is looked at before it is used.
const IDLE_TRUSTED: Duration = Duration::from_secs(10);

/// How long the server may take to say why there was no connection.
const ASKED_WHY_MAX: Duration = Duration::from_millis(500);

/// The isolation that all of this is made for, whatever is the server's default.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";

pub(super) struct Database {
    pub(super) sql: Sql,
    options: PgConnectOptions,
    pool: PgPool,
    /// Its own, so that no crowd in the pool costs a worker its lease.
    heart: Mutex<Option<PgConnection>>,
    hints: Hints,
}

impl Database {
    pub(super) fn new(
        options: PgConnectOptions,
        sql: Sql,
        pool: PgPoolOptions,
        listener: Option<PgConnectOptions>,
    ) -> Arc<Self> {
        let pool = pool.test_before_acquire(false).before_acquire(|connection, meta| {
            Box::pin(async move { Ok(meta.idle_for < IDLE_TRUSTED || connection.ping().await.is_ok()) })
        });
        let pool = pool.connect_lazy_with(options.clone());
        let hints = Hints::start(listener, &pool, &sql);
        Arc::new(Self { sql, options, pool, heart: Mutex::new(None), hints })
    }

    pub(super) fn changed(&self) -> Notified<'_> {
        self.hints.changed()
    }

    /// Tells all clients, soon, that something has changed.
    pub(super) fn tell(&self) {
        self.hints.tell();
    }

    /// A connection of the pool. The pool tries to connect until the time is over, and then does not say why it could not:
    /// the server is asked.
    async fn acquire(&self) -> sqlx::Result<PoolConnection<Postgres>> {
        let error = match self.pool.acquire().await {
            Err(error @ sqlx::Error::PoolTimedOut) => error,
            acquired => return acquired,
        };
        match timeout(ASKED_WHY_MAX, self.options.connect()).await {
            Ok(Err(why)) => Err(why),
            Ok(Ok(connection)) => {
                // There is room: all that the pool may have are in use.
                drop(connection.close().await);
                Err(error)
            }
            Err(_) => Err(error),
        }
    }

    /// Runs one statement that is a transaction by itself, in a task of its own: dropping the call's future does not stop
    /// it half way, and leaves no connection in an unknown state.
    pub(super) async fn call<T, F>(self: &Arc<Self>, doing: &'static str, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> Fn(&'c mut PgConnection, &'c Sql) -> BoxFuture<'c, sqlx::Result<T>>
            + Send
            + Sync
            + 'static,
    {
        // Between two messages of an unprepared statement another connection could be put in.
        if !self.sql.is_prepared() {
            return self.transact(doing, work).await;
        }
        let database = self.clone();
        let task = tokio::spawn(async move {
            let mut tries = 1..CONFLICTS_MAX;
            loop {
                let acquired = database.acquire().await;
                let mut connection = acquired.map_err(|error| error::describe(doing, error, Doubt::None))?;
                match work(&mut connection, &database.sql).await {
                    Err(error) if error::is_conflict(&error) && tries.next().is_some() => {}
                    Err(error) => {
                        if !error::leaves_connection(&error) {
                            connection.close_on_drop();
                        }
                        return Err(error::describe(doing, error, Doubt::Sent));
                    }
                    Ok(answer) => return Ok(answer),
                }
            }
        });
        join(task, doing).await
    }

    /// Runs several statements in one transaction, in a task of its own.
    pub(super) async fn transact<T, F>(self: &Arc<Self>, doing: &'static str, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> Fn(&'c mut PgConnection, &'c Sql) -> BoxFuture<'c, sqlx::Result<T>>
            + Send
            + Sync
            + 'static,
    {
        let database = self.clone();
        let task = tokio::spawn(async move {
            let mut tries = 1..CONFLICTS_MAX;
            loop {
                match database.transact_once(doing, &work).await {
                    Err((error, _)) if error::is_conflict(&error) && tries.next().is_some() => {}
                    answer => return answer.map_err(|(error, doubt)| error::describe(doing, error, doubt)),
                }
            }
        });
        join(task, doing).await
    }

    async fn transact_once<T, F>(&self, doing: &'static str, work: &F) -> Result<T, (sqlx::Error, Doubt)>
    where
        F: for<'c> Fn(&'c mut PgConnection, &'c Sql) -> BoxFuture<'c, sqlx::Result<T>>,
    {
        let not_written = |error| (error, Doubt::None);
        let mut connection = self.acquire().await.map_err(not_written)?;
        let mut transaction = connection.begin_with(BEGIN).await.map_err(not_written)?;
        let (result, doubt) = match work(&mut transaction, &self.sql).await {
            Ok(answer) => (transaction.commit().await.map(|()| answer), Doubt::Sent),
            Err(error) => {
                if let Err(unheard) = transaction.rollback().await {
                    tracing::debug!(doing, error = %unheard, "the connection is closed instead of rolled back");
                }
                (Err(error), Doubt::None)
            }
        };
        result.map_err(|error| {
            if !error::leaves_connection(&error) {
                connection.close_on_drop();
            }
            (error, doubt)
        })
    }

    /// Runs one statement on the connection of the heartbeats.
    pub(super) async fn beat<T, F>(self: &Arc<Self>, doing: &'static str, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> Fn(&'c mut PgConnection, &'c Sql) -> BoxFuture<'c, sqlx::Result<T>>
            + Send
            + Sync
            + 'static,
    {
        let database = self.clone();
        let task = tokio::spawn(async move {
            let mut heart = database.heart.lock().await;
            // Taken out until all is well.
            let mut connection = match heart.take() {
                Some(connection) => connection,
                None => {
                    let connected = database.options.connect().await;
                    connected.map_err(|error| error::describe(doing, error, Doubt::None))?
                }
            };
            let beaten = async {
                let mut transaction = connection.begin_with(BEGIN).await?;
                let answer = work(&mut transaction, &database.sql).await?;
                transaction.commit().await?;
                Ok(answer)
            };
            let answer = beaten.await.map_err(|error| error::describe(doing, error, Doubt::Sent))?;
            *heart = Some(connection);
            Ok(answer)
        });
        join(task, doing).await
    }
}

async fn join<T>(task: JoinHandle<StoreResult<T>>, doing: &'static str) -> StoreResult<T> {
    match task.await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(StoreError::new(StoreErrorKind::Unknown, doing).because(error)),
    }
}
