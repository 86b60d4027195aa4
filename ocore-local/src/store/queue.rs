//! Requests: enqueue and cancel.

use chrono::{DateTime, Utc};
use ocore_core::{
    deployment::Deployment,
    event::{EventKind, NewEvent},
    failure::Cause,
    id::{DeploymentId, Seq},
    name::EnvironmentName,
    port::{CancelAnswer, Enqueued, LogLimit},
    queue,
    request::{NewDeployment, Trigger},
    stored,
};
use sqlx::SqliteConnection;

use super::{
    claim::read_settings,
    lane::Lane,
    log,
    row::{DeploymentRow, bytes, count, decode, deployment_id, nanos, phase},
};

pub(super) async fn enqueue(
    db: &mut SqliteConnection,
    new: NewDeployment,
    at: DateTime<Utc>,
) -> sqlx::Result<Enqueued> {
    if let Some(existing) = existing(db, &new).await? {
        return Ok(Enqueued::Existing(Box::new(existing)));
    }
    let Some(mut lane) = Lane::find(db, &new.environment).await? else {
        return Ok(Enqueued::NoSuchEnvironment);
    };
    if let Trigger::Recovery { of } = new.request.trigger
        && !lane.waits_for(db, of).await?
    {
        return Ok(Enqueued::NotWaiting);
    }
    let settings = sqlx::query_scalar("SELECT settings FROM lanes WHERE name = ?1");
    let settings: String = settings.bind(lane.name.as_str()).fetch_one(&mut *db).await?;
    let environment = read_settings(&settings)?;
    let policy = environment.policy();
    let taken = superseded(db, &new, policy.supersede).await?;
    let length_max = policy.queue_length_max;
    // A recovery always finds a place: without it, a full queue could never go on.
    if !matches!(new.request.trigger, Trigger::Recovery { .. }) {
        let waiting = waiting(db, &lane.name).await?;
        if waiting.saturating_sub(taken.len()) >= length_max {
            return Ok(Enqueued::Full { length_max });
        }
    }
    lane.seq += 1;
    let mut deployment = Deployment::accepted(new, Seq::new(lane.seq), at);
    let superseded: Vec<DeploymentId> = taken.iter().map(|queued| queued.id).collect();
    deployment.superseded.clone_from(&superseded);
    for queued in taken {
        let row = DeploymentRow::of(db, queued.id).await?;
        end_in_queue(db, row, Cause::Superseded { by: deployment.id }, at).await?;
    }
    insert(db, &deployment).await?;
    lane.save(db).await?;
    log::begin(db, deployment.id, NewEvent::new(at, EventKind::Queued)).await?;
    Ok(Enqueued::Accepted { deployment: Box::new(deployment), superseded })
}

async fn existing(db: &mut SqliteConnection, new: &NewDeployment) -> sqlx::Result<Option<Deployment>> {
    let record = sqlx::query_scalar::<_, String>("SELECT record FROM deployments WHERE id = ?1");
    let mut record = record.bind(bytes(new.id)).fetch_optional(&mut *db).await?;
    if let (None, Some(key)) = (&record, &new.request.key) {
        let seen = sqlx::query_scalar("SELECT record FROM deployments WHERE environment = ?1 AND key = ?2");
        record = seen.bind(new.environment.as_str()).bind(key).fetch_optional(&mut *db).await?;
    }
    record.map(|record| decode("a deployment", &record)).transpose()
}

