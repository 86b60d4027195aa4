//! The events of a deployment, within a limit.

use ocore_core::{
    event::{Event, NewEvent},
    id::{DeploymentId, EventSeq, Fence},
    name::EnvironmentName,
    port::LogLimit,
    stored,
};
use serde_json::json;
use sqlx::SqliteConnection;

use super::{
    lane::Lane,
    row::{bytes, count, decode, nanos, time, uncount},
};

/// What a deployment's log holds, in short.
#[derive(Clone, Copy, Default)]
pub(super) struct Log {
    pub(super) last: i64,
    pub(super) head_bytes: u64,
    pub(super) head_full: bool,
    pub(super) tail_bytes: u64,
}

impl Log {
    /// What the line counts for in the tail: nothing if it belongs to the head, which is never cut.
    fn count(&mut self, bytes: u64, limit: LogLimit) -> u64 {
        if bytes == 0 {
            return 0;
        }
        self.head_full |= self.head_bytes + bytes > limit.head_bytes;
        if self.head_full {
            self.tail_bytes += bytes;
            return bytes;
        }
        self.head_bytes += bytes;
        0
    }
}

/// Writes the events, and counts them in the log, which is the caller's to save.
pub(super) async fn append(
    db: &mut SqliteConnection,
    id: DeploymentId,
    log: &mut Log,
    events: &[NewEvent],
    limit: LogLimit,
) -> sqlx::Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let mut rows = Vec::with_capacity(events.len());
    for event in events {
        log.last += 1;
        let bytes = log.count(event.kind.log_bytes(), limit);
        rows.push(json!([log.last, nanos(event.at), bytes, stored::encode(&event.kind)]));
    }
    let insert = sqlx::query(
        "INSERT INTO events (deployment, seq, at, bytes, kind)
         SELECT ?1, value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?2)",
    );
    let rows = serde_json::Value::from(rows).to_string();
    insert.bind(bytes(id)).bind(rows).execute(&mut *db).await?;
    if log.tail_bytes > limit.tail_bytes_max() {
        cut(db, id, log, limit.tail_bytes).await?;
    }
    Ok(())
}

/// Writes the first event of a deployment that was just stored.
pub(super) async fn begin(db: &mut SqliteConnection, id: DeploymentId, event: NewEvent) -> sqlx::Result<()> {
    let mut log = Log::default();
    append(db, id, &mut log, &[event], LogLimit::DEFAULT).await?;
    save(db, id, log).await
}

/// Writes what the log holds, in short.
async fn save(db: &mut SqliteConnection, id: DeploymentId, log: Log) -> sqlx::Result<()> {
    let update = sqlx::query(
        "UPDATE deployments SET log_last = ?2, log_head_bytes = ?3, log_head_full = ?4, log_tail_bytes = ?5
         WHERE id = ?1",
    );
    let update = update.bind(bytes(id)).bind(log.last).bind(count(log.head_bytes)).bind(log.head_full);
    update.bind(count(log.tail_bytes)).execute(db).await.map(drop)
}

/// Removes the oldest lines of the tail, until the rest is within the limit.
async fn cut(
    db: &mut SqliteConnection,
    id: DeploymentId,
    log: &mut Log,
    tail_bytes: u64,
) -> sqlx::Result<()> {
    // The newest line that goes is the first one, from the newest on, that does not fit any more.
    let last = sqlx::query_as::<_, (i64, i64)>(
        "SELECT seq, total - bytes FROM (
             SELECT seq, bytes, sum(bytes) OVER (ORDER BY seq DESC) AS total
             FROM events WHERE deployment = ?1 AND bytes > 0)
         WHERE total > ?2 ORDER BY seq DESC LIMIT 1",
    );
    let last = last.bind(bytes(id)).bind(count(tail_bytes)).fetch_optional(&mut *db).await?;
    let Some((seq, left)) = last else { return Ok(()) };
    let delete = sqlx::query("DELETE FROM events WHERE deployment = ?1 AND seq <= ?2 AND bytes > 0");
    delete.bind(bytes(id)).bind(seq).execute(db).await?;
    log.tail_bytes = uncount(left);
    Ok(())
}

pub(super) async fn append_fenced(
    db: &mut SqliteConnection,
    name: EnvironmentName,
    deployment: DeploymentId,
    fence: Fence,
    events: Vec<NewEvent>,
    limit: LogLimit,
) -> sqlx::Result<bool> {
    let Some(lane) = Lane::find(db, &name).await? else { return Ok(false) };
    if lane.active != Some(deployment) || lane.fence != fence {
        return Ok(false);
    }
    let log = sqlx::query_as::<_, (i64, i64, bool, i64)>(
        "SELECT log_last, log_head_bytes, log_head_full, log_tail_bytes FROM deployments WHERE id = ?1",
    );
    let (last, head_bytes, head_full, tail_bytes) = log.bind(bytes(deployment)).fetch_one(&mut *db).await?;
    let mut log = Log { last, head_bytes: uncount(head_bytes), head_full, tail_bytes: uncount(tail_bytes) };
    append(db, deployment, &mut log, &events, limit).await?;
    save(db, deployment, log).await?;
    Ok(true)
}

pub(super) async fn read(
    db: &mut SqliteConnection,
    deployment: DeploymentId,
    after: EventSeq,
    limit: usize,
) -> sqlx::Result<Vec<Event>> {
    let rows = sqlx::query_as::<_, (i64, i64, String)>(
        "SELECT seq, at, kind FROM events WHERE deployment = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
    );
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = rows.bind(bytes(deployment)).bind(count(after.get())).bind(limit).fetch_all(db).await?;
    let events = rows.into_iter().map(|(seq, at, kind)| {
        let event = NewEvent::new(time(at), decode("an event", &kind)?);
        Ok(Event::new(EventSeq::new(uncount(seq)), event))
    });
    events.collect()
}
