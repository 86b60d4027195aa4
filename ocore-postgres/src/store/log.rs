//! The events of a deployment, within a limit. The schema counts.

use std::sync::Arc;

use ocore_core::{
    event::{Event, NewEvent},
    id::{DeploymentId, EventSeq, Fence},
    name::EnvironmentName,
    port::LogLimit,
    stored,
};
use sqlx::PgConnection;

use super::{
    lane::Lane,
    row::{count, decode, nanos, time, uncount, uuid},
    sql::Sql,
};

/// Events as columns.
#[derive(Debug, Default)]
pub(super) struct Events {
    pub(super) ats: Vec<i64>,
    pub(super) sizes: Vec<i64>,
    pub(super) kinds: Vec<String>,
}

impl Events {
    pub(super) fn extend(&mut self, events: &[NewEvent]) {
        self.ats.extend(events.iter().map(|event| nanos(event.at)));
        self.sizes.extend(events.iter().map(|event| count(event.kind.log_bytes())));
        self.kinds.extend(events.iter().map(|event| stored::encode(&event.kind)));
    }
}

/// Writes the events. The lane is locked.
pub(super) async fn append(
    db: &mut PgConnection,
    sql: &Sql,
    id: DeploymentId,
    events: &[NewEvent],
    limit: LogLimit,
) -> sqlx::Result<()> {
    let mut columns = Events::default();
    columns.extend(events);
    let Events { ats, sizes, kinds } = columns;
    let append = sql.query("SELECT ocore.append($1, $2, $3, $4, $5, $6, $7)");
    let append = append.bind(uuid(id)).bind(ats).bind(sizes).bind(kinds);
    let append = append.bind(count(limit.head_bytes)).bind(count(limit.tail_bytes));
    append.bind(count(limit.tail_bytes_max())).execute(db).await.map(drop)
}

pub(super) async fn append_fenced(
    db: &mut PgConnection,
    sql: &Sql,
    name: EnvironmentName,
    deployment: DeploymentId,
    fence: Fence,
    events: Arc<Vec<NewEvent>>,
    limit: LogLimit,
) -> sqlx::Result<bool> {
    let Some(lane) = Lane::lock(db, sql, &name).await? else { return Ok(false) };
    if lane.active != Some(deployment) || lane.fence != fence {
        return Ok(false);
    }
    append(db, sql, deployment, &events, limit).await?;
    Ok(true)
}

pub(super) async fn read(
    db: &mut PgConnection,
    sql: &Sql,
    deployment: DeploymentId,
    after: EventSeq,
    limit: usize,
) -> sqlx::Result<Vec<Event>> {
    let rows = sql.rows::<(i64, i64, String)>(
        "SELECT seq, at, kind FROM ocore.events WHERE deployment = $1 AND seq > $2 ORDER BY seq LIMIT $3",
    );
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = rows.bind(uuid(deployment)).bind(count(after.get())).bind(limit).fetch_all(db).await?;
    let events = rows.into_iter().map(|(seq, at, kind)| {
        let event = NewEvent::new(time(at), decode("an event", &kind)?);
        Ok(Event::new(EventSeq::new(uncount(seq)), event))
    });
    events.collect()
}
