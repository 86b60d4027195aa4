//! Heartbeats and claims.

use std::{sync::Arc, time::Duration};

use futures::TryStreamExt;
use ocore_core::{
    deployment::Deployment,
    environment::Environment,
    id::{Fence, WorkerId},
    name::EnvironmentName,
    port::{Beat, Claim, Claimed, Held, Worker},
    release::Live,
};
use sqlx::SqliteConnection;

use super::{
    lane::Lane,
    row::{DeploymentRow, decode, environment_name, list, worker_bytes},
};

/// How long a worker that is over is remembered.
const EXPIRED_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) async fn heartbeat(db: &mut SqliteConnection, worker: Worker, now: i64) -> sqlx::Result<Beat> {
    let lease = i64::try_from(worker.lease.as_nanos()).unwrap_or(i64::MAX);
    let extended = sqlx::query(
        "INSERT INTO workers (id, lease_end) VALUES (?1, ?2)
         ON CONFLICT (id) DO UPDATE SET lease_end = excluded.lease_end WHERE lease_end > ?3",
    );
    let extended = extended.bind(worker_bytes(worker.id)).bind(now.saturating_add(lease)).bind(now);
    if extended.execute(&mut *db).await?.rows_affected() == 0 {
        return Ok(Beat::Expired);
    }
    let mut held = Vec::new();
    for name in held_by(db, worker.id).await? {
        let lane = Lane::of(db, &name).await?;
        let Some(deployment) = lane.active else { continue };
        let row = DeploymentRow::of(db, deployment).await?;
        let cancel = row.deployment.kept_by_store.cancel.is_some();
        held.push(Held::new(name, deployment, lane.fence, cancel));
    }
    Ok(Beat::Alive(held))
}

async fn held_by(db: &mut SqliteConnection, worker: WorkerId) -> sqlx::Result<Vec<EnvironmentName>> {
    let names = sqlx::query_scalar("SELECT name FROM lanes WHERE holder = ?1 ORDER BY name");
    let names: Vec<String> = names.bind(worker_bytes(worker)).fetch_all(db).await?;
    names.into_iter().map(environment_name).collect()
}

pub(super) async fn retire(db: &mut SqliteConnection, worker: WorkerId, now: i64) -> sqlx::Result<()> {
    let retire = sqlx::query("UPDATE workers SET lease_end = ?2 WHERE id = ?1 AND lease_end > ?2");
    retire.bind(worker_bytes(worker)).bind(now).execute(&mut *db).await?;
    // Not at once: a worker that has lost its lease, and asks again, must be told so.
    let forget = sqlx::query(
        "DELETE FROM workers WHERE lease_end <= ?1
           AND id NOT IN (SELECT holder FROM lanes WHERE holder IS NOT NULL)",
    );
    let since = now.saturating_sub(i64::try_from(EXPIRED_KEPT.as_nanos()).unwrap_or(i64::MAX));
    forget.bind(since).execute(db).await.map(drop)
}

pub(super) async fn is_alive(db: &mut SqliteConnection, worker: WorkerId, now: i64) -> sqlx::Result<bool> {
    let alive = sqlx::query_scalar("SELECT count(*) FROM workers WHERE id = ?1 AND lease_end > ?2");
    let alive: i64 = alive.bind(worker_bytes(worker)).bind(now).fetch_one(db).await?;
    Ok(alive > 0)
}

pub(super) async fn claim(
    db: &mut SqliteConnection,
    worker: Worker,
    busy: Vec<EnvironmentName>,
    fence_min: Fence,
    now: i64,
) -> sqlx::Result<Claimed> {
    if !is_alive(db, worker.id, now).await? {
        return Ok(Claimed::Expired);
    }
    match choose(db, &worker, &busy, now).await? {
        Some(name) => {
            let mut lane = Lane::of(db, &name).await?;
            lane.fence = lane.fence.max(fence_min);
            Ok(Claimed::Work(Box::new(take(db, &mut lane, worker.id).await?)))
        }
        None => Ok(Claimed::Idle { next: next(db, &worker, now).await? }),
    }
}

/// A lane to take, and what must be readable for it.
type Candidate = (String, String, String, Option<String>);

/// The lane that the worker should take now: of each kind the first whose records can be read.
async fn choose(
    db: &mut SqliteConnection,
    worker: &Worker,
    busy: &[EnvironmentName],
    now: i64,
) -> sqlx::Result<Option<EnvironmentName>> {
    let forgotten = sqlx::query_as::<_, Candidate>(
        "SELECT lanes.name, record, settings, live FROM lanes JOIN deployments ON id = active
         WHERE holder = ?1 AND name NOT IN (SELECT value FROM json_each(?2)) ORDER BY lanes.name",
    );
    let busy = list(busy.iter().cloned());
    let forgotten = forgotten.bind(worker_bytes(worker.id)).bind(busy).fetch(&mut *db);
    if let Some(name) = first_readable(forgotten).await? {
        return Ok(Some(name));
    }
    let pools = list(worker.pools.iter().cloned());
    let abandoned = sqlx::query_as::<_, Candidate>(
        "SELECT lanes.name, record, settings, live
         FROM lanes JOIN workers ON workers.id = holder JOIN deployments ON deployments.id = active
         WHERE holder IS NOT NULL AND holder <> ?1 AND lease_end <= ?2
           AND pool IN (SELECT value FROM json_each(?3))
         ORDER BY lease_end, lanes.name",
    );
    let abandoned = abandoned.bind(worker_bytes(worker.id)).bind(now).bind(&pools).fetch(&mut *db);
    if let Some(name) = first_readable(abandoned).await? {
        return Ok(Some(name));
    }
    let waited = sqlx::query_as::<_, Candidate>(
        "SELECT lanes.name, record, settings, live FROM lanes JOIN deployments ON id = active
         WHERE pool IN (SELECT value FROM json_each(?1)) AND active IS NOT NULL AND holder IS NULL AND due <= ?2
         ORDER BY due, ticket",
    );
    if let Some(name) = first_readable(waited.bind(&pools).bind(now).fetch(&mut *db)).await? {
        return Ok(Some(name));
    }
    free(db, worker).await
}

