use std::sync::Arc;

use async_trait::async_trait;

use super::StoreResult;
use crate::{
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
