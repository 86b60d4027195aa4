//! Environments: what is deployed where, and by which rules.

mod resource;
mod spec;

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::{
    resource::Resource,
    spec::{EnvironmentSpec, InstanceSpec, InvalidEnvironment},
};
use crate::{
    health::HealthPolicy,
    name::{EnvironmentName, InstanceName, PoolName},
    retention::Retention,
    retry::RetryPolicy,
};

/// A deployment stage that has been checked: made from an [`EnvironmentSpec`], which says what each part means.
///
/// Its serde form is the stored one, which is read as it was written: rules that have become stricter since are no
/// reason to lose what runs. What people write is an [`EnvironmentSpec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    name: EnvironmentName,
    pool: PoolName,
    repository: String,
    branch: BranchPattern,
    instances: Vec<Instance>,
    policy: Policy,
}

impl Environment {
    /// Its name, unique in the store.
    #[must_use]
    pub const fn name(&self) -> &EnvironmentName {
        &self.name
    }

    /// The pool whose workers deploy it.
    #[must_use]
    pub const fn pool(&self) -> &PoolName {
        &self.pool
    }

    /// Where the source comes from: a URL, or a path where the Source allows it. Never with credentials.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The branch, or the pattern of branches, that is mapped to it.
    #[must_use]
    pub const fn branch(&self) -> &BranchPattern {
        &self.branch
    }

    /// Its instances: at least one, with distinct names.
    #[must_use]
    pub fn instances(&self) -> &[Instance] {
        &self.instances
    }

    /// Its rules.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The same environment under other rules.
    pub(crate) fn under(&self, policy: &Policy) -> Self {
        Self { policy: policy.clone(), ..self.clone() }
    }

    /// What it uses alone: no other environment of the store may [clash](Resource::clash) with any of these.
    #[must_use]
    pub fn resources(&self) -> BTreeSet<Resource> {
        self.instances.iter().flat_map(|instance| instance.resources(&self.pool)).collect()
    }
}

/// One running copy of the application, with a port, a database and a data directory of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Instance {
    /// Its name, unique in the environment.
    pub name: InstanceName,
    /// The address that probes connect to. Loopback by default.
    pub host: String,
    /// The TCP port that it listens on.
    pub port: Option<u16>,
    /// Its database, for adapters that manage one.
    pub database: Option<String>,
    /// The directory that holds its data, for adapters that manage one.
    pub data_directory: Option<PathBuf>,
    /// Settings for the application, not secret: they are stored and shown.
    pub variables: std::collections::BTreeMap<String, String>,
}

impl Instance {
    /// What this instance must not share with any other of the same pool.
    #[must_use]
    pub fn resources(&self, pool: &PoolName) -> Vec<Resource> {
        let port = self.port.map(|port| Resource::port(pool, port, &self.host));
        let database = self.database.as_ref().map(|name| Resource::database(pool, name));
        let directory = self.data_directory.as_ref().map(|path| Resource::data_directory(pool, path));
        [port, database, directory].into_iter().flatten().collect()
    }
}

/// A branch by name, or with one `*` that stands for any text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BranchPattern(String);

impl BranchPattern {
    /// Whether pushes to `branch` are meant.
    #[must_use]
    pub fn matches(&self, branch: &str) -> bool {
        match self.0.split_once('*') {
            None => self.0 == branch,
            Some((head, tail)) => {
                branch.len() >= head.len() + tail.len() && branch.starts_with(head) && branch.ends_with(tail)
            }
        }
    }

    /// The branch's name, unless it is a pattern.
    #[must_use]
    pub fn exact(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(&self.0)
    }

    /// The pattern as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// When the snapshot of a deployment is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SnapshotWhen {
    /// While the previous version still serves: the downtime is short, but what is written between the snapshot
    /// and the stop is lost by a rollback. The window is recorded.
    #[default]
    BeforeStop,
    /// After the stop: no such window, and a downtime that is longer by the snapshot.
    AfterStop,
}

/// How long each step may take, per instance. Past it the step counts as unanswered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Deadlines {
    /// Fetching the repository, or writing its files. Longer than the Source's own limit, so that the Source says
    /// what took so long.
    pub fetch: Duration,
    /// Building the image.
    pub build: Duration,
    /// Taking a snapshot.
    pub snapshot: Duration,
    /// Stopping an instance, its grace period included.
    pub stop: Duration,
    /// Restoring a snapshot.
    pub restore: Duration,
    /// The Update step.
    pub update: Duration,
    /// Starting, withdrawing and reviving an instance.
    pub start: Duration,
}

impl Default for Deadlines {
    /// 35 minutes to fetch, 1 hour to build, 2 hours for data and migrations, 2 minutes to stop and to start.
    fn default() -> Self {
        Self {
            fetch: Duration::from_secs(35 * 60),
            build: Duration::from_secs(3600),
            snapshot: Duration::from_secs(7200),
            stop: Duration::from_secs(120),
            restore: Duration::from_secs(7200),
            update: Duration::from_secs(7200),
            start: Duration::from_secs(120),
        }
    }
}

/// The rules of an environment. Every one has a default that we run ourselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Policy {
    /// Whether a push to the branch deploys by itself. On by default.
    pub auto_deploy: bool,
    /// Whether a newer push cancels the queued pushes before it that have not started. On by default.
    pub supersede: bool,
    /// When the snapshot is taken.
    pub snapshot: SnapshotWhen,
    /// When an instance counts as healthy.
    pub health: HealthPolicy,
    /// How often a step on the way forward is tried.
    pub retry: RetryPolicy,
    /// How often a step of an undo is tried.
    pub undo_retry: RetryPolicy,
    /// How long each step may take.
    pub deadlines: Deadlines,
    /// Which snapshots and images are kept.
    pub retention: Retention,
    /// How many instances are worked on at the same time. 1 to 64; 4 by default.
    pub parallel_instances: usize,
    /// How many deployments may wait in the queue. 1 to 10,000; 1,000 by default.
    pub queue_length_max: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            auto_deploy: true,
            supersede: true,
            snapshot: SnapshotWhen::default(),
            health: HealthPolicy::default(),
            retry: RetryPolicy::FORWARD,
            undo_retry: RetryPolicy::UNDO,
            deadlines: Deadlines::default(),
            retention: Retention::default(),
            parallel_instances: 4,
            queue_length_max: 1000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::BranchPattern;

    #[test]
    fn one_star_stands_for_any_text() {
        let check = |pattern: &str, branch: &str, expected| {
            assert_eq!(BranchPattern(pattern.into()).matches(branch), expected, "{pattern} {branch}");
        };
        check("main", "main", true);
        check("main", "main2", false);
        check("release/*", "release/1", true);
        check("release/*", "release", false);
        check("*", "x", true);
        check("a*a", "a", false);
        check("a*a", "aa", true);
    }
}