/// The free lane of the worker's pools that has waited longest.
async fn free(db: &mut SqliteConnection, worker: &Worker) -> sqlx::Result<Option<EnvironmentName>> {
    let mut first: Option<(i64, EnvironmentName)> = None;
    for pool in &worker.pools {
        let candidates = sqlx::query_as::<_, Candidate>(
            "SELECT lanes.name, record, settings, live FROM lanes JOIN deployments ON id = next
             WHERE pool = ?1 AND next IS NOT NULL ORDER BY ticket",
        );
        let candidates = candidates.bind(pool.as_str()).fetch(&mut *db);
        let Some(name) = first_readable(candidates).await? else { continue };
        let ticket = sqlx::query_scalar("SELECT ticket FROM lanes WHERE name = ?1");
        let ticket: i64 = ticket.bind(name.as_str()).fetch_one(&mut *db).await?;
        if first.as_ref().is_none_or(|(before, _)| ticket < *before) {
            first = Some((ticket, name));
        }
    }
    Ok(first.map(|(_, name)| name))
}

async fn first_readable(
    mut candidates: impl futures::Stream<Item = sqlx::Result<Candidate>> + Unpin,
) -> sqlx::Result<Option<EnvironmentName>> {
    while let Some((name, record, settings, live)) = candidates.try_next().await? {
        let read = || {
            decode::<Deployment>("the deployment", &record)?;
            read_settings(&settings)?;
            read_live(live)?;
            environment_name(name.clone())
        };
        match read() {
            Ok(name) => return Ok(Some(name)),
            Err(error) => {
                tracing::error!(environment = %name, %error, "the lane is left to a worker that can read it");
            }
        }
    }
    Ok(None)
}

pub(super) fn read_settings(text: &str) -> sqlx::Result<Arc<Environment>> {
    decode("the environment's settings", text).map(Arc::new)
}

pub(super) fn read_live(text: Option<String>) -> sqlx::Result<Option<Arc<Live>>> {
    text.map(|text| decode("what the environment serves", &text).map(Arc::new)).transpose()
}

/// Takes the lane: its active deployment, or else the next one.
pub(super) async fn take(
    db: &mut SqliteConnection,
    lane: &mut Lane,
    worker: WorkerId,
) -> sqlx::Result<Claim> {
    let next = match lane.active {
        Some(active) => Some(active),
        None => lane.runnable(db).await?,
    };
    let id = next.ok_or(sqlx::Error::RowNotFound)?;
    let mut row = DeploymentRow::of(db, id).await?;
    let lost = match lane.holder {
        None => false,
        Some(holder) if holder == worker => lane.lost_if_forgotten,
        Some(_) => true,
    };
    row.deployment.kept_by_store.begun = true;
    row.save(db).await?;
    lane.fence = lane.fence.next();
    (lane.active, lane.holder, lane.lost_if_forgotten) = (Some(id), Some(worker), lost);
    lane.save(db).await?;
    claimed(db, lane, row.deployment, lost).await
}

/// The claim that a worker is given of a lane that it holds.
pub(super) async fn claimed(
    db: &mut SqliteConnection,
    lane: &Lane,
    deployment: Deployment,
    lost_worker: bool,
) -> sqlx::Result<Claim> {
    let row =
        sqlx::query_as::<_, (String, Option<String>)>("SELECT settings, live FROM lanes WHERE name = ?1");
    let (settings, live) = row.bind(lane.name.as_str()).fetch_one(db).await?;
    let (settings, live) = (read_settings(&settings)?, read_live(live)?);
    let mut claim = Claim::new(deployment, settings, live, lane.fence, lost_worker);
    claim.acknowledged.clone_from(&lane.acknowledged);
    Ok(claim)
}

/// How long until there is something to claim, if only time passes.
async fn next(db: &mut SqliteConnection, worker: &Worker, now: i64) -> sqlx::Result<Option<Duration>> {
    let next = sqlx::query_scalar::<_, Option<i64>>(
        "SELECT min(moment) FROM (
             SELECT due AS moment FROM lanes
             WHERE active IS NOT NULL AND holder IS NULL AND pool IN (SELECT value FROM json_each(?1))
             UNION ALL
             SELECT lease_end FROM lanes JOIN workers ON workers.id = holder
             WHERE holder IS NOT NULL AND holder <> ?2 AND pool IN (SELECT value FROM json_each(?1)))",
    );
    let pools = list(worker.pools.iter().cloned());
    let moment = next.bind(pools).bind(worker_bytes(worker.id)).fetch_one(db).await?;
    Ok(moment.map(|moment| Duration::from_nanos(u64::try_from(moment.saturating_sub(now)).unwrap_or(0))))
}
