use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::TimeDelta;
use ocore_core::{
    engine::{Engine, Timing},
    environment::{EnvironmentSpec, InstanceSpec},
    executor::TokioExecutor,
    id::EventSeq,
    machine::{Status, Step},
    port::{Builder, Checkout, Context, Error, Result},
    release::Image,
    request::DeployRequest,
    testing::{
        fakes::Behaviour,
        faults::{Faults, Odds},
        mocks::MockBuilder,
    },
};

use crate::{
    runtime::Refusing,
    stage::{Stage, Wall, name, shop},
};

const SLOW: Duration = Duration::from_secs(300);

fn timing(drain: u64, interrupt: u64) -> Timing {
    let mut timing = Timing::default();
    (timing.drain, timing.interrupt) = (Duration::from_secs(drain), Duration::from_secs(interrupt));
    timing
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_lets_a_short_deployment_end() {
    let mut stage = Stage::with(shop(), |builder| builder.timing(timing(600, 600))).await;
    stage.work();
    let id = stage.ask("first", Behaviour::good().takes(SLOW)).await;
    stage.begun(id, Step::Build).await;
    stage.shut_down().await;
    assert_eq!(stage.engine.deployment(id).await.unwrap().status(), Status::Running);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_hands_over_at_the_next_step_boundary() {
    let mut stage = Stage::with(shop(), |builder| builder.timing(timing(0, 600))).await;
    stage.work();
    let id = stage.ask("first", Behaviour::good().takes(SLOW)).await;
    stage.begun(id, Step::Build).await;
    stage.shut_down().await;
    let handed_over = stage.engine.deployment(id).await.unwrap();
    assert_eq!(handed_over.step(), Some(Step::Snapshot), "the build was finished");
    stage.work();
    let ended = stage.end(id).await;
    assert_eq!((ended.status(), ended.image), (Status::Running, handed_over.image));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_interrupts_a_long_step_without_using_up_an_attempt() {
    let spec = shop().policy(|policy| policy.retry.attempts_max = 1);
    let mut stage = Stage::with(spec, |builder| builder.timing(timing(0, 0))).await;
    stage.work();
    let first = stage.deploy("first", Behaviour::good()).await;
    let id = stage.ask("second", Behaviour::good().updates().takes(SLOW)).await;
    stage.begun(id, Step::Update).await;
    stage.shut_down().await;
    assert_eq!(stage.engine.deployment(id).await.unwrap().step(), Some(Step::Withdraw));
    stage.work();
    assert_eq!(stage.end(id).await.status(), Status::Running);
    assert_ne!(
        Some(first.id),
        stage.engine.environment("shop").await.unwrap().live.map(|live| live.deployment)
    );
    assert_eq!(stage.world.broken_rules(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn another_worker_takes_over_from_one_that_is_gone() {
    let stage = Stage::new().await;
    let gone = tokio::spawn({
        let engine = stage.engine.clone();
        async move { engine.run_until(std::future::pending()).await }
    });
    let id = stage.ask("first", Behaviour::good().takes(SLOW)).await;
    stage.begun(id, Step::Build).await;
    gone.abort();
    let began = tokio::time::Instant::now();
    let other = Stage::builder(&stage.world, &stage.store).build().unwrap();
    let worker = other.clone();
    tokio::spawn(async move { worker.run_until(std::future::pending()).await });
    let resumed = stage.end(id).await;
    assert_eq!(resumed.status(), Status::Running);
    let limit = SLOW + Duration::from_secs(12);
    assert!(began.elapsed() < limit, "a crash is noticed within 12 s: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_waited_for_the_next_worker_is_taken_again() {
    for days in [1, -1] {
        let wall = Arc::new(Wall::default());
        let mut stage = Stage::with(shop(), |builder| builder).await;
        let runtime = Refusing::new(stage.world.runtime());
        let builder = Stage::builder(&stage.world, &stage.store).runtime(runtime.clone());
        stage.engine = builder.executor(wall.clone()).timing(timing(0, 600)).build().unwrap();
        stage.work();
        stage.deploy("first", Behaviour::good()).await;
        runtime.hinder(&["stop"]);
        let id = stage.ask("second", Behaviour::good().updates().unhealthy()).await;
        stage.begun(id, Step::Stop).await;
        stage.shut_down().await;
        assert_eq!(stage.engine.deployment(id).await.unwrap().step(), Some(Step::Stop));

        runtime.hinder(&[]);
        let written = stage.write();
        wall.jump(TimeDelta::days(days));
        stage.work();
        assert_eq!(stage.end(id).await.status(), Status::RolledBack);
        assert!(stage.data().unwrap().writes.contains(&written), "a day's writes are lost");
        let lines = stage.engine.logs(id, EventSeq::default()).await.unwrap();
        assert!(
            lines.iter().any(|(_, line)| line.text.contains("the snapshots are taken again")),
            "{lines:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_cannot_be_written_holds_up_no_other() {
    let mut stage = Stage::with(shop(), |builder| builder.workers(1)).await;
    let other = EnvironmentSpec::new("bakery", "https://git.example.org/shop.git")
        .instance(InstanceSpec::new("web").port(8070));
    stage.engine.save_environment(other).await.unwrap();
    stage.work();
    let stuck = stage.ask("first", Behaviour::good().updates().takes(Duration::from_secs(1))).await;
    stage.begun(stuck, Step::Update).await;
    stage.store.damage(&name(), true);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let other = stage.engine.deploy(DeployRequest::manual("bakery")).await.unwrap().id;
    let ended = tokio::time::timeout(Duration::from_secs(15), stage.end(other)).await.unwrap();
    assert_eq!(ended.status(), Status::Running);

    tokio::time::sleep(Duration::from_secs(600)).await;
    stage.store.damage(&name(), false);
    let mended = tokio::time::timeout(Duration::from_secs(400), stage.end(stuck)).await.unwrap();
    assert_eq!(mended.status(), Status::Running);
    assert_eq!(stage.world.broken_rules(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn writes_that_a_second_attempt_has_lost_are_in_the_record() {
    let mut stage = Stage::with(shop(), |builder| builder).await;
    let runtime = Refusing::new(stage.world.runtime());
    stage.engine = Stage::builder(&stage.world, &stage.store).runtime(runtime.clone()).build().unwrap();
    stage.work();
    let first = stage.deploy("first", Behaviour::good().updates()).await;
    assert_eq!(first.lost_writes().count(), 0);
    runtime.hinder(&["stop", "update"]);
    let id = stage.ask("second", Behaviour::good().updates()).await;
    stage.begun(id, Step::Stop).await;
    let written = stage.write();
    runtime.hinder(&["update"]);
    stage.begun(id, Step::Update).await;
    runtime.hinder(&[]);
    let running = stage.end(id).await;
    assert_eq!(running.status(), Status::Running);
    assert!(!stage.data().unwrap().writes.contains(&written));
    let lost: Vec<_> = running.lost_writes().map(|(name, _)| name.as_str()).collect();
    assert_eq!(lost, ["web"]);
    let lines = stage.engine.logs(id, EventSeq::default()).await.unwrap();
    let told =
        lines.iter().filter(|(_, line)| line.text.contains("between the snapshot and the stop is lost"));
    assert_eq!(told.count(), 1, "{lines:?}");
}

/// Takes a second, and says something every ten milliseconds.
struct Chatty;

const LINES: usize = 100;

#[async_trait]
impl Builder for Chatty {
    async fn build(&self, context: &Context, _: &Checkout) -> Result<Image> {
        for line in 0..LINES {
            context.log(line.to_string());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(Image::new("image"))
    }
    async fn locate(&self, _: &Context, _: &Image) -> Result<bool> {
        Ok(true)
    }
    async fn remove(&self, _: &Context, _: &Image) -> Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn no_line_is_lost_where_a_step_ends_while_lines_are_being_stored() {
    let clock = Arc::new(TokioExecutor::new());
    for seed in 0..20 {
        let mut stage = Stage::with(shop(), |builder| builder).await;
        let faults = Faults::new(clock.clone());
        faults.draw(seed, Odds::NONE.latency(Duration::from_millis(150), 0));
        let builder = Stage::builder(&stage.world, &stage.store).store(faults.wrap(stage.store.clone()));
        stage.engine = builder.builder(Chatty).build().unwrap();
        stage.work();
        let id = stage.ask("first", Behaviour::good()).await;
        stage.begun(id, Step::Snapshot).await;
        let lines = stage.engine.logs(id, EventSeq::default()).await.unwrap();
        let lines: Vec<usize> = lines.into_iter().filter_map(|(_, line)| line.text.parse().ok()).collect();
        assert_eq!(lines, (0..LINES).collect::<Vec<_>>(), "seed {seed}");
        stage.shut_down().await;
    }
}

struct Panics;

#[async_trait]
impl Builder for Panics {
    async fn build(&self, _: &Context, _: &Checkout) -> Result<Image> {
        panic!("out of cheese")
    }
    async fn locate(&self, _: &Context, _: &Image) -> Result<bool> {
        Ok(false)
    }
    async fn remove(&self, _: &Context, _: &Image) -> Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_an_adapter_is_a_failure_and_the_worker_lives() {
    let mut stage = Stage::with(shop(), |builder| builder.builder(Panics)).await;
    stage.work();
    for _ in 0..2 {
        let failed = stage.deploy("first", Behaviour::good()).await;
        let message = &failed.failure().unwrap().message;
        assert!(message.contains("the adapter panicked: out of cheese"), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_transient_error_is_tried_again_and_a_call_that_hangs_is_ended() {
    let mut calls = 0;
    let mut flaky = MockBuilder::new();
    flaky.expect_remove().returning(|_, _| Ok(()));
    flaky.expect_build().times(3).returning(move |_, _| {
        calls += 1;
        match calls {
            1 => Err(Error::transient("the disk was busy")),
            2 => Err(Error::unanswered("the answer was lost")),
            _ => Err(Error::permanent("no")),
        }
    });
    let mut stage = Stage::with(shop(), |builder| builder.builder(flaky)).await;
    stage.work();
    let failed = stage.deploy("first", Behaviour::good()).await;
    assert_eq!(failed.failure().unwrap().message, "no");

    let spec = shop().policy(|policy| {
        policy.deadlines.build = Duration::from_secs(1);
        policy.retry.attempts_max = 2;
    });
    let mut stage = Stage::with(spec, |builder| builder).await;
    stage.work();
    let hangs = stage.deploy("first", Behaviour::good().takes(SLOW)).await;
    assert!(hangs.failure().unwrap().message.contains("did not end within 1 s"), "{hangs:?}");
    assert!(hangs.timings.build < Duration::from_secs(20));
}

#[test]
fn an_engine_says_everything_that_is_missing() {
    let mut timing = Timing::default();
    timing.lease = Duration::from_secs(1);
    let incomplete = Engine::builder().timing(timing).workers(0).build().unwrap_err();
    let text = incomplete.to_string();
    for part in ["at least three heartbeats", "no worker", "no store", "no source", "no builder", "no probe"]
    {
        assert!(text.contains(part), "{text}");
    }
}
