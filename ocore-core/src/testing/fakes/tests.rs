use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    environment::{Environment, EnvironmentSpec, InstanceSpec},
    event::{Progress, Stream},
    id::{DeploymentId, Fence},
    name::InstanceName,
    port::{
        Builder, Check, Context, ErrorKind, HealthProbe, Observation, Runtime, Sink, Snapshotter, Source,
    },
    release::{LiveInstance, Release},
    request::Revision,
    secret::Secret,
};

#[derive(Default)]
struct Nowhere(Mutex<Vec<String>>);

impl Sink for Nowhere {
    fn log(&self, _instance: Option<&InstanceName>, _stream: Stream, line: &str) {
        self.0.lock().unwrap().push(line.to_owned());
    }
    fn progress(&self, _instance: Option<&InstanceName>, _progress: Progress) {}
    fn hide(&self, _secret: &Secret) {}
}

fn context(deployment: u128, fence: u64) -> Context {
    let spec = EnvironmentSpec::new("shop", "fake").instance(InstanceSpec::new("web"));
    let environment = Arc::new(Environment::try_from(spec).unwrap());
    let (id, fence) = (DeploymentId::from_u128(deployment), Fence::new(fence));
    Context::new(id, environment, fence, CancellationToken::new(), Arc::new(Nowhere::default()))
}

async fn release(world: &World, context: &Context) -> Release {
    let commit = world.source().fetch(context, &Revision::Branch("main".into())).await.unwrap();
    let checkout = world.source().checkout(context, &commit).await.unwrap();
    let image = world.builder().build(context, &checkout).await.unwrap();
    world.source().discard(context, checkout).await.unwrap();
    Release::new(context.deployment(), commit, image)
}

fn live(context: &Context, started: crate::release::Started) -> LiveInstance {
    let instance = context.environment().instances()[0].clone();
    serde_json::from_value(serde_json::json!({ "instance": instance, "started": started })).unwrap()
}

#[tokio::test]
async fn a_release_is_started_once_probed_stopped_and_revived() {
    let world = World::new();
    world.push("main", "first", Behaviour::good().healthy_after(1));
    let context = context(1, 1);
    let (release, instance) = (release(&world, &context).await, context.environment().instances()[0].clone());
    let (runtime, probe) = (world.runtime(), world.probe());
    let started = runtime.start(&context, &instance, &release).await.unwrap();
    assert_eq!(runtime.start(&context, &instance, &release).await.unwrap(), started);
    let check = || probe.check(&context, &instance, &started);
    assert!(matches!(check().await.unwrap(), Check::Failed { .. }));
    assert_eq!(check().await.unwrap(), Check::Passed);
    let live = live(&context, started.clone());
    runtime.stop(&context, &live).await.unwrap();
    assert!(matches!(check().await.unwrap(), Check::Failed { .. }));
    let seen = runtime.inspect(&context, &instance, &started).await.unwrap();
    assert!(matches!(seen, Observation::Down { reason, .. } if reason == "stopped"));
    let revived = runtime.revive(&context, &live, &release).await.unwrap();
    assert_eq!(runtime.revive(&context, &live, &release).await.unwrap(), revived, "found running");
    assert_eq!(world.running(context.environment().name(), &instance.name).len(), 1);
    runtime.withdraw(&context, &instance).await.unwrap();
    assert_eq!(world.running(context.environment().name(), &instance.name), []);
    assert_eq!(world.broken_rules(), [""; 0]);
}

#[tokio::test]
async fn a_call_with_an_older_fence_changes_nothing() {
    let world = World::new();
    world.push("main", "first", Behaviour::good().updates());
    let (old, new) = (context(1, 1), context(1, 2));
    let (release, instance) = (release(&world, &old).await, old.environment().instances()[0].clone());
    world.runtime().withdraw(&new, &instance).await.unwrap();
    let refused = world.runtime().update(&old, &instance, &release).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Permanent);
    assert!(world.runtime().start(&old, &instance, &release).await.is_err());
    assert_eq!(world.data(old.environment().name(), &instance.name), None);
}

#[tokio::test]
async fn a_restore_puts_everything_back_and_a_corrupt_snapshot_nothing() {
    let world = World::new();
    world.push("main", "first", Behaviour::good().update_fails());
    let context = context(1, 1);
    let (release, instance) = (release(&world, &context).await, context.environment().instances()[0].clone());
    let snapshotter = world.snapshotter();
    let before = snapshotter.take(&context, &instance).await.unwrap();
    assert_eq!(before.size_bytes, 0, "no data yet");
    assert!(!snapshotter.changed_since(&context, &instance, &before).await.unwrap());
    let failed = world.runtime().update(&context, &instance, &release).await.unwrap_err();
    assert_eq!((failed.kind(), failed.detail().len()), (ErrorKind::Permanent, 1));
    let name = context.environment().name();
    assert!(world.data(name, &instance.name).is_some_and(|data| data.half_written));
    assert!(snapshotter.changed_since(&context, &instance, &before).await.unwrap());
    snapshotter.restore(&context, &instance, &before).await.unwrap();
    assert_eq!(world.data(name, &instance.name), None);
    world.corrupt_snapshot(&before.reference);
    let corrupt = snapshotter.restore(&context, &instance, &before).await.unwrap_err();
    assert_eq!(corrupt.kind(), ErrorKind::Permanent);
    snapshotter.remove(&context, &before).await.unwrap();
    assert_eq!(world.counts(), [0, 1, 0]);
}

#[tokio::test]
async fn what_no_engine_may_do_is_written_down() {
    let world = World::new();
    world.push("main", "first", Behaviour::good().updates());
    let context = context(1, 1);
    let (release, instance) = (release(&world, &context).await, context.environment().instances()[0].clone());
    let runtime = world.runtime();
    runtime.update(&context, &instance, &release).await.unwrap();
    runtime.update(&context, &instance, &release).await.unwrap();
    runtime.start(&context, &instance, &release).await.unwrap();
    runtime.update(&context, &instance, &release).await.unwrap();
    let rules = world.broken_rules();
    for rule in ["migrated twice", "migrated under a running application"] {
        assert!(rules.iter().any(|broken| broken.contains(rule)), "{rule}: {rules:?}");
    }
}

#[tokio::test]
async fn slow_work_really_stops_when_it_is_cancelled() {
    let world = World::new();
    world.push("main", "first", Behaviour::good().takes(Duration::from_secs(3600)));
    let context = context(1, 1);
    let commit = world.source().fetch(&context, &Revision::Branch("main".into())).await.unwrap();
    let checkout = world.source().checkout(&context, &commit).await.unwrap();
    let builder = world.builder();
    let build = builder.build(&context, &checkout);
    let cancel = async {
        tokio::task::yield_now().await;
        context.cancellation().cancel();
    };
    let (built, ()) = futures::future::join(build, cancel).await;
    assert_eq!(built.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(world.counts(), [1, 0, 0], "no image is left");
}

#[tokio::test]
async fn a_revision_that_fits_no_commit_is_permanent() {
    let source = FakeSource::with_commits(["one", "two"]);
    let context = context(1, 1);
    let head = source.fetch(&context, &Revision::Branch("main".into())).await.unwrap();
    assert_eq!(head.summary, "two");
    let short = Revision::Commit(head.short().to_owned());
    assert_eq!(source.fetch(&context, &short).await.unwrap(), head);
    for revision in
        [Revision::Branch("none".into()), Revision::Tag("v1".into()), Revision::Commit("0".repeat(40))]
    {
        let error = source.fetch(&context, &revision).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{revision}");
    }
}
