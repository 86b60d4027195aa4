//! What a clean-up would do and why, and the pins that keep it from doing so.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use chrono::TimeDelta;
use ocore_core::{
    deployment::Deployment,
    engine::{EngineError, PinRequest, RollbackRequest},
    environment::EnvironmentSpec,
    executor::{Executor, TokioExecutor},
    id::DeploymentId,
    machine::Status,
    retention::Verdict,
    secret::Secret,
    testing::{clock::ManualClock, fakes::Behaviour},
};

use crate::stage::{Stage, shop};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The shop, which keeps one snapshot.
fn forgetful() -> EnvironmentSpec {
    shop().policy(|policy| {
        policy.retention.snapshots_last = 1;
        policy.retention.snapshots_age = Duration::ZERO;
    })
}

/// So many deployments that ran.
async fn deployed(stage: &Stage, count: usize) -> Vec<Deployment> {
    let mut deployments = Vec::new();
    for n in 0..count {
        deployments.push(stage.deploy(&n.to_string(), Behaviour::good()).await);
    }
    deployments
}

/// What the dry run says, in words.
async fn plan(stage: &Stage) -> Vec<(DeploymentId, String)> {
    let plan = stage.engine.retention_plan("shop").await.unwrap().into_iter();
    let words = plan.map(|planned| {
        let words = match planned.verdict {
            Verdict::Keep { reasons } => {
                reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
            }
            Verdict::Remove { why } => format!("goes: {why}"),
            verdict => panic!("{verdict:?}"),
        };
        (planned.snapshot.deployment, words)
    });
    words.collect()
}

async fn there(stage: &Stage) -> BTreeSet<DeploymentId> {
    stage.engine.snapshots("shop").await.unwrap().into_iter().map(|it| it.deployment).collect()
}

#[tokio::test(start_paused = true)]
async fn the_dry_run_says_what_the_clean_up_then_does() {
    let mut stage = Stage::new().await;
    stage.work();
    let [first, second, third] = deployed(&stage, 3).await.try_into().unwrap();
    stage.shut_down().await;
    stage.engine.save_environment(forgetful()).await.unwrap();
    let expected = [
        (first.id, "goes: no rule wants it"),
        (second.id, "goes: no rule wants it"),
        (third.id, "it was taken by the deployment that is live; it is the newest; it is within the last 1"),
    ];
    assert_eq!(plan(&stage).await, expected.map(|(id, words)| (id, words.to_owned())));
    assert_eq!(there(&stage).await, BTreeSet::from([first.id, second.id, third.id]), "nothing was done");
    stage.work();
    let fourth = stage.deploy("fourth", Behaviour::good()).await;
    stage.shut_down().await;
    assert_eq!(there(&stage).await, BTreeSet::from([fourth.id]), "the one that was live is not any more");
    assert_eq!(stage.world.counts()[2], 1);
}

