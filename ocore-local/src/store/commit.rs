//! Commits.

use std::time::Duration;

use ocore_core::{
    port::{Commit, Committed, Finish, Next},
    stored,
};
use sqlx::SqliteConnection;

use super::{
    claim::{claimed, is_alive, take},
    lane::Lane,
    log,
    row::{self, Answered, DeploymentRow, Receipt, bytes, count, worker_bytes},
    snapshots,
};

pub(super) async fn commit(db: &mut SqliteConnection, commit: Commit, now: i64) -> sqlx::Result<Committed> {
    let id = commit.deployment.id;
    let Some(row) = DeploymentRow::find(db, id).await? else { return Ok(Committed::Fenced) };
    let (kept, version) = (&row.deployment.kept_by_store, commit.deployment.kept_by_store.version);
    let mut lane = Lane::of(db, &row.deployment.environment).await?;
    if let Some(receipt) = &row.receipt
        && (version, commit.worker, commit.fence) == (kept.version, receipt.worker, receipt.fence)
    {
        return answer_again(db, &lane, &row, receipt).await;
    }
    if !lane.is_worked_on(id, commit.worker, commit.fence) || version != kept.version + 1 {
        return Ok(Committed::Fenced);
    }
    let cancel = kept.cancel.is_some();
    if cancel && matches!(commit.next, Next::Finish(Finish { verdict: true, .. })) {
        return Ok(Committed::CancelPending);
    }
    row::update(db, &commit.record(kept)).await?;
    log::append(db, id, row.log, &commit.events, commit.log_limit).await?;
    for snapshot in &commit.snapshots {
        snapshots::record(db, &lane.name, snapshot).await?;
    }
    move_on(db, &mut lane, &commit, cancel, now).await
}

/// What becomes of the lane after a commit.
async fn move_on(
    db: &mut SqliteConnection,
    lane: &mut Lane,
    commit: &Commit,
    cancel: bool,
    now: i64,
) -> sqlx::Result<Committed> {
    match &commit.next {
        Next::Continue { fresh_fence } => {
            if *fresh_fence {
                lane.fence = lane.fence.next();
            }
            lane.lost_if_forgotten = true;
            lane.save(db).await?;
            let fence = lane.fence;
            give_receipt(db, commit, Answered::Continued { fence }).await?;
            Ok(Committed::Continued { fence, cancel })
        }
        Next::Release { after } => {
            let after = if cancel { Duration::ZERO } else { *after };
            let after = i64::try_from(after.as_nanos()).unwrap_or(i64::MAX);
            (lane.holder, lane.lost_if_forgotten, lane.due) = (None, false, now.saturating_add(after));
            lane.save(db).await?;
            give_receipt(db, commit, Answered::Released).await?;
            Ok(Committed::Released)
        }
        Next::Finish(finish) => finish_lane(db, lane, commit, finish, now).await,
        _ => Err(sqlx::Error::Protocol("a commit of a kind that this store does not know".to_owned())),
    }
}

async fn finish_lane(
    db: &mut SqliteConnection,
    lane: &mut Lane,
    commit: &Commit,
    finish: &Finish,
    now: i64,
) -> sqlx::Result<Committed> {
    (lane.active, lane.holder, lane.lost_if_forgotten, lane.due) = (None, None, false, 0);
    match finish.attention {
        Some(true) => lane.attention = Some(commit.deployment.id),
        Some(false) => lane.attention = None,
        None => {}
    }
    if let Some(live) = &finish.live {
        let live = stored::encode(live);
        let update = sqlx::query("UPDATE lanes SET live = ?2 WHERE name = ?1");
        update.bind(lane.name.as_str()).bind(live).execute(&mut *db).await?;
    }
    let wanted = finish.claim_next && is_alive(db, commit.worker, now).await?;
    let successor = if wanted && lane.runnable(db).await?.is_some() {
        Some(Box::new(take(db, lane, commit.worker).await?))
    } else {
        lane.save(db).await?;
        None
    };
    let claimed = successor.as_ref().map(|claim| (claim.deployment.id, claim.fence));
    give_receipt(db, commit, Answered::Finished { successor: claimed }).await?;
    Ok(Committed::Finished { successor })
}

async fn give_receipt(db: &mut SqliteConnection, commit: &Commit, answer: Answered) -> sqlx::Result<()> {
    let (answer, next, next_fence) = answer.columns();
    let receipt = sqlx::query(
        "UPDATE deployments SET receipt_worker = ?2, receipt_fence = ?3, receipt_answer = ?4,
                receipt_next = ?5, receipt_next_fence = ?6
         WHERE id = ?1",
    );
    let receipt = receipt
        .bind(bytes(commit.deployment.id))
        .bind(worker_bytes(commit.worker))
        .bind(count(commit.fence.get()))
        .bind(answer)
        .bind(next)
        .bind(next_fence);
    receipt.execute(db).await.map(drop)
}

/// The answer to a commit that was written before.
async fn answer_again(
    db: &mut SqliteConnection,
    lane: &Lane,
    row: &DeploymentRow,
    receipt: &Receipt,
) -> sqlx::Result<Committed> {
    match receipt.answer {
        Answered::Continued { fence } if lane.is_worked_on(row.deployment.id, receipt.worker, fence) => {
            Ok(Committed::Continued { fence, cancel: row.deployment.kept_by_store.cancel.is_some() })
        }
        Answered::Continued { .. } => Ok(Committed::Fenced),
        Answered::Released => Ok(Committed::Released),
        Answered::Finished { successor: Some((id, fence)) }
            if lane.is_worked_on(id, receipt.worker, fence) =>
        {
            let next = super::claim::stored(db, id).await?;
            let successor = match next.receipt {
                None => Some(Box::new(claimed(db, lane, next.deployment, false).await?)),
                Some(_) => None,
            };
            Ok(Committed::Finished { successor })
        }
        Answered::Finished { .. } => Ok(Committed::Finished { successor: None }),
    }
}
