//! The environments and what they serve.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use ocore_core::{
    environment::Environment,
    event::{EventKind, NewEvent},
    id::{DeploymentId, Fence},
    name::{EnvironmentName, PoolName},
    port::{Acknowledged, EnvironmentRecord, LaneQueue, LogLimit, Occupied, Saved},
    stored,
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    error::unreadable,
    lane::Lane,
    log,
    queue::all_waiting,
    row::{
        Record, deployment_id, deployment_ids, environment_name, names, read_live, read_settings, uncount,
    },
    sql::Sql,
};

pub(super) async fn save(
    db: &mut PgConnection,
    sql: &Sql,
    environment: Arc<Environment>,
) -> sqlx::Result<Saved> {
    // One at a time: each looks at what all others occupy.
    let alone = sql.query("SELECT pg_advisory_xact_lock(hashtextextended('ocore environments ' || $1, 0))");
    alone.bind(sql.schema().to_owned()).execute(&mut *db).await?;
    // A claim under way ends first: it may start with the settings that are replaced.
    let known = Lane::lock(db, sql, environment.name()).await?.is_some();
    for occupied in occupied(db, sql).await? {
        if let Some(refusal) = occupied.refuse(&environment) {
            return Ok(refusal);
        }
    }
    let (name, settings) = (environment.name().as_str(), stored::encode(&*environment));
    let save = sql.query(
        "INSERT INTO ocore.environments (name, settings) VALUES ($1, $2)
         ON CONFLICT (name) DO UPDATE SET settings = excluded.settings",
    );
    save.bind(name).bind(settings).execute(&mut *db).await?;
    let lane = sql.query(
        "INSERT INTO ocore.lanes AS l (name, pool) VALUES ($1, $2)
         ON CONFLICT (name) DO UPDATE SET pool = excluded.pool WHERE l.pool <> excluded.pool",
    );
    lane.bind(name).bind(environment.pool().as_str()).execute(db).await?;
    Ok(if known { Saved::Updated } else { Saved::Created })
}

#[derive(sqlx::FromRow)]
struct OccupiedRow {
    name: String,
    pool: String,
    settings: String,
    deployed: bool,
    live: Option<String>,
    record: Option<String>,
}

/// What every environment occupies, as far as it can be read.
async fn occupied(db: &mut PgConnection, sql: &Sql) -> sqlx::Result<Vec<Occupied>> {
    let rows = sql.rows::<OccupiedRow>(
        "SELECT e.name, l.pool, e.settings, e.live,
                e.live IS NOT NULL OR l.active IS NOT NULL OR l.attention IS NOT NULL AS deployed, d.record
         FROM ocore.environments e JOIN ocore.lanes l USING (name) LEFT JOIN ocore.deployments d ON d.id = l.active
         ORDER BY e.name",
    );
    let occupied = rows.fetch_all(db).await?.into_iter().map(|row| {
        let name = row.name;
        let settings = readable(&name, read_settings(&row.settings));
        let live = readable(&name, read_live(row.live)).flatten();
        let active =
            row.record.map(|record| Record { record, seq: 0, version: 0, begun: true, cancel: None }.read());
        let active = active.and_then(|active| readable(&name, active));
        let pool = PoolName::try_from(row.pool).map_err(|error| unreadable("a pool's name", error))?;
        let (settings, live) = (settings.as_deref(), live.as_deref());
        Ok(Occupied::new(environment_name(name)?, pool, row.deployed, settings, live, active.as_ref()))
    });
    occupied.collect()
}

/// What was read; what cannot be read is told, and keeps nobody else from working.
fn readable<T>(environment: &str, read: sqlx::Result<T>) -> Option<T> {
    read.inspect_err(|error| tracing::error!(%environment, %error, "the environment is left out")).ok()
}

pub(super) async fn find(
    db: &mut PgConnection,
    sql: &Sql,
    name: EnvironmentName,
) -> sqlx::Result<Option<EnvironmentRecord>> {
    rows(db, sql, Some(&name)).await?.pop().map(EnvironmentRow::read).transpose()
}

