//! The directory of all snapshots: each has a directory of its own, made beside and renamed into place.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use ocore_core::{
    id::DeploymentId,
    name::InstanceName,
    port::{Classify as _, Context, Error, Leftovers, Result},
};

use super::manifest::{FILE_NAME, Manifest};

/// The dump's file in a snapshot's directory, and what it is called until it is complete.
pub(super) const DUMP: &str = "database.dump.zst";
pub(super) const DUMP_PARTIAL: &str = "database.dump.zst.partial";
const PARTIAL: &str = ".partial";

/// The directory of all snapshots. Only the worker's user can read what is in it.
#[derive(Debug, Clone)]
pub(super) struct Shelf(PathBuf);

/// A snapshot's directory that is not finished. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    kept: bool,
}

impl Shelf {
    pub(super) const fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The directory of a snapshot, if its reference is a name that this snapshotter gives.
    pub(super) fn place(&self, reference: &str) -> Result<PathBuf> {
        if is_reference(reference) {
            return Ok(self.0.join(reference));
        }
        let shown: String = reference.chars().take(100).collect();
        Err(Error::permanent(format!("{shown:?} is no snapshot of the PostgreSQL snapshotter")))
    }

    /// Makes the directory of all snapshots.
    pub(super) fn prepare(&self) -> Result<()> {
        at(DirBuilder::new().recursive(true).mode(0o700).create(&self.0), "make", &self.0)
    }

    /// A reference that no snapshot has: one of this very fence may be there, taken by a call whose answer was lost.
    pub(super) fn free_reference(&self, context: &Context, instance: &InstanceName) -> String {
        let name = format!("{}-{instance}-{}", context.deployment(), context.fence());
        let numbered = (1..).map(|number| format!("{name}.{number}"));
        let mut names = std::iter::once(name.clone()).chain(numbered);
        names.find(|name| !self.0.join(name).exists()).expect("there are more numbers than snapshots")
    }

    /// A place beside, of this database and only this call.
    pub(super) fn begin(&self, reference: &str, database: &str) -> Result<Partial> {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        let call = format!("{}-{}", process::id(), CALLS.fetch_add(1, Ordering::Relaxed));
        let path = self.0.join(format!("{reference}.{}.{call}{PARTIAL}", key(database)));
        at(DirBuilder::new().mode(0o700).create(&path), "make", &path)?;
        Ok(Partial { path, kept: false })
    }

    /// Removes what earlier calls for a database have left unfinished. Whoever asks is alone with the database.
    pub(super) fn remove_unfinished(&self, database: &str) -> Result<()> {
        let part = format!(".{}.", key(database));
        for name in self.names()?.iter().filter(|name| name.ends_with(PARTIAL) && name.contains(&part)) {
            let path = self.0.join(name);
            at(remove_tree(&path), "remove", &path)?;
        }
        Ok(())
    }

    /// Removes a snapshot's directory, so that it never looks whole while that lasts. Succeeds if it is gone.
    pub(super) fn remove(&self, reference: &str) -> Result<()> {
        let path = self.place(reference)?;
        let renamed = self.0.join(format!("{reference}.removed-{}{PARTIAL}", process::id()));
        at(remove_tree(&renamed), "remove", &renamed)?;
        match fs::rename(&path, &renamed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => at(other, "remove", &path)?,
        }
        at(remove_tree(&renamed), "remove", &renamed)?;
        at(sync_directory(&self.0), "write", &self.0)
    }

    /// The names of everything: of snapshots, and of what is not finished.
    fn names(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => at(other, "list", &self.0)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            // Other names are not of our making.
            names.extend(at(entry, "list", &self.0)?.file_name().into_string());
        }
        Ok(names)
    }

    /// The references of all finished snapshots.
    pub(super) fn references(&self) -> Result<Vec<String>> {
        Ok(self.names()?.into_iter().filter(|name| is_reference(name)).collect())
    }

    /// The snapshots that are left over; what is left over and unfinished is removed.
    pub(super) fn leftovers(&self, leftovers: &Leftovers) -> Result<Vec<String>> {
        let is_left =
            |name: &String| made_for(name).is_some_and(|made_for| leftovers.include(made_for, name));
        let (unfinished, finished): (Vec<_>, Vec<_>) =
            self.names()?.into_iter().filter(is_left).partition(|name| name.ends_with(PARTIAL));
        for name in unfinished {
            let path = self.0.join(name);
            at(remove_tree(&path), "remove", &path)?;
        }
        Ok(finished.into_iter().filter(|name| is_reference(name)).collect())
    }
}

