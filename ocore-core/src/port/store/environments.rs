use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;

use super::StoreResult;
use crate::{
    deployment::Deployment,
    environment::Environment,
    id::{DeploymentId, Fence},
    name::EnvironmentName,
    release::Live,
};

/// The environments and what they serve.
#[async_trait]
pub trait EnvironmentStore: Send + Sync + 'static {
    /// Creates the environment, or replaces its settings. Deployments under way keep the settings that they
    /// started with.
    ///
    /// Refused if another environment uses one of its [resources](Environment::resources), for its settings or for what it serves.
    async fn save_environment(&self, environment: &Environment) -> StoreResult<Saved>;

    /// The environment, if there is one.
    async fn environment(&self, name: &EnvironmentName) -> StoreResult<Option<EnvironmentRecord>>;

    /// All environments, by name.
    async fn environments(&self) -> StoreResult<Vec<EnvironmentRecord>>;

    /// A paused environment starts no deployment; one that is under way goes on. `false` if there is no such
    /// environment.
    async fn set_paused(&self, name: &EnvironmentName, paused: bool) -> StoreResult<bool>;

    /// A person has looked after what the stranded deployment left: the environment goes on.
    async fn acknowledge(&self, name: &EnvironmentName, stranded: DeploymentId) -> StoreResult<Acknowledged>;
}

/// An environment and what is going on in it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EnvironmentRecord {
    /// Its settings.
    pub environment: Arc<Environment>,
    /// Whether it is paused.
    pub paused: bool,
    /// The stranded deployment that a person must look after. Until then, only its recovery is started.
    pub attention: Option<DeploymentId>,
    /// What it serves.
    pub live: Option<Arc<Live>>,
    /// The deployment that is under way.
    pub active: Option<DeploymentId>,
    /// How many deployments wait.
    pub queued: u64,
    /// The lane's fencing token.
    pub fence: Fence,
}

impl EnvironmentRecord {
    /// A new environment: nothing serves, nothing waits.
    #[must_use]
    pub fn new(environment: Arc<Environment>) -> Self {
        let fence = Fence::default();
        Self { environment, paused: false, attention: None, live: None, active: None, queued: 0, fence }
    }

    /// What no other environment may name: the resources of its settings, of what it serves, and of the settings
    /// that the deployment under way has started with.
    #[must_use]
    pub fn resources(&self, active: Option<&Deployment>) -> BTreeSet<String> {
        let pool = self.environment.pool();
        let mut resources = self.environment.resources();
        let live = self.live.iter().flat_map(|live| live.instances.values());
        resources.extend(live.flat_map(|live| live.instance.resources(pool)));
        let job = active.and_then(|deployment| deployment.state.job());
        resources.extend(job.into_iter().flat_map(|job| job.environment.resources()));
        resources
    }
}

/// The answer to saving an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Saved {
    /// It is new.
    Created,
    /// It was there; its settings are replaced.
    Updated,
    /// Another environment uses the same port, database or directory. Nothing is changed.
    Conflict {
        /// What both would use.
        resource: String,
        /// The other environment.
        environment: EnvironmentName,
    },
}

/// The answer to an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Acknowledged {
    /// The environment goes on.
    Done,
    /// The environment does not wait for this deployment, or its recovery is under way or waits.
    NotWaiting,
}
