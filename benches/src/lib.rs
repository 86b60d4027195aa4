//! What the benches share: adapters that do nothing, so that what is left is the engine; processor time; the table.

pub mod cpu;
pub mod table;

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use chrono::DateTime;
use ocore_core::{
    engine::Engine,
    environment::{EnvironmentSpec, Instance, InstanceSpec},
    executor::TokioExecutor,
    id::DeploymentId,
    port::{
        Builder, Check, Checkout, Context, HealthProbe, Leftovers, Observation, Result, Runtime, Snapshotter,
        Source, Store,
    },
    release::{Commit, Image, LiveInstance, Release, Snapshot, Started},
    request::{DeployRequest, Revision},
    testing::memory::MemoryStore,
};

/// Every port but the store, answering at once.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::exhaustive_structs, reason = "there is nothing in it")]
pub struct Nothing;

#[async_trait]
impl Source for Nothing {
    async fn fetch(&self, _: &Context, _: &Revision) -> Result<Commit> {
        Ok(Commit::new(&"a".repeat(40), "nothing", "nobody", DateTime::UNIX_EPOCH))
    }
    async fn checkout(&self, _: &Context, commit: &Commit) -> Result<Checkout> {
        Ok(Checkout::new(PathBuf::from("/nowhere"), commit.clone()))
    }
    async fn discard(&self, _: &Context, _: Checkout) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Builder for Nothing {
    async fn build(&self, context: &Context, _: &Checkout) -> Result<Image> {
        Ok(Image::new(context.deployment().to_string()))
    }
    async fn locate(&self, _: &Context, _: &Image) -> Result<bool> {
        Ok(true)
    }
    async fn remove(&self, _: &Context, _: &Image) -> Result<()> {
        Ok(())
    }
    async fn sweep(&self, _: &Context, _: &Leftovers) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Snapshotter for Nothing {
    async fn take(&self, context: &Context, _: &Instance) -> Result<Snapshot> {
        Ok(Snapshot::new(context.deployment().to_string(), DateTime::UNIX_EPOCH, 0))
    }
    async fn restore(&self, _: &Context, _: &Instance, _: &Snapshot) -> Result<()> {
        Ok(())
    }
    async fn changed_since(&self, _: &Context, _: &Instance, _: &Snapshot) -> Result<bool> {
        Ok(false)
    }
    async fn remove(&self, _: &Context, _: &Snapshot) -> Result<()> {
        Ok(())
    }
    async fn sweep(&self, _: &Context, _: &Leftovers) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Runtime for Nothing {
    async fn stop(&self, _: &Context, _: &LiveInstance) -> Result<()> {
        Ok(())
    }
    async fn update(&self, _: &Context, _: &Instance, _: &Release) -> Result<()> {
        Ok(())
    }
    async fn start(&self, context: &Context, _: &Instance, _: &Release) -> Result<Started> {
        Ok(Started::new(context.deployment().to_string()))
    }
    async fn withdraw(&self, _: &Context, _: &Instance) -> Result<()> {
        Ok(())
    }
    async fn revive(&self, _: &Context, live: &LiveInstance, _: &Release) -> Result<Started> {
        Ok(live.started.clone())
    }
    async fn inspect(&self, _: &Context, _: &Instance, _: &Started) -> Result<Observation> {
        Ok(Observation::Up)
    }
    async fn tail(&self, _: &Context, _: &Instance, _: &Started, _: usize) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl HealthProbe for Nothing {
    async fn check(&self, _: &Context, _: &Instance, _: &Started) -> Result<Check> {
        Ok(Check::Passed)
    }
}

/// An engine over a store and adapters that do nothing.
///
/// # Panics
/// Never: everything that an engine needs is given.
#[must_use]
pub fn engine(store: impl Store) -> Engine {
    let builder = Engine::builder().store(store).source(Nothing).builder(Nothing);
    let builder = builder.snapshotter(Nothing).runtime(Nothing).probe(Nothing);
    builder.workers(4).build().expect("every adapter is given")
}

/// A store in memory, by tokio's clock.
#[must_use]
pub fn memory_store() -> MemoryStore {
    MemoryStore::new(Arc::new(TokioExecutor::new()))
}

/// Saves an environment with one instance that is healthy at its first answer.
///
/// # Panics
/// If the store fails.
pub async fn save_environment(engine: &Engine, name: &str) {
    let spec = EnvironmentSpec::new(name, "https://git.example.org/nothing.git")
        .instance(InstanceSpec::new("web"))
        .policy(|policy| policy.health.passes = 1);
    engine.save_environment(spec).await.expect("the environment is valid");
}

/// Asks for a deployment and follows it to its end.
///
/// # Panics
/// If the store fails.
pub async fn deploy(engine: &Engine, environment: &str) -> DeploymentId {
    let accepted = engine.deploy(DeployRequest::api(environment)).await.expect("the request is valid");
    let mut events = engine.watch(accepted.id).await.expect("it was accepted");
    while events.next().await.expect("the store works").is_some() {}
    accepted.id
}

#[cfg(test)]
mod tests {
    use ocore_core::{machine::Status, port::Filter};

    use super::*;

    #[tokio::test]
    async fn what_is_measured_are_deployments_that_end_running() {
        let engine = engine(memory_store());
        save_environment(&engine, "bench").await;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let worker = tokio::spawn({
            let engine = engine.clone();
            async move { engine.run_until(async { drop(stopped.await) }).await }
        });
        for _ in 0..3 {
            let id = deploy(&engine, "bench").await;
            assert_eq!(engine.deployment(id).await.unwrap().status(), Status::Running);
        }
        drop(stop);
        worker.await.unwrap().unwrap();
        assert_eq!(engine.history(&Filter::default(), None, 10).await.unwrap().deployments.len(), 3);
    }
}
