use chrono::{DateTime, Utc};

use super::{Engine, EngineError};
use crate::{
    deployment::Deployment,
    id::DeploymentId,
    machine::Status,
    name::EnvironmentName,
    port::{CancelAnswer, Enqueued, Filter, StoreResult},
    request::{DeployRequest, Goal, NewDeployment, Push, Request, Revision, Trigger},
    secret::is_printable,
};

/// The longest actor and idempotency key, in characters.
const TEXT_LENGTH_MAX: usize = 200;

/// The answer to a request for a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Accepted {
    /// The deployment.
    pub id: DeploymentId,
    /// Its environment.
    pub environment: EnvironmentName,
    /// Whether the request had been accepted before: the deployment is the one that it made then.
    pub existing: bool,
    /// The queued pushes whose place it took.
    pub superseded: Vec<DeploymentId>,
}

impl Accepted {
    pub(super) fn before(deployment: Deployment) -> Self {
        let Deployment { id, environment, .. } = deployment;
        Self { id, environment, existing: true, superseded: Vec::new() }
    }
}

/// What came of a push: each environment that it is meant for answers for itself.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Pushed {
    /// The deployments of the environments that accepted it.
    pub accepted: Vec<Accepted>,
    /// The environments that refused it, and why. Told again with the same delivery id, those that accepted it
    /// answer as they did, and the others are asked anew.
    pub refused: Vec<(EnvironmentName, EngineError)>,
}

impl Pushed {
    /// The deployments, for those who take the refusal of one environment for that of all.
    ///
    /// # Errors
    /// The first refusal.
    pub fn all(self) -> Result<Vec<Accepted>, EngineError> {
        match self.refused.into_iter().next() {
            Some((_, refusal)) => Err(refusal),
            None => Ok(self.accepted),
        }
    }
}

/// A request to try a deployment again that did not end Running.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a request does nothing until it is passed to Engine::retry"]
pub struct RetryRequest {
    of: DeploymentId,
    actor: String,
    key: Option<String>,
}

impl RetryRequest {
    /// Another try of this deployment.
    pub const fn of(of: DeploymentId) -> Self {
        Self { of, actor: String::new(), key: None }
    }

    /// Who asks, for the history.
    pub fn actor(mut self, actor: impl Into<String>) -> Self {
        self.actor = actor.into();
        self
    }

    /// A second request with the same key returns the first one's deployment.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }
}

impl Engine {
    /// Asks for a deployment. Returns as soon as it is stored in the queue.
    ///
    /// # Errors
    /// [`EngineError::NoSuchEnvironment`], [`EngineError::InvalidRevision`], [`EngineError::NoRevision`],
    /// [`EngineError::QueueFull`], [`EngineError::Empty`], [`EngineError::TooLong`].
    pub async fn deploy(&self, request: DeployRequest) -> Result<Accepted, EngineError> {
        self.deploy_with(request, |new, at| self.shared.store.enqueue(new, at)).await
    }

    /// The same, and `enqueue` is asked instead of the store's own method: a store that can enqueue within a transaction of
    /// the host so does it with what the engine has checked. The answer holds if that transaction commits.
    ///
    /// # Errors
    /// Those of [`deploy`](Self::deploy).
    pub async fn deploy_with<F>(
        &self,
        request: DeployRequest,
        enqueue: impl FnOnce(NewDeployment, DateTime<Utc>) -> F + Send,
    ) -> Result<Accepted, EngineError>
    where
        F: Future<Output = StoreResult<Enqueued>> + Send,
    {
        let record = self.environment(&request.environment).await?;
        let environment = &record.environment;
        if let Some(accepted) = self.accepted_before(environment.name(), request.key.as_deref()).await? {
            return Ok(accepted);
        }
        let revision = match request.revision {
            Some(revision) => revision,
            None => match environment.branch().exact() {
                Some(branch) => Revision::Branch(branch.to_owned()),
                None => {
                    let pattern = environment.branch().as_str().to_owned();
                    return Err(EngineError::NoRevision { environment: environment.name().clone(), pattern });
                }
            },
        };
        revision.check()?;
        let DeployRequest { trigger, actor, key, .. } = request;
        let request = Request { trigger, actor, goal: Goal::Deploy(revision), key };
        self.enqueue_with(environment.name().clone(), request, enqueue).await
    }

    /// Tells of a push: every environment that maps the branch of this repository, and deploys pushes by itself,
    /// gets a deployment. The delivery's id is the idempotency key: told twice, it is accepted once.
    ///
    /// An environment that refuses, because its queue is full or the store fails, keeps no other from accepting: the
    /// answer says who did what.
    ///
    /// # Errors
    /// [`EngineError::InvalidRevision`], [`EngineError::Empty`] and [`EngineError::TooLong`] where the push itself is
    /// wrong; [`EngineError::Store`] if the environments cannot be read.
    pub async fn push(&self, push: Push) -> Result<Pushed, EngineError> {
        let actor = checked("actor", push.actor)?;
        let delivery = checked_key("delivery id", push.delivery)?;
        Revision::Branch(push.branch.clone()).check()?;
        let revision = Revision::Commit(push.commit);
        revision.check()?;
        let mut pushed = Pushed::default();
        for record in self.environments().await? {
            let environment = &record.environment;
            let meant = same_repository(environment.repository(), &push.repository)
                && environment.branch().matches(&push.branch)
                && environment.policy().auto_deploy;
            if meant {
                let request = Request {
                    trigger: Trigger::Push,
                    actor: actor.clone(),
                    goal: Goal::Deploy(revision.clone()),
                    key: Some(delivery.clone()),
                };
                match self.enqueue(environment.name().clone(), request).await {
                    Ok(accepted) => pushed.accepted.push(accepted),
                    Err(refusal) => pushed.refused.push((environment.name().clone(), refusal)),
                }
            }
        }
        Ok(pushed)
    }

