//! How values are kept in columns.

use chrono::{DateTime, Utc};
use ocore_core::{
    deployment::Deployment,
    id::{DeploymentId, Fence, WorkerId},
    machine::Status,
    name::EnvironmentName,
    stored::{self, Stored},
};
use sqlx::SqliteConnection;

use super::{error::unreadable, log::Log};

/// A deployment and the columns beside its record.
pub(super) struct DeploymentRow {
    pub(super) deployment: Deployment,
    pub(super) receipt: Option<Receipt>,
    pub(super) log: Log,
}

/// What the last commit of a deployment was answered.
pub(super) struct Receipt {
    pub(super) worker: WorkerId,
    pub(super) fence: Fence,
    pub(super) answer: Answered,
}

#[derive(Clone, Copy)]
pub(super) enum Answered {
    Continued { fence: Fence },
    Released,
    Finished { successor: Option<(DeploymentId, Fence)> },
}

impl Answered {
    /// The columns `receipt_answer`, `receipt_next` and `receipt_next_fence`.
    fn columns(self) -> (Option<&'static str>, Option<Vec<u8>>, Option<i64>) {
        match self {
            Self::Continued { fence } => (Some("continued"), None, Some(count(fence.get()))),
            Self::Released => (Some("released"), None, None),
            Self::Finished { successor: None } => (Some("finished"), None, None),
            Self::Finished { successor: Some((id, fence)) } => {
                (Some("finished"), Some(bytes(id)), Some(count(fence.get())))
            }
        }
    }
}

type ReceiptColumns = (Option<Vec<u8>>, Option<i64>, Option<String>, Option<Vec<u8>>, Option<i64>);

fn receipt(columns: ReceiptColumns) -> sqlx::Result<Option<Receipt>> {
    let (Some(worker), Some(fence), Some(answer), next, next_fence) = columns else { return Ok(None) };
    let next_fence = Fence::new(uncount(next_fence.unwrap_or(0)));
    let answer = match (answer.as_str(), next) {
        ("continued", _) => Answered::Continued { fence: next_fence },
        ("released", _) => Answered::Released,
        (_, Some(id)) => Answered::Finished { successor: Some((deployment_id(&id)?, next_fence)) },
        (_, None) => Answered::Finished { successor: None },
    };
    Ok(Some(Receipt { worker: worker_id(&worker)?, fence: Fence::new(uncount(fence)), answer }))
}

impl DeploymentRow {
    pub(super) async fn find(db: &mut SqliteConnection, id: DeploymentId) -> sqlx::Result<Option<Self>> {
        let row = sqlx::query_as::<
            _,
            (
                String,
                Option<Vec<u8>>,
                Option<i64>,
                Option<String>,
                Option<Vec<u8>>,
                Option<i64>,
                i64,
                i64,
                bool,
                i64,
            ),
        >(
            "SELECT record, receipt_worker, receipt_fence, receipt_answer, receipt_next, receipt_next_fence,
                    log_last, log_head_bytes, log_head_full, log_tail_bytes
             FROM deployments WHERE id = ?1",
        );
        let Some(row) = row.bind(bytes(id)).fetch_optional(db).await? else { return Ok(None) };
        let log =
            Log { last: row.6, head_bytes: uncount(row.7), head_full: row.8, tail_bytes: uncount(row.9) };
        let receipt = receipt((row.1, row.2, row.3, row.4, row.5))?;
        Ok(Some(Self { deployment: decode("a deployment", &row.0)?, receipt, log }))
    }

    /// The deployment, which must be there.
    pub(super) async fn of(db: &mut SqliteConnection, id: DeploymentId) -> sqlx::Result<Self> {
        Self::find(db, id).await?.ok_or(sqlx::Error::RowNotFound)
    }

    /// Writes the row back: the record and the columns that are made of it, the receipt, the log in short.
    pub(super) async fn save(&self, db: &mut SqliteConnection) -> sqlx::Result<()> {
        let update = sqlx::query(
            "UPDATE deployments SET version = ?2, phase = ?3, status = ?4, replaced = ?5, record = ?6,
                    receipt_worker = ?7, receipt_fence = ?8, receipt_answer = ?9, receipt_next = ?10,
                    receipt_next_fence = ?11, log_last = ?12, log_head_bytes = ?13, log_head_full = ?14,
                    log_tail_bytes = ?15
             WHERE id = ?1",
        );
        let (deployment, receipt) = (&self.deployment, self.receipt.as_ref());
        let status = deployment.status();
        let (answer, next, next_fence) = receipt.map(|it| it.answer.columns()).unwrap_or_default();
        let update = update
            .bind(bytes(deployment.id))
            .bind(count(deployment.kept_by_store.version))
            .bind(phase(status))
            .bind(status.as_str())
            .bind(deployment.replaced.map(bytes))
            .bind(stored::encode(deployment))
            .bind(receipt.map(|it| worker_bytes(it.worker)))
            .bind(receipt.map(|it| count(it.fence.get())))
            .bind(answer)
            .bind(next)
            .bind(next_fence)
            .bind(self.log.last)
            .bind(count(self.log.head_bytes))
            .bind(self.log.head_full)
            .bind(count(self.log.tail_bytes));
        update.execute(db).await.map(drop)
    }
}

pub(super) const fn phase(status: Status) -> &'static str {
    match status {
        Status::Queued => "waiting",
        _ if status.is_final() => "over",
        _ => "active",
    }
}

pub(super) fn bytes(id: DeploymentId) -> Vec<u8> {
    id.as_u128().to_be_bytes().to_vec()
}

pub(super) fn worker_bytes(id: WorkerId) -> Vec<u8> {
    id.as_u128().to_be_bytes().to_vec()
}

fn bits(bytes: &[u8]) -> sqlx::Result<u128> {
    bytes.try_into().map(u128::from_be_bytes).map_err(|_| unreadable("an id", "it has not 16 bytes"))
}

pub(super) fn deployment_id(bytes: &[u8]) -> sqlx::Result<DeploymentId> {
    bits(bytes).map(DeploymentId::from_u128)
}

/// Ids, one after the other.
pub(super) fn deployment_ids(bytes: &[u8]) -> sqlx::Result<Vec<DeploymentId>> {
    bytes.chunks(16).map(deployment_id).collect()
}

pub(super) fn worker_id(bytes: &[u8]) -> sqlx::Result<WorkerId> {
    bits(bytes).map(WorkerId::from_u128)
}

/// A counter as SQLite keeps it. What is beyond it equals no counter that was ever stored.
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

pub(super) fn decode<T: Stored>(what: &'static str, text: &str) -> sqlx::Result<T> {
    stored::decode(text).map_err(|error| unreadable(what, error))
}

pub(super) fn environment_name(text: String) -> sqlx::Result<EnvironmentName> {
    EnvironmentName::try_from(text).map_err(|error| unreadable("an environment's name", error))
}

/// A list as a bound value, for `json_each`.
pub(super) fn list(texts: impl IntoIterator<Item = impl Into<String>>) -> String {
    serde_json::Value::from_iter(texts.into_iter().map(Into::into)).to_string()
}
