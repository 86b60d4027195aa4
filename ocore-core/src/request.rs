//! What is asked for: who, why, which commit.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{id::DeploymentId, machine::Undo, name::EnvironmentName};

/// Which commit is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Revision {
    /// The head of a branch at the time of the fetch.
    Branch(String),
    /// A tag.
    Tag(String),
    /// A commit by its object id: all 40 (or 64) hexadecimal digits, or the first seven or more.
    Commit(String),
}

impl Revision {
    /// Branch, tag or commit as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Branch(text) | Self::Tag(text) | Self::Commit(text) => text,
        }
    }

    /// Why this cannot name anything in a repository, if it cannot: git's rules for reference names, and for
    /// commits 7 to 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`InvalidRevision`] quotes at most 100 characters.
    pub fn check(&self) -> Result<(), InvalidRevision> {
        let wrong = |reason| {
            let text = self.as_str().chars().take(100).collect();
            Err(InvalidRevision { text, reason })
        };
        match self {
            Self::Commit(sha) if !(7..=64).contains(&sha.len()) => wrong("has not 7 to 64 digits"),
            Self::Commit(sha) if !sha.bytes().all(|b| b.is_ascii_hexdigit()) => wrong("is not hexadecimal"),
            Self::Commit(_) => Ok(()),
            Self::Branch(name) | Self::Tag(name) => check_reference_name(name).or_else(wrong),
        }
    }
}

/// The rules of `git check-ref-format`.
fn check_reference_name(name: &str) -> Result<(), &'static str> {
    let forbidden = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
    if name.is_empty() || name.len() > 255 {
        return Err("is empty or longer than 255 bytes");
    }
    if name.starts_with('-') || name.contains(forbidden) || name.contains("..") || name.contains("@{") {
        return Err("has a character or sequence that git does not allow in a name");
    }
    let bad_part = |part: &str| {
        part.is_empty() || part.starts_with('.') || part.ends_with('.') || part.ends_with(".lock")
    };
    if name == "@" || name.split('/').any(bad_part) {
        return Err("has an empty part, or one that begins or ends with a dot or ends with .lock");
    }
    Ok(())
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Branch(name) => write!(f, "branch {name}"),
            Self::Tag(name) => write!(f, "tag {name}"),
            Self::Commit(sha) => write!(f, "commit {sha}"),
        }
    }
}

/// Why a text names no branch, tag or commit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no branch, tag or commit: it {reason}")]
pub struct InvalidRevision {
    text: String,
    reason: &'static str,
}

/// Who or what asked for a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Trigger {
    /// A push to a mapped branch of an environment that deploys pushes by itself.
    Push,
    /// A person.
    Manual,
    /// Another program.
    Api,
    /// A rollback to an earlier deployment.
    Rollback {
        /// The deployment whose release is to run again.
        to: DeploymentId,
    },
    /// Another try of a deployment that did not end Running.
    Retry {
        /// The deployment that is tried again.
        of: DeploymentId,
    },
    /// The resumed undo of a stranded deployment.
    Recovery {
        /// The stranded deployment.
        of: DeploymentId,
    },
}

impl Trigger {
    /// The trigger's kind as one lower-case word, for filters, columns and tables.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Manual => "manual",
            Self::Api => "api",
            Self::Rollback { .. } => "rollback",
            Self::Retry { .. } => "retry",
            Self::Recovery { .. } => "recovery",
        }
    }
}

/// What a rollback brings back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RollbackMode {
    /// The release and the data that belongs to it.
    #[default]
    CodeAndData,
    /// The release only; the data stays as it is.
    CodeOnly,
}

/// What a deployment is to achieve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Goal {
    /// Make this revision live.
    Deploy(Revision),
    /// Make an earlier deployment's release live again.
    Rollback {
        /// The earlier deployment.
        to: DeploymentId,
        /// With its data or without.
        mode: RollbackMode,
    },
    /// Finish the undo of a stranded deployment.
    Recover(Box<Undo>),
}

/// Everything that a deployment was asked with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Request {
    /// Why.
    pub trigger: Trigger,
    /// Who: a user name, a service, free text of at most 200 characters.
    pub actor: String,
    /// What.
    pub goal: Goal,
    /// A delivery id or idempotency key: a second request with the same one, to the same environment, returns
    /// the deployment that the first one made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// A request to deploy a revision to one environment.
