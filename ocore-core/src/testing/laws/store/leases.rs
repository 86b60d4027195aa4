//! Leases, waits, rescues, lost answers.

use super::{
    Fixture,
    lab::{Lab, and_claim_next, fail, go_on, release},
};
use crate::{
    id::WorkerId,
    name::PoolName,
    port::{Beat, Claimed, Committed, Worker},
};

/// A deployment that waits for its next attempt keeps its place: nothing of its lane is started before it, and
/// nobody gets it before the wait is over. Its worker is not lost.
pub async fn a_wait_keeps_the_lane(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let (worker, other) = (lab.worker().await, lab.worker().await);
    let first = lab.manual(&lane).await;
    lab.manual(&lane).await;
    let claim = lab.claim(&worker, &[]).await;
    assert_eq!(lab.write(&release(&worker, &claim, lab.units(2))).await, Committed::Released);
    assert_eq!(lab.environment(&lane).await.active, Some(first));
    for worker in [&worker, &other] {
        let next = lab.idle(worker, &[]).await.expect("a wait ends");
        assert!(next <= lab.units(2), "{next:?}");
    }
    lab.pass(2).await;
    let again = lab.claim(&other, &[]).await;
    assert_eq!((again.deployment.id, again.lost_worker), (first, false));
    assert!(again.fence > claim.fence);
    assert!(again.deployment.kept_by_store.begun);
}

/// When a worker's lease has run out, another one gets its lane, is told that the worker was lost, and goes on in
/// the stored state.
pub async fn a_lease_that_ran_out_is_rescued(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let id = lab.manual(&lane).await;
    lab.manual(&lane).await;
    let lost = lab.worker_for(2).await;
    let mut claim = lab.claim(&lost, &[]).await;
    lab.go_on(&lost, &mut claim).await;
    lab.pass(2).await;
    let worker = lab.worker().await;
    let rescued = lab.claim(&worker, &[]).await;
    assert_eq!(rescued.deployment, lab.deployment(id).await);
    assert_eq!(rescued.deployment.state, claim.deployment.state);
    assert!(rescued.lost_worker && rescued.fence > claim.fence);
    assert_eq!(lab.commit(&go_on(&lost, &claim)).await, Committed::Fenced);
    lab.idle(&worker, &[lane]).await;
    lab.finish(&worker, &rescued).await;
}

/// Heartbeats keep the lanes for as long as they come, each for a whole lease; and they tell what is held.
pub async fn a_heartbeat_extends_the_lease(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let id = lab.manual(&lane).await;
    let worker = lab.worker_for(6).await;
    let claim = lab.claim(&worker, &[]).await;
    let other = lab.worker().await;
    for _ in 0..3 {
        lab.pass(3).await;
        let held = lab.held(&worker).await;
        let held: Vec<_> = held.iter().map(|held| (&held.environment, held.deployment, held.fence)).collect();
        assert_eq!(held, [(&lane, id, claim.fence)]);
        lab.idle(&other, &[]).await;
    }
}

/// A worker whose lease has run out stays out, whatever it does, and so does one that never registered.
pub async fn an_expired_worker_is_refused_for_ever(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    lab.manual(&lane).await;
    let stranger = Worker::new(WorkerId::from_u128(9), vec![PoolName::default()], lab.units(1000));
    assert_eq!(lab.try_claim(&stranger, &[]).await, Claimed::Expired);
    let worker = lab.worker_for(1).await;
    lab.pass(1).await;
    for _ in 0..2 {
        assert_eq!(lab.try_claim(&worker, &[]).await, Claimed::Expired);
        assert_eq!(lab.beat(&worker).await, Beat::Expired);
    }
    let fresh = lab.worker().await;
    assert!(!lab.claim(&fresh, &[]).await.lost_worker);
}

/// The fence decides about a commit, not the lease: what an expired holder did is not lost while nobody has
/// taken the lane from it.
pub async fn an_expired_holder_can_commit_until_it_is_rescued(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let id = lab.manual(&lane).await;
    let worker = lab.worker_for(1).await;
    let mut claim = lab.claim(&worker, &[]).await;
    lab.pass(1).await;
    lab.go_on(&worker, &mut claim).await;
    assert_eq!(lab.deployment(id).await.kept_by_store.version, 2);
    let rescuer = lab.worker().await;
    assert_eq!(lab.claim(&rescuer, &[]).await.deployment.id, id);
    assert_eq!(lab.commit(&go_on(&worker, &claim)).await, Committed::Fenced);
}

