//! The snapshots that exist.

use chrono::{DateTime, Utc};
use ocore_core::{
    id::DeploymentId,
    name::{EnvironmentName, InstanceName},
    port::{SnapshotPin, SnapshotRecord, SnapshotState},
    release::Snapshot,
};
use sqlx::{FromRow, SqliteConnection};

use super::{
    error::unreadable,
    lane::Lane,
    row::{bytes, count, deployment_id, list, nanos, time, uncount},
};

pub(super) async fn record(
    db: &mut SqliteConnection,
    environment: &EnvironmentName,
    snapshot: &SnapshotRecord,
) -> sqlx::Result<()> {
    let window =
        snapshot.window.map(|window| serde_json::to_string(&window).expect("a window has a JSON form"));
    let upsert = sqlx::query(
        "INSERT INTO snapshots (environment, reference, deployment, instance, taken_at, size_bytes, window, retired)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (environment, reference) DO UPDATE SET
             deployment = excluded.deployment, instance = excluded.instance, taken_at = excluded.taken_at,
             size_bytes = excluded.size_bytes, window = excluded.window, retired = excluded.retired",
    );
    let upsert = upsert
        .bind(environment.as_str())
        .bind(&snapshot.snapshot.reference)
        .bind(bytes(snapshot.deployment))
        .bind(snapshot.instance.as_str())
        .bind(nanos(snapshot.snapshot.taken_at))
        .bind(count(snapshot.snapshot.size_bytes))
        .bind(window)
        .bind(snapshot.state == SnapshotState::Retired);
    upsert.execute(db).await.map(drop)
}

#[derive(FromRow)]
struct Row {
    reference: String,
    deployment: Vec<u8>,
    instance: String,
    taken_at: i64,
    size_bytes: i64,
    window: Option<String>,
    retired: bool,
    pinned_by: Option<String>,
    why: Option<String>,
    pinned_at: Option<i64>,
    ends_at: Option<i64>,
    unpinned_by: Option<String>,
}

pub(super) async fn all(
    db: &mut SqliteConnection,
    environment: EnvironmentName,
) -> sqlx::Result<Vec<SnapshotRecord>> {
    let rows = sqlx::query_as::<_, Row>(
        "SELECT reference, snapshots.deployment, instance, taken_at, size_bytes, window, retired,
                pinned_by, why, pinned_at, ends_at, unpinned_by
         FROM snapshots LEFT JOIN deployments ON id = snapshots.deployment
              LEFT JOIN pins ON pins.environment = snapshots.environment AND pins.deployment = snapshots.deployment
         WHERE snapshots.environment = ?1 ORDER BY seq, reference",
    );
    let rows = rows.bind(environment.as_str()).fetch_all(db).await?;
    rows.into_iter().map(|row| row.read(&environment)).collect()
}

impl Row {
    fn read(self, environment: &EnvironmentName) -> sqlx::Result<SnapshotRecord> {
        let pin = self.pin();
        let instance =
            InstanceName::try_from(self.instance).map_err(|error| unreadable("an instance's name", error))?;
        let snapshot = Snapshot::new(self.reference, time(self.taken_at), uncount(self.size_bytes));
        let window = self.window.map(|text| serde_json::from_str(&text)).transpose();
        let window = window.map_err(|error| unreadable("a snapshot's window", error))?;
        let deployment = deployment_id(&self.deployment)?;
        let mut record = SnapshotRecord::new(environment.clone(), deployment, instance, snapshot, window);
        if self.retired {
            record.state = SnapshotState::Retired;
        }
        record.pin = pin;
        Ok(record)
    }

    fn pin(&self) -> Option<SnapshotPin> {
        let (by, why) = (self.pinned_by.as_deref()?, self.why.as_deref()?);
        let mut pin = SnapshotPin::new(by, why, time(self.pinned_at?));
        pin.until = self.ends_at.map(time);
        pin.unpinned_by.clone_from(&self.unpinned_by);
        Some(pin)
    }
}

pub(super) async fn retire(
    db: &mut SqliteConnection,
    environment: EnvironmentName,
    references: Vec<String>,
    at: DateTime<Utc>,
) -> sqlx::Result<Vec<String>> {
    let Some(lane) = Lane::find(db, &environment).await? else { return Ok(Vec::new()) };
    let needing = sqlx::query_scalar::<_, i64>(
        "SELECT (SELECT count(*) FROM deployments
                 WHERE environment = ?1 AND phase = 'waiting' AND coalesce(target, recovers) IS NOT NULL)
              + (SELECT count(*) FROM deployments
                 WHERE environment = ?1 AND phase = 'active' AND coalesce(target, recovers) IS NOT NULL)",
    );
    let needing = needing.bind(environment.as_str()).fetch_one(&mut *db).await?;
    if lane.attention.is_some() || !lane.acknowledged.is_empty() || needing > 0 {
        return Ok(Vec::new());
    }
    let retired = sqlx::query_scalar(
        "UPDATE snapshots SET retired = 1
         WHERE environment = ?1 AND reference IN (SELECT value FROM json_each(?2)) AND deployment IS NOT ?3
           AND NOT EXISTS (SELECT 1 FROM pins
                           WHERE pins.environment = ?1 AND pins.deployment = snapshots.deployment
                             AND (ends_at IS NULL OR ends_at > ?4))
         RETURNING reference",
    );
    let retired = retired
        .bind(environment.as_str())
        .bind(list(references))
        .bind(lane.active.map(bytes))
        .bind(nanos(at));
    retired.fetch_all(db).await
}

pub(super) async fn forget(
    db: &mut SqliteConnection,
    environment: EnvironmentName,
    references: Vec<String>,
) -> sqlx::Result<()> {
    let forget = sqlx::query(
        "DELETE FROM snapshots
         WHERE environment = ?1 AND reference IN (SELECT value FROM json_each(?2)) AND retired = 1",
    );
    forget.bind(environment.as_str()).bind(list(references)).execute(&mut *db).await?;
    let unpin = sqlx::query(
        "DELETE FROM pins
         WHERE environment = ?1
           AND deployment NOT IN (SELECT deployment FROM snapshots WHERE snapshots.environment = ?1)",
    );
    unpin.bind(environment.as_str()).execute(db).await.map(drop)
}

pub(super) async fn pin(
    db: &mut SqliteConnection,
    environment: EnvironmentName,
    deployment: DeploymentId,
    pin: SnapshotPin,
) -> sqlx::Result<bool> {
    let upsert = sqlx::query(
        "INSERT INTO pins (environment, deployment, pinned_by, why, pinned_at, ends_at, unpinned_by)
         SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7
         WHERE (SELECT max(retired) FROM snapshots WHERE environment = ?1 AND deployment = ?2) = 0
         ON CONFLICT (environment, deployment) DO UPDATE SET
             pinned_by = excluded.pinned_by, why = excluded.why, pinned_at = excluded.pinned_at,
             ends_at = excluded.ends_at, unpinned_by = excluded.unpinned_by",
    );
    let upsert = upsert
        .bind(environment.as_str())
        .bind(bytes(deployment))
        .bind(pin.by)
        .bind(pin.why)
        .bind(nanos(pin.at))
        .bind(pin.until.map(nanos))
        .bind(pin.unpinned_by);
    Ok(upsert.execute(db).await?.rows_affected() > 0)
}
