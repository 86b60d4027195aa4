use super::{Engine, EngineError};
use crate::{
    deployment::Deployment,
    id::DeploymentId,
    machine::Status,
    name::EnvironmentName,
    port::{CancelAnswer, Enqueued},
    request::{DeployRequest, Goal, NewDeployment, Push, Request, Revision, Trigger},
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

impl Engine {
    /// Asks for a deployment. Returns as soon as it is stored in the queue.
    ///
    /// # Errors
    /// [`EngineError::NoSuchEnvironment`], [`EngineError::InvalidRevision`], [`EngineError::NoRevision`],
    /// [`EngineError::QueueFull`].
    pub async fn deploy(&self, request: DeployRequest) -> Result<Accepted, EngineError> {
        let record = self.environment(&request.environment).await?;
        let environment = &record.environment;
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
        self.enqueue(environment.name().clone(), request).await
    }

    /// Tells of a push: every environment that maps the branch of this repository, and deploys pushes by itself,
    /// gets a deployment. The delivery's id is the idempotency key: told twice, it is accepted once.
    ///
    /// # Errors
    /// As [`deploy`](Self::deploy). If one environment refuses, those before it have accepted; tell it again.
    pub async fn push(&self, push: Push) -> Result<Vec<Accepted>, EngineError> {
        Revision::Branch(push.branch.clone()).check()?;
        let revision = Revision::Commit(push.commit);
        revision.check()?;
        let mut accepted = Vec::new();
        for record in self.environments().await? {
            let environment = &record.environment;
            let meant = same_repository(environment.repository(), &push.repository)
                && environment.branch().matches(&push.branch)
                && environment.policy().auto_deploy;
            if meant {
                let request = Request {
                    trigger: Trigger::Push,
                    actor: push.actor.clone(),
                    goal: Goal::Deploy(revision.clone()),
                    key: Some(push.delivery.clone()),
                };
                accepted.push(self.enqueue(environment.name().clone(), request).await?);
            }
        }
        Ok(accepted)
    }

    /// Tries a deployment again that did not end Running: a new deployment of the same commit.
    ///
    /// # Errors
    /// [`EngineError::NoSuchDeployment`]; [`EngineError::NotOver`]; [`EngineError::Over`] if it ended Running, or
    /// is a recovery, which [`resolve`](Self::resolve) tries again.
    pub async fn retry(
        &self,
        id: DeploymentId,
        actor: impl Into<String> + Send,
    ) -> Result<Accepted, EngineError> {
        let deployment = self.deployment(id).await?;
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
        let request = Request { trigger: Trigger::Retry { of: id }, actor: actor.into(), goal, key: None };
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

    pub(super) async fn enqueue(
        &self,
        environment: EnvironmentName,
        request: Request,
    ) -> Result<Accepted, EngineError> {
        let mut request = request;
        request.actor = checked("actor", request.actor)?;
        request.key = request.key.map(|key| checked("idempotency key", key)).transpose()?;
        let id = DeploymentId::fresh(&*self.shared.executor);
        let new = NewDeployment { id, environment: environment.clone(), request };
        let enqueued = self.shared.store.enqueue(new, self.shared.executor.utc());
        let answer = self.shared.in_time(enqueued).await?;
        self.shared.tell_of_work();
        let accepted = |deployment: Box<Deployment>, existing, superseded| {
            let Deployment { id, environment, .. } = *deployment;
            Accepted { id, environment, existing, superseded }
        };
        match answer {
            Enqueued::Accepted { deployment, superseded } => Ok(accepted(deployment, false, superseded)),
            Enqueued::Existing(deployment) => Ok(accepted(deployment, true, Vec::new())),
            Enqueued::NoSuchEnvironment => {
                Err(EngineError::NoSuchEnvironment { name: environment.to_string() })
            }
            Enqueued::Full { length_max } => Err(EngineError::QueueFull { environment, length_max }),
            Enqueued::NotWaiting => Err(EngineError::NoAttention { environment }),
        }
    }
}

fn checked(what: &'static str, text: String) -> Result<String, EngineError> {
    if text.chars().count() > TEXT_LENGTH_MAX {
        return Err(EngineError::TooLong { what, length_max: TEXT_LENGTH_MAX });
    }
    Ok(text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
}

/// `https://host/a.git/` and `https://host/a` are one repository.
fn same_repository(one: &str, other: &str) -> bool {
    fn plain(url: &str) -> &str {
        let url = url.trim_end_matches('/');
        url.strip_suffix(".git").unwrap_or(url)
    }
    plain(one) == plain(other)
}
