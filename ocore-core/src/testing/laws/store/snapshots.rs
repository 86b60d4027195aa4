//! Snapshots, and when they may go.

use std::time::Duration;

use super::{
    Fixture,
    commits::snapshot,
    lab::{Lab, at, fail},
};
use crate::{
    id::DeploymentId,
    name::EnvironmentName,
    port::{Finish, SnapshotPin, SnapshotRecord, SnapshotState, Worker},
    release::Window,
    request::{Goal, RollbackMode, Trigger},
};

/// Lets the lane's next deployment record these snapshots and end.
async fn take<F: Fixture>(
    lab: &Lab<F>,
    lane: &EnvironmentName,
    worker: &Worker,
    references: &[&str],
) -> DeploymentId {
    let id = lab.manual(lane).await;
    let claim = lab.claim(worker, &[]).await;
    let mut commit = fail(worker, &claim, Finish::default());
    commit.snapshots = references.iter().map(|reference| snapshot(lane, id, reference)).collect();
    lab.write(&commit).await;
    id
}

async fn snapshots<F: Fixture>(lab: &Lab<F>, lane: &EnvironmentName) -> Vec<SnapshotRecord> {
    lab.store.snapshots(lane).await.expect("snapshots can be read")
}

async fn retire<F: Fixture>(lab: &Lab<F>, lane: &EnvironmentName, references: &[&str]) -> Vec<String> {
    retire_at(lab, lane, references, 0).await
}

async fn retire_at<F: Fixture>(
    lab: &Lab<F>,
    lane: &EnvironmentName,
    references: &[&str],
    seconds: i64,
) -> Vec<String> {
    let references: Vec<String> = references.iter().copied().map(str::to_owned).collect();
    let retired = lab.store.retire_snapshots(lane, &references, at(seconds)).await;
    let mut retired = retired.expect("snapshots can be retired");
    retired.sort();
    retired
}

async fn pin<F: Fixture>(lab: &Lab<F>, lane: &EnvironmentName, id: DeploymentId, pin: &SnapshotPin) -> bool {
    lab.store.pin_snapshots(lane, id, pin).await.expect("snapshots can be pinned")
}

fn pins(snapshots: &[SnapshotRecord]) -> Vec<Option<&SnapshotPin>> {
    snapshots.iter().map(|it| it.pin.as_ref()).collect()
}

/// Snapshots are listed by the age of their deployments, are recorded anew under the same reference, and are
/// forgotten only after they were retired.
pub async fn snapshots_are_kept_until_they_are_retired(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let other = lab.lane("b").await;
    let worker = lab.worker().await;
    let first = take(&lab, &lane, &worker, &["z"]).await;
    let id = lab.manual(&lane).await;
    let claim = lab.claim(&worker, &[]).await;
    let mut commit = fail(&worker, &claim, Finish::default());
    let mut again = snapshot(&lane, first, "z");
    again.window = Some(Window::Open(Duration::from_secs(3)));
    commit.snapshots = vec![snapshot(&lane, id, "a"), again.clone(), snapshot(&lane, id, "b")];
    lab.write(&commit).await;
    take(&lab, &other, &worker, &["a"]).await;
    let mut expected = vec![again, snapshot(&lane, id, "a"), snapshot(&lane, id, "b")];
    assert_eq!(snapshots(&lab, &lane).await, expected);
    assert_eq!(retire(&lab, &lane, &["a", "z", "unknown"]).await, ["a", "z"]);
    assert_eq!(retire(&lab, &lane, &["a"]).await, ["a"], "made again, it answers again");
    expected[0].state = SnapshotState::Retired;
    expected[1].state = SnapshotState::Retired;
    assert_eq!(snapshots(&lab, &lane).await, expected);
    let all: Vec<String> = ["z", "b"].map(str::to_owned).to_vec();
    lab.store.forget_snapshots(&lane, &all).await.expect("snapshots can be forgotten");
    assert_eq!(snapshots(&lab, &lane).await, expected[1..]);
    assert_eq!(snapshots(&lab, &other).await.len(), 1, "another environment's are another's");
    assert_eq!(snapshots(&lab, &other).await[0].state, SnapshotState::Kept);
}

/// A deployment that is not over needs its snapshots.
pub async fn the_snapshot_of_an_unfinished_deployment_is_not_retired(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    take(&lab, &lane, &worker, &["old"]).await;
    let id = lab.manual(&lane).await;
    let mut claim = lab.claim(&worker, &[]).await;
    let mut commit = super::lab::go_on(&worker, &claim);
    commit.snapshots.push(snapshot(&lane, id, "new"));
    lab.write(&commit).await;
    claim.deployment = commit.deployment;
    assert_eq!(retire(&lab, &lane, &["new", "old"]).await, ["old"]);
    lab.finish(&worker, &claim).await;
    assert_eq!(retire(&lab, &lane, &["new"]).await, ["new"]);
}

