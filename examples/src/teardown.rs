//! Stops instances without deploying anything: what a platform does when an environment is taken away.

use std::sync::Arc;

use ocore_core::{
    engine::Engine,
    environment::Instance,
    event::{Progress, Stream},
    name::InstanceName,
    port::{Context, EnvironmentRecord, Runtime, Sink},
    secret::Secret,
};
use tokio_util::sync::CancellationToken;

use crate::Result;

/// Stops every instance of every environment, and what a deployment under way has started. No worker may run.
///
/// # Errors
/// An instance does not stop.
pub async fn stop_everything(engine: &Engine, runtime: &impl Runtime) -> Result<()> {
    for record in engine.environments().await? {
        stop_environment(&record, runtime).await?;
    }
    Ok(())
}

/// Stops the instances of one environment, and what a deployment under way has started. No worker may run.
///
/// # Errors
/// An instance does not stop.
pub async fn stop_environment(record: &EnvironmentRecord, runtime: &impl Runtime) -> Result<()> {
    let context = |deployment, instance: &Instance| {
        let token = CancellationToken::new();
        let context =
            Context::new(deployment, record.environment.clone(), record.fence, token, Arc::new(Silent));
        context.for_instance(&instance.name)
    };
    if let Some(live) = &record.live {
        for it in live.instances.values() {
            runtime.stop(&context(live.deployment, &it.instance), it).await?;
        }
    }
    if let Some(active) = record.active {
        for instance in record.environment.instances() {
            runtime.withdraw(&context(active, instance), instance).await?;
        }
    }
    Ok(())
}

struct Silent;

impl Sink for Silent {
    fn log(&self, _: Option<&InstanceName>, _: Stream, _: &str) {}
    fn progress(&self, _: Option<&InstanceName>, _: Progress) {}
    fn hide(&self, _: &Secret) {}
}
