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
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    lane::Lane,
    log,
    row::{self, Record, count, deployment_id, nanos, phase, read_settings, uuid},
    sql::Sql,
};

pub(super) async fn enqueue(
    db: &mut PgConnection,
    sql: &Sql,
    new: NewDeployment,
    at: DateTime<Utc>,
) -> sqlx::Result<Enqueued> {
    // The lane's lock first: of two who ask the same at the same time, the second finds what the first has made.
    let lane = Lane::lock(db, sql, &new.environment).await?;
    if let Some(existing) = existing(db, sql, &new).await? {
        return Ok(Enqueued::Existing(Box::new(existing)));
    }
    let Some(lane) = lane else { return Ok(Enqueued::NoSuchEnvironment) };
    let is_recovery = match new.request.trigger {
        Trigger::Recovery { of } if !lane.waits_for(db, sql, of).await? => return Ok(Enqueued::NotWaiting),
        Trigger::Recovery { .. } => true,
        _ => false,
    };
    let settings = sql.scalar::<String>("SELECT settings FROM ocore.environments WHERE name = $1");
    let settings = settings.bind(lane.name.as_str()).fetch_one(&mut *db).await?;
    let environment = read_settings(&settings)?;
    let policy = environment.policy();
    let taken = superseded(db, sql, &new, policy.supersede).await?;
    let length_max = policy.queue_length_max;
    // A recovery always finds a place: without it, a full queue could never go on.
    if !is_recovery && waiting(db, sql, &lane.name).await?.saturating_sub(taken.len()) >= length_max {
        return Ok(Enqueued::Full { length_max });
    }
    let mut deployment = Deployment::accepted(new, Seq::new(lane.seq + 1), at);
    let superseded: Vec<DeploymentId> = taken.iter().map(|queued| queued.id).collect();
    deployment.superseded.clone_from(&superseded);
    for queued in taken {
        end_in_queue(db, sql, queued, Vec::new(), Cause::Superseded { by: deployment.id }, at).await?;
    }
    insert(db, sql, &deployment).await?;
    log::append(db, sql, deployment.id, &[NewEvent::new(at, EventKind::Queued)], LogLimit::DEFAULT).await?;
    let counted = sql.query("UPDATE ocore.lanes SET seq = seq + 1 WHERE name = $1");
    counted.bind(lane.name.as_str()).execute(db).await?;
    Ok(Enqueued::Accepted { deployment: Box::new(deployment), superseded })
}

async fn existing(db: &mut PgConnection, sql: &Sql, new: &NewDeployment) -> sqlx::Result<Option<Deployment>> {
    if let Some(known) = Record::find(db, sql, new.id).await? {
        return Ok(Some(known));
    }
    let Some(key) = &new.request.key else { return Ok(None) };
    let seen = sql.rows::<Record>(
        "SELECT record, seq, version, begun, cancel FROM ocore.deployments WHERE environment = $1 AND key = $2",
    );
    let seen = seen.bind(new.environment.as_str()).bind(key).fetch_optional(db).await?;
    seen.map(Record::read).transpose()
}

async fn waiting(db: &mut PgConnection, sql: &Sql, name: &EnvironmentName) -> sqlx::Result<usize> {
    let count = sql
        .scalar::<i64>("SELECT count(*) FROM ocore.deployments WHERE environment = $1 AND phase = 'waiting'");
    Ok(usize::try_from(count.bind(name.as_str()).fetch_one(db).await?).unwrap_or(usize::MAX))
}

/// The queued deployments whose place the new one takes, in order.
async fn superseded(
    db: &mut PgConnection,
    sql: &Sql,
    new: &NewDeployment,
    policy: bool,
) -> sqlx::Result<Vec<Deployment>> {
    if !policy || new.request.trigger != Trigger::Push {
        return Ok(Vec::new());
    }
    let records = sql.rows::<Record>(
        "SELECT record, seq, version, begun, cancel FROM ocore.deployments
         WHERE environment = $1 AND phase = 'waiting' AND trigger_kind = 'push' ORDER BY seq",
    );
    let mut superseded = Vec::new();
    for record in records.bind(new.environment.as_str()).fetch_all(db).await? {
        let queued = record.read()?;
        if queue::supersedes(&new.request.trigger, policy, &queued) {
            superseded.push(queued);
        }
    }
    Ok(superseded)
}