/// A finish by a worker whose lease has run out claims nothing for it: the next deployment would lose its worker
/// before it began.
pub async fn an_expired_worker_gets_no_successor(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    lab.manual(&lane).await;
    let next = lab.manual(&lane).await;
    let worker = lab.worker_for(1).await;
    let claim = lab.claim(&worker, &[]).await;
    lab.pass(1).await;
    let finished = lab.write(&fail(&worker, &claim, and_claim_next())).await;
    assert_eq!(finished, Committed::Finished { successor: None });
    let fresh = lab.worker().await;
    let claim = lab.claim(&fresh, &[]).await;
    assert_eq!((claim.deployment.id, claim.lost_worker), (next, false));
}

/// What a retired worker still holds can be rescued at once; it is refused itself.
pub async fn a_retired_worker_gives_its_lanes_back(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let id = lab.manual(&lane).await;
    let (worker, other) = (lab.worker().await, lab.worker().await);
    lab.claim(&worker, &[]).await;
    lab.idle(&other, &[]).await;
    for _ in 0..2 {
        lab.store.retire(worker.id).await.expect("a worker can retire");
    }
    assert_eq!(lab.beat(&worker).await, Beat::Expired);
    assert_eq!(lab.try_claim(&worker, &[]).await, Claimed::Expired);
    let rescued = lab.claim(&other, &[]).await;
    assert_eq!((rescued.deployment.id, rescued.lost_worker), (id, true));
}

/// A worker that does not know of a lane it holds gets it again, before anything else, under a new fence. A step
/// whose claim was never received has lost no worker.
pub async fn a_lost_claim_is_given_again(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    let id = lab.manual(&lane).await;
    let lost = lab.claim(&worker, &[]).await;
    let other = lab.lane("b").await;
    lab.manual(&other).await;
    let again = lab.claim(&worker, &[]).await;
    assert_eq!((again.deployment.id, again.lost_worker), (id, false));
    assert!(again.fence > lost.fence);
    assert_eq!(lab.commit(&go_on(&worker, &lost)).await, Committed::Fenced);
    let next = lab.claim(&worker, &[lane]).await;
    assert_eq!(next.deployment.environment, other);
    let third = lab.claim(&worker, std::slice::from_ref(&other)).await;
    assert_eq!((third.deployment.id, third.lost_worker), (id, false));
    lab.finish(&worker, &third).await;
}

/// A rescue whose answer was lost tells of the lost worker when it is given again.
pub async fn a_lost_claim_tells_of_the_lost_worker_again(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    lab.manual(&lane).await;
    let (first, worker) = (lab.worker().await, lab.worker().await);
    lab.claim(&first, &[]).await;
    lab.store.retire(first.id).await.expect("a worker can retire");
    assert!(lab.claim(&worker, &[]).await.lost_worker);
    assert!(lab.claim(&worker, &[]).await.lost_worker);
}

/// A worker that has committed on a lane knew of it; if it does not any more, the step that the commit began may
/// have been begun.
pub async fn a_step_that_may_have_been_begun_has_lost_its_worker(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    lab.manual(&lane).await;
    let worker = lab.worker().await;
    let mut claim = lab.claim(&worker, &[]).await;
    lab.go_on(&worker, &mut claim).await;
    let again = lab.claim(&worker, &[]).await;
    assert!(again.lost_worker);
    assert_eq!(again.deployment.state, claim.deployment.state);
}

/// An idle worker is told when the next wait, or another worker's lease, ends; nothing to wait for is no time.
pub async fn idle_tells_when_to_come_back(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    assert_eq!(lab.idle(&worker, &[]).await, None);
    lab.manual(&lane).await;
    let holder = lab.worker_for(20).await;
    let claim = lab.claim(&holder, &[]).await;
    assert_eq!(lab.idle(&holder, std::slice::from_ref(&lane)).await, None, "one's own lease is no wait");
    let lease = lab.idle(&worker, &[]).await.expect("a lease ends");
    assert!(lease <= lab.units(20) && lease > lab.units(10), "{lease:?}");
    assert_eq!(lab.write(&release(&holder, &claim, lab.units(100))).await, Committed::Released);
    let wait = lab.idle(&worker, &[]).await.expect("a wait ends");
    assert!(wait <= lab.units(100) && wait > lab.units(50), "{wait:?}");
    let other = lab.lane("b").await;
    lab.manual(&other).await;
    lab.claim(&holder, &[]).await;
    let sooner = lab.idle(&worker, &[]).await.expect("a lease ends");
    assert!(sooner <= lab.units(20), "the sooner of the two counts: {sooner:?}");
}
