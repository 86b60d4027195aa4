use std::{sync::Arc, time::Duration};

use ocore_core::{
    engine::{EngineError, RetryRequest},
    environment::{EnvironmentSpec, InstanceSpec},
    event::EventKind,
    executor::TokioExecutor,
    failure::FailureClass,
    id::EventSeq,
    machine::{Serving, Status, Step},
    port::{Filter, LogLimit},
    queue::WaitReason,
    release::Window,
    request::{DeployRequest, Push},
    secret::Secret,
    testing::{
        fakes::Behaviour,
        faults::{Fault, Faults},
    },
};

use crate::stage::{Stage, shop};

#[tokio::test(start_paused = true)]
async fn the_history_tells_everything_about_a_deployment() {
    let mut stage = Stage::new().await;
    let id =
        stage.ask("first\n\nwith a body", Behaviour::good().updates().takes(Duration::from_secs(7))).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    stage.work();
    let deployment = stage.end(id).await;
    assert_eq!(deployment.status(), Status::Running);
    assert_eq!(deployment.request.actor, "ada");
    assert_eq!(deployment.commit.as_ref().unwrap().summary, "first");
    assert_eq!(deployment.snapshots.len(), 1);
    assert_eq!(deployment.windows.values().collect::<Vec<_>>(), [&Window::Empty]);
    assert!(deployment.image.is_some() && deployment.finished_at.is_some());
    assert_eq!(deployment.timings.build, Duration::from_secs(7));
    assert!(deployment.timings.deployment >= Duration::from_secs(7), "{:?}", deployment.timings);
    assert_eq!(deployment.timings.downtime, Duration::ZERO, "nothing served before");
    let details = stage.engine.details(id).await.unwrap();
    assert!(details.is_live && details.waiting.is_none());

    let second = stage.deploy("second", Behaviour::good().updates().takes(Duration::from_secs(5))).await;
    assert!(second.timings.downtime >= Duration::from_secs(5), "{:?}", second.timings);
    assert_eq!(second.replaced, Some(id));
    assert!(!stage.engine.details(id).await.unwrap().is_live);
}

