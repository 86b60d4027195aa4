use chrono::{DateTime, Utc};

use crate::{
    environment::InvalidEnvironment,
    failure::Failure,
    id::DeploymentId,
    machine::Status,
    name::{EnvironmentName, PoolName},
    port::StoreError,
    queue::Waiting,
    request::InvalidRevision,
};

/// Why a request was refused. Nothing was changed, unless the store itself failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// There is no environment of that name.
    #[error("there is no environment {name:?}; save it first, or list the environments to see their names")]
    NoSuchEnvironment {
        /// The name, cut at 40 characters.
        name: String,
    },
    /// There is no such deployment.
    #[error("there is no deployment {id}; the history lists those that exist")]
    NoSuchDeployment {
        /// The id.
        id: DeploymentId,
    },
    /// The environment is not valid.
    #[error(transparent)]
    InvalidEnvironment(#[from] InvalidEnvironment),
    /// Another environment uses the same port, database or directory.
    #[error("environment {environment} uses {resource} already; give this one another")]
    ResourceInUse {
        /// What both would use.
        resource: String,
        /// The other environment.
        environment: EnvironmentName,
    },
    /// The environment is deployed in another pool, whose workers alone can stop what runs there.
    #[error(
        "environment {environment} is deployed in the pool {pool} and cannot move to {wanted}; save another \
         environment there"
    )]
    PoolChanged {
        /// The environment.
        environment: EnvironmentName,
        /// Its pool.
        pool: PoolName,
        /// The pool that it was to move to.
        wanted: PoolName,
    },
    /// The revision cannot name anything in a repository.
    #[error(transparent)]
    InvalidRevision(#[from] InvalidRevision),
    /// The environment maps a pattern of branches, so the request must say which.
    #[error(
        "environment {environment} maps the branches {pattern}; say which branch, tag or commit to deploy"
    )]
    NoRevision {
        /// The environment.
        environment: EnvironmentName,
        /// Its pattern.
        pattern: String,
    },
    /// A text that must not be empty.
    #[error("the {what} is empty; give a unique one, or leave it out")]
    Empty {
        /// Which text.
        what: &'static str,
    },
    /// Too long a text in a request.
    #[error("the {what} has more than {length_max} characters")]
    TooLong {
        /// Which text.
        what: &'static str,
        /// The limit.
        length_max: usize,
    },
    /// The queue is full.
    #[error(
        "{length_max} deployments wait in the queue of {environment} already; cancel some, or raise policy.queue_length_max"
    )]
    QueueFull {
        /// The environment.
        environment: EnvironmentName,
        /// Its limit.
        length_max: usize,
    },
    /// The deployment is over.
    #[error("deployment {id} is over: {status}")]
    Over {
        /// The deployment.
        id: DeploymentId,
        /// How it ended.
        status: Status,
    },
    /// The deployment is being undone; that is not stopped.
    #[error("deployment {id} is being undone already; what served before will serve again")]
    Undoing {
        /// The deployment.
        id: DeploymentId,
    },
    /// The deployment is not over.
    #[error("deployment {id} is not over{}", waiting.map(|waiting| format!(" ({waiting})")).unwrap_or_default())]
    NotOver {
        /// The deployment.
        id: DeploymentId,
        /// Why it waits, if it does.
        waiting: Option<Waiting>,
    },
    /// There is nothing to do: the deployment is what serves.
    #[error("deployment {id} is live already: there is nothing to roll back to")]
    LiveAlready {
        /// The deployment.
        id: DeploymentId,
    },
    /// A rollback to the deployment is not possible.
    #[error("cannot roll back to {id}: {reason}")]
    CannotRollBack {
        /// The deployment.
        id: DeploymentId,
        /// Why, and what can be done instead.
        reason: String,
    },
    /// The deployment has no snapshot that could be kept.
    #[error("deployment {id} has no snapshot: it took none, or retention has removed it")]
    NoSnapshot {
        /// The deployment.
        id: DeploymentId,
    },
    /// The deployment's snapshots have no pin.
    #[error("the snapshots of deployment {id} are not pinned")]
    NotPinned {
        /// The deployment.
        id: DeploymentId,
    },
    /// The pin would have ended before it began.
    #[error("a pin until {until} would have ended already; give a later time, or none")]
    PinEnded {
        /// When it would have ended.
        until: DateTime<Utc>,
    },
    /// The environment waits for nobody.
    #[error("environment {environment} needs no attention, or its recovery is under way")]
    NoAttention {
        /// The environment.
        environment: EnvironmentName,
    },
    /// No such instance serves.
    #[error(
        "environment {environment} serves no instance {instance:?}; its live deployment lists those that it does"
    )]
    NoSuchInstance {
        /// The environment.
        environment: EnvironmentName,
        /// The name, cut at 40 characters.
        instance: String,
    },
    /// An adapter failed.
    #[error("{0}")]
    Adapter(Failure),
    /// The store failed. For a request with an idempotency key it is safe to ask again.
    #[error("the store failed: {0}")]
    Store(#[from] StoreError),
}
