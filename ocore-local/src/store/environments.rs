//! The environments and what they serve.

use chrono::{DateTime, Utc};
use ocore_core::{
    deployment::Deployment,
    environment::Environment,
    event::{EventKind, NewEvent},
    id::{DeploymentId, Fence},
    name::{EnvironmentName, PoolName},
    port::{Acknowledged, EnvironmentRecord, LaneQueue, LogLimit, Occupied, Saved},
    stored,
};
use sqlx::SqliteConnection;

use super::{
    claim::{read_live, read_settings},
    error::unreadable,
    lane::Lane,
    log,
    queue::all_waiting,
    row::{DeploymentRow, decode, deployment_id, deployment_ids, environment_name, uncount},
};

pub(super) async fn save(db: &mut SqliteConnection, environment: Environment) -> sqlx::Result<Saved> {
    for occupied in occupied(db).await? {
        if let Some(refusal) = occupied.refuse(&environment) {
            return Ok(refusal);
        }
    }
    let name = environment.name().as_str();
    let known = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM lanes WHERE name = ?1");
    let known = known.bind(name).fetch_one(&mut *db).await? > 0;
    let save = sqlx::query(
        "INSERT INTO lanes (name, pool, settings) VALUES (?1, ?2, ?3)
         ON CONFLICT (name) DO UPDATE SET pool = excluded.pool, settings = excluded.settings",
    );
    save.bind(name).bind(environment.pool().as_str()).bind(stored::encode(&environment)).execute(db).await?;
    Ok(if known { Saved::Updated } else { Saved::Created })
}

/// What every environment occupies, as far as it can be read.
async fn occupied(db: &mut SqliteConnection) -> sqlx::Result<Vec<Occupied>> {
    type Columns = (String, String, String, bool, Option<String>, Option<String>);
    let rows = sqlx::query_as::<_, Columns>(
        "SELECT name, pool, settings, coalesce(live, active, attention) IS NOT NULL, live,
                (SELECT record FROM deployments WHERE id = lanes.active)
         FROM lanes ORDER BY name",
    );
    let rows = rows.fetch_all(db).await?;
    let occupied = rows.into_iter().map(|(name, pool, settings, deployed, live, active)| {
        let settings = readable(&name, read_settings(&settings));
        let live = readable(&name, read_live(live)).flatten();
        let active = active.map(|text| decode::<Deployment>("the active deployment", &text));
        let active = active.and_then(|active| readable(&name, active));
        let pool = PoolName::try_from(pool).map_err(|error| unreadable("a pool's name", error))?;
        let (settings, live) = (settings.as_deref(), live.as_deref());
        Ok(Occupied::new(environment_name(name)?, pool, deployed, settings, live, active.as_ref()))
    });
    occupied.collect()
}

/// What was read; what cannot be read is told, and keeps nobody else from working.
fn readable<T>(environment: &str, read: sqlx::Result<T>) -> Option<T> {
    read.inspect_err(|error| tracing::error!(%environment, %error, "the environment is left out")).ok()
}

pub(super) async fn find(
    db: &mut SqliteConnection,
    name: EnvironmentName,
) -> sqlx::Result<Option<EnvironmentRecord>> {
    rows(db, Some(&name)).await?.pop().map(record).transpose()
}

pub(super) async fn all(db: &mut SqliteConnection) -> sqlx::Result<Vec<EnvironmentRecord>> {
    let rows = rows(db, None).await?.into_iter();
    Ok(rows.filter_map(|row| readable(&row.0.clone(), record(row))).collect())
}

type Columns = (
    String,
    String,
    bool,
    Option<String>,
    Option<Vec<u8>>,
    Option<String>,
    Option<Vec<u8>>,
    i64,
    i64,
    Vec<u8>,
);

/// Environments, by name.
async fn rows(db: &mut SqliteConnection, name: Option<&EnvironmentName>) -> sqlx::Result<Vec<Columns>> {
    let rows = sqlx::query_as::<_, Columns>(
        "SELECT name, settings, paused, paused_by, attention, live, active, fence,
                (SELECT count(*) FROM deployments WHERE environment = lanes.name AND phase = 'waiting'),
                acknowledged
         FROM lanes WHERE ?1 IS NULL OR name = ?1 ORDER BY name",
    );
    rows.bind(name.map(EnvironmentName::as_str)).fetch_all(db).await
}

fn record(row: Columns) -> sqlx::Result<EnvironmentRecord> {
    let (_, settings, paused, paused_by, attention, live, active, fence, queued, acknowledged) = row;
    let mut record = EnvironmentRecord::new(read_settings(&settings)?);
    (record.paused, record.paused_by) = (paused, paused_by);
    record.attention = attention.as_deref().map(deployment_id).transpose()?;
    record.acknowledged = deployment_ids(&acknowledged)?;
    record.live = read_live(live)?;
    record.active = active.as_deref().map(deployment_id).transpose()?;
    record.fence = Fence::new(uncount(fence));
    record.queued = uncount(queued);
    Ok(record)
}

pub(super) async fn set_paused(
    db: &mut SqliteConnection,
    name: EnvironmentName,
    by: Option<String>,
) -> sqlx::Result<bool> {
    let Some(mut lane) = Lane::find(db, &name).await? else { return Ok(false) };
    lane.paused = by.is_some();
    lane.save(db).await?;
    let update = sqlx::query("UPDATE lanes SET paused_by = ?2 WHERE name = ?1");
    update.bind(name.as_str()).bind(by).execute(db).await?;
    Ok(true)
}

pub(super) async fn acknowledge(
    db: &mut SqliteConnection,
    name: EnvironmentName,
    stranded: DeploymentId,
    actor: String,
    at: DateTime<Utc>,
) -> sqlx::Result<Acknowledged> {
    let Some(mut lane) = Lane::find(db, &name).await? else { return Ok(Acknowledged::NotWaiting) };
    if !lane.waits_for(db, stranded).await? {
        return Ok(Acknowledged::NotWaiting);
    }
    lane.attention = None;
    lane.acknowledged.push(stranded);
    lane.save(db).await?;
    let mut row = DeploymentRow::of(db, stranded).await?;
    let told = NewEvent::new(at, EventKind::Acknowledged { actor });
    log::append(db, stranded, &mut row.log, &[told], LogLimit::DEFAULT).await?;
    row.save(db).await?;
    Ok(Acknowledged::Done)
}

pub(super) async fn lane(
    db: &mut SqliteConnection,
    name: EnvironmentName,
) -> sqlx::Result<Option<LaneQueue>> {
    let Some(lane) = Lane::find(db, &name).await? else { return Ok(None) };
    let mut queue = lane.queue();
    queue.waiting = all_waiting(db, &name).await?;
    Ok(Some(queue))
}
