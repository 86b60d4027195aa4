use std::time::Duration;

use ocore_core::{
    deployment::Deployment,
    engine::{EngineError, Loss, Resolution, RollbackRequest},
    environment::{EnvironmentSpec, InstanceSpec},
    event::EventKind,
    id::EventSeq,
    machine::{Serving, Status, Step},
    name::InstanceName,
    queue::WaitReason,
    retry::RetryPolicy,
    testing::fakes::{Behaviour, Schema},
};

use crate::{
    runtime::{Refusing, Sulking},
    stage::{Stage, name, shop, web},
};

/// The shop, whose undo is given up at the first failure.
fn hasty() -> EnvironmentSpec {
    shop().policy(|policy| policy.undo_retry = RetryPolicy::ONCE)
}

/// A stage with a worker, whose runtime refuses what the test says.
async fn refusing(spec: EnvironmentSpec) -> (Stage, Refusing) {
    let mut stage = Stage::with(spec, |builder| builder).await;
    let runtime = Refusing::new(stage.world.runtime());
    stage.engine = Stage::builder(&stage.world, &stage.store).runtime(runtime.clone()).build().unwrap();
    stage.work();
    (stage, runtime)
}

#[tokio::test(start_paused = true)]
async fn the_recovery_of_a_first_deployment_has_not_failed() {
    let (stage, runtime) = refusing(hasty()).await;
    runtime.refuse(&["withdraw"]);
    let stranded = stage.deploy("first", Behaviour::good().unhealthy()).await;
    assert_eq!((stranded.status(), stranded.serving()), (Status::Failed, Some(Serving::Down)));
    runtime.refuse(&[]);
    let recovery = stage.engine.resolve("shop", Resolution::Resume, "bob").await.unwrap().unwrap();
    let recovery = stage.end(recovery.id).await;
    assert_eq!((recovery.status(), recovery.serving()), (Status::RolledBack, Some(Serving::Down)));
    assert_eq!(stage.engine.environment("shop").await.unwrap().attention, None);
}

/// What the environment says is live, by the runtime's names.
async fn live(stage: &Stage) -> Vec<String> {
    let live = stage.engine.environment("shop").await.unwrap().live.unwrap();
    live.instances.values().map(|it| it.started.reference.clone()).collect()
}

fn up(stage: &Stage, instance: &str) -> Vec<String> {
    let instance = InstanceName::new(instance).unwrap();
    stage.world.running(&name(), &instance).into_iter().map(|it| it.reference).collect()
}

#[tokio::test(start_paused = true)]
async fn what_exits_as_soon_as_it_is_revived_is_revived_again() {
    let mut stage = Stage::new().await;
    stage.work();
    stage.deploy("first", Behaviour::good().stumbles()).await;
    let undone = stage.deploy("second", Behaviour::good().unhealthy()).await;
    assert_eq!((undone.status(), undone.serving()), (Status::RolledBack, Some(Serving::Previous)));
    assert_eq!(up(&stage, "web"), live(&stage).await);
}

#[tokio::test(start_paused = true)]
async fn what_was_revived_serves_before_the_undo_is_over() {
    let mut stage = Stage::new().await;
    stage.work();
    stage.deploy("first", Behaviour::good().healthy_after(6)).await;
    let undone = stage.deploy("second", Behaviour::good().unhealthy()).await;
    assert_eq!(undone.status(), Status::RolledBack);
    let served = stage.world.running(&name(), &web());
    assert!(served.iter().all(|process| process.passed >= 2), "{served:?}");
    // Twenty seconds of probing the new one, and six checks of the old one: 0.1, 0.2, 0.4, 0.8, 1.6, 3.2 s.
    let downtime = undone.timings.downtime.as_secs_f64();
    assert!(downtime > 26.0, "what served before was not there for {downtime} s");
}