    /// Tries a deployment again that did not end Running: a new deployment of the same commit.
    ///
    /// # Errors
    /// [`EngineError::NoSuchDeployment`]; [`EngineError::NotOver`]; [`EngineError::Over`] if it ended Running, or
    /// is a recovery, which [`resolve`](Self::resolve) tries again.
    pub async fn retry(&self, request: RetryRequest) -> Result<Accepted, EngineError> {
        let RetryRequest { of: id, actor, key } = request;
        let deployment = self.deployment(id).await?;
        if let Some(accepted) = self.accepted_before(&deployment.environment, key.as_deref()).await? {
            return Ok(accepted);
        }
        let status = deployment.status();
        if !status.is_final() {
            return Err(EngineError::NotOver { id, waiting: self.waiting(id).await? });
        }
        let goal = match (&deployment.request.goal, &deployment.commit) {
            (Goal::Recover(_), _) => return Err(EngineError::Over { id, status }),
            _ if status == Status::Running => return Err(EngineError::Over { id, status }),
            (Goal::Deploy(_), Some(commit)) => Goal::Deploy(Revision::Commit(commit.sha.clone())),
            (goal, _) => goal.clone(),
        };
        let request = Request { trigger: Trigger::Retry { of: id }, actor, goal, key };
        self.enqueue(deployment.environment, request).await
    }

    /// Cancels a deployment. A queued one is over at once; one that is under way is stopped, and undone if it has
    /// touched anything. Returns when the wish is stored; [`watch`](Self::watch) tells when it is done.
    ///
    /// # Errors
    /// [`EngineError::Over`], [`EngineError::Undoing`], [`EngineError::NoSuchDeployment`].
    pub async fn cancel(&self, id: DeploymentId, actor: impl Into<String> + Send) -> Result<(), EngineError> {
        let (actor, at) = (checked("actor", actor.into())?, self.shared.executor.utc());
        let answer = self.shared.in_time(self.shared.store.request_cancel(id, &actor, at)).await?;
        self.shared.tell_of_work();
        match answer {
            CancelAnswer::Cancelled | CancelAnswer::Requested => Ok(()),
            CancelAnswer::Undoing => Err(EngineError::Undoing { id }),
            CancelAnswer::Over(status) => Err(EngineError::Over { id, status }),
            CancelAnswer::NoSuchDeployment => Err(EngineError::NoSuchDeployment { id }),
        }
    }

    /// What a request with this key, to this environment, was answered before: asking again gives that answer, even
    /// if it would be refused by now.
    pub(super) async fn accepted_before(
        &self,
        environment: &EnvironmentName,
        key: Option<&str>,
    ) -> Result<Option<Accepted>, EngineError> {
        let Some(key) = key else { return Ok(None) };
        let key = Some(checked_key("idempotency key", key.to_owned())?);
        let filter = Filter { key, ..Filter::environment(environment.clone()) };
        Ok(self.shared.in_time(self.shared.newest(&filter)).await?.map(Accepted::before))
    }

    pub(super) async fn enqueue(
        &self,
        environment: EnvironmentName,
        request: Request,
    ) -> Result<Accepted, EngineError> {
        self.enqueue_with(environment, request, |new, at| self.shared.store.enqueue(new, at)).await
    }

    async fn enqueue_with<F>(
        &self,
        environment: EnvironmentName,
        request: Request,
        enqueue: impl FnOnce(NewDeployment, DateTime<Utc>) -> F + Send,
    ) -> Result<Accepted, EngineError>
    where
        F: Future<Output = StoreResult<Enqueued>> + Send,
    {
        let mut request = request;
        request.actor = checked("actor", request.actor)?;
        request.key = request.key.map(|key| checked_key("idempotency key", key)).transpose()?;
        let id = DeploymentId::fresh(&*self.shared.executor);
        let new = NewDeployment { id, environment: environment.clone(), request };
        let answer = self.shared.in_time(enqueue(new, self.shared.executor.utc())).await?;
        self.shared.tell_of_work();
        match answer {
            Enqueued::Accepted { deployment, superseded } => {
                Ok(Accepted { id: deployment.id, environment, existing: false, superseded })
            }
            Enqueued::Existing(deployment) => Ok(Accepted::before(*deployment)),
            Enqueued::NoSuchEnvironment => {
                Err(EngineError::NoSuchEnvironment { name: environment.to_string() })
            }
            Enqueued::Full { length_max } => Err(EngineError::QueueFull { environment, length_max }),
            Enqueued::NotWaiting => Err(EngineError::NoAttention { environment }),
        }
    }
}

/// An empty key would be the key of everybody who has none.
fn checked_key(what: &'static str, key: String) -> Result<String, EngineError> {
    if key.trim().is_empty() {
        return Err(EngineError::Empty { what });
    }
    checked(what, key)
}

pub(super) fn checked(what: &'static str, text: String) -> Result<String, EngineError> {
    if text.chars().count() > TEXT_LENGTH_MAX {
        return Err(EngineError::TooLong { what, length_max: TEXT_LENGTH_MAX });
    }
    Ok(text.chars().map(|c| if is_printable(c) { c } else { ' ' }).collect())
}

/// `https://host/a.git/` and `https://host/a` are one repository.
fn same_repository(one: &str, other: &str) -> bool {
    fn plain(url: &str) -> &str {
        let url = url.trim_end_matches('/');
        url.strip_suffix(".git").unwrap_or(url)
    }
    plain(one) == plain(other)
}
