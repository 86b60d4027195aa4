//! Files and directories that are on stable storage when a call returns, and errors that say what to do.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use ocore_core::port::{Classify, Result};

/// Writes a file so that there is the old content or the new, never a part: beside, synced, renamed.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    let beside = path.with_file_name(name);
    let mut file = File::create(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_directory(path.parent().unwrap_or(Path::new("/")))
}

/// Makes what was created, renamed and removed in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes a directory and what is missing above it.
pub(crate) fn create_directories(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_directories(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_directory(path.parent().unwrap_or(Path::new("/"))),
    }
}

/// A part of a name that no other call uses: a call that was dropped works on until it notices, and must find neither
/// what the next one makes nor what it removes.
pub(crate) fn unique() -> String {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", process::id(), CALLS.fetch_add(1, Ordering::Relaxed))
}

/// Removes a directory that somebody may still write into: renamed away, nothing new comes into it, and it never looks
/// whole while it is removed. Succeeds if it is gone.
pub(crate) fn remove_renamed(path: &Path, renamed: &Path) -> io::Result<()> {
    match fs::rename(path, renamed) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => remove_tree(renamed),
    }
}

/// Removes a directory with all that is in it, write-protected directories too. Succeeds if it is gone. Links are
/// removed, never followed.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            unprotect(path)?;
            fs::remove_dir_all(path)
        }
        other => other,
    }
}

fn unprotect(root: &Path) -> io::Result<()> {
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(())
}

/// Classifies an input or output error of a path.
pub(crate) trait At<T> {
    /// Says what was being done and where. What a person must change is permanent; the rest may pass, a full
    /// disk too.
    fn at(self, doing: &str, path: &Path) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, doing: &str, path: &Path) -> Result<T> {
        use io::ErrorKind as Kind;
        let error = match self {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let path = path.display();
        match error.kind() {
            Kind::StorageFull | Kind::QuotaExceeded => Err(error)
                .transient(format!("{doing} {path}: no space is left: free some on its file system")),
            Kind::PermissionDenied => Err(error).permanent(format!(
                "{doing} {path}: the worker's user is not allowed to: change its owner or mode"
            )),
            Kind::NotFound
            | Kind::NotADirectory
            | Kind::IsADirectory
            | Kind::ReadOnlyFilesystem
            | Kind::FileTooLarge
            | Kind::InvalidFilename => Err(error).permanent(format!("{doing} {path}")),
            _ => Err(error).transient(format!("{doing} {path}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protected_tree_is_removed_and_what_a_link_points_to_is_not() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let tree = root.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        for directory in ["a/b", "a"] {
            fs::set_permissions(tree.join(directory), fs::Permissions::from_mode(0o555)).unwrap();
        }
        remove_tree(&tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && outside.join("kept").exists());
    }

    #[test]
    fn the_error_of_a_full_disk_says_so_and_may_pass() {
        let error = Err::<(), _>(io::Error::from_raw_os_error(28)).at("write", Path::new("/x")).unwrap_err();
        assert_eq!(error.kind(), ocore_core::port::ErrorKind::Transient);
        assert!(error.to_string().contains("no space is left"), "{error}");
    }
}