///
/// ```
/// use ocore_core::request::DeployRequest;
/// let request = DeployRequest::manual("production").branch("main").actor("ada");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a request does nothing until it is passed to Engine::deploy"]
pub struct DeployRequest {
    pub(crate) environment: String,
    pub(crate) trigger: Trigger,
    pub(crate) actor: String,
    pub(crate) revision: Option<Revision>,
    pub(crate) key: Option<String>,
}

impl DeployRequest {
    fn new(environment: impl Into<String>, trigger: Trigger) -> Self {
        Self { environment: environment.into(), trigger, actor: String::new(), revision: None, key: None }
    }

    /// Asked by a person.
    pub fn manual(environment: impl Into<String>) -> Self {
        Self::new(environment, Trigger::Manual)
    }

    /// Asked by a program.
    pub fn api(environment: impl Into<String>) -> Self {
        Self::new(environment, Trigger::Api)
    }

    /// Deploys the head of a branch. Without a revision, the environment's own branch is deployed.
    pub fn branch(mut self, branch: impl Into<String>) -> Self {
        self.revision = Some(Revision::Branch(branch.into()));
        self
    }

    /// Deploys a tag.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.revision = Some(Revision::Tag(tag.into()));
        self
    }

    /// Deploys a commit by its full or abbreviated object id.
    pub fn commit(mut self, sha: impl Into<String>) -> Self {
        self.revision = Some(Revision::Commit(sha.into()));
        self
    }

    /// Deploys this revision.
    pub fn revision(mut self, revision: Revision) -> Self {
        self.revision = Some(revision);
        self
    }

    /// Who asks, for the history.
    pub fn actor(mut self, actor: impl Into<String>) -> Self {
        self.actor = actor.into();
        self
    }

    /// A second request with the same key, to the same environment, returns the first one's deployment.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }
}

/// A push, as a git host reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Push {
    /// The repository, as the environments name it.
    pub repository: String,
    /// The branch that was pushed to.
    pub branch: String,
    /// The branch's new head.
    pub commit: String,
    /// The git host's id of this delivery: the same delivery is never accepted twice.
    pub delivery: String,
    /// Who pushed.
    pub actor: String,
}

impl Push {
    /// A push of `commit` to `branch` of `repository`.
    #[must_use]
    pub fn new(
        repository: impl Into<String>,
        branch: impl Into<String>,
        commit: impl Into<String>,
        delivery: impl Into<String>,
    ) -> Self {
        Self {
            repository: repository.into(),
            branch: branch.into(),
            commit: commit.into(),
            delivery: delivery.into(),
            actor: String::new(),
        }
    }

    /// Who pushed, for the history.
    #[must_use]
    pub fn actor(mut self, actor: impl Into<String>) -> Self {
        self.actor = actor.into();
        self
    }
}

/// A deployment as it is handed to the store's queue.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NewDeployment {
    /// Its id, drawn before it is stored, so that asking twice is harmless.
    pub id: DeploymentId,
    /// Its lane.
    pub environment: EnvironmentName,
    /// What is asked.
    pub request: Request,
}

#[cfg(test)]
mod tests {
    use super::Revision;

    fn check(revision: Revision, valid: bool) {
        assert_eq!(revision.check().is_ok(), valid, "{revision:?}");
    }

    #[test]
    fn only_what_git_allows_is_a_revision() {
        for name in ["main", "feature/x", "v1.2.3", "16.0", "a@b"] {
            check(Revision::Branch(name.into()), true);
        }
        for name in [
            "",
            "-x",
            "--upload-pack=x",
            "a..b",
            "a b",
            "a~1",
            "a^",
            "a:b",
            "a\nb",
            "x.lock",
            "/a",
            "a//b",
            "@",
            "a@{1}",
            ".a",
        ] {
            check(Revision::Branch(name.into()), false);
            check(Revision::Tag(name.into()), false);
        }
        check(Revision::Commit("0123abc".into()), true);
        check(Revision::Commit("a".repeat(40)), true);
        check(Revision::Commit("abc".into()), false);
        check(Revision::Commit("HEAD~12".into()), false);
        check(Revision::Commit("a".repeat(65)), false);
    }
}
