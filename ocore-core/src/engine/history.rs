use super::{Engine, EngineError, Shared, call::Caller};
use crate::{
    deployment::Deployment,
    event::{Event, EventKind, LogLine},
    id::{DeploymentId, EventSeq},
    port::{Filter, Page, StoreResult},
    queue::Waiting,
    secret::printable,
};

/// The most deployments of one page, and the most events of one read.
const PAGE_LENGTH_MAX: usize = 1000;

/// A deployment with what only a look around shows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Details {
    /// The deployment.
    pub deployment: Deployment,
    /// Whether it is what its environment serves; nothing is while the environment needs attention.
    pub is_live: bool,
    /// Why it waits, if it is queued.
    pub waiting: Option<Waiting>,
    /// The rollbacks to it, the retries and recoveries of it, newest first; at most a hundred.
    pub answered_by: Vec<DeploymentId>,
}

impl Shared {
    /// The newest deployment that matches. One that cannot be read is an error: it might be the one that matters.
    pub(super) async fn newest(&self, filter: &Filter) -> StoreResult<Option<Deployment>> {
        let page = self.store.history(filter, None, 1).await?;
        match page.unreadable.first() {
            Some(id) => self.store.deployment(*id).await,
            None => Ok(page.deployments.into_iter().next()),
        }
    }
}

impl Engine {
    /// One deployment.
    ///
    /// # Errors
    /// [`EngineError::NoSuchDeployment`].
    pub async fn deployment(&self, id: DeploymentId) -> Result<Deployment, EngineError> {
        self.shared
            .in_time(self.shared.store.deployment(id))
            .await?
            .ok_or(EngineError::NoSuchDeployment { id })
    }

    /// One deployment, whether it is live, why it waits, and what answered it.
    ///
    /// # Errors
    /// [`EngineError::NoSuchDeployment`].
    pub async fn details(&self, id: DeploymentId) -> Result<Details, EngineError> {
        let deployment = self.deployment(id).await?;
        let environment = self.environment(deployment.environment.as_str()).await?;
        let filter = Filter { answers: Some(id), ..Filter::environment(deployment.environment.clone()) };
        let answers = self.shared.in_time(self.shared.store.history(&filter, None, 100)).await?.deployments;
        Ok(Details {
            is_live: environment.attention.is_none()
                && environment.live.is_some_and(|live| live.deployment == id),
            waiting: self.waiting(id).await?,
            answered_by: answers.into_iter().map(|deployment| deployment.id).collect(),
            deployment,
        })
    }

    /// Deployments that match, newest first, at most `limit` (1 to 1,000) of them. [`Page::next`] is the `before` of
    /// the next page.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn history(
        &self,
        filter: &Filter,
        before: Option<DeploymentId>,
        limit: usize,
    ) -> Result<Page, EngineError> {
        let page = self.shared.store.history(filter, before, limit.clamp(1, PAGE_LENGTH_MAX));
        Ok(self.shared.in_time(page).await?)
    }

    /// Why a queued deployment waits; `None` if it does not.
    ///
    /// # Errors
    /// [`EngineError::NoSuchDeployment`].
    pub async fn waiting(&self, id: DeploymentId) -> Result<Option<Waiting>, EngineError> {
        let deployment = self.deployment(id).await?;
        let lane = self.shared.in_time(self.shared.store.lane(&deployment.environment)).await?;
        Ok(lane.and_then(|lane| lane.waiting(id)))
    }

    /// The deployment's events after `after`, in order, at most `limit` (1 to 1,000) of them.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn events(
        &self,
        id: DeploymentId,
        after: EventSeq,
        limit: usize,
    ) -> Result<Vec<Event>, EngineError> {
        let events = self.shared.store.events(id, after, limit.clamp(1, PAGE_LENGTH_MAX));
        Ok(self.shared.in_time(events).await?)
    }

    /// The deployment's output after `after`, with each line's place: give the last one to read on.
    ///
    /// # Errors
    /// [`EngineError::NoSuchDeployment`].
    pub async fn logs(
        &self,
        id: DeploymentId,
        after: EventSeq,
    ) -> Result<Vec<(EventSeq, LogLine)>, EngineError> {
        self.deployment(id).await?;
        let (mut lines, mut after) = (Vec::new(), after);
        loop {
            let events = self.events(id, after, PAGE_LENGTH_MAX).await?;
            let Some(last) = events.last() else { return Ok(lines) };
            after = last.seq;
            lines.extend(events.into_iter().filter_map(|event| match event.kind {
                EventKind::Log(line) => Some((event.seq, line)),
                _ => None,
            }));
        }
    }

    /// The last lines that an instance of what serves wrote to its own log, at most `lines` (1 to 1,000) of them.
    ///
    /// # Errors
    /// [`EngineError::NoSuchInstance`] if no such instance serves; [`EngineError::Adapter`] if the runtime fails.
    pub async fn instance_log(
        &self,
        environment: &str,
        instance: &str,
        lines: usize,
    ) -> Result<Vec<String>, EngineError> {
        let record = self.environment(environment).await?;
        let found = record.live.as_ref().and_then(|live| {
            let mut instances = live.instances.values();
            Some((live.deployment, instances.find(|it| it.instance.name.as_str() == instance)?))
        });
        let Some((deployment, live)) = found else {
            let instance = instance.chars().take(40).collect();
            return Err(EngineError::NoSuchInstance {
                environment: record.environment.name().clone(),
                instance,
            });
        };
        let (caller, job) = Caller::outside_of_steps(self.shared.clone(), &record, deployment);
        let context = caller.context(&job).for_instance(&live.instance.name);
        let lines = lines.clamp(1, PAGE_LENGTH_MAX);
        let tail = self.shared.runtime.tail(&context, &live.instance, &live.started, lines);
        let deadline = record.environment.policy().deadlines.start;
        let tail = caller.answer(&context, deadline, tail).await.map_err(EngineError::Adapter)?;
        Ok(tail.iter().map(|line| printable(&self.shared.redactor, line)).collect())
    }
}