async fn waiting(db: &mut SqliteConnection, name: &EnvironmentName) -> sqlx::Result<usize> {
    let count =
        sqlx::query_scalar("SELECT count(*) FROM deployments WHERE environment = ?1 AND phase = 'waiting'");
    let count: i64 = count.bind(name.as_str()).fetch_one(db).await?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

/// The queued deployments whose place the new one takes, in order.
async fn superseded(
    db: &mut SqliteConnection,
    new: &NewDeployment,
    policy: bool,
) -> sqlx::Result<Vec<Deployment>> {
    if !policy || new.request.trigger != Trigger::Push {
        return Ok(Vec::new());
    }
    let records = sqlx::query_scalar(
        "SELECT record FROM deployments
         WHERE environment = ?1 AND phase = 'waiting' AND trigger_kind = 'push' ORDER BY seq",
    );
    let records: Vec<String> = records.bind(new.environment.as_str()).fetch_all(db).await?;
    let mut superseded = Vec::new();
    for record in records {
        let queued: Deployment = decode("a queued deployment", &record)?;
        if queue::supersedes(&new.request.trigger, policy, &queued) {
            superseded.push(queued);
        }
    }
    Ok(superseded)
}

async fn insert(db: &mut SqliteConnection, deployment: &Deployment) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "INSERT INTO deployments (id, environment, seq, version, phase, status, trigger_kind, key, requested_at,
                                  answers, recovers, record, target, number)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13,
                 (SELECT coalesce(max(number), 0) + 1 FROM deployments))",
    );
    let (status, kept) = (deployment.status(), &deployment.kept_by_store);
    let insert = insert
        .bind(bytes(deployment.id))
        .bind(deployment.environment.as_str())
        .bind(count(kept.seq.get()))
        .bind(count(kept.version))
        .bind(phase(status))
        .bind(status.as_str())
        .bind(deployment.request.trigger.kind())
        .bind(deployment.request.key.as_deref())
        .bind(nanos(deployment.requested_at))
        .bind(deployment.answers().map(bytes))
        .bind(queue::recovers(deployment).map(bytes))
        .bind(stored::encode(deployment))
        .bind(deployment.rolls_back_to().map(bytes));
    insert.execute(db).await.map(drop)
}

async fn end_in_queue(
    db: &mut SqliteConnection,
    mut row: DeploymentRow,
    cause: Cause,
    at: DateTime<Utc>,
) -> sqlx::Result<()> {
    let (ended, event) = queue::end_in_queue(row.deployment, cause, at);
    log::append(db, ended.id, &mut row.log, &[event], LogLimit::DEFAULT).await?;
    row.deployment = ended;
    row.save(db).await
}

pub(super) async fn request_cancel(
    db: &mut SqliteConnection,
    id: DeploymentId,
    actor: String,
    at: DateTime<Utc>,
    now: i64,
) -> sqlx::Result<CancelAnswer> {
    let Some(mut row) = DeploymentRow::find(db, id).await? else {
        return Ok(CancelAnswer::NoSuchDeployment);
    };
    let answer = queue::cancel_answer(&row.deployment);
    let wanted = matches!(answer, CancelAnswer::Cancelled | CancelAnswer::Requested);
    let cancel = &mut row.deployment.kept_by_store.cancel;
    if !wanted || cancel.is_some() {
        return Ok(answer);
    }
    *cancel = Some(actor.clone());
    let event = NewEvent::new(at, EventKind::CancelRequested { actor });
    log::append(db, id, &mut row.log, &[event], LogLimit::DEFAULT).await?;
    let mut lane = Lane::of(db, &row.deployment.environment).await?;
    if answer == CancelAnswer::Cancelled {
        end_in_queue(db, row, Cause::Cancelled, at).await?;
    } else {
        row.save(db).await?;
    }
    lane.due = lane.due.min(now);
    lane.save(db).await?;
    Ok(answer)
}

/// The ids of a lane's deployments that wait, in order, and what they recover.
pub(super) async fn all_waiting(
    db: &mut SqliteConnection,
    name: &EnvironmentName,
) -> sqlx::Result<Vec<(DeploymentId, Option<DeploymentId>)>> {
    let rows = sqlx::query_as::<_, (Vec<u8>, Option<Vec<u8>>)>(
        "SELECT id, recovers FROM deployments WHERE environment = ?1 AND phase = 'waiting' ORDER BY seq",
    );
    let rows = rows.bind(name.as_str()).fetch_all(db).await?;
    let ids = rows
        .into_iter()
        .map(|(id, recovers)| Ok((deployment_id(&id)?, recovers.as_deref().map(deployment_id).transpose()?)));
    ids.collect()
}