#[tokio::test(start_paused = true)]
async fn while_a_rollback_waits_the_dry_run_removes_nothing() {
    let mut stage = Stage::new().await;
    stage.work();
    let [first, ..] = <[_; 3]>::try_from(deployed(&stage, 3).await).unwrap();
    stage.engine.pause("shop", "ada").await.unwrap();
    stage.engine.save_environment(forgetful()).await.unwrap();
    let removed = async || plan(&stage).await.iter().filter(|(_, words)| words.starts_with("goes")).count();
    assert_eq!(removed().await, 2);
    let rollback = stage.engine.roll_back(RollbackRequest::to(first.id)).await.unwrap().0.id;
    assert_eq!(removed().await, 0);
    let plan = plan(&stage).await;
    assert!(plan.iter().all(|(_, words)| words.starts_with("a rollback, a recovery")), "{plan:?}");
    stage.engine.resume("shop").await.unwrap();
    assert_eq!(stage.end(rollback).await.status(), Status::Running, "what it needed was there");
    stage.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_pinned_outlives_the_rules() {
    let mut stage = Stage::with(forgetful(), |builder| builder).await;
    stage.work();
    let first = stage.deploy("first", Behaviour::good()).await;
    let request = PinRequest::of(first.id).actor("ada").why("the books are closed");
    let pin = stage.engine.pin_snapshot(request).await.unwrap();
    assert_eq!((pin.by.as_str(), pin.why.as_str(), pin.until), ("ada", "the books are closed", None));
    deployed(&stage, 3).await;
    stage.shut_down().await;
    let plan = plan(&stage).await;
    assert_eq!(plan.len(), 2, "{plan:?}");
    assert_eq!(plan[0], (first.id, "pinned by ada: the books are closed".to_owned()));
    let kept = stage.engine.snapshots("shop").await.unwrap().swap_remove(0);
    assert_eq!(kept.pin, Some(pin));
    assert!(stage.world.with_snapshot(&kept.snapshot.reference, |_| ()).is_some());
}

/// Time goes on as soon as nobody has anything else to do.
async fn go_on(clock: ManualClock) {
    loop {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        if let Some(next) = clock.next_wake() {
            clock.advance(next);
        }
    }
}

#[tokio::test]
async fn what_was_unpinned_is_kept_for_a_day() {
    let clock = ManualClock::new(1);
    let mut stage = Stage::on(Arc::new(clock.clone()), forgetful()).await;
    stage.work();
    let time = tokio::spawn(go_on(clock.clone()));
    let first = stage.deploy("first", Behaviour::good()).await;
    let until = clock.utc() + TimeDelta::days(3650);
    stage.engine.pin_snapshot(PinRequest::of(first.id).actor("ada").until(until)).await.unwrap();
    stage.deploy("second", Behaviour::good()).await;
    let unpinned = stage.engine.unpin_snapshot(first.id, "bob").await.unwrap();
    assert!(unpinned.until.unwrap() <= clock.utc() + TimeDelta::days(1));
    assert_eq!((unpinned.by.as_str(), unpinned.unpinned_by.as_deref()), ("ada", Some("bob")));
    let again = stage.engine.unpin_snapshot(first.id, "eve").await.unwrap();
    assert_eq!(again, unpinned, "the day does not begin anew");
    stage.deploy("third", Behaviour::good()).await;
    assert!(there(&stage).await.contains(&first.id));
    stage.shut_down().await;
    clock.advance(DAY);
    stage.work();
    stage.deploy("fourth", Behaviour::good()).await;
    stage.shut_down().await;
    time.abort();
    assert!(!there(&stage).await.contains(&first.id));
    let error = stage.engine.unpin_snapshot(first.id, "bob").await.unwrap_err();
    assert!(matches!(error, EngineError::NotPinned { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_pin_that_keeps_nothing_is_refused_in_words() {
    let mut stage = Stage::with(forgetful(), |it| it.secret(&Secret::new("hunter2-hunter2"))).await;
    stage.work();
    let [first, second] = deployed(&stage, 2).await.try_into().unwrap();
    let engine = stage.engine.clone();
    let pin = async |request| engine.pin_snapshot(request).await.unwrap_err().to_string();
    let unknown = DeploymentId::from_u128(7);
    assert!(pin(PinRequest::of(unknown)).await.contains("there is no deployment"));
    stage.shut_down().await;
    let gone = pin(PinRequest::of(first.id)).await;
    assert!(gone.contains("has no snapshot: it took none, or retention has removed it"), "{gone}");
    let now = TokioExecutor::new().utc();
    let ended = pin(PinRequest::of(second.id).until(now - TimeDelta::seconds(1))).await;
    assert!(ended.contains("would have ended already; give a later time"), "{ended}");
    let long = pin(PinRequest::of(second.id).why("x".repeat(201))).await;
    assert!(long.contains("the reason has more than 200 characters"), "{long}");
    let error = stage.engine.unpin_snapshot(second.id, "bob").await.unwrap_err().to_string();
    assert!(error.contains("are not pinned"), "{error}");
    let request = PinRequest::of(second.id).why("it has hunter2-hunter2");
    assert_eq!(stage.engine.pin_snapshot(request).await.unwrap().why, "it has [secret]");
}
