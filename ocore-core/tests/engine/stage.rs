//! An engine over fakes, under tokio's paused clock: waits cost nothing, and everything has its order.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::BoxFuture;

use ocore_core::{
    deployment::Deployment,
    engine::{Engine, EngineBuilder, EngineError},
    environment::{EnvironmentSpec, InstanceSpec},
    event::{Event, EventKind},
    executor::{Executor, TokioExecutor},
    id::DeploymentId,
    machine::Step,
    name::{EnvironmentName, InstanceName},
    request::DeployRequest,
    testing::{
        fakes::{Behaviour, Data, World},
        memory::MemoryStore,
    },
};
use tokio::{sync::oneshot, task::JoinHandle};

pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) store: MemoryStore,
    pub(crate) engine: Engine,
    worker: Option<Worker>,
}

struct Worker {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), EngineError>>,
}

/// Tokio's clock, with a wall clock that the test sets ahead.
#[derive(Default)]
pub(crate) struct Wall {
    inner: TokioExecutor,
    ahead: Mutex<TimeDelta>,
}

impl Wall {
    pub(crate) fn jump(&self, by: TimeDelta) {
        *self.ahead.lock().unwrap() += by;
    }
}

impl Executor for Wall {
    fn now(&self) -> Duration {
        self.inner.now()
    }
    fn utc(&self) -> DateTime<Utc> {
        self.inner.utc() + *self.ahead.lock().unwrap()
    }
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.inner.sleep(duration)
    }
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.inner.spawn(task);
    }
    fn random(&self) -> u64 {
        self.inner.random()
    }
}

pub(crate) fn shop() -> EnvironmentSpec {
    EnvironmentSpec::new("shop", "https://git.example.org/shop.git")
        .instance(InstanceSpec::new("web").port(8069))
        .policy(|policy| policy.health.deadline = Duration::from_secs(20))
}

pub(crate) fn name() -> EnvironmentName {
    EnvironmentName::new("shop").unwrap()
}

pub(crate) fn web() -> InstanceName {
    InstanceName::new("web").unwrap()
}

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::with(shop(), |builder| builder).await
    }

    /// Without a worker so far.
    pub(crate) async fn with(
        spec: EnvironmentSpec,
        change: impl FnOnce(EngineBuilder) -> EngineBuilder,
    ) -> Self {
        let world = World::new();
        let store = MemoryStore::new(Arc::new(TokioExecutor::new()));
        let engine = change(Self::builder(&world, &store)).build().unwrap();
        engine.save_environment(spec).await.unwrap();
        Self { world, store, engine, worker: None }
    }

    /// On this clock, without a worker so far.
    pub(crate) async fn on(executor: Arc<dyn Executor>, spec: EnvironmentSpec) -> Self {
        let (world, store) = (World::on(executor.clone()), MemoryStore::new(executor.clone()));
        let engine = Self::builder(&world, &store).executor(executor).build().unwrap();
        engine.save_environment(spec).await.unwrap();
        Self { world, store, engine, worker: None }
    }

    pub(crate) fn builder(world: &World, store: &MemoryStore) -> EngineBuilder {
        Engine::builder()
            .store(store.clone())
            .source(world.source())
            .builder(world.builder())
            .snapshotter(world.snapshotter())
            .runtime(world.runtime())
            .probe(world.probe())
    }

    pub(crate) fn work(&mut self) {
        let (stop, stopped) = oneshot::channel();
        let engine = self.engine.clone();
        let task = tokio::spawn(async move { engine.run_until(async { drop(stopped.await) }).await });
        self.worker = Some(Worker { stop, task });
    }

    pub(crate) async fn shut_down(&mut self) {
        let worker = self.worker.take().unwrap();
        worker.stop.send(()).unwrap();
        worker.task.await.unwrap().unwrap();
    }

    /// Asks for a deployment of a new commit.
    pub(crate) async fn ask(&self, message: &str, behaviour: Behaviour) -> DeploymentId {
        self.world.push("main", message, behaviour);
        self.engine.deploy(DeployRequest::manual("shop").actor("ada")).await.unwrap().id
    }

    /// Deploys a new commit, to the end.
    pub(crate) async fn deploy(&self, message: &str, behaviour: Behaviour) -> Deployment {
        let id = self.ask(message, behaviour).await;
        self.end(id).await
    }

    pub(crate) async fn end(&self, id: DeploymentId) -> Deployment {
        self.events(id).await;
        self.engine.deployment(id).await.unwrap()
    }

    /// All events, to the last one.
    pub(crate) async fn events(&self, id: DeploymentId) -> Vec<Event> {
        let mut watch = self.engine.watch(id).await.unwrap();
        let mut events = Vec::new();
        while let Some(event) = watch.next().await.unwrap() {
            events.push(event);
        }
        events
    }

    /// Waits until a worker has begun the step.
    pub(crate) async fn begun(&self, id: DeploymentId, wanted: Step) {
        let mut watch = self.engine.watch(id).await.unwrap();
        while let Some(event) = watch.next().await.unwrap() {
            if matches!(event.kind, EventKind::Began { step } if step == wanted) {
                return;
            }
        }
        panic!("{wanted} was never begun");
    }

    /// The commit that runs in the instance.
    pub(crate) fn running(&self) -> Vec<String> {
        self.world.running(&name(), &web()).into_iter().map(|running| running.sha).collect()
    }

    pub(crate) fn data(&self) -> Option<Data> {
        self.world.data(&name(), &web())
    }

    /// A user writes something.
    pub(crate) fn write(&self) -> u64 {
        self.world.write(&name(), &web()).unwrap().0
    }
}
