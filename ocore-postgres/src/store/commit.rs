//! Commits.

use std::{sync::Arc, time::Duration};

use ocore_core::{
    id::Fence,
    port::{Commit, Committed, Finish, Next, SnapshotRecord, SnapshotState, StoreResult},
    stored,
};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    batch::Batches,
    claim::{Unreadable, Work, understand},
    database::Database,
    error::unreadable,
    log::Events,
    row::{count, micros, nanos, phase, uncount, uuid, worker_uuid},
    sql::Sql,
};

/// What the schema answers to one of the commits that it was sent.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Answer {
    number: i32,
    answer: String,
    fence: Option<i64>,
    is_cancelled: Option<bool>,
    #[sqlx(flatten)]
    work: Work,
}

impl Answer {
    /// Which of the commits this is the answer to.
    pub(super) fn number(&self) -> Option<usize> {
        usize::try_from(self.number).ok()
    }
}

pub(super) async fn commit(
    database: &Arc<Database>,
    batches: &Arc<Batches>,
    unreadable: &Unreadable,
    commit: &Commit,
) -> StoreResult<Committed> {
    let answer = batches.write(database, commit.clone()).await?;
    let cancel = answer.is_cancelled == Some(true);
    Ok(match answer.answer.as_str() {
        "continued" => {
            let fence = Fence::new(uncount(answer.fence.unwrap_or_default()));
            Committed::Continued { fence, cancel }
        }
        "released" => Committed::Released,
        "cancelled" => Committed::CancelPending,
        "finished" if answer.work.is_some() => {
            let successor = understand(database, unreadable, commit.worker, answer.work).await?;
            Committed::Finished { successor: successor.map(Box::new) }
        }
        "finished" => Committed::Finished { successor: None },
        _ => Committed::Fenced,
    })
}

/// What becomes of the lane, in the words of the schema.
struct Words {
    next: &'static str,
    fresh_fence: bool,
    after: Duration,
    finish: Finish,
}

fn words(next: &Next) -> sqlx::Result<Words> {
    let plain = |next| Words { next, fresh_fence: false, after: Duration::ZERO, finish: Finish::default() };
    Ok(match next {
        Next::Continue { fresh_fence } => Words { fresh_fence: *fresh_fence, ..plain("continue") },
        Next::Release { after } => Words { after: *after, ..plain("release") },
        Next::Finish(finish) => Words { finish: finish.clone(), ..plain("finish") },
        _ => return Err(unreadable("a commit", "it is of a kind that this store does not know")),
    })
}

/// Commits as columns: a row for each, and rows for their events and snapshots.
#[derive(Default)]
struct Columns {
    numbers: Vec<i32>,
    ids: Vec<Uuid>,
    environments: Vec<String>,
    workers: Vec<Uuid>,
    fences: Vec<i64>,
    versions: Vec<i64>,
    records: Vec<String>,
    statuses: Vec<&'static str>,
    phases: Vec<&'static str>,
    begun: Vec<bool>,
    replaced: Vec<Option<Uuid>>,
    nexts: Vec<&'static str>,
    fresh_fences: Vec<bool>,
    afters: Vec<i64>,
    lives: Vec<Option<String>>,
    attentions: Vec<Option<bool>>,
    claim_nexts: Vec<bool>,
    verdicts: Vec<bool>,
    heads_max: Vec<i64>,
    tails_keep: Vec<i64>,
    tails_max: Vec<i64>,
    event_of: Vec<i32>,
    events: Events,
    snapshots: Vec<serde_json::Value>,
}

