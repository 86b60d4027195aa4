//! What a deployment makes and what it leaves behind: commit, image, release, snapshot, running instances.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    environment::Instance,
    id::DeploymentId,
    name::InstanceName,
    secret::{Redactor, printable},
};

/// Exactly one commit of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Commit {
    /// The full object id in hexadecimal: 40 or 64 digits.
    pub sha: String,
    /// The first line of the message, cut at 200 characters.
    pub summary: String,
    /// The author's name, without the address.
    pub author: String,
    /// When it was committed, by the committer's clock.
    pub time: DateTime<Utc>,
}

impl Commit {
    /// A commit from its parts. Only the message's first line is kept, at most 200 characters of it.
    #[must_use]
    pub fn new(sha: &str, message: &str, author: &str, time: DateTime<Utc>) -> Self {
        let summary = message.lines().next().unwrap_or("").trim().chars().take(200).collect();
        Self { sha: sha.to_owned(), summary, author: author.chars().take(200).collect(), time }
    }

    /// The same commit with texts that can be shown: anybody may have written them.
    pub(crate) fn printable(mut self, redactor: &Redactor) -> Self {
        for text in [&mut self.summary, &mut self.author] {
            *text = printable(redactor, text).chars().take(200).collect();
        }
        self
    }

    /// The first ten digits of the object id.
    #[must_use]
    pub fn short(&self) -> &str {
        self.sha.get(..10).unwrap_or(&self.sha)
    }
}

/// What a [`Builder`](crate::port::Builder) made of a checkout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Image {
    /// The builder's own name for it: an image digest, a directory.
    pub reference: String,
    /// Whether the release has an Update step (a migration) of its own.
    pub has_update: bool,
    /// What the runtime needs to know beside the reference, in the adapters' own words. Never a secret.
    pub settings: BTreeMap<String, String>,
}

impl Image {
    /// An image without an Update step and without settings.
    #[must_use]
    pub fn new(reference: impl Into<String>) -> Self {
        Self { reference: reference.into(), has_update: false, settings: BTreeMap::new() }
    }

    /// The same image, with or without an Update step.
    #[must_use]
    pub const fn with_update(mut self, has_update: bool) -> Self {
        self.has_update = has_update;
        self
    }

    /// The same image with one more setting.
    #[must_use]
    pub fn with_setting(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.insert(key.into(), value.into());
        self
    }
}

/// What runs, or could run again: enough to start it when its container is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Release {
    /// The deployment that built the image.
    pub built_by: DeploymentId,
    /// What it was built from.
    pub commit: Commit,
    /// What was built.
    pub image: Image,
}

impl Release {
    /// A release from its parts.
    #[must_use]
    pub const fn new(built_by: DeploymentId, commit: Commit, image: Image) -> Self {
        Self { built_by, commit, image }
    }
}

/// The runtime's own name for a started instance: a container id, a process with its start time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Started {
    /// The runtime's own name for it.
    pub reference: String,
}

impl Started {
    /// A started instance with this name.
    #[must_use]
    pub fn new(reference: impl Into<String>) -> Self {
        Self { reference: reference.into() }
    }
}

/// A full copy of an instance's data at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// The snapshotter's own name for it: unique, made of deployment, instance and fence.
    pub reference: String,
    /// The moment whose data it holds, by the worker's wall clock.
    pub taken_at: DateTime<Utc>,
    /// What it occupies, in bytes. Zero where the instance had no data yet: restoring it removes the data.
    pub size_bytes: u64,
}

impl Snapshot {
    /// A snapshot from its parts.
    #[must_use]
    pub fn new(reference: impl Into<String>, taken_at: DateTime<Utc>, size_bytes: u64) -> Self {
        Self { reference: reference.into(), taken_at, size_bytes }
    }
}

/// Whether a rollback to a snapshot taken before the stop would lose writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Window {
    /// The snapshot was taken after the stop, or the data's own write counters did not move in between.
    Empty,
    /// Something was written in between, or it cannot be told; the window was this long at most.
    Open(Duration),
}

/// What an environment serves: the newest deployment that became Running, or was put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Live {
    /// The deployment that made it live.
    pub deployment: DeploymentId,
    /// What runs.
    pub release: Arc<Release>,
    /// Where it runs: each instance as it was configured when it was started.
    pub instances: BTreeMap<InstanceName, LiveInstance>,
}

/// One instance of what is live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LiveInstance {
    /// Its configuration when it was started.
    pub instance: Instance,
    /// What the runtime started.
    pub started: Started,
}

impl LiveInstance {
    /// An instance with what was started in it: the engine makes them, and tests of runtimes do too.
    #[must_use]
    pub const fn new(instance: Instance, started: Started) -> Self {
        Self { instance, started }
    }
}
