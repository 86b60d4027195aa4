//! The bare repositories that are kept here, one for each URL and right to see it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use git2::{Config, ErrorCode, Repository, RepositoryInitOptions};
use ocore_core::port::{Error, Result};
use rustix::fs::{FlockOperation, flock};

use crate::{
    failure::{Fault, of_file},
    location::Location,
    stop::Stop,
};

/// The wait between two looks at a lock that somebody else holds.
const LOCK_SLICE: Duration = Duration::from_millis(50);

/// Where a repository's mirror is.
#[derive(Debug, Clone)]
pub(crate) struct Mirror {
    path: PathBuf,
    lock_path: PathBuf,
}

/// The right to change a mirror, against other threads and processes. Dropping it gives it back; so does the
/// end of the process.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "the open file is what holds the lock")] File);

impl Mirror {
    /// The mirror of a location. What was fetched with an environment's own credentials is seen by this
    /// environment (`scope`) only: without that, whoever knows the URL and a commit's id would see it too.
    pub(crate) fn of(root: &Path, location: &Location, scope: Option<&str>) -> Self {
        let name = format!("{}\n{}", scope.unwrap_or(""), location.normalised());
        let name = blake3::hash(name.as_bytes()).to_hex();
        let directory = root.join("mirrors");
        let (path, lock_path) =
            (directory.join(&name[..32]), directory.join(format!("{}.lock", &name[..32])));
        Self { path, lock_path }
    }

    /// Waits for the right to change the mirror.
    pub(crate) async fn lock(&self, stop: &Stop) -> Result<Lock> {
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&self.lock_path);
        let file = opened.map_err(|error| of_file(error, "open the mirror's lock"))?;
        loop {
            stop.check()?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock(file)),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(of_file(error.into(), "lock the mirror")),
            }
            tokio::select! {
                error = stop.stopped() => return Err(error),
                () = tokio::time::sleep(LOCK_SLICE) => {}
            }
        }
    }

    /// The mirror, if it is there and can be read.
    pub(crate) fn open(&self) -> Result<Option<Repository>, Fault> {
        let opened = Repository::open_bare(&self.path).and_then(|repository| {
            // Only the mirror's own settings: those of a user could lead elsewhere (`url.….insteadOf`).
            repository.set_config(&Config::open(&self.path.join("config"))?)?;
            Ok(repository)
        });
        match opened {
            Ok(repository) => Ok(Some(repository)),
            Err(error) if error.code() == ErrorCode::NotFound && !self.path.exists() => Ok(None),
            Err(error) => Err(Fault::damage(error, "open the mirror")),
        }
    }

    /// The mirror, made if it is not there, without what a killed fetch left behind.
    pub(crate) fn open_or_make(&self, _lock: &Lock) -> Result<Repository, Fault> {
        if let Some(repository) = self.open()? {
            sweep(&self.path).map_err(|error| of_file(error, "tidy the mirror"))?;
            return Ok(repository);
        }
        let mut options = RepositoryInitOptions::new();
        options.bare(true).external_template(false).mkdir(true);
        Repository::init_opts(&self.path, &options)
            .map_err(|error| Fault::damage(error, "make the mirror"))?;
        self.open()?.ok_or_else(|| Error::transient("open the mirror: it is gone again").into())
    }

    /// Removes the mirror. Whoever reads it at this moment gets a transient error.
    pub(crate) fn remove(&self, _lock: &Lock) -> Result<()> {
        remove_directory(&self.path).map_err(|error| of_file(error, "remove the mirror"))
    }

    /// Notes that the mirror was found damaged by a reader, who must not change it.
    pub(crate) fn mark(&self) {
        // Where this fails, the next reader finds the same damage and tries again.
        drop(File::create(self.path.join("damaged")));
    }

    /// Whether a reader found the mirror damaged.
    pub(crate) fn is_marked(&self) -> bool {
        self.path.join("damaged").exists()
    }

    /// How many packs the mirror has.
    pub(crate) fn packs(&self) -> usize {
        let entries = fs::read_dir(self.path.join("objects/pack"));
        let is_pack = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|end| end == "pack");
        entries.map_or(0, |entries| entries.flatten().filter(is_pack).count())
    }
}

/// Removes what a fetch that was killed left: unfinished packs, and locks of references, whose owner is gone, for
/// whoever changes the mirror holds the lock of the whole.
fn sweep(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path.join("objects/pack"))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().contains("_git2_") {
            ignore_missing(fs::remove_file(entry.path()))?;
        }
    }
    let mut directories = vec![path.join("refs")];
    for name in ["HEAD.lock", "config.lock", "packed-refs.lock"] {
        ignore_missing(fs::remove_file(path.join(name)))?;
    }
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            } else if entry.path().extension().is_some_and(|end| end == "lock") {
                ignore_missing(fs::remove_file(entry.path()))?;
            }
        }
    }
    Ok(())
}

/// Removes a directory in one step for whoever looks at it by name, then its content.
pub(crate) fn remove_directory(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let aside = parent.join(format!(".{}.{}.gone", name.to_string_lossy(), uuid::Uuid::new_v4().simple()));
    match fs::rename(path, &aside) {
        Ok(()) => ignore_missing(fs::remove_dir_all(&aside)),
        Err(error) => ignore_missing(Err(error)),
    }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
