use std::time::Duration;

use ocore_core::{
    engine::EngineError,
    environment::{EnvironmentSpec, InstanceSpec},
    machine::{Serving, Status, Step},
    request::DeployRequest,
    testing::fakes::Behaviour,
};

use crate::stage::Stage;

const SLOW: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_queued_deployment_is_cancelled_at_once() {
    let stage = Stage::new().await;
    let id = stage.ask("first", Behaviour::good()).await;
    stage.engine.cancel(id, "bob").await.unwrap();
    assert_eq!(stage.engine.deployment(id).await.unwrap().status(), Status::Cancelled);
    let again = stage.engine.cancel(id, "bob").await.unwrap_err();
    assert!(matches!(again, EngineError::Over { status: Status::Cancelled, .. }), "{again}");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_stops_the_build_and_leaves_no_image() {
    let mut stage = Stage::new().await;
    stage.work();
    let live = stage.deploy("first", Behaviour::good()).await;
    let (running, counts) = (stage.running(), stage.world.counts());
    let id = stage.ask("second", Behaviour::good().takes(SLOW)).await;
    stage.begun(id, Step::Build).await;
    stage.engine.cancel(id, "bob").await.unwrap();
    let cancelled = stage.end(id).await;
    assert_eq!((cancelled.status(), cancelled.serving()), (Status::Cancelled, Some(Serving::Unchanged)));
    assert!(cancelled.timings.build < SLOW, "it was stopped, not waited for");
    assert_eq!((stage.running(), stage.world.counts()), (running, counts));
    assert!(stage.engine.details(live.id).await.unwrap().is_live);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_during_the_update_undoes_it() {
    let mut stage = Stage::new().await;
    stage.work();
    stage.deploy("first", Behaviour::good()).await;
    let (data, running) = (stage.data(), stage.running());
    let id = stage.ask("second", Behaviour::good().updates().takes(SLOW)).await;
    stage.begun(id, Step::Update).await;
    stage.engine.cancel(id, "bob").await.unwrap();
    let cancelled = stage.end(id).await;
    assert_eq!((cancelled.status(), cancelled.serving()), (Status::Cancelled, Some(Serving::Previous)));
    assert_eq!((stage.data(), stage.running()), (data, running));
    assert_eq!(stage.deploy("third", Behaviour::good()).await.status(), Status::Running);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_during_the_probe_undoes_the_start() {
    let mut stage = Stage::new().await;
    stage.work();
    stage.deploy("first", Behaviour::good()).await;
    let running = stage.running();
    let id = stage.ask("second", Behaviour::good().unhealthy()).await;
    stage.begun(id, Step::Probe).await;
    stage.engine.cancel(id, "bob").await.unwrap();
    let cancelled = stage.end(id).await;
    assert_eq!(cancelled.status(), Status::Cancelled);
    assert!(cancelled.failure().is_none());
    assert_eq!(stage.running(), running);
}

#[tokio::test(start_paused = true)]
async fn what_is_over_is_not_cancelled() {
    let mut stage = Stage::new().await;
    stage.work();
    let id = stage.deploy("first", Behaviour::good()).await.id;
    let refused = stage.engine.cancel(id, "bob").await.unwrap_err();
    assert!(refused.to_string().ends_with("is over: Running"), "{refused}");
    assert_eq!(stage.running().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_right_after_another_one_is_noticed_before_the_next_heartbeat() {
    let mut stage = Stage::new().await;
    let other = EnvironmentSpec::new("bakery", "https://git.example.org/shop.git")
        .instance(InstanceSpec::new("web").port(8070));
    stage.engine.save_environment(other).await.unwrap();
    stage.work();
    let first = stage.ask("first", Behaviour::good().takes(SLOW)).await;
    let second = stage.engine.deploy(DeployRequest::manual("bakery")).await.unwrap().id;
    stage.begun(first, Step::Build).await;
    stage.begun(second, Step::Build).await;
    // Everything of before is stored, and no heartbeat is due soon.
    tokio::time::sleep(Duration::from_millis(3500)).await;
    // Another process asks: nothing but the store tells this one.
    let elsewhere = Stage::builder(&stage.world, &stage.store).build().unwrap();
    let began = tokio::time::Instant::now();
    elsewhere.cancel(first, "bob").await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    elsewhere.cancel(second, "bob").await.unwrap();
    for id in [first, second] {
        assert_eq!(stage.end(id).await.status(), Status::Cancelled);
    }
    assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
}
