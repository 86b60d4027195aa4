use chrono::{DateTime, Utc};

use super::{Engine, EngineError, requests::checked, upkeep::decide};
use crate::{
    id::DeploymentId,
    machine::Status,
    name::EnvironmentName,
    port::{Filter, SnapshotPin, SnapshotRecord},
    queue,
    retention::{Protected, Verdict},
    secret::printable,
};

/// A snapshot, and what the next clean-up would do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Planned {
    /// The snapshot.
    pub snapshot: SnapshotRecord,
    /// Whether it stays or goes, and why.
    pub verdict: Verdict,
}

/// A request to keep the snapshots that a deployment took, whatever the rules of retention say.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a request does nothing until it is passed to Engine::pin_snapshot"]
pub struct PinRequest {
    of: DeploymentId,
    actor: String,
    why: String,
    until: Option<DateTime<Utc>>,
}

impl PinRequest {
    /// Pins what this deployment took, until somebody unpins it.
    pub const fn of(of: DeploymentId) -> Self {
        Self { of, actor: String::new(), why: String::new(), until: None }
    }

    /// Who asks; at most 200 characters.
    pub fn actor(mut self, actor: impl Into<String>) -> Self {
        self.actor = actor.into();
        self
    }

    /// Why, for those who find the pin later; at most 200 characters.
    pub fn why(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    /// When the pin ends by itself.
    pub const fn until(mut self, until: DateTime<Utc>) -> Self {
        self.until = Some(until);
        self
    }
}

impl Engine {
    /// The environment's snapshots, oldest first.
    ///
    /// # Errors
    /// [`EngineError::NoSuchEnvironment`].
    pub async fn snapshots(&self, environment: &str) -> Result<Vec<SnapshotRecord>, EngineError> {
        let record = self.environment(environment).await?;
        Ok(self.shared.in_time(self.shared.store.snapshots(record.environment.name())).await?)
    }

    /// What a clean-up of the environment's snapshots would do now, and why, oldest first; nothing is done. It is the
    /// same [`plan`](crate::retention::plan()) that the clean-up follows after each deployment.
    ///
    /// # Errors
    /// [`EngineError::NoSuchEnvironment`].
    pub async fn retention_plan(&self, environment: &str) -> Result<Vec<Planned>, EngineError> {
        let record = self.environment(environment).await?;
        let name = record.environment.name();
        let snapshots = self.shared.in_time(self.shared.store.snapshots(name)).await?;
        let mut protected = Protected::by(&record);
        protected.held = protected.held || self.is_any_needed(name).await?;
        let now = self.shared.clock.at_most();
        let verdicts = decide(&self.shared, &record, &protected, &snapshots, now);
        let planned = snapshots.into_iter().zip(verdicts);
        Ok(planned.map(|(snapshot, (_, verdict))| Planned { snapshot, verdict }).collect())
    }

    /// Whether a rollback or a recovery waits or is under way, as the store asks before it retires a snapshot.
    async fn is_any_needed(&self, environment: &EnvironmentName) -> Result<bool, EngineError> {
        let statuses = vec![Status::Queued, Status::Building, Status::Deploying];
        let filter = Filter { statuses, ..Filter::environment(environment.clone()) };
        let mut before = None;
        loop {
            let page = self.history(&filter, before, usize::MAX).await?;
            // One that cannot be read may be a rollback.
            if !page.unreadable.is_empty() || page.deployments.iter().any(queue::pins_snapshots) {
                return Ok(true);
            }
            let Some(next) = page.next else { return Ok(false) };
            before = Some(next);
        }
    }

    /// Keeps the snapshots that a deployment took, those of all its instances, whatever the rules of retention say. They
    /// hold the data from before it. A pin that they have is replaced.
    ///
    /// # Errors
    /// [`EngineError::NoSuchDeployment`]; [`EngineError::NoSnapshot`] if there is nothing to pin;
    /// [`EngineError::PinEnded`] if it would have ended already; [`EngineError::TooLong`].
    pub async fn pin_snapshot(&self, request: PinRequest) -> Result<SnapshotPin, EngineError> {
        let PinRequest { of: id, actor, why, until } = request;
        let (actor, why) = (checked("actor", actor)?, checked("reason", why)?);
        let now = self.shared.executor.utc();
        if let Some(until) = until.filter(|until| *until <= now) {
            return Err(EngineError::PinEnded { until });
        }
        let environment = self.deployment(id).await?.environment;
        let mut pin = SnapshotPin::new(actor, printable(&self.shared.redactor, &why), now);
        pin.until = until;
        self.set_pin(&environment, id, pin).await
    }

    /// Takes the pin of a deployment's snapshots away. It holds on for a day, in which whoever set it can set it again;
    /// after that they are kept or removed as others are. Asked again, the day does not begin anew.
    ///
    /// # Errors
    /// [`EngineError::NoSuchDeployment`]; [`EngineError::NotPinned`] if they have no pin, or it has ended.
    pub async fn unpin_snapshot(
        &self,
        id: DeploymentId,
        actor: impl Into<String> + Send,
    ) -> Result<SnapshotPin, EngineError> {
        let actor = checked("actor", actor.into())?;
        let environment = self.deployment(id).await?.environment;
        let snapshots = self.shared.in_time(self.shared.store.snapshots(&environment)).await?;
        let pin = snapshots.into_iter().find(|it| it.deployment == id).and_then(|it| it.pin);
        let now = self.shared.executor.utc();
        let pin = pin.filter(|pin| pin.holds(now)).ok_or(EngineError::NotPinned { id })?;
        if pin.unpinned_by.is_some() {
            return Ok(pin);
        }
        self.set_pin(&environment, id, pin.unpinned(actor, now)).await
    }

    async fn set_pin(
        &self,
        environment: &EnvironmentName,
        id: DeploymentId,
        pin: SnapshotPin,
    ) -> Result<SnapshotPin, EngineError> {
        let pinned = self.shared.store.pin_snapshots(environment, id, &pin);
        if self.shared.in_time(pinned).await? { Ok(pin) } else { Err(EngineError::NoSnapshot { id }) }
    }
}
