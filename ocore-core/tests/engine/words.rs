//! What adapters and strangers say: redacted, printable, and no more than there is room for.

use async_trait::async_trait;
use ocore_core::{
    engine::Engine,
    event::EventKind,
    machine::Status,
    port::{Builder, Checkout, Context, Error, LogLimit, Result, StoreError, StoreErrorKind},
    release::Image,
    secret::Secret,
    testing::{
        fakes::{Behaviour, World},
        mocks::MockStore,
    },
};

use crate::stage::{Stage, shop};

const CANARY: &str = "canary-0123456789";

#[tokio::test(start_paused = true)]
async fn what_a_commit_says_is_made_safe_to_show() {
    let mut stage = Stage::new().await;
    stage.work();
    stage.world.leak(Secret::new(CANARY));
    let message = format!("\u{1b}[2J{CANARY}\u{202e} {} {CANARY}", "x".repeat(168));
    let deployment = stage.deploy(&message, Behaviour::good()).await;
    let commit = deployment.commit.as_ref().unwrap();
    assert!(commit.summary.starts_with("\\u{1b}[2J[secret]\\u{202e} xxx"), "{}", commit.summary);
    assert!(!commit.summary.contains("canary"), "the cut left a part of it: {}", commit.summary);
    assert!(commit.summary.chars().count() <= 200);
    let live = stage.engine.environment("shop").await.unwrap().live.unwrap();
    assert_eq!(live.release.commit, *commit);
}

/// A builder that fails, and has much to say about it.
struct Chatty;

#[async_trait]
impl Builder for Chatty {
    async fn build(&self, _: &Context, _: &Checkout) -> Result<Image> {
        let lines = (0..200).map(|line| format!("{line}: {}", "x".repeat(50_000)));
        Err(Error::transient("build the image").with_detail(lines))
    }
    async fn locate(&self, _: &Context, _: &Image) -> Result<bool> {
        Ok(false)
    }
    async fn remove(&self, _: &Context, _: &Image) -> Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn the_evidence_of_failures_stays_within_the_limits() {
    let spec = shop().policy(|policy| policy.retry.attempts_max = 10);
    let limit = LogLimit::new(100_000, 200_000);
    let mut stage = Stage::with(spec, |builder| builder.builder(Chatty).log_limit(limit)).await;
    stage.work();
    let deployment = stage.deploy("first", Behaviour::good()).await;
    assert_eq!(deployment.status(), Status::Failed);
    let detail = &deployment.failure().unwrap().detail;
    assert!(detail.iter().map(String::len).sum::<usize>() <= 64 * 1024, "{} lines", detail.len());
    assert!(detail.last().unwrap().starts_with("199: "), "the last line says most");
    let events = stage.events(deployment.id).await;
    let retries = events.iter().filter(|event| matches!(event.kind, EventKind::Retrying { .. })).count();
    assert_eq!(retries, 9);
    let size: usize = events.iter().map(|event| serde_json::to_string(event).unwrap().len()).sum();
    assert!(size < 400_000, "{size} bytes are kept");
    assert!(
        events
            .iter()
            .any(|event| matches!(&event.kind, EventKind::Log(line) if line.text.starts_with("199")))
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_store_says_is_redacted() {
    let world = World::new();
    let mut store = MockStore::new();
    let broken = || StoreError::new(StoreErrorKind::Broken, format!("connect to db://u:{CANARY}@host\n"));
    store.expect_environments().returning(move || Err(broken()));
    let engine = Engine::builder()
        .store(store)
        .source(world.source())
        .builder(world.builder())
        .snapshotter(world.snapshotter())
        .runtime(world.runtime())
        .probe(world.probe())
        .secret(&Secret::new(CANARY))
        .build()
        .unwrap();
    let error = engine.environments().await.unwrap_err();
    assert_eq!(error.to_string(), "the store failed: connect to db://u:[secret]@host");
}