#[tokio::test(start_paused = true)]
async fn what_was_revived_and_is_not_healthy_leaves_a_warning_and_no_attention() {
    let mut stage = Stage::new().await;
    let probe = Sulking::new(stage.world.probe());
    stage.engine = Stage::builder(&stage.world, &stage.store).probe(probe.clone()).build().unwrap();
    stage.work();
    stage.deploy("first", Behaviour::good()).await;
    probe.sulk();
    let undone = stage.deploy("second", Behaviour::good()).await;
    assert_eq!(undone.status(), Status::RolledBack);
    let lines = stage.engine.logs(undone.id, EventSeq::default()).await.unwrap();
    let warned = lines.iter().any(|(_, line)| {
        line.step == Step::Revive && line.text.contains("what served before runs again, but: not healthy")
    });
    assert!(warned, "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn a_resumed_undo_revives_what_has_gone_since() {
    let (stage, runtime) = refusing(hasty().instance(InstanceSpec::new("admin").port(8070))).await;
    stage.deploy("first", Behaviour::good()).await;
    runtime.refuse(&["revive web"]);
    let stranded = stage.deploy("second", Behaviour::good().unhealthy()).await;
    assert_eq!((stranded.status(), stranded.serving()), (Status::Failed, Some(Serving::Down)));
    assert_eq!((up(&stage, "admin").len(), up(&stage, "web").len()), (1, 0));
    stage.world.crash(&name(), &InstanceName::new("admin").unwrap());
    runtime.refuse(&[]);
    let recovery = stage.engine.resolve("shop", Resolution::Resume, "bob").await.unwrap().unwrap();
    assert_eq!(stage.end(recovery.id).await.status(), Status::RolledBack);
    assert_eq!([up(&stage, "admin"), up(&stage, "web")].concat(), live(&stage).await);
}

#[tokio::test(start_paused = true)]
async fn a_stranded_deployment_says_why_it_was_undone_and_why_it_could_not_be() {
    let (stage, runtime) = refusing(hasty()).await;
    runtime.refuse(&["withdraw"]);
    let stranded = stage.deploy("first", Behaviour::good().unhealthy()).await;
    assert_eq!(stranded.failure().unwrap().step, Step::Probe);
    assert_eq!(stranded.undo_failure().unwrap().message, "withdraw is refused");
    let Some(EventKind::Finished { reason: Some(reason), .. }) =
        stage.events(stranded.id).await.pop().map(|event| event.kind)
    else {
        panic!("it is not over");
    };
    assert!(
        reason.contains("probe of web: not healthy") && reason.contains("withdraw is refused"),
        "{reason}"
    );

    runtime.refuse(&[]);
    stage.engine.resolve("shop", Resolution::Acknowledge, "bob").await.unwrap();
    let cancelled = stage.ask("second", Behaviour::good().updates().takes(Duration::from_secs(60))).await;
    stage.begun(cancelled, Step::Update).await;
    runtime.refuse(&["withdraw"]);
    stage.engine.cancel(cancelled, "bob").await.unwrap();
    let cancelled = stage.end(cancelled).await;
    assert_eq!((cancelled.status(), cancelled.failure()), (Status::Failed, None));
    assert_eq!(cancelled.undo_failure().unwrap().message, "withdraw is refused");
}

#[tokio::test(start_paused = true)]
async fn an_undo_that_is_hopeless_waits_for_a_person() {
    let mut stage = Stage::with(hasty(), |builder| builder).await;
    let first = stage.ask("first", Behaviour::good()).await;
    stage.work();
    stage.end(first).await;
    let id = stage.ask("second", Behaviour::good().updates().unhealthy()).await;
    stage.begun(id, Step::Probe).await;
    let snapshot = stage.engine.deployment(id).await.unwrap().snapshots.into_values().next().unwrap();
    stage.world.corrupt_snapshot(&snapshot.reference);
    let stranded = stage.end(id).await;
    assert_eq!((stranded.status(), stranded.serving()), (Status::Failed, Some(Serving::Down)));
    assert_eq!(stage.engine.environment("shop").await.unwrap().attention, Some(id));

    let next = stage.ask("third", Behaviour::good()).await;
    let waiting = stage.engine.waiting(next).await.unwrap().unwrap();
    assert_eq!(waiting.reason, WaitReason::Attention { stranded: id });

    let resumed = stage.engine.resolve("shop", Resolution::Resume, "bob").await.unwrap().unwrap();
    let again = stage.engine.resolve("shop", Resolution::Resume, "bob").await.unwrap().unwrap();
    assert_eq!((again.id, again.existing), (resumed.id, true), "asked again, the answer is the same");
    let resumed = stage.end(resumed.id).await;
    assert_eq!((resumed.status(), resumed.answers()), (Status::Failed, Some(id)), "it is still corrupt");
    assert_eq!(stage.engine.deployment(next).await.unwrap().status(), Status::Queued);

    assert_eq!(stage.engine.resolve("shop", Resolution::Acknowledge, "bob").await.unwrap(), None);
    assert_eq!(stage.end(next).await.outcome().map(|outcome| outcome.serving()), Some(Serving::New));
    let none = stage.engine.resolve("shop", Resolution::Acknowledge, "bob").await.unwrap_err();
    assert!(matches!(none, EngineError::NoAttention { .. }), "{none}");
}

/// A deployment that migrates, and is stranded on the first one: its own process goes on running.
async fn stranded(stage: &Stage, runtime: &Refusing) -> (Deployment, Deployment) {
    let first = stage.deploy("first", Behaviour::good()).await;
    runtime.refuse(&["withdraw"]);
    let stranded = stage.deploy("second", Behaviour::good().updates().unhealthy()).await;
    assert_eq!((stranded.status(), up(stage, "web").len()), (Status::Failed, 1));
    runtime.refuse(&[]);
    (first, stranded)
}

#[tokio::test(start_paused = true)]
async fn a_rollback_to_what_served_before_brings_its_data_back_after_an_acknowledgement() {
    let (stage, runtime) = refusing(hasty()).await;
    let (first, stranded) = stranded(&stage, &runtime).await;
    let request = RollbackRequest::to(first.id).actor("bob");
    let refused = stage.engine.roll_back(request.clone()).await.unwrap_err().to_string();
    assert!(refused.contains("could not be undone. Resume its rollback, or acknowledge it"), "{refused}");
    assert!(!stage.engine.details(first.id).await.unwrap().is_live, "it is down");

    stage.engine.resolve("shop", Resolution::Acknowledge, "bob").await.unwrap();
    let told = stage.engine.events(stranded.id, EventSeq::default(), 1000).await.unwrap().pop().unwrap();
    assert_eq!(told.kind, EventKind::Acknowledged { actor: "bob".to_owned() });
    let (accepted, preview) = stage.engine.roll_back(request).await.unwrap();
    let Loss::Since { moments, .. } = preview.loss else { panic!("{preview:?}") };
    let snapshot = stranded.snapshots.values().next().unwrap();
    assert_eq!(moments.values().collect::<Vec<_>>(), [&snapshot.taken_at]);
    let rollback = stage.end(accepted.id).await;
    assert_eq!((rollback.status(), rollback.failure()), (Status::Running, None));
    assert_eq!(up(&stage, "web"), live(&stage).await);
    let schema = stage.data().unwrap().schema;
    assert!(!schema.contains(&Schema::Updated(stranded.id)), "{schema:?}");
    assert_eq!(stage.world.broken_rules(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_still_runs_of_an_acknowledged_deployment_is_stopped_by_the_next_one() {
    let (stage, runtime) = refusing(hasty()).await;
    let (first, _) = stranded(&stage, &runtime).await;
    stage.engine.resolve("shop", Resolution::Acknowledge, "bob").await.unwrap();
    let third = stage.deploy("third", Behaviour::good()).await;
    assert_eq!((third.status(), third.failure()), (Status::Running, None));
    assert_eq!(up(&stage, "web"), live(&stage).await);
    // Its snapshot holds what the stranded one has made of the data.
    let refused = stage.engine.roll_back(RollbackRequest::to(first.id)).await.unwrap_err().to_string();
    assert!(refused.contains("no later deployment has a snapshot of its data"), "{refused}");
    assert_eq!(stage.engine.environment("shop").await.unwrap().acknowledged, Vec::new());
}
