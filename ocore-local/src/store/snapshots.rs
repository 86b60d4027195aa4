//! The snapshots that exist.

use ocore_core::{
    name::{EnvironmentName, InstanceName},
    port::{SnapshotRecord, SnapshotState},
    release::Snapshot,
};
use sqlx::SqliteConnection;

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

type Columns = (String, Vec<u8>, String, i64, i64, Option<String>, bool);

pub(super) async fn all(
    db: &mut SqliteConnection,
    environment: EnvironmentName,
) -> sqlx::Result<Vec<SnapshotRecord>> {
    let rows = sqlx::query_as::<_, Columns>(
        "SELECT reference, deployment, instance, taken_at, size_bytes, window, retired
         FROM snapshots LEFT JOIN deployments ON id = deployment
         WHERE snapshots.environment = ?1 ORDER BY seq, reference",
    );
    let rows = rows.bind(environment.as_str()).fetch_all(db).await?;
    rows.into_iter().map(|row| read(&environment, row)).collect()
}

fn read(environment: &EnvironmentName, row: Columns) -> sqlx::Result<SnapshotRecord> {
    let (reference, deployment, instance, taken_at, size_bytes, window, retired) = row;
    let instance =
        InstanceName::try_from(instance).map_err(|error| unreadable("an instance's name", error))?;
    let snapshot = Snapshot::new(reference, time(taken_at), uncount(size_bytes));
    let window = window.map(|text| serde_json::from_str(&text)).transpose();
    let window = window.map_err(|error| unreadable("a snapshot's window", error))?;
    let deployment = deployment_id(&deployment)?;
    let mut record = SnapshotRecord::new(environment.clone(), deployment, instance, snapshot, window);
    if retired {
        record.state = SnapshotState::Retired;
    }
    Ok(record)
}

pub(super) async fn retire(
    db: &mut SqliteConnection,
    environment: EnvironmentName,
    references: Vec<String>,
) -> sqlx::Result<Vec<String>> {
    let Some(lane) = Lane::find(db, &environment).await? else { return Ok(Vec::new()) };
    let pinned = sqlx::query_scalar::<_, i64>(
        "SELECT (SELECT count(*) FROM deployments
                 WHERE environment = ?1 AND phase = 'waiting' AND coalesce(target, recovers) IS NOT NULL)
              + (SELECT count(*) FROM deployments
                 WHERE environment = ?1 AND phase = 'active' AND coalesce(target, recovers) IS NOT NULL)",
    );
    let pinned = pinned.bind(environment.as_str()).fetch_one(&mut *db).await?;
    if lane.attention.is_some() || !lane.acknowledged.is_empty() || pinned > 0 {
        return Ok(Vec::new());
    }
    let retired = sqlx::query_scalar(
        "UPDATE snapshots SET retired = 1
         WHERE environment = ?1 AND reference IN (SELECT value FROM json_each(?2)) AND deployment IS NOT ?3
         RETURNING reference",
    );
    let retired = retired.bind(environment.as_str()).bind(list(references)).bind(lane.active.map(bytes));
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
    forget.bind(environment.as_str()).bind(list(references)).execute(db).await.map(drop)
}
