//! The schema's versions, up and down.

use std::sync::Arc;

use ocore_core::port::{StoreError, StoreErrorKind, StoreResult};
use sqlx::PgConnection;

use super::{database::Database, sql::Sql};

/// A step of the schema. Its statements are written for a schema named `ocore`, in front of every name.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Migration {
    /// The version that it leads to.
    pub version: u32,
    /// Leads there from the version before.
    pub up: &'static str,
    /// Leads back.
    pub down: &'static str,
}

/// Every step, for hosts that run migrations with a tool of their own. Such a tool creates the schema, runs the steps in order
/// and each once, and writes the version into the table `ocore.schema_version (version integer)`, as its only row.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        up: include_str!("../../migrations/0001_begin.up.sql"),
        down: include_str!("../../migrations/0001_begin.down.sql"),
    },
    Migration {
        version: 2,
        up: include_str!("../../migrations/0002_pins.up.sql"),
        down: include_str!("../../migrations/0002_pins.down.sql"),
    },
    Migration {
        version: 3,
        up: include_str!("../../migrations/0003_batches.up.sql"),
        down: include_str!("../../migrations/0003_batches.down.sql"),
    },
];

fn newest() -> u32 {
    MIGRATIONS.last().map_or(0, |last| last.version)
}

/// Whoever migrates holds this lock of the database. The number is "ocore" in ASCII.
const LOCK: i64 = 0x6f_636f_7265;

/// Brings the schema to the newest version.
pub(super) async fn up(database: &Arc<Database>) -> StoreResult<()> {
    let moved = database.transact("bring the schema up to date", |db, sql| Box::pin(run_up(db, sql)));
    moved.await
}

async fn run_up(db: &mut PgConnection, sql: &Sql) -> sqlx::Result<()> {
    let before = lock(db, sql).await?;
    if before.is_none() {
        let begin = "CREATE TABLE ocore.schema_version (version integer NOT NULL);
                     INSERT INTO ocore.schema_version VALUES (0)";
        if !schema_is_there(db, sql).await? {
            create_schema(db, sql).await?;
        }
        sqlx::raw_sql(sql.text(begin)).execute(&mut *db).await?;
    }
    for step in MIGRATIONS.iter().filter(|step| step.version > before.unwrap_or(0)) {
        sqlx::raw_sql(sql.text(step.up)).execute(&mut *db).await?;
        set(db, sql, step.version).await?;
    }
    Ok(())
}

/// Takes the schema back to a version.
pub(super) async fn down(database: &Arc<Database>, version: u32) -> StoreResult<()> {
    check_not_newer(version_now(database).await?.unwrap_or(0), database.sql.schema())?;
    let moved =
        database.transact("take the schema back", move |db, sql| Box::pin(run_down(db, sql, version)));
    moved.await
}

async fn run_down(db: &mut PgConnection, sql: &Sql, to: u32) -> sqlx::Result<()> {
    let before = lock(db, sql).await?.unwrap_or(0);
    for step in MIGRATIONS.iter().rev().filter(|step| step.version > to && step.version <= before) {
        sqlx::raw_sql(sql.text(step.down)).execute(&mut *db).await?;
        set(db, sql, step.version - 1).await?;
    }
    Ok(())
}

/// Waits for others who migrate; the version before.
async fn lock(db: &mut PgConnection, sql: &Sql) -> sqlx::Result<Option<u32>> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).persistent(false).execute(&mut *db).await?;
    version(db, sql).await
}

async fn schema_is_there(db: &mut PgConnection, sql: &Sql) -> sqlx::Result<bool> {
    let found = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)");
    found.bind(sql.schema()).persistent(false).fetch_one(db).await
}

/// Only where it is not there: a host may have made it for a role that may make no schemas.
async fn create_schema(db: &mut PgConnection, sql: &Sql) -> sqlx::Result<()> {
    let created: String = sqlx::query_scalar("SELECT format('CREATE SCHEMA %I', $1::text)")
        .bind(sql.schema())
        .persistent(false)
        .fetch_one(&mut *db)
        .await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(created)).execute(db).await.map(drop)
}

async fn set(db: &mut PgConnection, sql: &Sql, version: u32) -> sqlx::Result<()> {
    let set = sql.query("UPDATE ocore.schema_version SET version = $1");
    set.bind(i32::try_from(version).unwrap_or(i32::MAX)).execute(db).await.map(drop)
}

/// The schema's version; `None` if there is none of ocore's.
async fn version(db: &mut PgConnection, sql: &Sql) -> sqlx::Result<Option<u32>> {
    let there = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                        WHERE n.nspname = $1 AND c.relname = 'schema_version')",
    );
    if !there.bind(sql.schema()).persistent(false).fetch_one(&mut *db).await? {
        return Ok(None);
    }
    let version: Option<i32> =
        sql.scalar("SELECT version FROM ocore.schema_version").fetch_optional(db).await?;
    Ok(version.and_then(|version| u32::try_from(version).ok()))
}

async fn version_now(database: &Arc<Database>) -> StoreResult<Option<u32>> {
    database.transact("read the schema's version", |db, sql| Box::pin(version(db, sql))).await
}

/// Refuses a schema that this version cannot work with.
pub(super) async fn check(database: &Arc<Database>) -> StoreResult<()> {
    let (known, schema) = (newest(), database.sql.schema());
    let found = version_now(database).await?.unwrap_or(0);
    check_not_newer(found, schema)?;
    if found < known {
        let what = format!(
            "the schema {schema:?} has version {found}, and this ocore needs {known}: run `migrate`, or the host's own tool"
        );
        return Err(StoreError::new(StoreErrorKind::Broken, what));
    }
    Ok(())
}

fn check_not_newer(found: u32, schema: &str) -> StoreResult<()> {
    let known = newest();
    if found <= known {
        return Ok(());
    }
    let what = format!(
        "the schema {schema:?} was written by a newer ocore (version {found}; this one knows {known}): update this process, \
         or choose another schema"
    );
    Err(StoreError::new(StoreErrorKind::Broken, what))
}