async fn insert(db: &mut PgConnection, sql: &Sql, deployment: &Deployment) -> sqlx::Result<()> {
    let insert = sql.query(
        "INSERT INTO ocore.deployments (id, environment, seq, version, begun, phase, status, trigger_kind, key,
                                        requested_at, answers, recovers, record, target)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
    );
    let (status, kept) = (deployment.status(), &deployment.kept_by_store);
    let insert = insert
        .bind(uuid(deployment.id))
        .bind(deployment.environment.as_str())
        .bind(count(kept.seq.get()))
        .bind(count(kept.version))
        .bind(kept.begun)
        .bind(phase(status))
        .bind(status.as_str())
        .bind(deployment.request.trigger.kind())
        .bind(deployment.request.key.as_deref())
        .bind(nanos(deployment.requested_at))
        .bind(deployment.answers().map(uuid))
        .bind(queue::recovers(deployment).map(uuid))
        .bind(stored::encode(deployment))
        .bind(deployment.rolls_back_to().map(uuid));
    insert.execute(db).await.map(drop)
}

/// Ends a deployment that waits, with the events that led to that.
async fn end_in_queue(
    db: &mut PgConnection,
    sql: &Sql,
    queued: Deployment,
    mut events: Vec<NewEvent>,
    cause: Cause,
    at: DateTime<Utc>,
) -> sqlx::Result<()> {
    let (ended, event) = queue::end_in_queue(queued, cause, at);
    events.push(event);
    log::append(db, sql, ended.id, &events, LogLimit::DEFAULT).await?;
    row::save(db, sql, &ended).await
}

pub(super) async fn request_cancel(
    db: &mut PgConnection,
    sql: &Sql,
    id: DeploymentId,
    actor: String,
    at: DateTime<Utc>,
) -> sqlx::Result<CancelAnswer> {
    let Some(known) = Record::find(db, sql, id).await? else { return Ok(CancelAnswer::NoSuchDeployment) };
    // Read once more under the lane's lock: before it, anything may have happened.
    let lane = Lane::lock(db, sql, &known.environment).await?.ok_or(sqlx::Error::RowNotFound)?;
    let mut deployment = Record::find(db, sql, id).await?.ok_or(sqlx::Error::RowNotFound)?;
    let answer = queue::cancel_answer(&deployment);
    let wanted = matches!(answer, CancelAnswer::Cancelled | CancelAnswer::Requested);
    if !wanted || deployment.kept_by_store.cancel.is_some() {
        return Ok(answer);
    }
    deployment.kept_by_store.cancel = Some(actor.clone());
    let event = NewEvent::new(at, EventKind::CancelRequested { actor });
    if answer == CancelAnswer::Cancelled {
        end_in_queue(db, sql, deployment, vec![event], Cause::Cancelled, at).await?;
    } else {
        log::append(db, sql, id, &[event], LogLimit::DEFAULT).await?;
        let mark = sql.query("UPDATE ocore.deployments SET cancel = $2 WHERE id = $1");
        mark.bind(uuid(id)).bind(deployment.kept_by_store.cancel).execute(&mut *db).await?;
    }
    let hurry = sql.query("UPDATE ocore.lanes SET due = least(due, ocore.now()) WHERE name = $1");
    hurry.bind(lane.name.as_str()).execute(db).await?;
    Ok(answer)
}

/// The ids of a lane's deployments that wait, in order, and what they recover.
pub(super) async fn all_waiting(
    db: &mut PgConnection,
    sql: &Sql,
    name: &EnvironmentName,
) -> sqlx::Result<Vec<(DeploymentId, Option<DeploymentId>)>> {
    let rows = sql.rows::<(Uuid, Option<Uuid>)>(
        "SELECT id, recovers FROM ocore.deployments WHERE environment = $1 AND phase = 'waiting' ORDER BY seq",
    );
    let rows = rows.bind(name.as_str()).fetch_all(db).await?;
    Ok(rows.into_iter().map(|(id, recovers)| (deployment_id(id), recovers.map(deployment_id))).collect())
}
