use std::path::PathBuf;

use async_trait::async_trait;

use super::{Context, Result};
use crate::{release::Commit, request::Revision};

/// Brings the source here.
///
/// *Laws*: `source_laws!` in the `testing` feature.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// Resolves `revision` in the environment's repository to exactly one commit, and makes that commit available
    /// to [`checkout`](Self::checkout).
    ///
    /// *Called again*: resolves again; a branch may have moved.
    ///
    /// *Errors*: no such branch, tag or commit, an abbreviation that fits several, not authorised, no such host,
    /// not a repository, a protocol that the policy does not allow: permanent. A host that does not answer:
    /// transient.
    ///
    /// *Must not* run anything that the repository brings (hooks, filters), nor send credentials to another host.
    async fn fetch(&self, context: &Context, revision: &Revision) -> Result<Commit>;

    /// Makes a directory of exactly this commit's files, without the repository's own metadata.
    ///
    /// *Called again*: the same files; an unfinished directory of an earlier call is replaced.
    ///
    /// *Errors*: a tree that must not be written (a path with `..`, a link that leaves the tree, a name such as
    /// `.git`), a limit on size: permanent. A commit that is not here: fetches it, as [`fetch`](Self::fetch) does.
    async fn checkout(&self, context: &Context, commit: &Commit) -> Result<Checkout>;

    /// Removes the directory.
    ///
    /// *Called again*: succeeds if it is gone.
    async fn discard(&self, context: &Context, checkout: Checkout) -> Result<()>;
}

/// A directory with exactly one commit's files.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checkout {
    /// Where it is.
    pub path: PathBuf,
    /// Whose files it holds.
    pub commit: Commit,
}

impl Checkout {
    /// The directory `path` with the files of `commit`.
    #[must_use]
    pub const fn new(path: PathBuf, commit: Commit) -> Self {
        Self { path, commit }
    }
}