#[tokio::test(start_paused = true)]
async fn a_failed_health_check_puts_everything_back_and_says_why() {
    let mut stage = Stage::new().await;
    stage.work();
    let first = stage.deploy("first", Behaviour::good()).await;
    let (before, running) = (stage.data(), stage.running());
    let second = stage.deploy("second", Behaviour::good().updates().unhealthy()).await;
    assert_eq!(second.status(), Status::RolledBack);
    assert_eq!(second.serving(), Some(Serving::Previous));
    assert_eq!((stage.data(), stage.running()), (before, running));
    let failure = second.failure().unwrap();
    assert_eq!((failure.step, failure.class), (Step::Probe, FailureClass::Permanent));
    assert!(failure.message.contains("not healthy within 20 s; the last answer: "), "{failure}");
    assert!(failure.detail.iter().any(|line| line.contains("an instance wrote this") || !line.is_empty()));
    assert!(stage.engine.details(first.id).await.unwrap().is_live);
    let exits = stage.deploy("third", Behaviour::good().exits_after(0)).await;
    assert!(exits.failure().unwrap().message.contains("it ended while it was probed"), "{exits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_first_deployment_that_fails_leaves_nothing_behind() {
    let mut stage = Stage::new().await;
    stage.work();
    let first = stage.deploy("first", Behaviour::good().updates().unhealthy()).await;
    assert_eq!((first.status(), first.serving()), (Status::Failed, Some(Serving::Down)));
    assert_eq!((stage.data(), stage.running()), (None, Vec::new()));
    let unbuildable = stage.deploy("second", Behaviour::good().unbuildable()).await;
    assert_eq!((unbuildable.status(), unbuildable.serving()), (Status::Failed, Some(Serving::Unchanged)));
    assert_eq!(unbuildable.failure().unwrap().step, Step::Build);
}

#[tokio::test(start_paused = true)]
async fn pushes_supersede_each_other_and_are_never_accepted_twice() {
    let stage = Stage::new().await;
    let push = |delivery: &str| {
        let sha = stage.world.push("main", delivery, Behaviour::good());
        Push::new("https://git.example.org/shop", "main", sha, delivery).actor("git host")
    };
    let first = push("d1");
    let one = stage.engine.push(first.clone()).await.unwrap().accepted.remove(0);
    let manual = stage.ask("by hand", Behaviour::good()).await;
    let two = stage.engine.push(push("d2")).await.unwrap().accepted.remove(0);
    assert_eq!(two.superseded, [one.id]);
    let again = stage.engine.push(first).await.unwrap().accepted.remove(0);
    assert!(again.existing && again.id == one.id);
    let superseded = stage.engine.deployment(one.id).await.unwrap();
    assert_eq!((superseded.status(), superseded.superseded_by()), (Status::Cancelled, Some(two.id)));
    assert_eq!(stage.engine.deployment(manual).await.unwrap().status(), Status::Queued);
    let other = Push::new("https://git.example.org/other", "main", "a".repeat(40), "d3");
    assert!(stage.engine.push(other).await.unwrap().accepted.is_empty());
    let other = Push::new("https://git.example.org/shop", "dev", "a".repeat(40), "d4");
    assert!(stage.engine.push(other).await.unwrap().accepted.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_push_that_one_environment_refuses_reaches_the_others() {
    let stage = Stage::new().await;
    for (name, port) in [("a", 1), ("z", 2)] {
        let spec = EnvironmentSpec::new(name, "https://git.example.org/shop.git")
            .instance(InstanceSpec::new("web").port(port))
            .policy(|policy| policy.queue_length_max = 1);
        stage.engine.save_environment(spec).await.unwrap();
    }
    stage.engine.deploy(DeployRequest::manual("a")).await.unwrap();
    let push = Push::new("https://git.example.org/shop", "main", "a".repeat(40), "d1");
    for existing in [false, true] {
        let pushed = stage.engine.push(push.clone()).await.unwrap();
        let accepted = pushed.accepted.iter().map(|it| (it.environment.as_str(), it.existing));
        assert_eq!(accepted.collect::<Vec<_>>(), [("shop", existing), ("z", existing)]);
        let [(environment, refusal)] = &pushed.refused[..] else { panic!("{pushed:?}") };
        assert_eq!(environment.as_str(), "a");
        assert!(matches!(refusal, EngineError::QueueFull { length_max: 1, .. }), "{refusal}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_accepted_is_answered_again_whatever_has_changed() {
    let stage = Stage::new().await;
    let request = DeployRequest::manual("shop").idempotency_key("k");
    let once = stage.engine.deploy(request.clone()).await.unwrap();
    stage.engine.save_environment(shop().branch("release/*")).await.unwrap();
    let refused = stage.engine.deploy(DeployRequest::manual("shop")).await.unwrap_err();
    assert!(matches!(refused, EngineError::NoRevision { .. }), "{refused}");
    let twice = stage.engine.deploy(request).await.unwrap();
    assert_eq!((twice.id, twice.existing), (once.id, true));
}

#[tokio::test(start_paused = true)]
async fn an_empty_key_is_refused() {
    let stage = Stage::new().await;
    let push = |delivery| Push::new("https://git.example.org/shop", "main", "a".repeat(40), delivery);
    for empty in ["", " "] {
        let refusal = stage.engine.push(push(empty)).await.unwrap_err().to_string();
        assert!(refusal.contains("delivery id is empty"), "{refusal}");
        let request = DeployRequest::manual("shop").idempotency_key(empty);
        let refusal = stage.engine.deploy(request).await.unwrap_err().to_string();
        assert!(
            refusal.contains("idempotency key is empty; give a unique one, or leave it out"),
            "{refusal}"
        );
    }
    assert!(stage.engine.history(&Filter::default(), None, 10).await.unwrap().deployments.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_queued_deployment_says_why_it_waits() {
    let mut stage = Stage::new().await;
    stage.engine.pause("shop", "ada").await.unwrap();
    let first = stage.ask("first", Behaviour::good().takes(Duration::from_secs(60))).await;
    let second = stage.ask("second", Behaviour::good()).await;
    stage.work();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let reason = async |id| stage.engine.waiting(id).await.unwrap().unwrap().reason;
    assert_eq!(reason(first).await, WaitReason::Paused);
    assert_eq!(stage.engine.environment("shop").await.unwrap().paused_by.as_deref(), Some("ada"));
    stage.engine.resume("shop").await.unwrap();
    stage.begun(first, Step::Build).await;
    assert_eq!(reason(second).await, WaitReason::Active { deployment: first });
    assert_eq!(stage.end(second).await.status(), Status::Running);
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_where_another_one_stopped() {
    let mut stage = Stage::new().await;
    stage.work();
    let id = stage.deploy("first", Behaviour::good()).await.id;
    let all = stage.events(id).await;
    assert!(matches!(all.first().unwrap().kind, EventKind::Queued));
    assert!(matches!(all.last().unwrap().kind, EventKind::Finished { status: Status::Running, .. }));
    let steps = all.iter().filter_map(|event| match event.kind {
        EventKind::Began { step } => Some(step),
        _ => None,
    });
    assert_eq!(
        steps.collect::<Vec<_>>(),
        [Step::Fetch, Step::Build, Step::Snapshot, Step::Start, Step::Probe]
    );
    for (n, event) in all.iter().enumerate() {
        let mut watch = stage.engine.watch_after(id, event.seq).await.unwrap();
        let mut rest = Vec::new();
        while let Some(event) = watch.next().await.unwrap() {
            rest.push(event);
        }
        assert_eq!(rest, all[n + 1..]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_appears_nowhere() {
    const CANARY: &str = "canary-7d2f91";
    let mut stage = Stage::new().await;
    stage.world.leak(Secret::new(CANARY));
    stage.work();
    let failed = stage.deploy("first", Behaviour::good().unbuildable()).await;
    let running = stage.deploy("second", Behaviour::good()).await;
    let events = [stage.events(failed.id).await, stage.events(running.id).await].concat();
    let shown = format!("{failed:?} {running:?} {events:?} {:?}", stage.engine);
    assert!(!shown.contains(CANARY), "{shown}");
    assert!(shown.contains("[secret]"), "the fake adapters log the secret: {shown}");
}

#[tokio::test(start_paused = true)]
async fn a_long_log_keeps_its_head_and_its_tail() {
    let limit = LogLimit::new(200, 200);
    let mut stage = Stage::with(shop(), |builder| builder.log_limit(limit)).await;
    stage.work();
    let id = stage.deploy("first", Behaviour::good().unhealthy()).await.id;
    let lines = stage.engine.logs(id, EventSeq::default()).await.unwrap();
    let bytes: u64 = lines.iter().map(|(_, line)| EventKind::Log(line.clone()).log_bytes()).sum();
    assert!(bytes <= limit.head_bytes + limit.tail_bytes_max(), "{bytes} bytes are kept");
}

#[tokio::test(start_paused = true)]
async fn bad_requests_are_refused_in_words() {
    let stage = Stage::new().await;
    let deploy = async |request: DeployRequest| stage.engine.deploy(request).await.unwrap_err().to_string();
    assert!(deploy(DeployRequest::manual("nowhere")).await.contains("there is no environment \"nowhere\""));
    assert!(deploy(DeployRequest::manual("a/b\n")).await.contains("there is no environment"));
    assert!(deploy(DeployRequest::manual("x".repeat(10_000))).await.len() < 300);
    assert!(
        deploy(DeployRequest::manual("shop").branch("--upload-pack=x")).await.contains("names no branch")
    );
    assert!(
        deploy(DeployRequest::manual("shop").actor("x".repeat(201)))
            .await
            .contains("the actor has more than 200")
    );
    let mut second = shop();
    second.name = "other".to_owned();
    let conflict = stage.engine.save_environment(second).await.unwrap_err();
    assert!(
        matches!(&conflict, EngineError::ResourceInUse { environment, .. } if environment.as_str() == "shop")
    );
    assert!(conflict.to_string().contains("port 8069"), "{conflict}");
    let full = shop().policy(|policy| policy.queue_length_max = 1);
    stage.engine.save_environment(full).await.unwrap();
    stage.ask("first", Behaviour::good()).await;
    assert!(deploy(DeployRequest::manual("shop")).await.contains("1 deployments wait in the queue of shop"));
    assert_eq!(stage.engine.history(&Filter::default(), None, 10).await.unwrap().deployments.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_failed_can_be_tried_again() {
    let mut stage = Stage::new().await;
    stage.work();
    let failed = stage.deploy("first", Behaviour::good().unbuildable()).await;
    let retry = stage.engine.retry(RetryRequest::of(failed.id).actor("bob")).await.unwrap();
    let retried = stage.end(retry.id).await;
    assert_eq!((retried.answers(), retried.commit), (Some(failed.id), failed.commit));
    assert_eq!(stage.engine.details(failed.id).await.unwrap().answered_by, [retry.id]);
    let request = RetryRequest::of(failed.id).idempotency_key("k");
    let once = stage.engine.retry(request.clone()).await.unwrap();
    stage.end(once.id).await;
    let twice = stage.engine.retry(request).await.unwrap();
    assert_eq!((once.existing, twice.existing, twice.id), (false, true, once.id));
    let running = stage.deploy("second", Behaviour::good()).await;
    assert!(matches!(stage.engine.retry(RetryRequest::of(running.id)).await, Err(EngineError::Over { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_does_not_hang_who_asks() {
    let stage = Stage::new().await;
    let id = stage.ask("first", Behaviour::good()).await;
    for method in [
        "save_environment",
        "environments",
        "environment",
        "enqueue",
        "deployment",
        "lane",
        "history",
        "events",
        "snapshots",
        "set_paused",
        "request_cancel",
    ] {
        let faults = Faults::new(Arc::new(TokioExecutor::new()));
        faults.plan_always("store", method, Fault::Hang);
        let store = faults.wrap(stage.store.clone());
        let engine = Stage::builder(&stage.world, &stage.store).store(store).build().unwrap();
        let ask = async || -> Result<(), EngineError> {
            engine.save_environment(shop()).await?;
            engine.environments().await?;
            engine.deploy(DeployRequest::manual("shop")).await?;
            engine.waiting(id).await?;
            engine.details(id).await?;
            engine.events(id, EventSeq::default(), 10).await?;
            engine.snapshots("shop").await?;
            engine.pause("shop", "ada").await?;
            engine.cancel(id, "ada").await
        };
        let answer = tokio::time::timeout(Duration::from_secs(60), ask()).await;
        let error = answer.unwrap_or_else(|_| panic!("{method} hangs")).unwrap_err();
        assert!(matches!(error, EngineError::Store(_)), "{method}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_health_deadline_is_one_for_all_instances() {
    let spec =
        (1..5).fold(shop(), |spec, n| spec.instance(InstanceSpec::new(format!("web{n}")).port(8069 + n)));
    let mut stage = Stage::with(spec.policy(|policy| policy.parallel_instances = 1), |builder| builder).await;
    stage.work();
    let failed = stage.deploy("first", Behaviour::good().unhealthy()).await;
    assert_eq!(failed.step(), None);
    assert!(failed.timings.deployment < Duration::from_secs(22), "{:?}", failed.timings);
}
