//! What a worker writes.

use super::{
    Fixture,
    lab::{Lab, and_claim_next, at, began, fail, go_on, line, live, release, succeed},
};
use crate::{
    id::{DeploymentId, EventSeq},
    machine::Status,
    name::{EnvironmentName, InstanceName},
    port::{Claim, Committed, Finish, Next, SnapshotRecord, Worker},
    release::Snapshot,
};

/// After a commit that asked for a fresh fence, only the fresh one counts.
pub async fn a_fresh_fence_shuts_out_the_old_one(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    let id = lab.manual(&lane).await;
    let mut claim = lab.claim(&worker, &[]).await;
    let mut commit = go_on(&worker, &claim);
    commit.next = Next::Continue { fresh_fence: true };
    let Committed::Continued { fence, .. } = lab.write(&commit).await else { panic!("it goes on") };
    assert!(fence > claim.fence, "{fence} is not fresh");
    claim.deployment = commit.deployment;
    assert_eq!(lab.commit(&go_on(&worker, &claim)).await, Committed::Fenced);
    assert_eq!(lab.deployment(id).await.kept_by_store.version, 2);
    claim.fence = fence;
    let held = lab.held(&worker).await;
    assert_eq!(held.iter().map(|held| held.fence).collect::<Vec<_>>(), [fence]);
    lab.go_on(&worker, &mut claim).await;
    assert_eq!(claim.fence, fence, "a commit that does not ask for a fresh fence takes none");
}

/// The commit of a worker that has lost the lane is refused as a whole: record, lane, events, snapshots and what
/// serves stay as they are.
pub async fn an_old_fence_changes_nothing(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let lost = lab.worker_for(1).await;
    let id = lab.manual(&lane).await;
    lab.manual(&lane).await;
    let old = lab.claim(&lost, &[]).await;
    lab.store.retire(lost.id).await.expect("a worker can retire");
    let worker = lab.worker().await;
    let claim = lab.claim(&worker, &[]).await;
    let before = (lab.environment(&lane).await, lab.deployment(id).await, lab.events(id).await);
    let mut late = succeed(&lost, &old, &live(&old.environment, id));
    late.events.push(line("late"));
    late.snapshots.push(snapshot(&lane, id, "late"));
    for next in [late.next.clone(), go_on(&lost, &old).next, release(&lost, &old, lab.units(1)).next] {
        late.next = next;
        assert_eq!(lab.commit(&late).await, Committed::Fenced);
    }
    let after = (lab.environment(&lane).await, lab.deployment(id).await, lab.events(id).await);
    assert_eq!(before, after);
    let snapshots = lab.store.snapshots(&lane).await.expect("snapshots can be read");
    assert_eq!(snapshots, Vec::new());
    lab.finish(&worker, &claim).await;
}

pub(super) fn snapshot(lane: &EnvironmentName, deployment: DeploymentId, reference: &str) -> SnapshotRecord {
    let instance = InstanceName::new("web").expect("an instance name");
    SnapshotRecord::new(lane.clone(), deployment, instance, Snapshot::new(reference, at(0), 7), None)
}

/// A record that does not follow the stored one is refused, also with the right fence.
pub async fn a_version_must_follow(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    let id = lab.manual(&lane).await;
    let claim = lab.claim(&worker, &[]).await;
    for version in [0, 1, 3] {
        let mut commit = go_on(&worker, &claim);
        commit.deployment.kept_by_store.version = version;
        assert_eq!(lab.commit(&commit).await, Committed::Fenced, "version {version} after 1");
        assert_eq!(lab.deployment(id).await, claim.deployment);
    }
    lab.finish(&worker, &claim).await;
}

/// A worker that gave the lane back, or finished, writes nothing more, though the fence is still its own.
pub async fn a_released_lane_is_not_the_workers_any_more(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    let id = lab.manual(&lane).await;
    let mut claim = lab.claim(&worker, &[]).await;
    let commit = release(&worker, &claim, lab.units(100));
    assert_eq!(lab.write(&commit).await, Committed::Released);
    assert_eq!(lab.held(&worker).await, Vec::new());
    claim.deployment = commit.deployment;
    let before = lab.deployment(id).await;
    assert_eq!(lab.commit(&go_on(&worker, &claim)).await, Committed::Fenced);
    assert_eq!(lab.deployment(id).await, before);
}

/// A commit whose answer was lost is made again: it is answered as it was, and nothing is written twice.
pub async fn a_repeated_commit_is_answered_as_the_first_was(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    let id = lab.manual(&lane).await;
    let mut claim = lab.claim(&worker, &[]).await;
    for fresh_fence in [false, true] {
        let mut commit = go_on(&worker, &claim);
        commit.next = Next::Continue { fresh_fence };
        commit.events.push(began(crate::machine::Step::Fetch));
        let answer = twice(&lab, &commit).await;
        let Committed::Continued { fence, .. } = answer else { panic!("{answer:?}") };
        (claim.deployment, claim.fence) = (commit.deployment, fence);
    }
    assert_eq!(lab.environment(&lane).await.fence, claim.fence);
    let commit = release(&worker, &claim, lab.units(0));
    assert_eq!(twice(&lab, &commit).await, Committed::Released);
    let claim = lab.claim(&worker, &[]).await;
    assert_eq!(lab.commit(&commit).await, Committed::Released, "also after the lane was claimed again");
    let commit = succeed(&worker, &claim, &live(&claim.environment, id));
    assert_eq!(twice(&lab, &commit).await, Committed::Finished { successor: None });
    let ended = lab.deployment(id).await;
    assert_eq!((ended.status(), ended.kept_by_store.version), (Status::Running, 5));
    assert_eq!(lab.events(id).await.len(), 3, "one event of the enqueue and one of each commit");
}

