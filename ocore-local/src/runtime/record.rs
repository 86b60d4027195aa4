//! What is known about an instance on disk: one record per started process.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ocore_core::{
    environment::Instance,
    id::{DeploymentId, Fence},
    port::{Classify, Context, Error, Result},
    release::Started,
};
use serde::{Deserialize, Serialize};

use super::log;
use crate::{
    durable::{self, At},
    process::Identity,
};

/// The directory of all instances' state, below the root.
pub(crate) const INSTANCES: &str = "instances";
/// How many records of processes that have ended are kept per instance, with their logs.
const ENDED_KEPT: usize = 5;

/// A started process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) deployment: DeploymentId,
    pub(super) fence: Fence,
    pub(super) kind: Kind,
    pub(super) process: Identity,
    /// The process that keeps its log, where it has one.
    pub(super) log_keeper: Option<Identity>,
    /// The pipe that it writes its log to: whoever writes there belongs to it.
    pub(super) pipe: Option<u64>,
    /// What was started: the release, the command and its variables, in short.
    pub(super) digest: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// It serves.
    Web,
    /// It migrates the data and ends.
    Release,
}

impl Kind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Web => crate::procfile::WEB,
            Self::Release => crate::procfile::RELEASE,
        }
    }
}

/// The name of a process before it is made: its record, its log, its mark, and the runtime's reference to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) deployment: DeploymentId,
    pub(super) fence: Fence,
    pub(super) kind: Kind,
}

impl Name {
    fn file(self) -> String {
        format!("{}-{}-{}", self.deployment, self.fence, self.kind.as_str())
    }

    pub(super) fn started(self) -> Started {
        Started::new(format!("{}-{}", self.deployment, self.fence))
    }

    /// The process that a reference of this runtime names.
    pub(super) fn parse(started: &Started) -> Result<Self> {
        let parsed = started.reference.rsplit_once('-').and_then(|(deployment, fence)| {
            let fence = Fence::new(fence.parse().ok()?);
            Some(Self { deployment: deployment.parse().ok()?, fence, kind: Kind::Web })
        });
        parsed.ok_or_else(|| {
            Error::permanent(format!("{:?} is no instance that the local runtime started", started.reference))
        })
    }
}

impl Record {
    pub(super) const fn name(&self) -> Name {
        Name { deployment: self.deployment, fence: self.fence, kind: self.kind }
    }
}

/// The records and logs of one instance.
#[derive(Debug, Clone)]
pub(super) struct Records {
    directory: PathBuf,
}

impl Records {
    /// The directory of an instance's state.
    pub(super) fn directory(root: &Path, context: &Context, instance: &Instance) -> PathBuf {
        let environment = context.environment().name().as_str();
        root.join(INSTANCES).join(environment).join(instance.name.as_str())
    }

    pub(super) const fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(super) fn log(&self, name: Name) -> PathBuf {
        self.directory.join(format!("{}.log", name.file()))
    }

    fn path(&self, name: Name) -> PathBuf {
        self.directory.join(format!("{}.json", name.file()))
    }

    /// Where the worker that started it writes how it ended.
    ///
    /// The file is made with the record, and only then: whoever waits for the end may come after the withdrawal, and
    /// must not bring anything back.
    pub(super) fn ended(&self, name: Name) -> PathBuf {
        self.directory.join(format!("{}.ended", name.file()))
    }

    pub(super) fn write(&self, record: &Record) -> Result<()> {
        let ended = self.ended(record.name());
        fs::write(&ended, "").at("write", &ended)?;
        let path = self.path(record.name());
        let text = serde_json::to_vec(record).permanent("write the record of a process")?;
        durable::write(&path, &text).at("write", &path)
    }

    /// The record of one process, if there is one.
    pub(super) fn read(&self, name: Name) -> Result<Option<Record>> {
        read(&self.path(name))
    }

    pub(super) fn all(&self) -> Result<Vec<Record>> {
        let found = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.at("list", &self.directory)?,
        };
        let mut records = Vec::new();
        for entry in found {
            let path = entry.at("list", &self.directory)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                records.extend(read(&path)?);
            }
        }
        records.sort_by_key(|record| record.fence);
        Ok(records)
    }

    /// Removes a process's record and log.
    pub(super) fn remove(&self, name: Name) -> Result<()> {
        log::remove(&self.log(name));
        remove_file(&self.ended(name))?;
        remove_file(&self.path(name))
    }

    /// Removes every record and log of a deployment, also a log whose process was never recorded.
    pub(super) fn remove_all(&self, deployment: DeploymentId) -> Result<()> {
        let prefix = format!("{deployment}-");
        for entry in fs::read_dir(&self.directory).at("list", &self.directory)? {
            let entry = entry.at("list", &self.directory)?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                remove_file(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Forgets all but the newest of the processes that have ended, and what a worker has left that was killed before it
    /// could record what it started. The caller holds the place, and has ended what is not recorded.
    pub(super) fn prune(&self) -> Result<()> {
        for entry in fs::read_dir(&self.directory).at("list", &self.directory)? {
            let path = entry.at("list", &self.directory)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let unrecorded = name.split_once('.').is_some_and(|(stem, _)| {
                stem.is_empty() || !self.directory.join(format!("{stem}.json")).exists()
            });
            if unrecorded {
                remove_file(&path)?;
            }
        }
        let mut ended = self.all()?;
        ended.retain(|record| record.process.process().is_none());
        let count = ended.len().saturating_sub(ENDED_KEPT);
        ended.iter().take(count).try_for_each(|record| self.remove(record.name()))
    }
}

fn read(path: &Path) -> Result<Option<Record>> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.at("read", path)?,
    };
    let record = serde_json::from_slice(&text).permanent(format!(
        "{} is corrupt or of a newer version: look for the process it names, end it, and remove the file",
        path.display()
    ))?;
    Ok(Some(record))
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", path),
    }
}
