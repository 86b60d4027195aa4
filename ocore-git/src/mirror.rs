//! The bare repositories that are kept here, one for each URL and right to see it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use git2::{Config, ErrorClass, ErrorCode, Repository, RepositoryInitOptions};
use ocore_core::port::{Error, Result};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};

use crate::{
    failure::{Fault, of_file},
    leftovers::{ignore_missing, remove_directory, sweep_mirror},
    location::Location,
    stop::Stop,
};

/// The wait between two looks at a lock that somebody else holds.
const LOCK_SLICE: Duration = Duration::from_millis(50);

/// The file that says that a mirror was found damaged.
const MARK: &str = "damaged";

/// Where a repository's mirror is.
#[derive(Debug, Clone)]
pub(crate) struct Mirror {
    path: PathBuf,
    lock_path: PathBuf,
}

/// A mirror that is read.
pub(crate) struct Open {
    pub(crate) repository: Repository,
    directory: File,
}

impl Open {
    /// Notes that this mirror, and no other that may be in its place by now, was found damaged by a reader, who must
    /// not change it.
    pub(crate) fn mark(&self) {
        // Where this fails, the next reader finds the same damage and tries again.
        drop(openat(&self.directory, MARK, OFlags::CREATE | OFlags::WRONLY, Mode::RUSR | Mode::WUSR));
    }
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
    pub(crate) fn open(&self) -> Result<Option<Open>, Fault> {
        // Opened first: if the mirror is replaced meanwhile, a mark is put on the old one.
        let directory = match File::open(&self.path) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(of_file(error, "open the mirror").into()),
        };
        let opened = Repository::open_bare(&self.path).and_then(|repository| {
            // Only the mirror's own settings: those of a user could lead elsewhere (`url.….insteadOf`).
            repository.set_config(&Config::open(&self.path.join("config"))?)?;
            Ok(repository)
        });
        match opened {
            Ok(repository) => Ok(Some(Open { repository, directory })),
            Err(error) if error.code() == ErrorCode::NotFound && !self.path.exists() => Ok(None),
            Err(error) => Err(Fault::of_mirror(error, "open the mirror")),
        }
    }

    /// The mirror, made if it is not there, without what a killed fetch left behind.
    pub(crate) fn open_or_make(&self, _lock: &Lock) -> Result<Repository, Fault> {
        if let Some(Open { repository, .. }) = self.open()? {
            sweep(&self.path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                    let error = git2::Error::new(ErrorCode::NotFound, ErrorClass::Odb, error.to_string());
                    Fault::of_mirror(error, "tidy the mirror")
                }
                _ => of_file(error, "tidy the mirror").into(),
            })?;
            return Ok(repository);
        }
        let mut options = RepositoryInitOptions::new();
        options.bare(true).external_template(false).mkdir(true);
        Repository::init_opts(&self.path, &options)
            .map_err(|error| Fault::of_mirror(error, "make the mirror"))?;
        let made = self.open()?.ok_or_else(|| Error::transient("open the mirror: it is gone again"))?;
        Ok(made.repository)
    }

    /// A place beside this mirror, for another that is to replace it.
    pub(crate) fn beside(&self, _lock: &Lock) -> Self {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let path = self.path.with_file_name(format!(".{name}.{}.new", uuid::Uuid::new_v4().simple()));
        Self { path, lock_path: self.lock_path.clone() }
    }

    /// Puts another mirror in the place of this one. Whoever reads this one at this moment gets a transient error.
    pub(crate) fn replace(&self, other: &Self, _lock: &Lock) -> Result<()> {
        let placed = remove_directory(&self.path).and_then(|()| fs::rename(&other.path, &self.path));
        placed.map_err(|error| of_file(error, "put the new mirror in its place"))
    }

    /// Removes what was left beside the mirror: by processes that are gone, for the lock is held.
    pub(crate) fn sweep_beside(&self, _lock: &Lock) {
        sweep_mirror(&self.path);
    }

    /// Whether a reader found the mirror damaged.
    pub(crate) fn is_marked(&self) -> bool {
        self.path.join(MARK).exists()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_mark_is_put_on_the_mirror_that_was_read() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("mirrors")).unwrap();
        let mirror = Mirror::of(root.path(), &Location::Local("/srv/x".into()), None);
        let lock = mirror.lock(&Stop::for_test(Duration::from_secs(20))).await.unwrap();
        drop(mirror.open_or_make(&lock).unwrap());
        let read = mirror.open().unwrap().unwrap();
        read.mark();
        assert!(mirror.is_marked());
        let other = mirror.beside(&lock);
        drop(other.open_or_make(&lock).unwrap());
        mirror.replace(&other, &lock).unwrap();
        read.mark();
        assert!(!mirror.is_marked(), "the new mirror is not what was read");
        let left: Vec<_> = fs::read_dir(root.path().join("mirrors")).unwrap().flatten().collect();
        assert_eq!(left.len(), 2, "the mirror and its lock: {left:?}");
    }
}