async fn twice<F: Fixture>(lab: &Lab<F>, commit: &crate::port::Commit) -> Committed {
    let first = lab.write(commit).await;
    assert_eq!(lab.commit(commit).await, first, "the answer differs");
    first
}

/// A finish that is made again gives the successor that the first one claimed.
pub async fn a_repeated_finish_gives_the_successor_again(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    for _ in 0..3 {
        lab.manual(&lane).await;
    }
    let claim = lab.claim(&worker, &[]).await;
    let commit = fail(&worker, &claim, and_claim_next());
    let first = twice(&lab, &commit).await;
    let Committed::Finished { successor: Some(successor) } = first else { panic!("{first:?}") };
    assert_eq!(lab.environment(&lane).await.queued, 1);
    lab.finish(&worker, &successor).await;
}

/// Once the successor has gone on, or is another worker's, a repeated finish gives none.
pub async fn a_repeated_finish_gives_no_successor_that_moved_on(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    for _ in 0..3 {
        lab.manual(&lane).await;
    }
    let claim = lab.claim(&worker, &[]).await;
    let commit = fail(&worker, &claim, and_claim_next());
    let mut successor = successor(lab.write(&commit).await);
    lab.go_on(&worker, &mut successor).await;
    assert_eq!(lab.commit(&commit).await, Committed::Finished { successor: None });
    let commit = fail(&worker, &successor, and_claim_next());
    lab.write(&commit).await;
    lab.store.retire(worker.id).await.expect("a worker can retire");
    let rescuer = lab.worker().await;
    lab.claim(&rescuer, &[]).await;
    assert_eq!(lab.commit(&commit).await, Committed::Finished { successor: None });
}

fn successor(committed: Committed) -> Claim {
    match committed {
        Committed::Finished { successor: Some(successor) } => *successor,
        other => panic!("no successor is claimed: {other:?}"),
    }
}

/// A finish claims the lane's next deployment, if asked to: begun, with the settings and the live release of now.
pub async fn finishing_claims_the_successor(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    let (first, second) = (lab.manual(&lane).await, lab.manual(&lane).await);
    let claim = lab.claim(&worker, &[]).await;
    let live = live(&claim.environment, first);
    let mut commit = succeed(&worker, &claim, &live);
    let Next::Finish(finish) = &mut commit.next else { panic!("it is a finish") };
    finish.claim_next = true;
    let successor = successor(lab.write(&commit).await);
    assert_eq!((successor.deployment.id, successor.lost_worker), (second, false));
    assert!(successor.deployment.kept_by_store.begun);
    assert_eq!(successor.live.as_deref(), Some(&live));
    assert_eq!(lab.deployment(second).await, successor.deployment);
    let held = lab.held(&worker).await;
    assert_eq!(held.iter().map(|held| held.deployment).collect::<Vec<_>>(), [second]);
    let last = fail(&worker, &successor, and_claim_next());
    assert_eq!(lab.write(&last).await, Committed::Finished { successor: None }, "the queue is empty");
    assert_eq!(lab.environment(&lane).await.active, None);
}

/// A record is read back as it was committed, but for what only the store writes: a commit changes none of it but
/// the version, and whether the step is begun says what became of the lane.
pub async fn what_is_committed_is_read_back(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    let id = lab.manual(&lane).await;
    let claim = lab.claim(&worker, &[]).await;
    assert!(claim.deployment.kept_by_store.begun);
    assert_eq!(lab.deployment(id).await, claim.deployment);
    let mut commit = go_on(&worker, &claim);
    let expected = commit.deployment.clone();
    let kept = &mut commit.deployment.kept_by_store;
    (kept.begun, kept.cancel, kept.seq) =
        (false, Some("nobody".to_owned()), claim.deployment.kept_by_store.seq.next());
    lab.write(&commit).await;
    assert_eq!(lab.deployment(id).await, expected);
    let again = Claim { deployment: expected, ..claim };
    let mut commit = release(&worker, &again, lab.units(0));
    commit.deployment.kept_by_store.begun = true;
    lab.write(&commit).await;
    assert!(
        !lab.deployment(id).await.kept_by_store.begun,
        "a lane that is given back has not begun its step"
    );
}

/// What an environment serves is what the last finish that said so made of it, and every claim hands it over.
pub async fn what_serves_is_replaced(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    assert_eq!(lab.environment(&lane).await.live, None);
    for _ in 0..4 {
        lab.manual(&lane).await;
    }
    let first = lab.make_live(&worker).await;
    assert_eq!(lab.environment(&lane).await.live.as_deref(), Some(&first));
    let claim = lab.claim(&worker, &[]).await;
    assert_eq!(claim.live.as_deref(), Some(&first));
    let failed = fail(&worker, &claim, Finish::default());
    lab.write(&failed).await;
    assert_eq!(lab.environment(&lane).await.live.as_deref(), Some(&first), "a failure replaces nothing");
    let second = lab.make_live(&worker).await;
    assert_ne!(first, second);
    assert_eq!(lab.environment(&lane).await.live.as_deref(), Some(&second));
    assert_eq!(lab.events(failed.deployment.id).await.first().map(|event| event.seq), Some(EventSeq::new(1)));
}

/// Claims all that there is.
pub(super) async fn claim_all<F: Fixture>(lab: &Lab<F>, worker: &Worker) -> Vec<Claim> {
    let (mut claims, mut busy) = (Vec::new(), Vec::new());
    while let crate::port::Claimed::Work(claim) = lab.try_claim(worker, &busy).await {
        busy.push(claim.deployment.environment.clone());
        claims.push(*claim);
    }
    claims
}