impl Columns {
    fn push(&mut self, number: i32, commit: &Commit) -> sqlx::Result<()> {
        let words = words(&commit.next)?;
        // What the store keeps is in columns of its own; only whether the step counts as begun is decided here.
        let deployment = commit.record(&commit.deployment.kept_by_store);
        let status = deployment.status();
        self.numbers.push(number);
        self.ids.push(uuid(deployment.id));
        self.environments.push(deployment.environment.to_string());
        self.workers.push(worker_uuid(commit.worker));
        self.fences.push(count(commit.fence.get()));
        self.versions.push(count(deployment.kept_by_store.version));
        self.records.push(stored::encode(&deployment));
        self.statuses.push(status.as_str());
        self.phases.push(phase(status));
        self.begun.push(deployment.kept_by_store.begun);
        self.replaced.push(deployment.replaced.map(uuid));
        self.nexts.push(words.next);
        self.fresh_fences.push(words.fresh_fence);
        self.afters.push(micros(words.after));
        self.lives.push(words.finish.live.as_ref().map(stored::encode));
        self.attentions.push(words.finish.attention);
        self.claim_nexts.push(words.finish.claim_next);
        self.verdicts.push(words.finish.verdict);
        self.heads_max.push(count(commit.log_limit.head_bytes));
        self.tails_keep.push(count(commit.log_limit.tail_bytes));
        self.tails_max.push(count(commit.log_limit.tail_bytes_max()));
        self.event_of.extend(commit.events.iter().map(|_| number));
        self.events.extend(&commit.events);
        self.snapshots.extend(commit.snapshots.iter().map(|record| snapshot(number, record)));
        Ok(())
    }
}

/// Writes commits of different lanes in one transaction. Without an answer are those whose lane is locked, unless it is one
/// alone.
pub(super) async fn write(
    db: &mut PgConnection,
    sql: &Sql,
    commits: Arc<[Arc<Commit>]>,
) -> sqlx::Result<Vec<Answer>> {
    let mut columns = Columns::default();
    for (number, commit) in (0..).zip(commits.iter()) {
        columns.push(number, commit)?;
    }
    let write = sql.rows(
        "SELECT number, answer, fence, is_cancelled, (work).lane, (work).deployment, (work).record, (work).seq,
                (work).version, (work).cancel, (work).settings, (work).live, (work).acknowledged,
                (work).fence AS work_fence, (work).lost, (work).holder_before, (work).waited
         FROM ocore.commit(
             ARRAY(SELECT ROW (s.*)::ocore.sent
                   FROM unnest($1::integer[], $2::uuid[], $3::text[], $4::uuid[], $5::bigint[], $6::bigint[], $7::text[],
                               $8::text[], $9::text[], $10::boolean[], $11::uuid[], $12::text[], $13::boolean[],
                               $14::bigint[], $15::text[], $16::boolean[], $17::boolean[], $18::boolean[], $19::bigint[],
                               $20::bigint[], $21::bigint[]) AS s),
             $22, $23, $24, $25, $26::text::jsonb)",
    );
    write
        .bind(columns.numbers)
        .bind(columns.ids)
        .bind(columns.environments)
        .bind(columns.workers)
        .bind(columns.fences)
        .bind(columns.versions)
        .bind(columns.records)
        .bind(columns.statuses)
        .bind(columns.phases)
        .bind(columns.begun)
        .bind(columns.replaced)
        .bind(columns.nexts)
        .bind(columns.fresh_fences)
        .bind(columns.afters)
        .bind(columns.lives)
        .bind(columns.attentions)
        .bind(columns.claim_nexts)
        .bind(columns.verdicts)
        .bind(columns.heads_max)
        .bind(columns.tails_keep)
        .bind(columns.tails_max)
        .bind(columns.event_of)
        .bind(columns.events.ats)
        .bind(columns.events.sizes)
        .bind(columns.events.kinds)
        .bind(serde_json::Value::Array(columns.snapshots).to_string())
        .fetch_all(db)
        .await
}

fn snapshot(number: i32, record: &SnapshotRecord) -> serde_json::Value {
    let window =
        record.window.map(|window| serde_json::to_string(&window).expect("a window has a JSON form"));
    json!({
        "number": number,
        "reference": record.snapshot.reference,
        "deployment": uuid(record.deployment).to_string(),
        "instance": record.instance.as_str(),
        "taken_at": nanos(record.snapshot.taken_at),
        "size_bytes": count(record.snapshot.size_bytes),
        "lost_window": window,
        "retired": record.state == SnapshotState::Retired,
    })
}
