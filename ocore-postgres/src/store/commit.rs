//! Commits.

use std::{sync::Arc, time::Duration};

use ocore_core::{
    id::Fence,
    port::{Commit, Committed, Finish, Next, SnapshotRecord, SnapshotState, StoreResult},
    stored,
};
use serde_json::json;
use sqlx::PgConnection;

use super::{
    claim::{Unreadable, Work, understand},
    database::Database,
    error::unreadable,
    log::Events,
    row::{count, micros, nanos, phase, uncount, uuid, worker_uuid},
    sql::Sql,
};

#[derive(sqlx::FromRow)]
struct Answer {
    answer: String,
    fence: Option<i64>,
    is_cancelled: Option<bool>,
    #[sqlx(flatten)]
    work: Work,
}

pub(super) async fn commit(
    database: &Arc<Database>,
    unreadable: &Unreadable,
    commit: &Commit,
) -> StoreResult<Committed> {
    let (shared, worker) = (Arc::new(commit.clone()), commit.worker);
    let answer = database
        .call("commit the deployment's next state", move |db, sql| Box::pin(write(db, sql, shared.clone())));
    let answer = answer.await?;
    let cancel = answer.is_cancelled == Some(true);
    Ok(match answer.answer.as_str() {
        "continued" => {
            let fence = Fence::new(uncount(answer.fence.unwrap_or_default()));
            Committed::Continued { fence, cancel }
        }
        "released" => Committed::Released,
        "cancelled" => Committed::CancelPending,
        "finished" if answer.work.is_some() => {
            let successor = understand(database, unreadable, worker, answer.work).await?;
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

async fn write(db: &mut PgConnection, sql: &Sql, commit: Arc<Commit>) -> sqlx::Result<Answer> {
    let words = words(&commit.next)?;
    // What the store keeps is in columns of its own; only whether the step counts as begun is decided here.
    let deployment = commit.record(&commit.deployment.kept_by_store);
    let events = Events::new(&commit.events);
    let (status, live) = (deployment.status(), words.finish.live.as_ref().map(stored::encode));
    let write = sql.rows(
        "SELECT answer, fence, is_cancelled, (work).lane, (work).deployment, (work).record, (work).seq, (work).version,
                (work).cancel, (work).settings, (work).live, (work).acknowledged, (work).fence AS work_fence,
                (work).lost, (work).holder_before, (work).waited
         FROM ocore.commit($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
                           $21, $22, $23, $24::text::jsonb)",
    );
    write
        .bind(uuid(deployment.id))
        .bind(deployment.environment.as_str())
        .bind(worker_uuid(commit.worker))
        .bind(count(commit.fence.get()))
        .bind(count(deployment.kept_by_store.version))
        .bind(stored::encode(&deployment))
        .bind(status.as_str())
        .bind(phase(status))
        .bind(deployment.kept_by_store.begun)
        .bind(deployment.replaced.map(uuid))
        .bind(words.next)
        .bind(words.fresh_fence)
        .bind(micros(words.after))
        .bind(live)
        .bind(words.finish.attention)
        .bind(words.finish.claim_next)
        .bind(words.finish.verdict)
        .bind(events.ats)
        .bind(events.sizes)
        .bind(events.kinds)
        .bind(count(commit.log_limit.head_bytes))
        .bind(count(commit.log_limit.tail_bytes))
        .bind(count(commit.log_limit.tail_bytes_max()))
        .bind(rows(&commit.snapshots))
        .fetch_one(db)
        .await
}

fn rows(snapshots: &[SnapshotRecord]) -> String {
    let row = |record: &SnapshotRecord| {
        let window =
            record.window.map(|window| serde_json::to_string(&window).expect("a window has a JSON form"));
        json!({
            "reference": record.snapshot.reference,
            "deployment": uuid(record.deployment).to_string(),
            "instance": record.instance.as_str(),
            "taken_at": nanos(record.snapshot.taken_at),
            "size_bytes": count(record.snapshot.size_bytes),
            "lost_window": window,
            "retired": record.state == SnapshotState::Retired,
        })
    };
    serde_json::Value::from_iter(snapshots.iter().map(row)).to_string()
}
