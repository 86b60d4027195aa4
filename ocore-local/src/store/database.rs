//! The connections: one that writes, a few that read, one that watches for changes.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use futures::future::BoxFuture;
use ocore_core::{
    id::Fence,
    port::{StoreError, StoreErrorKind, StoreResult},
};
use sqlx::{
    ConnectOptions, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use tokio::{
    sync::{Mutex, Notify, futures::Notified},
    task::JoinHandle,
};

use super::{
    error::{self, Doubt},
    open::{self, Clock, Durability},
};

/// How often the file is asked whether another process has changed it.
const WATCH_EVERY: Duration = Duration::from_millis(40);

const READERS_MAX: u32 = 4;

pub(super) struct Database {
    path: PathBuf,
    options: SqliteConnectOptions,
    clock: Clock,
    /// `None` after a failure that leaves its transaction in doubt: the next call opens another.
    writer: Mutex<Option<SqliteConnection>>,
    readers: SqlitePool,
    changed: Notify,
}

impl Database {
    pub(super) async fn open(path: &Path, durability: Durability, clock: Clock) -> StoreResult<Arc<Self>> {
        let options = open::options(path, durability);
        let writer = open::writer(path, &options, &clock).await?;
        let readers = SqlitePoolOptions::new().max_connections(READERS_MAX).after_release(|db, _| {
            // Ends the read that the connection was lent for, also if it panicked.
            Box::pin(async move {
                sqlx::query("ROLLBACK").execute(db).await.ok();
                Ok(true)
            })
        });
        let readers = readers.connect_lazy_with(options.clone().pragma("query_only", "ON"));
        let (path, writer) = (path.to_owned(), Mutex::new(Some(writer)));
        let database = Arc::new(Self { path, options, clock, writer, readers, changed: Notify::new() });
        tokio::spawn(watch(Arc::downgrade(&database)));
        Ok(database)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn fence_min(&self) -> Fence {
        self.clock.fence_min()
    }

    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Runs `work` in one transaction and tells those who wait for a change.
    pub(super) async fn write<T, F>(self: &Arc<Self>, doing: &'static str, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection, i64) -> BoxFuture<'c, sqlx::Result<T>> + Send + 'static,
    {
        let written = self.write_silently(doing, work).await;
        self.changed.notify_waiters();
        written
    }

    /// Runs `work` in one transaction, in a task of its own: dropping the call's future does not stop it half way.
    pub(super) async fn write_silently<T, F>(self: &Arc<Self>, doing: &'static str, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection, i64) -> BoxFuture<'c, sqlx::Result<T>> + Send + 'static,
    {
        let database = self.clone();
        let task = tokio::spawn(async move { database.transact(doing, work).await });
        join(task, doing).await
    }

    async fn transact<T, F>(&self, doing: &'static str, work: F) -> StoreResult<T>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection, i64) -> BoxFuture<'c, sqlx::Result<T>> + Send + 'static,
    {
        let not_written = |error| error::describe(doing, error, Doubt::None);
        let mut writer = self.writer.lock().await;
        // Taken out until all is well: a panic closes it, which rolls back.
        let mut db = match writer.take() {
            Some(db) => db,
            None => self.options.connect().await.map_err(not_written)?,
        };
        if let Err(error) = sqlx::query("BEGIN IMMEDIATE").execute(&mut db).await {
            return Err(not_written(error));
        }
        let worked = work(&mut db, self.clock.now_nanos()).await;
        let result = match worked {
            Ok(value) => match sqlx::query("COMMIT").execute(&mut db).await {
                Ok(_) => Ok(value),
                // A transaction that can still be rolled back was not committed.
                Err(error) if roll_back(&mut db).await => Err(not_written(error)),
                Err(error) => return Err(error::describe(doing, error, Doubt::Committing)),
            },
            Err(error) if roll_back(&mut db).await => Err(not_written(error)),
            Err(error) => return Err(not_written(error)),
        };
        *writer = Some(db);
        result
    }

    /// Runs `work` on one state of the file, in a task of its own.
    pub(super) async fn read<T, F>(self: &Arc<Self>, doing: &'static str, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send + 'static,
    {
        let database = self.clone();
        let task = tokio::spawn(async move {
            let read = async {
                let mut db = database.readers.acquire().await?;
                sqlx::query("BEGIN").execute(&mut *db).await?;
                work(&mut db).await
            };
            read.await.map_err(|error| error::describe(doing, error, Doubt::None))
        });
        join(task, doing).await
    }
}

async fn roll_back(db: &mut SqliteConnection) -> bool {
    sqlx::query("ROLLBACK").execute(db).await.is_ok()
}

async fn join<T>(task: JoinHandle<StoreResult<T>>, doing: &'static str) -> StoreResult<T> {
    match task.await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(StoreError::new(StoreErrorKind::Unknown, doing).because(error)),
    }
}

/// Tells of what other processes write, until the store is gone.
async fn watch(database: Weak<Database>) {
    let (mut connection, mut seen) = (None, None);
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        let Some(database) = database.upgrade() else { return };
        let mut db: SqliteConnection = match connection.take() {
            Some(db) => db,
            None => match database.options.connect().await {
                Ok(db) => db,
                Err(_) => continue,
            },
        };
        let version = sqlx::query_scalar::<_, i64>("PRAGMA data_version").fetch_one(&mut db).await;
        if let Ok(version) = version {
            // The first look tells, too: nobody knows what was written before it.
            if seen.replace(version) != Some(version) {
                database.changed.notify_waiters();
            }
            connection = Some(db);
        }
    }
}
