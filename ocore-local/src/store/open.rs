//! Opens the file, and brings it up to date.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ocore_core::{
    id::Fence,
    port::{StoreError, StoreErrorKind, StoreResult},
};
use sqlx::{
    ConnectOptions, Connection, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::error::{self, Doubt};

/// How long a call waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// "ocor" in ASCII, as the first migration writes it.
const APPLICATION_ID: i64 = 1_868_787_570;

/// The migrations, in order: each one's script ends by setting `user_version` to its number.
const MIGRATIONS: [&str; 5] = [
    include_str!("../../migrations/0001_begin.sql"),
    include_str!("../../migrations/0002_envelopes.sql"),
    include_str!("../../migrations/0003_pauses.sql"),
    include_str!("../../migrations/0004_acknowledged.sql"),
    include_str!("../../migrations/0005_pins.sql"),
];

/// What survives a power failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Durability {
    /// Everything that was acknowledged: SQLite's `synchronous=FULL`.
    #[default]
    Full,
    /// Everything but the last moments: SQLite's `synchronous=NORMAL`. Much faster, and never inconsistent in
    /// itself; but fences that were taken may be taken again, so that it is for tests and for environments whose
    /// every effect can be lost.
    Relaxed,
}

/// Where the time of leases comes from.
pub(super) enum Clock {
    /// Nanoseconds since the machine was booted, sleep included: the same for all its processes.
    Boot,
    #[cfg(test)]
    Manual(std::sync::Arc<dyn ocore_core::executor::Executor>, &'static str),
}

impl Clock {
    pub(super) fn now_nanos(&self) -> i64 {
        let since = match self {
            Self::Boot => {
                let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
                let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
                Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
            }
            #[cfg(test)]
            Self::Manual(executor, _) => executor.now(),
        };
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }

    /// What the next fence that is claimed must not be below: the wall clock's milliseconds. A file that is begun anew or
    /// restored from a backup so goes on above every fence that was given before, which the world may remember.
    pub(super) fn fence_min(&self) -> Fence {
        let since = match self {
            Self::Boot => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            #[cfg(test)]
            Self::Manual(..) => Duration::ZERO,
        };
        Fence::new(u64::try_from(since.as_millis()).unwrap_or(0))
    }

    /// Which boot the time counts from.
    fn boot(&self) -> std::io::Result<String> {
        match self {
            Self::Boot => {
                let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
                Ok(boot.trim().to_owned())
            }
            #[cfg(test)]
            Self::Manual(_, boot) => Ok((*boot).to_owned()),
        }
    }
}

pub(super) fn options(path: &Path, durability: Durability) -> SqliteConnectOptions {
    let synchronous = match durability {
        Durability::Full => SqliteSynchronous::Full,
        Durability::Relaxed => SqliteSynchronous::Normal,
    };
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        .disable_statement_logging()
}

/// Opens the writer's connection, the schema up to date, and the deadlines of an earlier boot over.
pub(super) async fn writer(
    path: &Path,
    options: &SqliteConnectOptions,
    clock: &Clock,
) -> StoreResult<SqliteConnection> {
    let doing = || format!("open the store {}", path.display());
    let failed = |error: sqlx::Error| error::describe(doing(), error, Doubt::None);
    let refused = |refusal| StoreError::new(StoreErrorKind::Broken, format!("{}: {refusal}", doing()));
    if let Some(refusal) = look(path).await.map_err(failed)? {
        return Err(refused(refusal));
    }
    let mut db = options.connect().await.map_err(failed)?;
    let boot = clock.boot().map_err(|error| {
        StoreError::new(StoreErrorKind::Broken, format!("{}: the boot id cannot be read", doing()))
            .because(error)
    })?;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut db).await.map_err(failed)?;
    let (application, version) = versions(&mut db).await.map_err(failed)?;
    if let Some(refusal) = refuse(application, version) {
        return Err(refused(refusal));
    }
    let first = usize::try_from(version).unwrap_or(0);
    for migration in &MIGRATIONS[first..] {
        sqlx::raw_sql(*migration).execute(&mut db).await.map_err(failed)?;
    }
    begin_boot(&mut db, &boot).await.map_err(failed)?;
    sqlx::query("COMMIT").execute(&mut db).await.map_err(failed)?;
    Ok(db)
}

/// Why the file is none of ours, if it is there: before a connection that writes is opened, which changes the file's
/// journal at once.
async fn look(path: &Path) -> sqlx::Result<Option<String>> {
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0) {
        let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(BUSY_TIMEOUT);
        let mut db = options.disable_statement_logging().connect().await?;
        let (application, version) = versions(&mut db).await?;
        db.close().await?;
        return Ok(refuse(application, version));
    }
    Ok(None)
}

/// The file's `application_id`, or -1 if it is not ocore's and not empty; and its `user_version`.
async fn versions(db: &mut SqliteConnection) -> sqlx::Result<(i64, i64)> {
    let application: i64 = sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *db).await?;
    let version: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *db).await?;
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(&mut *db).await?;
    let empty = application == 0 && version == 0 && tables == 0;
    Ok((if application == APPLICATION_ID || empty { application } else { -1 }, version))
}

fn refuse(application: i64, version: i64) -> Option<String> {
    if application == -1 {
        return Some("the file is a database of another program; choose another path".to_owned());
    }
    let known = MIGRATIONS.len();
    (version > known as i64).then(|| {
        format!(
            "this file was written by a newer ocore (schema {version}; this one knows {known}): \
             update this process, or open another file"
        )
    })
}

/// Deadlines count from the boot: of those of another boot nothing is known but that they are over.
async fn begin_boot(db: &mut SqliteConnection, boot: &str) -> sqlx::Result<()> {
    let known = sqlx::query(
        "INSERT INTO machine (only, boot) VALUES (1, ?1)
         ON CONFLICT (only) DO UPDATE SET boot = excluded.boot WHERE boot <> excluded.boot",
    );
    if known.bind(boot).execute(&mut *db).await?.rows_affected() > 0 {
        sqlx::query("UPDATE workers SET lease_end = 0").execute(&mut *db).await?;
        sqlx::query("UPDATE lanes SET due = 0").execute(&mut *db).await?;
    }
    Ok(())
}
