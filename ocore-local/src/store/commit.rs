//! Commits.

use std::time::Duration;

use ocore_core::{
    id::{DeploymentId, Fence},
    port::{Commit, Committed, Finish, Next},
    stored,
};
use sqlx::SqliteConnection;

use super::{
    claim::{claimed, is_alive, take},
    lane::Lane,
    log,
    row::{Answered, DeploymentRow, Receipt},
    snapshots,
};

pub(super) async fn commit(db: &mut SqliteConnection, commit: Commit, now: i64) -> sqlx::Result<Committed> {
    let id = commit.deployment.id;
    let Some(mut row) = DeploymentRow::find(db, id).await? else { return Ok(Committed::Fenced) };
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
    row.deployment = commit.record(kept);
    log::append(db, id, &mut row.log, &commit.events, commit.log_limit).await?;
    for snapshot in &commit.snapshots {
        snapshots::record(db, &lane.name, snapshot).await?;
    }
    let answer = move_on(db, &mut lane, &commit, cancel, now).await?;
    row.receipt = Some(Receipt { worker: commit.worker, fence: commit.fence, answer });
    row.save(db).await?;
    let successor = if let Answered::Finished { successor: Some(_) } = answer {
        Some(Box::new(take(db, &mut lane, commit.worker).await?))
    } else {
        lane.save(db).await?;
        None
    };
    Ok(match answer {
        Answered::Continued { fence } => Committed::Continued { fence, cancel },
        Answered::Released => Committed::Released,
        Answered::Finished { .. } => Committed::Finished { successor },
    })
}

/// What becomes of the lane after a commit, and the answer to it. The lane is yet to be saved.
async fn move_on(
    db: &mut SqliteConnection,
    lane: &mut Lane,
    commit: &Commit,
    cancel: bool,
    now: i64,
) -> sqlx::Result<Answered> {
    match &commit.next {
        Next::Continue { fresh_fence } => {
            if *fresh_fence {
                lane.fence = lane.fence.next();
            }
            lane.lost_if_forgotten = true;
            Ok(Answered::Continued { fence: lane.fence })
        }
        Next::Release { after } => {
            let after = if cancel { Duration::ZERO } else { *after };
            let after = i64::try_from(after.as_nanos()).unwrap_or(i64::MAX);
            (lane.holder, lane.lost_if_forgotten, lane.due) = (None, false, now.saturating_add(after));
            Ok(Answered::Released)
        }
        Next::Finish(finish) => {
            let successor = finish_lane(db, lane, commit, finish, now).await?;
            Ok(Answered::Finished { successor })
        }
        _ => Err(sqlx::Error::Protocol("a commit of a kind that this store does not know".to_owned())),
    }
}

/// Ends the lane's deployment. Returns the one that the worker takes next, and the fence that it will have.
async fn finish_lane(
    db: &mut SqliteConnection,
    lane: &mut Lane,
    commit: &Commit,
    finish: &Finish,
    now: i64,
) -> sqlx::Result<Option<(DeploymentId, Fence)>> {
    (lane.active, lane.holder, lane.lost_if_forgotten, lane.due) = (None, None, false, 0);
    if finish.verdict {
        lane.acknowledged.clear();
    }
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
    if !finish.claim_next || !is_alive(db, commit.worker, now).await? {
        return Ok(None);
    }
    Ok(lane.runnable(db).await?.map(|next| (next, lane.fence.next())))
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
            let next = DeploymentRow::of(db, id).await?;
            let successor = match next.receipt {
                None => Some(Box::new(claimed(db, lane, next.deployment, false).await?)),
                Some(_) => None,
            };
            Ok(Committed::Finished { successor })
        }
        Answered::Finished { .. } => Ok(Committed::Finished { successor: None }),
    }
}
