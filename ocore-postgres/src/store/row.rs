//! How values are kept in columns.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use ocore_core::{
    deployment::Deployment,
    environment::Environment,
    id::{DeploymentId, Seq, WorkerId},
    machine::Status,
    name::EnvironmentName,
    release::Live,
    stored::{self, Stored},
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{error::unreadable, sql::Sql};

/// A deployment's record, and what the store itself changes of it: these columns are newer than the record.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct Record {
    pub(super) record: String,
    pub(super) seq: i64,
    pub(super) version: i64,
    pub(super) begun: bool,
    pub(super) cancel: Option<String>,
}

impl Record {
    pub(super) fn read(self) -> sqlx::Result<Deployment> {
        let mut deployment: Deployment = decode("a deployment", &self.record)?;
        let kept = &mut deployment.kept_by_store;
        kept.seq = Seq::new(uncount(self.seq));
        (kept.version, kept.begun, kept.cancel) = (uncount(self.version), self.begun, self.cancel);
        Ok(deployment)
    }

    pub(super) async fn find(
        db: &mut PgConnection,
        sql: &Sql,
        id: DeploymentId,
    ) -> sqlx::Result<Option<Deployment>> {
        let found = sql
            .rows::<Self>("SELECT record, seq, version, begun, cancel FROM ocore.deployments WHERE id = $1");
        found.bind(uuid(id)).fetch_optional(db).await?.map(Self::read).transpose()
    }
}

/// Writes a deployment back: the record and the columns that are made of it.
pub(super) async fn save(db: &mut PgConnection, sql: &Sql, deployment: &Deployment) -> sqlx::Result<()> {
    let update = sql.query(
        "UPDATE ocore.deployments SET version = $2, begun = $3, cancel = $4, phase = $5, status = $6, replaced = $7,
                record = $8
         WHERE id = $1",
    );
    let (status, kept) = (deployment.status(), &deployment.kept_by_store);
    let update = update
        .bind(uuid(deployment.id))
        .bind(count(kept.version))
        .bind(kept.begun)
        .bind(kept.cancel.as_deref())
        .bind(phase(status))
        .bind(status.as_str())
        .bind(deployment.replaced.map(uuid))
        .bind(stored::encode(deployment));
    update.execute(db).await.map(drop)
}

pub(super) const fn phase(status: Status) -> &'static str {
    match status {
        Status::Queued => "waiting",
        _ if status.is_final() => "over",
        _ => "active",
    }
}

pub(super) const fn uuid(id: DeploymentId) -> Uuid {
    Uuid::from_u128(id.as_u128())
}

pub(super) const fn worker_uuid(id: WorkerId) -> Uuid {
    Uuid::from_u128(id.as_u128())
}

pub(super) const fn deployment_id(uuid: Uuid) -> DeploymentId {
    DeploymentId::from_u128(uuid.as_u128())
}

pub(super) fn deployment_ids(uuids: Vec<Uuid>) -> Vec<DeploymentId> {
    uuids.into_iter().map(deployment_id).collect()
}

/// A counter as PostgreSQL keeps it. What is beyond it equals no counter that was ever stored.
pub(super) fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn uncount(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// Nanoseconds since 1970; times that have none, before 1678 and after 2262, become the nearest that has.
pub(super) fn nanos(time: DateTime<Utc>) -> i64 {
    let nearest = if time.timestamp() < 0 { i64::MIN } else { i64::MAX };
    time.timestamp_nanos_opt().unwrap_or(nearest)
}

pub(super) const fn time(nanos: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_nanos(nanos)
}

/// Microseconds, at most a hundred years: the server adds them to its clock.
pub(super) fn micros(duration: std::time::Duration) -> i64 {
    const MOST: u128 = 100 * 366 * 24 * 60 * 60 * 1_000_000;
    i64::try_from(duration.as_micros().min(MOST)).unwrap_or(i64::MAX)
}

pub(super) fn decode<T: Stored>(what: &'static str, text: &str) -> sqlx::Result<T> {
    stored::decode(text).map_err(|error| unreadable(what, error))
}

pub(super) fn environment_name(text: String) -> sqlx::Result<EnvironmentName> {
    EnvironmentName::try_from(text).map_err(|error| unreadable("an environment's name", error))
}

pub(super) fn read_settings(text: &str) -> sqlx::Result<Arc<Environment>> {
    decode("the environment's settings", text).map(Arc::new)
}

pub(super) fn read_live(text: Option<String>) -> sqlx::Result<Option<Arc<Live>>> {
    text.map(|text| decode("what the environment serves", &text).map(Arc::new)).transpose()
}

/// Names as a bound value.
pub(super) fn names(names: impl IntoIterator<Item = impl ToString>) -> Vec<String> {
    names.into_iter().map(|name| name.to_string()).collect()
}
