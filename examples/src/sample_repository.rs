//! A real git repository with real commits of the sample application.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use git2::{IndexAddOption, Repository, RepositoryInitOptions, Signature};

use crate::{
    Result,
    sample_app::{self, MANIFEST, Manifest},
};

/// A git repository whose branch `main` holds the sample application.
pub struct SampleRepository {
    repository: Repository,
    directory: PathBuf,
}

impl SampleRepository {
    /// Makes a repository in `directory`. Its application is the program that is running.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn create(directory: impl AsRef<Path>) -> Result<Self> {
        Self::create_for(directory, &env::current_exe()?)
    }

    /// Makes a repository in `directory`. Its application is `program`, started as the sample application.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn create_for(directory: impl AsRef<Path>, program: &Path) -> Result<Self> {
        let directory = std::path::absolute(directory)?;
        let mut options = RepositoryInitOptions::new();
        let repository = Repository::init_opts(&directory, options.initial_head("main"))?;
        fs::write(directory.join("Procfile"), sample_app::procfile(program)?)?;
        Ok(Self { repository, directory })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Commits a release to `main`; returns the commit's id.
    ///
    /// # Errors
    /// The repository cannot be written.
    pub fn commit(&self, release: &Manifest, message: &str) -> Result<String> {
        fs::write(self.directory.join(MANIFEST), serde_json::to_string_pretty(release)? + "\n")?;
        self.commit_all(message)
    }

    /// Commits whatever is in the directory to `main`; returns the commit's id.
    ///
    /// # Errors
    /// The repository cannot be written.
    pub fn commit_all(&self, message: &str) -> Result<String> {
        let mut index = self.repository.index()?;
        index.add_all(["*"], IndexAddOption::DEFAULT, None)?;
        index.update_all(["*"], None)?;
        index.write()?;
        let tree = self.repository.find_tree(index.write_tree()?)?;
        let author = Signature::now("Ocore Example", "example@localhost")?;
        let parent = match self.repository.head() {
            Ok(head) => Some(head.peel_to_commit()?),
            Err(error) if error.code() == git2::ErrorCode::UnbornBranch => None,
            Err(error) => return Err(error.into()),
        };
        let parents: Vec<_> = parent.iter().collect();
        let id = self.repository.commit(Some("HEAD"), &author, &author, message, &tree, &parents)?;
        Ok(id.to_string())
    }
}
