//! The snapshots that exist.

use chrono::{DateTime, Utc};
use ocore_core::{
    id::DeploymentId,
    name::{EnvironmentName, InstanceName},
    port::{SnapshotPin, SnapshotRecord, SnapshotState},
    release::Snapshot,
};
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::{
    error::unreadable,
    row::{deployment_id, nanos, time, uncount, uuid},
    sql::Sql,
};

#[derive(FromRow)]
struct Row {
    reference: String,
    deployment: Uuid,
    instance: String,
    taken_at: i64,
    size_bytes: i64,
    lost_window: Option<String>,
    retired: bool,
    pinned_by: Option<String>,
    why: Option<String>,
    pinned_at: Option<i64>,
    ends_at: Option<i64>,
    unpinned_by: Option<String>,
}

pub(super) async fn all(
    db: &mut PgConnection,
    sql: &Sql,
    environment: EnvironmentName,
) -> sqlx::Result<Vec<SnapshotRecord>> {
    let rows = sql.rows::<Row>(
        "SELECT s.reference, s.deployment, s.instance, s.taken_at, s.size_bytes, s.lost_window, s.retired,
                p.pinned_by, p.why, p.pinned_at, p.ends_at, p.unpinned_by
         FROM ocore.snapshots s LEFT JOIN ocore.deployments d ON d.id = s.deployment
              LEFT JOIN ocore.pins p ON p.environment = s.environment AND p.deployment = s.deployment
         WHERE s.environment = $1 ORDER BY d.seq NULLS FIRST, s.reference",
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
        let window = self.lost_window.map(|text| serde_json::from_str(&text)).transpose();
        let window = window.map_err(|error| unreadable("a snapshot's window", error))?;
        let deployment = deployment_id(self.deployment);
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
    db: &mut PgConnection,
    sql: &Sql,
    environment: EnvironmentName,
    references: Vec<String>,
    at: DateTime<Utc>,
) -> sqlx::Result<Vec<String>> {
    // Under the lane's lock no rollback is asked for meanwhile, and nothing is pinned.
    let may = sql.scalar::<bool>(
        "SELECT l.attention IS NULL AND l.acknowledged = '{}' FROM ocore.lanes l WHERE l.name = $1 FOR UPDATE",
    );
    if may.bind(environment.as_str()).fetch_optional(&mut *db).await? != Some(true) {
        return Ok(Vec::new());
    }
    let retired = sql.scalar(
        "UPDATE ocore.snapshots s SET retired = true
         WHERE s.environment = $1 AND s.reference = ANY ($2)
           AND s.deployment IS DISTINCT FROM (SELECT l.active FROM ocore.lanes l WHERE l.name = $1)
           AND NOT EXISTS (SELECT FROM ocore.deployments d
                           WHERE d.environment = $1 AND d.phase = 'waiting' AND coalesce(d.target, d.recovers) IS NOT NULL)
           AND NOT EXISTS (SELECT FROM ocore.deployments d
                           WHERE d.environment = $1 AND d.phase = 'active' AND coalesce(d.target, d.recovers) IS NOT NULL)
           AND NOT EXISTS (SELECT FROM ocore.pins p
                           WHERE p.environment = $1 AND p.deployment = s.deployment
                             AND (p.ends_at IS NULL OR p.ends_at > $3))
         RETURNING s.reference",
    );
    retired.bind(environment.as_str()).bind(references).bind(nanos(at)).fetch_all(db).await
}

pub(super) async fn forget(
    db: &mut PgConnection,
    sql: &Sql,
    environment: EnvironmentName,
    references: Vec<String>,
) -> sqlx::Result<()> {
    // Of both parts, each sees the table as it was before the other.
    let forget = sql.query(
        "WITH unpinned AS (
             DELETE FROM ocore.pins p
             WHERE p.environment = $1
               AND NOT EXISTS (SELECT FROM ocore.snapshots s
                               WHERE s.environment = $1 AND s.deployment = p.deployment
                                 AND NOT (s.retired AND s.reference = ANY ($2))))
         DELETE FROM ocore.snapshots WHERE environment = $1 AND reference = ANY ($2) AND retired",
    );
    forget.bind(environment.as_str()).bind(references).execute(db).await.map(drop)
}

pub(super) async fn pin(
    db: &mut PgConnection,
    sql: &Sql,
    environment: EnvironmentName,
    deployment: DeploymentId,
    pin: SnapshotPin,
) -> sqlx::Result<bool> {
    // Under the lane's lock nothing is retired meanwhile.
    let lane = sql.query("SELECT FROM ocore.lanes l WHERE l.name = $1 FOR UPDATE");
    lane.bind(environment.as_str()).execute(&mut *db).await?;
    let upsert = sql.query(
        "INSERT INTO ocore.pins (environment, deployment, pinned_by, why, pinned_at, ends_at, unpinned_by)
         SELECT $1, $2, $3, $4, $5, $6, $7
         WHERE NOT (SELECT bool_or(s.retired) FROM ocore.snapshots s WHERE s.environment = $1 AND s.deployment = $2)
         ON CONFLICT (environment, deployment) DO UPDATE SET
             pinned_by = excluded.pinned_by, why = excluded.why, pinned_at = excluded.pinned_at,
             ends_at = excluded.ends_at, unpinned_by = excluded.unpinned_by",
    );
    let upsert = upsert
        .bind(environment.as_str())
        .bind(uuid(deployment))
        .bind(pin.by)
        .bind(pin.why)
        .bind(nanos(pin.at))
        .bind(pin.until.map(nanos))
        .bind(pin.unpinned_by);
    Ok(upsert.execute(db).await?.rows_affected() > 0)
}
