//! Clean-ups that meet what they did not expect: things that cannot be removed, rollbacks, clocks that jump.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use chrono::TimeDelta;
use ocore_core::{
    deployment::Deployment,
    engine::RollbackRequest,
    environment::{EnvironmentSpec, Instance},
    executor::TokioExecutor,
    machine::{Status, Step},
    port::{Builder, Checkout, Context, Error, Filter, Leftovers, Result, Snapshotter},
    release::{Image, Snapshot},
    testing::{
        clock::ManualClock,
        fakes::{Behaviour, FakeBuilder, FakeSnapshotter},
        faults::{Fault, Faults},
    },
};
use tokio::sync::Semaphore;

use crate::stage::{Stage, shop};

/// The shop, which keeps one snapshot and one image.
fn forgetful() -> EnvironmentSpec {
    shop().policy(|policy| {
        policy.retention.snapshots_last = 1;
        policy.retention.snapshots_age = Duration::ZERO;
        policy.retention.images_last = 1;
    })
}

/// What must not be removed, by its reference, and when images may be removed at all.
#[derive(Clone)]
struct Stuck {
    images: FakeBuilder,
    snapshots: FakeSnapshotter,
    stuck: Arc<Mutex<BTreeSet<String>>>,
    gate: Arc<Semaphore>,
}

impl Stuck {
    fn admit(&self, reference: &str) -> Result<()> {
        let stuck = self.stuck.lock().unwrap().contains(reference);
        if stuck { Err(Error::permanent(format!("{reference} is stuck"))) } else { Ok(()) }
    }
}

#[async_trait]
impl Builder for Stuck {
    async fn build(&self, context: &Context, checkout: &Checkout) -> Result<Image> {
        self.images.build(context, checkout).await
    }
    async fn locate(&self, context: &Context, image: &Image) -> Result<bool> {
        self.images.locate(context, image).await
    }
    async fn remove(&self, context: &Context, image: &Image) -> Result<()> {
        self.gate.acquire().await.unwrap().forget();
        self.admit(&image.reference)?;
        self.images.remove(context, image).await
    }
    async fn sweep(&self, context: &Context, leftovers: &Leftovers) -> Result<()> {
        self.images.sweep(context, leftovers).await
    }
}

#[async_trait]
impl Snapshotter for Stuck {
    async fn take(&self, context: &Context, instance: &Instance) -> Result<Snapshot> {
        // Time enough for a clean-up to do harm.
        tokio::time::sleep(Duration::from_secs(10)).await;
        self.snapshots.take(context, instance).await
    }
    async fn restore(&self, context: &Context, instance: &Instance, snapshot: &Snapshot) -> Result<()> {
        self.snapshots.restore(context, instance, snapshot).await
    }
    async fn changed_since(
        &self,
        context: &Context,
        instance: &Instance,
        snapshot: &Snapshot,
    ) -> Result<bool> {
        self.snapshots.changed_since(context, instance, snapshot).await
    }
    async fn remove(&self, context: &Context, snapshot: &Snapshot) -> Result<()> {
        self.admit(&snapshot.reference)?;
        self.snapshots.remove(context, snapshot).await
    }
    async fn sweep(&self, context: &Context, leftovers: &Leftovers) -> Result<()> {
        self.snapshots.sweep(context, leftovers).await
    }
}

/// A stage on which images can be removed only when the gate has been opened, so often.
async fn stuck(spec: EnvironmentSpec, permits: usize) -> (Stage, Stuck) {
    let mut stage = Stage::with(spec, |builder| builder).await;
    let stuck = Stuck {
        images: stage.world.builder(),
        snapshots: stage.world.snapshotter(),
        stuck: Arc::default(),
        gate: Arc::new(Semaphore::new(permits)),
    };
    let builder = Stage::builder(&stage.world, &stage.store);
    stage.engine = builder.builder(stuck.clone()).snapshotter(stuck.clone()).build().unwrap();
    stage.work();
    (stage, stuck)
}

fn image(deployment: &Deployment) -> String {
    deployment.image.as_ref().unwrap().reference.clone()
}

