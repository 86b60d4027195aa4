//! Requests to cancel.

use super::{
    Fixture,
    lab::{Lab, at, fail, go_on, live, release, succeed},
};
use crate::{
    event::EventKind,
    id::DeploymentId,
    machine::Status,
    port::{CancelAnswer, Committed, Finish},
    request::Trigger,
};

async fn cancel<F: Fixture>(lab: &Lab<F>, id: DeploymentId, actor: &str) -> CancelAnswer {
    lab.store.request_cancel(id, actor, at(9)).await.expect("a request to cancel is answered")
}

/// A queued deployment ends at once; who asked and how it ended is in its events; the next one moves up.
pub async fn a_queued_deployment_is_cancelled_at_once(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let (first, second) = (lab.manual(&lane).await, lab.manual(&lane).await);
    assert_eq!(cancel(&lab, first, "grace").await, CancelAnswer::Cancelled);
    let ended = lab.deployment(first).await;
    assert_eq!((ended.status(), ended.finished_at), (Status::Cancelled, Some(at(9))));
    assert_eq!((ended.kept_by_store.version, ended.kept_by_store.cancel.as_deref()), (2, Some("grace")));
    let told: Vec<_> = lab.events(first).await.into_iter().map(|event| event.kind).collect();
    let [EventKind::Queued, EventKind::CancelRequested { actor }, EventKind::Finished { status, .. }] =
        told.as_slice()
    else {
        panic!("{told:?}")
    };
    assert_eq!((actor.as_str(), *status), ("grace", Status::Cancelled));
    let worker = lab.worker().await;
    assert_eq!(lab.claim(&worker, &[]).await.deployment.id, second);
}

/// The worker of a deployment under way is told by the next heartbeat and by every commit until the end; the
/// record says who asked first.
pub async fn an_active_deployment_is_told_of_a_cancel(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    let id = lab.manual(&lane).await;
    let mut claim = lab.claim(&worker, &[]).await;
    let wanted = |held: Vec<crate::port::Held>| held.iter().map(|held| held.cancel).collect::<Vec<_>>();
    assert_eq!(wanted(lab.held(&worker).await), [false]);
    for actor in ["grace", "ada"] {
        assert_eq!(cancel(&lab, id, actor).await, CancelAnswer::Requested);
    }
    assert_eq!(wanted(lab.held(&worker).await), [true]);
    for _ in 0..2 {
        let commit = go_on(&worker, &claim);
        let Committed::Continued { cancel: true, fence } = lab.write(&commit).await else {
            panic!("the cancel is not told")
        };
        (claim.deployment, claim.fence) = (commit.deployment, fence);
    }
    let stored = lab.deployment(id).await;
    assert_eq!(stored.kept_by_store.cancel.as_deref(), Some("grace"));
    let events = lab.events(id).await;
    let requests = events.iter().filter(|event| matches!(event.kind, EventKind::CancelRequested { .. }));
    assert_eq!(requests.count(), 1);
}

/// Running is not committed while a cancel is pending, and nothing of that commit is; every other end is.
pub async fn a_cancel_comes_before_the_verdict(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    let id = lab.manual(&lane).await;
    let claim = lab.claim(&worker, &[]).await;
    assert_eq!(cancel(&lab, id, "grace").await, CancelAnswer::Requested);
    let before = (lab.deployment(id).await, lab.environment(&lane).await, lab.events(id).await);
    let mut verdict = succeed(&worker, &claim, &live(&claim.environment, id));
    verdict.events.push(super::lab::line("healthy"));
    for _ in 0..2 {
        assert_eq!(lab.write(&verdict).await, Committed::CancelPending);
    }
    let after = (lab.deployment(id).await, lab.environment(&lane).await, lab.events(id).await);
    assert_eq!(before, after);
    lab.finish(&worker, &claim).await;
}

/// A deployment that waits for its next attempt does not wait on when a cancel is wanted.
pub async fn a_wait_ends_with_a_cancel(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    let id = lab.manual(&lane).await;
    let claim = lab.claim(&worker, &[]).await;
    lab.write(&release(&worker, &claim, lab.units(1000))).await;
    lab.idle(&worker, &[]).await;
    assert_eq!(cancel(&lab, id, "grace").await, CancelAnswer::Requested);
    let claim = lab.claim(&worker, &[]).await;
    assert_eq!(claim.deployment.kept_by_store.cancel.as_deref(), Some("grace"));
    assert_eq!(lab.write(&release(&worker, &claim, lab.units(1000))).await, Committed::Released);
    assert_eq!(lab.claim(&worker, &[]).await.deployment.id, id, "nor does it begin to wait");
}

/// What is over, what is being undone and what never was cannot be cancelled; the answer says which.
pub async fn a_cancel_that_is_too_late_says_so(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    assert_eq!(cancel(&lab, super::lab::id(1), "ada").await, CancelAnswer::NoSuchDeployment);
    let over = lab.manual(&lane).await;
    lab.make_live(&worker).await;
    let before = lab.deployment(over).await;
    assert_eq!(cancel(&lab, over, "ada").await, CancelAnswer::Over(Status::Running));
    assert_eq!(lab.deployment(over).await, before);
    lab.manual(&lane).await;
    let stranded = lab.strand(&worker).await;
    let recovery = lab.enqueue(&lane, Trigger::Recovery { of: stranded }).await;
    let claim = lab.claim(&worker, &[]).await;
    assert_eq!(cancel(&lab, recovery, "ada").await, CancelAnswer::Undoing);
    assert_eq!(lab.deployment(recovery).await, claim.deployment);
    lab.write(&fail(&worker, &claim, Finish::default())).await;
}
