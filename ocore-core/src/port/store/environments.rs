use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::StoreResult;
use crate::{
    deployment::Deployment,
    environment::{Environment, Resource},
    id::{DeploymentId, Fence},
    name::{EnvironmentName, PoolName},
    release::Live,
};

/// The environments and what they serve.
#[async_trait]
pub trait EnvironmentStore: Send + Sync + 'static {
    /// Creates the environment, or replaces its settings. Deployments under way keep the settings that they
    /// started with.
    ///
    /// Refused if another environment uses one of its [resources](Environment::resources), for its settings or for
    /// what it serves, and if it would leave a pool in which it is deployed: [`Occupied::refuse`] says which.
    async fn save_environment(&self, environment: &Environment) -> StoreResult<Saved>;

    /// The environment, if there is one.
    async fn environment(&self, name: &EnvironmentName) -> StoreResult<Option<EnvironmentRecord>>;

    /// All environments, by name. One that this process cannot read is left out, and told in the log: reading it
    /// alone says what is wrong.
    async fn environments(&self) -> StoreResult<Vec<EnvironmentRecord>>;

    /// Pauses the environment, by whom is said, or resumes it. A paused one starts no deployment; one that is under way
    /// goes on. `false` if there is no such environment.
    async fn set_paused(&self, name: &EnvironmentName, by: Option<String>) -> StoreResult<bool>;

    /// A person has looked after what the stranded deployment left: the environment goes on, and remembers it in
    /// [`EnvironmentRecord::acknowledged`]. The deployment's log tells who did that, at this time.
    async fn acknowledge(
        &self,
        name: &EnvironmentName,
        stranded: DeploymentId,
        actor: &str,
        at: DateTime<Utc>,
    ) -> StoreResult<Acknowledged>;
}

/// An environment and what is going on in it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EnvironmentRecord {
    /// Its settings.
    pub environment: Arc<Environment>,
    /// Whether it is paused.
    pub paused: bool,
    /// Who paused it last, if it is paused.
    pub paused_by: Option<String>,
    /// The stranded deployment that a person must look after. Until then, only its recovery is started.
    pub attention: Option<DeploymentId>,
    /// The stranded deployments that were acknowledged since a deployment last ended Running, oldest first: something of
    /// them may run, and nobody knows in which state the data is.
    pub acknowledged: Vec<DeploymentId>,
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
        Self {
            environment,
            paused: false,
            paused_by: None,
            attention: None,
            acknowledged: Vec::new(),
            live: None,
            active: None,
            queued: 0,
            fence: Fence::default(),
        }
    }
}

/// What an environment occupies, as a store looks at it when one is to be saved. A part that cannot be read is left
/// out: it must not keep all others from being saved.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Occupied {
    /// Its name.
    pub environment: EnvironmentName,
    /// Its pool.
    pub pool: PoolName,
    /// Whether something serves, is under way or needs a person: only the workers of its pool can see to that.
    pub deployed: bool,
    /// What nobody else may use.
    pub resources: BTreeSet<Resource>,
}

impl Occupied {
    /// What an environment occupies: the resources of its settings, of what it serves, and of the settings that the
    /// deployment under way has started with.
    #[must_use]
    pub fn new(
        environment: EnvironmentName,
        pool: PoolName,
        deployed: bool,
        settings: Option<&Environment>,
        live: Option<&Live>,
        active: Option<&Deployment>,
    ) -> Self {
        let mut resources = settings.map(Environment::resources).unwrap_or_default();
        let live = live.into_iter().flat_map(|live| live.instances.values());
        resources.extend(live.flat_map(|live| live.instance.resources(&pool)));
        let job = active.and_then(|deployment| deployment.state.job());
        resources.extend(job.into_iter().flat_map(|job| job.environment.resources()));
        Self { environment, pool, deployed, resources }
    }

    /// Why `wanted` cannot be saved as long as this is so.
    #[must_use]
    pub fn refuse(&self, wanted: &Environment) -> Option<Saved> {
        if self.environment == *wanted.name() {
            let moved = self.deployed && self.pool != *wanted.pool();
            return moved.then(|| Saved::Deployed { pool: self.pool.clone() });
        }
        let wanted = wanted.resources();
        let mut clashes =
            wanted.iter().flat_map(|it| self.resources.iter().filter_map(|taken| it.clash(taken)));
        let environment = self.environment.clone();
        clashes.next().map(|resource| Saved::Conflict { resource, environment })
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
    /// It would leave a pool whose workers alone can see to what it serves or what is under way. Nothing is changed.
    Deployed {
        /// The pool.
        pool: PoolName,
    },
    /// Another environment uses the same port or database, or the same data directory, or one that lies in it or
    /// around it. Nothing is changed.
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
