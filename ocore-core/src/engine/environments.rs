use super::{
    Engine, EngineError,
    requests::{Accepted, checked},
};
use crate::{
    environment::{Environment, EnvironmentSpec},
    id::DeploymentId,
    machine::Outcome,
    name::EnvironmentName,
    port::{Acknowledged, EnvironmentRecord, Filter, Saved},
    request::{Goal, Request, Trigger},
};

/// What to do about an environment that needs attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resolution {
    /// Go on with the undo, as a new deployment that goes before all others.
    Resume,
    /// A person has put things right by hand: the environment goes on as it is. What still runs of the stranded
    /// deployment is withdrawn by the next deployment's Stop. Until a deployment ends Running the stranded one's
    /// snapshot is kept, and a rollback to what served before brings it back.
    Acknowledge,
}

impl Engine {
    /// Saves an environment. Deployments that are under way keep the settings that they started with.
    ///
    /// # Errors
    /// [`EngineError::InvalidEnvironment`] lists every mistake at once; [`EngineError::ResourceInUse`] names the
    /// environment that has the same port, database or directory; [`EngineError::PoolChanged`] if it is deployed in
    /// another pool.
    pub async fn save_environment(&self, spec: EnvironmentSpec) -> Result<Environment, EngineError> {
        let environment = Environment::try_from(spec)?;
        match self.shared.in_time(self.shared.store.save_environment(&environment)).await? {
            Saved::Created | Saved::Updated => Ok(environment),
            Saved::Deployed { pool } => {
                let (environment, wanted) = (environment.name().clone(), environment.pool().clone());
                Err(EngineError::PoolChanged { environment, pool, wanted })
            }
            Saved::Conflict { resource, environment } => {
                Err(EngineError::ResourceInUse { resource, environment })
            }
        }
    }

    /// All environments, by name, and what goes on in them.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn environments(&self) -> Result<Vec<EnvironmentRecord>, EngineError> {
        Ok(self.shared.in_time(self.shared.store.environments()).await?)
    }

    /// One environment, and what goes on in it.
    ///
    /// # Errors
    /// [`EngineError::NoSuchEnvironment`].
    pub async fn environment(&self, name: &str) -> Result<EnvironmentRecord, EngineError> {
        let no_such = || EngineError::NoSuchEnvironment { name: name.chars().take(40).collect() };
        let parsed = EnvironmentName::new(name).map_err(|_| no_such())?;
        self.shared.in_time(self.shared.store.environment(&parsed)).await?.ok_or_else(no_such)
    }

    /// From now on no deployment of the environment is started, until somebody resumes it. One that is under way goes
    /// on. Who paused it last is in the environment's record.
    ///
    /// # Errors
    /// [`EngineError::NoSuchEnvironment`], [`EngineError::TooLong`].
    pub async fn pause(&self, name: &str, actor: impl Into<String> + Send) -> Result<(), EngineError> {
        self.set_paused(name, Some(checked("actor", actor.into())?)).await
    }

    /// Deployments of the environment are started again.
    ///
    /// # Errors
    /// [`EngineError::NoSuchEnvironment`].
    pub async fn resume(&self, name: &str) -> Result<(), EngineError> {
        self.set_paused(name, None).await
    }

    async fn set_paused(&self, name: &str, by: Option<String>) -> Result<(), EngineError> {
        let record = self.environment(name).await?;
        self.shared.in_time(self.shared.store.set_paused(record.environment.name(), by)).await?;
        self.shared.tell_of_work();
        Ok(())
    }

    /// Resolves an environment whose last deployment could not be undone: goes on with the undo, or takes note
    /// that a person has put things right. With [`Resolution::Resume`] the answer is the recovery's deployment.
    ///
    /// Asked again while the recovery waits or is under way, the answer is the same.
    ///
    /// # Errors
    /// [`EngineError::NoAttention`] if the environment waits for nobody.
    pub async fn resolve(
        &self,
        environment: &str,
        resolution: Resolution,
        actor: impl Into<String> + Send,
    ) -> Result<Option<Accepted>, EngineError> {
        let record = self.environment(environment).await?;
        let name = record.environment.name().clone();
        let no_attention = || EngineError::NoAttention { environment: name.clone() };
        let stranded = record.attention.ok_or_else(no_attention)?;
        match resolution {
            Resolution::Acknowledge => {
                let (actor, at) = (checked("actor", actor.into())?, self.shared.executor.utc());
                let acknowledge = self.shared.store.acknowledge(&name, stranded, &actor, at);
                match self.shared.in_time(acknowledge).await? {
                    Acknowledged::Done => {
                        self.shared.tell_of_work();
                        Ok(None)
                    }
                    Acknowledged::NotWaiting => Err(no_attention()),
                }
            }
            Resolution::Resume => {
                let deployment = self.deployment(stranded).await?;
                let Some(Outcome::Stranded { undo, .. }) = deployment.outcome() else {
                    return Err(no_attention());
                };
                let goal = Goal::Recover(undo.clone());
                let trigger = Trigger::Recovery { of: stranded };
                let request = Request { trigger, actor: actor.into(), goal, key: None };
                match self.enqueue(name.clone(), request).await {
                    Err(EngineError::NoAttention { .. }) => self.recovery(&name, stranded).await.map(Some),
                    answer => answer.map(Some),
                }
            }
        }
    }

    /// The recovery of a stranded deployment that is not over.
    async fn recovery(
        &self,
        environment: &EnvironmentName,
        stranded: DeploymentId,
    ) -> Result<Accepted, EngineError> {
        let filter = Filter { answers: Some(stranded), ..Filter::environment(environment.clone()) };
        let newest = self.shared.in_time(self.shared.newest(&filter)).await?;
        let recovery = newest
            .filter(|it| matches!(it.request.trigger, Trigger::Recovery { .. }) && !it.status().is_final());
        let no_attention = || EngineError::NoAttention { environment: environment.clone() };
        recovery.map(Accepted::before).ok_or_else(no_attention)
    }
}
