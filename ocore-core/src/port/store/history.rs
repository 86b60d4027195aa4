use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::StoreResult;
use crate::{deployment::Deployment, id::DeploymentId, machine::Status, name::EnvironmentName};

/// The deployments of all times.
#[async_trait]
pub trait HistoryStore: Send + Sync + 'static {
    /// One deployment.
    async fn deployment(&self, id: DeploymentId) -> StoreResult<Option<Deployment>>;

    /// Deployments that match, newest first: by their place in the lane if the filter names an environment, else
    /// by the order in which the store accepted them. At most `limit` of them, beginning after the deployment `before`.
    async fn history(&self, filter: &Filter, before: Option<DeploymentId>, limit: usize)
    -> StoreResult<Page>;
}

/// Which deployments are meant. The default matches all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Filter {
    /// Of this environment.
    pub environment: Option<EnvironmentName>,
    /// With one of these statuses; any if empty.
    pub statuses: Vec<Status>,
    /// With one of these [kinds of trigger](crate::request::Trigger::kind); any if empty.
    pub triggers: Vec<String>,
    /// Requested at this time or later.
    pub since: Option<DateTime<Utc>>,
    /// Requested before this time.
    pub until: Option<DateTime<Utc>>,
    /// That answer this deployment: the rollbacks to it, and the retries and recoveries of it.
    pub answers: Option<DeploymentId>,
    /// Accepted with this delivery id or idempotency key.
    pub key: Option<String>,
    /// That replaced this deployment as the live one.
    pub replaced: Option<DeploymentId>,
}

impl Filter {
    /// All deployments of an environment.
    #[must_use]
    pub fn environment(name: EnvironmentName) -> Self {
        Self { environment: Some(name), ..Self::default() }
    }

    /// Whether a deployment matches: what every store's query must agree with.
    #[must_use]
    pub fn matches(&self, deployment: &Deployment) -> bool {
        self.environment.as_ref().is_none_or(|name| *name == deployment.environment)
            && (self.statuses.is_empty() || self.statuses.contains(&deployment.status()))
            && (self.triggers.is_empty()
                || self.triggers.iter().any(|kind| kind == deployment.request.trigger.kind()))
            && self.since.is_none_or(|since| deployment.requested_at >= since)
            && self.until.is_none_or(|until| deployment.requested_at < until)
            && self
                .answers
                .is_none_or(|id| [deployment.answers(), deployment.rolls_back_to()].contains(&Some(id)))
            && self.key.as_ref().is_none_or(|key| deployment.request.key.as_ref() == Some(key))
            && self.replaced.is_none_or(|id| deployment.replaced == Some(id))
    }
}

/// A part of the history.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Page {
    /// The deployments, newest first.
    pub deployments: Vec<Deployment>,
    /// What to give as `before` for the next page, if there is one.
    pub next: Option<DeploymentId>,
    /// Those that belong to this page and that this process cannot read: reading each alone says what is wrong.
    pub unreadable: Vec<DeploymentId>,
}

impl Page {
    /// A page.
    #[must_use]
    pub const fn new(deployments: Vec<Deployment>, next: Option<DeploymentId>) -> Self {
        Self { deployments, next, unreadable: Vec::new() }
    }
}
