//! The snapshots that exist.

use ocore_core::{
    name::{EnvironmentName, InstanceName},
    port::{SnapshotRecord, SnapshotState},
    release::Snapshot,
};
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::{
    error::unreadable,
    row::{deployment_id, time, uncount},
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
}

pub(super) async fn all(
    db: &mut PgConnection,
    sql: &Sql,
    environment: EnvironmentName,
) -> sqlx::Result<Vec<SnapshotRecord>> {
    let rows = sql.rows::<Row>(
        "SELECT s.reference, s.deployment, s.instance, s.taken_at, s.size_bytes, s.lost_window, s.retired
         FROM ocore.snapshots s LEFT JOIN ocore.deployments d ON d.id = s.deployment
         WHERE s.environment = $1 ORDER BY d.seq NULLS FIRST, s.reference",
    );
    let rows = rows.bind(environment.as_str()).fetch_all(db).await?;
    rows.into_iter().map(|row| row.read(&environment)).collect()
}

impl Row {
    fn read(self, environment: &EnvironmentName) -> sqlx::Result<SnapshotRecord> {
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
        Ok(record)
    }
}

pub(super) async fn retire(
    db: &mut PgConnection,
    sql: &Sql,
    environment: EnvironmentName,
    references: Vec<String>,
) -> sqlx::Result<Vec<String>> {
    // Under the lane's lock no rollback is asked for meanwhile.
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
         RETURNING s.reference",
    );
    retired.bind(environment.as_str()).bind(references).fetch_all(db).await
}

pub(super) async fn forget(
    db: &mut PgConnection,
    sql: &Sql,
    environment: EnvironmentName,
    references: Vec<String>,
) -> sqlx::Result<()> {
    let forget =
        sql.query("DELETE FROM ocore.snapshots WHERE environment = $1 AND reference = ANY ($2) AND retired");
    forget.bind(environment.as_str()).bind(references).execute(db).await.map(drop)
}
