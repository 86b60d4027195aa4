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
    let entered = enter(db, sql, &new).await?;
    if let Some(existing) = entered.existing() {
        return Ok(Enqueued::Existing(Box::new(existing?)));
    }
    let (Some(lane), Some(settings)) = (entered.lane(&new.environment), &entered.settings) else {
        return Ok(Enqueued::NoSuchEnvironment);
    };
    let is_recovery = match new.request.trigger {
        Trigger::Recovery { of } if !lane.waits_for(db, sql, of).await? => return Ok(Enqueued::NotWaiting),
        Trigger::Recovery { .. } => true,
        _ => false,
    };
    let environment = read_settings(settings)?;
    let policy = environment.policy();
    let taken = superseded(db, sql, &new, policy.supersede).await?;
    let (waiting, length_max) = (entered.waiting(), policy.queue_length_max);
    // A recovery always finds a place: without it, a full queue could never go on.
    if !is_recovery && waiting.saturating_sub(taken.len()) >= length_max {
        return Ok(Enqueued::Full { length_max });
    }
    let mut deployment = Deployment::accepted(new, Seq::new(lane.seq + 1), at);
    let superseded: Vec<DeploymentId> = taken.iter().map(|queued| queued.id).collect();
    deployment.superseded.clone_from(&superseded);
    for queued in taken {
        end_in_queue(db, sql, queued, Vec::new(), Cause::Superseded { by: deployment.id }, at).await?;
    }
    accept(db, sql, &deployment, NewEvent::new(at, EventKind::Queued)).await?;
    Ok(Enqueued::Accepted { deployment: Box::new(deployment), superseded })
}

/// What decides about a request, with the lane locked.
#[derive(sqlx::FromRow)]
struct Entered {
    record: Option<String>,
    record_seq: Option<i64>,
    version: Option<i64>,
    begun: Option<bool>,
    cancel: Option<String>,
    paused: Option<bool>,
    attention: Option<Uuid>,
    active: Option<Uuid>,
    fence: Option<i64>,
    seq: Option<i64>,
    settings: Option<String>,
    waiting: Option<i64>,
}

impl Entered {
    /// What was made of the same request before.
    fn existing(&self) -> Option<sqlx::Result<Deployment>> {
        let record = Record {
            record: self.record.clone()?,
            seq: self.record_seq?,
            version: self.version?,
            begun: self.begun?,
            cancel: self.cancel.clone(),
        };
        Some(record.read())
    }

    fn lane(&self, name: &EnvironmentName) -> Option<Lane> {
        Some(Lane::read(name, (self.paused?, self.attention, self.active, self.fence?, self.seq?)))
    }

    fn waiting(&self) -> usize {
        self.waiting.map_or(0, |waiting| usize::try_from(waiting).unwrap_or(usize::MAX))
    }
}

async fn enter(db: &mut PgConnection, sql: &Sql, new: &NewDeployment) -> sqlx::Result<Entered> {
    let enter = sql.rows("SELECT * FROM ocore.enter($1, $2, $3)");
    let enter = enter.bind(new.environment.as_str()).bind(uuid(new.id)).bind(new.request.key.as_deref());
    enter.fetch_one(db).await
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

async fn accept(
    db: &mut PgConnection,
    sql: &Sql,
    deployment: &Deployment,
    event: NewEvent,
) -> sqlx::Result<()> {
    let accept = sql
        .query("SELECT ocore.accept($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)");
    let (status, kept) = (deployment.status(), &deployment.kept_by_store);
    let accept = accept
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
        .bind(deployment.rolls_back_to().map(uuid))
        .bind(stored::encode(deployment))
        .bind(nanos(event.at))
        .bind(stored::encode(&event.kind));
    accept.execute(db).await.map(drop)
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