pub(super) async fn all(db: &mut PgConnection, sql: &Sql) -> sqlx::Result<Vec<EnvironmentRecord>> {
    let rows = rows(db, sql, None).await?.into_iter();
    Ok(rows.filter_map(|row| readable(&row.name.clone(), row.read())).collect())
}

#[derive(sqlx::FromRow)]
struct EnvironmentRow {
    name: String,
    settings: String,
    paused: bool,
    paused_by: Option<String>,
    attention: Option<Uuid>,
    acknowledged: Vec<Uuid>,
    live: Option<String>,
    active: Option<Uuid>,
    fence: i64,
    queued: i64,
}

/// Environments, by name.
async fn rows(
    db: &mut PgConnection,
    sql: &Sql,
    name: Option<&EnvironmentName>,
) -> sqlx::Result<Vec<EnvironmentRow>> {
    let rows = sql.rows(
        "SELECT e.name, e.settings, l.paused, e.paused_by, l.attention, l.acknowledged, e.live, l.active, l.fence,
                (SELECT count(*) FROM ocore.deployments d WHERE d.environment = e.name AND d.phase = 'waiting') AS queued
         FROM ocore.environments e JOIN ocore.lanes l USING (name)
         WHERE $1::text[] IS NULL OR e.name = ANY ($1) ORDER BY e.name",
    );
    rows.bind(name.map(|name| names([name]))).fetch_all(db).await
}

impl EnvironmentRow {
    fn read(self) -> sqlx::Result<EnvironmentRecord> {
        let mut record = EnvironmentRecord::new(read_settings(&self.settings)?);
        (record.paused, record.paused_by) = (self.paused, self.paused_by);
        record.attention = self.attention.map(deployment_id);
        record.acknowledged = deployment_ids(self.acknowledged);
        record.live = read_live(self.live)?;
        record.active = self.active.map(deployment_id);
        record.fence = Fence::new(uncount(self.fence));
        record.queued = uncount(self.queued);
        Ok(record)
    }
}

pub(super) async fn set_paused(
    db: &mut PgConnection,
    sql: &Sql,
    name: EnvironmentName,
    by: Option<String>,
) -> sqlx::Result<bool> {
    let pause = sql.query("UPDATE ocore.lanes SET paused = $2 WHERE name = $1");
    let paused = pause.bind(name.as_str()).bind(by.is_some()).execute(&mut *db).await?;
    let told = sql.query("UPDATE ocore.environments SET paused_by = $2 WHERE name = $1");
    told.bind(name.as_str()).bind(by).execute(db).await?;
    Ok(paused.rows_affected() > 0)
}

pub(super) async fn acknowledge(
    db: &mut PgConnection,
    sql: &Sql,
    name: EnvironmentName,
    stranded: DeploymentId,
    actor: String,
    at: DateTime<Utc>,
) -> sqlx::Result<Acknowledged> {
    let Some(lane) = Lane::lock(db, sql, &name).await? else { return Ok(Acknowledged::NotWaiting) };
    if !lane.waits_for(db, sql, stranded).await? {
        return Ok(Acknowledged::NotWaiting);
    }
    let go_on = sql.query(
        "UPDATE ocore.lanes SET attention = NULL, acknowledged = acknowledged || attention WHERE name = $1",
    );
    go_on.bind(name.as_str()).execute(&mut *db).await?;
    let told = NewEvent::new(at, EventKind::Acknowledged { actor });
    log::append(db, sql, stranded, &[told], LogLimit::DEFAULT).await?;
    Ok(Acknowledged::Done)
}

pub(super) async fn lane(
    db: &mut PgConnection,
    sql: &Sql,
    name: EnvironmentName,
) -> sqlx::Result<Option<LaneQueue>> {
    // Locked, so that those that wait are those of this very state; in the way of nobody for long.
    let Some(lane) = Lane::lock(db, sql, &name).await? else { return Ok(None) };
    let mut queue = lane.queue();
    queue.waiting = all_waiting(db, sql, &name).await?;
    Ok(Some(queue))
}
