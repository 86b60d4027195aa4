//! Directories that are removed, and what the dead have left of them.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

/// Removes a directory in one step for whoever looks at it by name, then its content.
pub(crate) fn remove_directory(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let aside = parent.join(format!(".{}.{}.gone", name.to_string_lossy(), uuid::Uuid::new_v4().simple()));
    match fs::rename(path, &aside) {
        Ok(()) => ignore_missing(fs::remove_dir_all(&aside)),
        Err(error) => ignore_missing(Err(error)),
    }
}

pub(crate) fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Holds a file or directory as long as this process lives and the answer is not dropped.
pub(crate) fn hold(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// Removes the checkouts that were never finished, and whose processes are gone.
pub(crate) fn sweep_checkouts(directory: &Path) {
    for name in hidden(directory) {
        let path = directory.join(name);
        if let Ok(_held) = hold(&path) {
            drop(fs::remove_dir_all(&path));
        }
    }
}

/// Removes what was left of mirrors that nobody is changing.
pub(crate) fn sweep_mirrors(directory: &Path) {
    for name in hidden(directory) {
        let mirror = name.split('.').nth(1).unwrap_or_default();
        if let Ok(_lock) = hold(&directory.join(format!("{mirror}.lock"))) {
            drop(fs::remove_dir_all(directory.join(&name)));
        }
    }
}

/// Removes what was left of this mirror, by whoever holds its lock.
pub(crate) fn sweep_mirror(mirror: &Path) {
    let (Some(directory), Some(own)) = (mirror.parent(), mirror.file_name()) else { return };
    let start = format!(".{}.", own.to_string_lossy());
    for name in hidden(directory).into_iter().filter(|name| name.starts_with(&start)) {
        drop(fs::remove_dir_all(directory.join(name)));
    }
}

/// The names that begin with a dot: what is on its way in or out.
fn hidden(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with('.')).collect()
}