fn snapshot(deployment: &Deployment) -> String {
    deployment.snapshots.values().next().unwrap().reference.clone()
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_removed_keeps_nothing_else_from_being_removed() {
    let (mut stage, stuck) = stuck(forgetful(), 1000).await;
    let first = stage.deploy("first", Behaviour::good()).await;
    stuck.stuck.lock().unwrap().extend([image(&first), snapshot(&first)]);
    for message in ["second", "third", "fourth"] {
        stage.deploy(message, Behaviour::good()).await;
    }
    stage.shut_down().await;
    let [_, images, snapshots] = stage.world.counts();
    assert_eq!((images, snapshots), (2, 2), "the last one, and the one that is stuck");
    let known = stage.engine.snapshots("shop").await.unwrap();
    assert_eq!(known.len(), 2, "what was removed is forgotten");

    stuck.stuck.lock().unwrap().clear();
    stage.work();
    stage.deploy("fifth", Behaviour::good()).await;
    stage.shut_down().await;
    let [_, images, snapshots] = stage.world.counts();
    assert_eq!((images, snapshots), (1, 1), "what was stuck is tried again");
}

#[tokio::test(start_paused = true)]
async fn an_image_that_a_rollback_has_found_is_not_removed() {
    let spec = forgetful().policy(|policy| policy.retention.snapshots_last = 10);
    let (mut stage, stuck) = stuck(spec, 0).await;
    let good = Behaviour::good;
    let first = stage.deploy("first", good()).await;
    let second = stage.deploy("second", good()).await;
    // The clean-up after it gives up.
    tokio::time::sleep(Duration::from_secs(300)).await;
    let third = stage.deploy("third", good()).await;
    // A clean-up waits at the first image that it removes, and has the second one on its list.
    let target = if image(&first) < image(&second) { &second } else { &first };
    let rollback = stage.engine.roll_back(RollbackRequest::to(target.id).code_only()).await.unwrap().0.id;
    stage.begun(rollback, Step::Snapshot).await;
    stuck.gate.add_permits(1000);
    let rollback = stage.end(rollback).await;
    assert_eq!(rollback.status(), Status::Running, "{:?}", rollback.failure());
    assert_eq!(image(&rollback), image(target), "nothing was built again");
    assert_ne!(image(&rollback), image(&third));
    stage.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_made_and_never_recorded_is_removed_when_its_deployment_is_over() {
    let mut stage = Stage::with(shop(), |builder| builder).await;
    let faults = Faults::new(Arc::new(TokioExecutor::new()));
    // The first build and, after the second one, the first snapshot.
    for call in [0, 2] {
        faults.plan(call, Fault::NoAnswer);
    }
    let builder = Stage::builder(&stage.world, &stage.store);
    let (images, snapshots) = (stage.world.builder(), stage.world.snapshotter());
    let builder = builder.builder(faults.wrap(images)).snapshotter(faults.wrap(snapshots));
    stage.engine = builder.build().unwrap();
    stage.work();
    let first = stage.deploy("first", Behaviour::good()).await;
    stage.shut_down().await;
    let unanswered: Vec<_> = faults.hits().into_keys().map(|(call, _)| call.method).collect();
    assert_eq!(unanswered, ["build", "take"]);
    assert_eq!(
        stage.world.made(),
        BTreeSet::from([image(&first), snapshot(&first)]),
        "what is recorded stays"
    );
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
async fn a_clock_that_jumps_back_and_forth_a_year_loses_nothing() {
    let spec =
        forgetful().policy(|policy| policy.retention.snapshots_age = Duration::from_secs(14 * 24 * 3600));
    let clock = ManualClock::new(1);
    let mut stage = Stage::on(Arc::new(clock.clone()), spec).await;
    stage.work();
    let time = tokio::spawn(go_on(clock.clone()));
    let mut ids = vec![stage.deploy("before", Behaviour::good()).await.id];
    for (days, unhealthy) in
        [(-365, false), (730, false), (-730, true), (365, false), (365, true), (-365, false)]
    {
        let behaviour = Behaviour::good().updates().takes(Duration::from_secs(60));
        let behaviour = if unhealthy { behaviour.unhealthy() } else { behaviour };
        let id = stage.ask("a commit", behaviour).await;
        stage.begun(id, if unhealthy { Step::Probe } else { Step::Build }).await;
        let next = stage.ask("queued meanwhile", Behaviour::good()).await;
        clock.jump(TimeDelta::days(days));
        for (id, unhealthy) in [(id, unhealthy), (next, false)] {
            let deployment = stage.end(id).await;
            let expected = if unhealthy { Status::RolledBack } else { Status::Running };
            assert_eq!(deployment.status(), expected, "{:?}", deployment.failure());
            let timings = deployment.timings;
            for part in [timings.build, timings.deployment, timings.downtime] {
                assert!(part < Duration::from_secs(3600), "{timings:?}");
            }
            ids.push(id);
        }
    }
    stage.shut_down().await;
    time.abort();
    let history = stage.engine.history(&Filter::default(), None, 100).await.unwrap();
    let newest_first: Vec<_> = history.deployments.iter().map(|it| it.id).collect();
    ids.reverse();
    assert_eq!(newest_first, ids, "the order is that of acceptance");
    let kept = stage.engine.snapshots("shop").await.unwrap();
    assert_eq!(kept.len(), ids.len(), "no snapshot is two weeks old");
}