impl Partial {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the manifest, last, and renames the directory into place; everything is on stable storage then.
    pub(super) fn finish(mut self, shelf: &Shelf, manifest: &Manifest) -> Result<()> {
        let directory = shelf.place(&manifest.reference)?;
        write(&self.path.join(FILE_NAME), &manifest.seal()?)?;
        at(sync_directory(&self.path), "write", &self.path)?;
        at(fs::rename(&self.path, &directory), "rename into place", &directory)?;
        self.kept = true;
        at(sync_directory(shelf.path()), "write", shelf.path())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            // The next call removes what this one cannot.
            drop(remove_tree(&self.path));
        }
    }
}

/// Replaces the manifest of a finished snapshot: the old one or the new one, never a part.
pub(super) fn replace_manifest(directory: &Path, manifest: &Manifest) -> Result<()> {
    let (path, beside) = (directory.join(FILE_NAME), directory.join("manifest.json.partial"));
    at(remove_file(&beside), "remove", &beside)?;
    write(&beside, &manifest.seal()?)?;
    at(fs::rename(&beside, &path), "rename into place", &path)?;
    at(sync_directory(directory), "write", directory)
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = create(path)?;
    at(file.write_all(content), "write", path)?;
    at(file.sync_all(), "write", path)
}

/// A new file that only the worker's user can read.
pub(super) fn create(path: &Path) -> Result<File> {
    at(OpenOptions::new().write(true).create_new(true).mode(0o600).open(path), "make", path)
}

/// Makes what was created, renamed and removed in a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Removes a file. Succeeds if it is gone.
pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// How many bytes are free on a path's file system, if those are fewer than what is needed.
pub(super) fn too_little(path: &Path, needed: u64) -> Option<u64> {
    let system = rustix::fs::statvfs(path).ok()?;
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    (free < needed).then_some(free)
}

/// Classifies an input or output error of a path: what a person must change is permanent, a full disk may pass.
pub(super) fn at<T>(result: io::Result<T>, doing: &str, path: &Path) -> Result<T> {
    use io::ErrorKind as Kind;
    let error = match result {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let path = path.display();
    match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded => {
            Err(error).transient(format!("{doing} {path}: no space is left: free some on its file system"))
        }
        Kind::PermissionDenied => Err(error).permanent(format!(
            "{doing} {path}: the worker's user is not allowed to: change its owner or mode"
        )),
        Kind::NotFound | Kind::NotADirectory | Kind::ReadOnlyFilesystem => {
            Err(error).permanent(format!("{doing} {path}"))
        }
        _ => Err(error).transient(format!("{doing} {path}")),
    }
}

/// A part of a name that stands for a database.
fn key(database: &str) -> String {
    blake3::hash(database.as_bytes()).to_hex()[..16].to_owned()
}

/// `DEPLOYMENT-INSTANCE-FENCE`, or that with a dot and a number.
fn is_reference(name: &str) -> bool {
    let parse = || {
        let (deployment, rest) = name.split_at_checked(36)?;
        let (instance, number) = rest.strip_prefix('-')?.rsplit_once('-')?;
        let mut parts = number.split('.');
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let numbers =
            parts.next().is_some_and(digits) && parts.next().is_none_or(digits) && parts.next().is_none();
        let _: DeploymentId = deployment.parse().ok()?;
        let _ = InstanceName::new(instance).ok()?;
        numbers.then_some(())
    };
    parse().is_some()
}

/// The deployment that something was made for, by its name.
pub(super) fn made_for(name: &str) -> Option<DeploymentId> {
    let (deployment, rest) = name.split_at_checked(36)?;
    rest.strip_prefix('-')?;
    deployment.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_own_are_paths() {
        let id = "00000000-0000-0000-0000-00000000002a";
        let check = |name: &str, expected| assert_eq!(is_reference(name), expected, "{name}");
        check(&format!("{id}-web-7"), true);
        check(&format!("{id}-web-2-7.1"), true);
        check(&format!("{id}-web-7.1.2"), false);
        check(&format!("{id}-web-"), false);
        check(&format!("{id}-../x-7"), false);
        check(&format!("{id}-web-7.abc.1-2.partial"), false);
        check("../../etc", false);
        check("", false);
    }

    #[test]
    fn what_is_unfinished_is_removed_when_it_is_given_up() {
        let root = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(root.path().join("snapshots"));
        shelf.prepare().unwrap();
        let partial = shelf.begin("00000000-0000-0000-0000-00000000002a-web-7", "shop").unwrap();
        fs::write(partial.path().join(DUMP), "x").unwrap();
        assert_eq!(shelf.names().unwrap().len(), 1);
        drop(partial);
        assert!(shelf.names().unwrap().is_empty());
    }
}