/// Nothing is retired while the environment needs a person, or has needed one and nothing has become Running since, or
/// while a rollback, another try of one, or a recovery
/// waits or is under way.
pub async fn no_snapshot_is_retired_while_one_may_be_needed(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    let first = take(&lab, &lane, &worker, &["a", "b"]).await;
    let refused =
        async |why: &str| assert_eq!(retire(&lab, &lane, &["a"]).await, Vec::<String>::new(), "{why}");
    lab.enqueue(&lane, Trigger::Rollback { to: first }).await;
    refused("a rollback waits").await;
    let claim = lab.claim(&worker, &[]).await;
    refused("a rollback is under way").await;
    lab.write(&fail(&worker, &claim, Finish { attention: Some(true), ..Finish::default() })).await;
    refused("a person is needed").await;
    let stranded = claim.deployment.id;
    lab.enqueue(&lane, Trigger::Recovery { of: stranded }).await;
    refused("a recovery waits").await;
    let claim = lab.claim(&worker, &[]).await;
    refused("a recovery is under way").await;
    lab.write(&fail(&worker, &claim, Finish { attention: Some(false), ..Finish::default() })).await;
    let mut again = lab.new_deployment(&lane, Trigger::Retry { of: stranded });
    again.request.goal = Goal::Rollback { to: first, mode: RollbackMode::CodeAndData };
    lab.try_enqueue(again).await;
    refused("another try of a rollback waits").await;
    let claim = lab.claim(&worker, &[]).await;
    refused("another try of a rollback is under way").await;
    lab.finish(&worker, &claim).await;
    lab.manual(&lane).await;
    let stranded = lab.strand(&worker).await;
    let acknowledged = lab.store.acknowledge(&lane, stranded, "eve", at(9)).await;
    acknowledged.expect("it can be acknowledged");
    refused("nothing has become Running since something was acknowledged").await;
    lab.manual(&lane).await;
    let claim = lab.claim(&worker, &[]).await;
    lab.write(&fail(&worker, &claim, Finish { verdict: true, ..Finish::default() })).await;
    lab.manual(&lane).await;
    assert_eq!(retire(&lab, &lane, &["a"]).await, ["a"], "an ordinary deployment needs no old snapshot");
}

/// A pin is kept as it was given, by all snapshots of its deployment and by no other, in place of the one before; it
/// survives that they are recorded anew, and one that is recorded later has it too. Where there is nothing to pin, or
/// it is being removed, the answer says so.
pub async fn a_pin_is_the_deployments(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let other = lab.lane("b").await;
    let worker = lab.worker().await;
    let first = take(&lab, &lane, &worker, &["a", "b"]).await;
    let second = take(&lab, &lane, &worker, &["c"]).await;
    let bare = lab.manual(&lane).await;
    let claim = lab.claim(&worker, &[]).await;
    let ended = SnapshotPin::new("ada", "the books", at(1)).until(at(2));
    let kept = SnapshotPin::new("bob", "the books are closed", at(3)).unpinned("eve", at(4));
    assert!(pin(&lab, &lane, first, &ended).await);
    assert_eq!(pins(&snapshots(&lab, &lane).await), [Some(&ended), Some(&ended), None]);
    for _again in 0..2 {
        assert!(pin(&lab, &lane, first, &kept).await);
    }
    let without = [pin(&lab, &lane, bare, &kept).await, pin(&lab, &other, first, &kept).await];
    assert_eq!(without, [false; 2], "there is nothing to pin");
    let mut commit = fail(&worker, &claim, Finish::default());
    commit.snapshots = ["a", "d"].iter().map(|reference| snapshot(&lane, first, reference)).collect();
    commit.snapshots[1].pin = Some(ended.clone());
    lab.write(&commit).await;
    let mut now = snapshots(&lab, &lane).await;
    now.sort_by(|one, other| one.snapshot.reference.cmp(&other.snapshot.reference));
    assert_eq!(pins(&now), [Some(&kept), Some(&kept), None, Some(&kept)]);
    assert_eq!(retire(&lab, &lane, &["c"]).await, ["c"]);
    assert!(!pin(&lab, &lane, second, &kept).await, "it is being removed");
    assert_eq!(pins(&snapshots(&lab, &lane).await).iter().flatten().count(), 3);
}

/// While a pin holds, none of its deployment's snapshots is retired; from its end on they are as others are.
pub async fn what_is_pinned_is_not_retired(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    let first = take(&lab, &lane, &worker, &["a", "b"]).await;
    let second = take(&lab, &lane, &worker, &["c"]).await;
    take(&lab, &lane, &worker, &["d"]).await;
    assert!(pin(&lab, &lane, first, &SnapshotPin::new("ada", "the books", at(0)).until(at(9))).await);
    assert!(pin(&lab, &lane, second, &SnapshotPin::new("ada", "for ever", at(0))).await);
    assert_eq!(retire_at(&lab, &lane, &["a", "c", "d"], 8).await, ["d"]);
    assert_eq!(retire_at(&lab, &lane, &["a", "c"], 9).await, ["a"]);
    let unpinned = SnapshotPin::new("ada", "for ever", at(0)).unpinned("bob", at(20) - SnapshotPin::GRACE);
    assert!(pin(&lab, &lane, second, &unpinned).await);
    assert_eq!(retire_at(&lab, &lane, &["c"], 19).await, Vec::<String>::new());
    assert_eq!(retire_at(&lab, &lane, &["c"], 20).await, ["c"]);
}
