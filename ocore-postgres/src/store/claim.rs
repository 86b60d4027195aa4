//! Heartbeats and claims.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ocore_core::{
    id::{Fence, WorkerId},
    name::EnvironmentName,
    port::{Beat, Claim, Claimed, Held, StoreResult, Worker},
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    database::Database,
    row::{
        Record, deployment_id, deployment_ids, environment_name, micros, names, read_live, read_settings,
        uncount, worker_uuid,
    },
    sql::Sql,
};

/// How long a worker that is over is remembered, in hours.
const EXPIRED_KEPT_HOURS: i32 = 24;

/// How long a lane that could not be read is left to other workers.
const UNREADABLE_SKIPPED: Duration = Duration::from_secs(60);

/// Lanes that this client could not read, and when.
#[derive(Debug, Default)]
pub(super) struct Unreadable(Mutex<BTreeMap<String, Instant>>);

impl Unreadable {
    fn skipped(&self) -> Vec<String> {
        let mut lanes = self.lock();
        lanes.retain(|_, since| since.elapsed() < UNREADABLE_SKIPPED);
        lanes.keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(sqlx::FromRow)]
struct BeatRow {
    alive: bool,
    lane: Option<String>,
    deployment: Option<Uuid>,
    fence: Option<i64>,
    is_cancelled: Option<bool>,
}

pub(super) async fn heartbeat(db: &mut PgConnection, sql: &Sql, worker: Worker) -> sqlx::Result<Beat> {
    let beat = sql.rows::<BeatRow>("SELECT * FROM ocore.heartbeat($1, $2)");
    let rows = beat.bind(worker_uuid(worker.id)).bind(micros(worker.lease)).fetch_all(db).await?;
    if rows.iter().any(|row| !row.alive) {
        return Ok(Beat::Expired);
    }
    let mut held = Vec::with_capacity(rows.len());
    for row in rows {
        let (Some(lane), Some(deployment), Some(fence)) = (row.lane, row.deployment, row.fence) else {
            continue;
        };
        let (lane, fence) = (environment_name(lane)?, Fence::new(uncount(fence)));
        held.push(Held::new(lane, deployment_id(deployment), fence, row.is_cancelled == Some(true)));
    }
    Ok(Beat::Alive(held))
}

pub(super) async fn retire(db: &mut PgConnection, sql: &Sql, worker: WorkerId) -> sqlx::Result<()> {
    let retire = sql.query(
        "UPDATE ocore.workers SET over = true, lease_end = least(lease_end, ocore.now()) WHERE id = $1 AND NOT over",
    );
    retire.bind(worker_uuid(worker)).execute(&mut *db).await?;
    // Not at once: a worker that has lost its lease, and asks again, must be told so.
    let forget = sql.query(
        "DELETE FROM ocore.workers w WHERE w.lease_end <= ocore.now() - make_interval(hours => $1)
           AND NOT EXISTS (SELECT FROM ocore.lanes l WHERE l.holder = w.id)",
    );
    forget.bind(EXPIRED_KEPT_HOURS).execute(db).await.map(drop)
}

/// What a worker is given with a lane: nothing, or all of it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct Work {
    lane: Option<String>,
    deployment: Option<Uuid>,
    record: Option<String>,
    seq: Option<i64>,
    version: Option<i64>,
    cancel: Option<String>,
    settings: Option<String>,
    live: Option<String>,
    acknowledged: Option<Vec<Uuid>>,
    work_fence: Option<i64>,
    lost: Option<bool>,
    holder_before: Option<Uuid>,
    waited: Option<bool>,
}

impl Work {
    pub(super) const fn is_some(&self) -> bool {
        self.deployment.is_some()
    }

    fn read(self) -> sqlx::Result<Claim> {
        let record = Record {
            record: self.record.unwrap_or_default(),
            seq: self.seq.unwrap_or_default(),
            version: self.version.unwrap_or_default(),
            begun: true,
            cancel: self.cancel,
        };
        let settings = read_settings(&self.settings.unwrap_or_default())?;
        let (live, fence) = (read_live(self.live)?, Fence::new(uncount(self.work_fence.unwrap_or_default())));
        let mut claim = Claim::new(record.read()?, settings, live, fence, self.lost == Some(true));
        claim.acknowledged = deployment_ids(self.acknowledged.unwrap_or_default());
        Ok(claim)
    }
}

/// The claim, or `None` if it cannot be read: then the lane was given back as it was.
pub(super) async fn understand(
    database: &Arc<Database>,
    unreadable: &Unreadable,
    worker: WorkerId,
    work: Work,
) -> StoreResult<Option<Claim>> {
    let error = match work.clone().read() {
        Ok(claim) => return Ok(Some(claim)),
        Err(error) => error,
    };
    let lane = work.lane.clone().unwrap_or_default();
    tracing::error!(environment = %lane, %error, "the lane is left to a worker that can read it");
    unreadable.lock().insert(lane, Instant::now());
    database
        .call("give back the lane", move |db, sql| {
            let work = work.clone();
            Box::pin(give_back(db, sql, worker, work))
        })
        .await?;
    Ok(None)
}

async fn give_back(db: &mut PgConnection, sql: &Sql, worker: WorkerId, work: Work) -> sqlx::Result<()> {
    let give = sql.query("SELECT ocore.give_back($1, $2, $3, $4, $5)");
    let give = give.bind(work.lane).bind(worker_uuid(worker)).bind(work.work_fence);
    give.bind(work.holder_before).bind(work.waited).execute(db).await.map(drop)
}

#[derive(sqlx::FromRow)]
struct ClaimRow {
    answer: String,
    next_micros: Option<i64>,
    #[sqlx(flatten)]
    work: Work,
}

pub(super) async fn claim(
    database: &Arc<Database>,
    unreadable: &Unreadable,
    worker: &Worker,
    busy: &[EnvironmentName],
) -> StoreResult<Claimed> {
    let (pools, busy) = (names(&worker.pools), names(busy));
    let id = worker.id;
    loop {
        let (pools, busy, skipped) = (pools.clone(), busy.clone(), unreadable.skipped());
        let row = database.call("claim a lane", move |db, sql| {
            Box::pin(ask(db, sql, id, pools.clone(), busy.clone(), skipped.clone()))
        });
        let row = row.await?;
        return Ok(match row.answer.as_str() {
            "expired" => Claimed::Expired,
            "work" => match understand(database, unreadable, id, row.work).await? {
                Some(claim) => Claimed::Work(Box::new(claim)),
                None => continue,
            },
            _ => Claimed::Idle { next: row.next_micros.map(|micros| Duration::from_micros(uncount(micros))) },
        });
    }
}

async fn ask(
    db: &mut PgConnection,
    sql: &Sql,
    worker: WorkerId,
    pools: Vec<String>,
    busy: Vec<String>,
    skipped: Vec<String>,
) -> sqlx::Result<ClaimRow> {
    let claim = sql.rows(
        "SELECT answer, next_micros, (work).lane, (work).deployment, (work).record, (work).seq, (work).version, (work).cancel,
                (work).settings, (work).live, (work).acknowledged, (work).fence AS work_fence, (work).lost,
                (work).holder_before, (work).waited
         FROM ocore.claim($1, $2, $3, $4)",
    );
    claim.bind(worker_uuid(worker)).bind(pools).bind(busy).bind(skipped).fetch_one(db).await
}
