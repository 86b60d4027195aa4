//! Copies of trees, with checksums, on stable storage.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, lchown, symlink},
    path::Path,
};

use ocore_core::port::{Classify, Error, Result};
use rustix::fs::{Advice, AtFlags, OFlags, Timespec, Timestamps};

use super::{Entry, Kind, Stamp};
use crate::{
    blocking::Cancel,
    durable::{self, At},
};

const CHUNK_BYTES: usize = 256 * 1024;

/// Makes the entry at `to` as it is at `from`, without the attributes of directories, and returns the checksum of
/// a file's content. A file is on stable storage when this returns; its directory is not yet.
///
/// `read` is told how many bytes have been read.
pub(crate) fn make(
    entry: &Entry,
    from: &Path,
    to: &Path,
    cancel: &Cancel,
    read: &mut dyn FnMut(u64),
) -> Result<Option<String>> {
    cancel.check()?;
    let (from, to) = (from.join(&entry.path), to.join(&entry.path));
    match &entry.kind {
        Kind::Directory => {
            // Its own mode comes last: until then nobody else may look at what is copied.
            fs::DirBuilder::new().mode(0o700).create(&to).at("make", &to)?;
            Ok(None)
        }
        Kind::Link { target } => {
            symlink(target, &to).at("make the link", &to)?;
            adopt(entry, &to)?;
            Ok(None)
        }
        Kind::File { .. } => {
            let mut source = open(&from)?;
            let mut options = OpenOptions::new();
            let mut target = options.write(true).create_new(true).mode(0o600).open(&to).at("make", &to)?;
            let digest = digest(&mut source, &from, cancel, &mut |chunk| {
                read(chunk.len() as u64);
                target.write_all(chunk).at("write", &to)
            })?;
            adopt(entry, &to)?;
            target.sync_all().at("write", &to)?;
            Ok(Some(digest))
        }
    }
}

/// Gives directories their attributes, the innermost first, and makes them durable.
pub(crate) fn finish<'a>(directories: impl DoubleEndedIterator<Item = &'a Entry>, to: &Path) -> Result<()> {
    for entry in directories.rev().filter(|entry| entry.kind == Kind::Directory) {
        let path = to.join(&entry.path);
        // Before the attributes: a directory that its owner may not read could not be opened any more.
        let directory = File::open(&path).at("open", &path)?;
        adopt(entry, &path)?;
        directory.sync_all().at("write", &path)?;
    }
    Ok(())
}

/// The checksum of a file as it is on the disk, not as the memory still has it.
pub(crate) fn digest_on_disk(path: &Path, cancel: &Cancel) -> Result<String> {
    let mut file = open(path)?;
    // Advice may be ignored; then the file is read from memory.
    let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
    digest(&mut file, path, cancel, &mut |_| Ok(()))
}

fn open(path: &Path) -> Result<File> {
    let no_follow = i32::try_from(OFlags::NOFOLLOW.bits()).permanent("open without following links")?;
    OpenOptions::new().read(true).custom_flags(no_follow).open(path).at("read", path)
}

fn digest(
    file: &mut File,
    path: &Path,
    cancel: &Cancel,
    each: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        cancel.check()?;
        let length = match file.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other.at("read", path)?,
        };
        let chunk = &buffer[..length];
        if chunk.is_empty() {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.update(chunk);
        each(chunk)?;
    }
}

/// Owner, mode and time of the last change of the content.
fn adopt(entry: &Entry, path: &Path) -> Result<()> {
    let ours = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if (entry.owner, entry.group) != ours {
        lchown(path, Some(entry.owner), Some(entry.group)).at("give its owner to", path)?;
    }
    if !matches!(entry.kind, Kind::Link { .. }) {
        fs::set_permissions(path, fs::Permissions::from_mode(entry.mode)).at("set the mode of", path)?;
    }
    let Stamp(tv_sec, tv_nsec) = entry.modified;
    let time = Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(io::Error::from)
        .at("set the time of", path)
}

/// Refuses early where what is to be written could not fit.
pub(crate) fn require_space(directory: &Path, bytes: u64, what_for: &str) -> Result<()> {
    let space =
        rustix::fs::statvfs(directory).map_err(io::Error::from).at("ask for the free space of", directory)?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free < bytes {
        let directory = directory.display();
        return Err(Error::transient(format!(
            "no space is left in {directory}: {bytes} bytes are needed {what_for}, {free} are free; free some on its \
             file system"
        )));
    }
    Ok(())
}

/// Removes what is at the entry's place in the copy.
pub(crate) fn unmake(entry: &Entry, to: &Path) -> Result<()> {
    let path = to.join(&entry.path);
    match &entry.kind {
        Kind::Directory => durable::remove_tree(&path).at("remove", &path),
        Kind::File { .. } | Kind::Link { .. } => match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.at("remove", &path),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_being_copied_is_for_its_owner_alone() {
        let root = tempfile::tempdir().unwrap();
        let entry = |path: &str, kind| Entry {
            path: path.into(),
            kind,
            mode: 0o755,
            owner: rustix::process::geteuid().as_raw(),
            group: rustix::process::getegid().as_raw(),
            modified: Stamp(0, 0),
            changed: Stamp(0, 0),
        };
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        fs::create_dir(&from).unwrap();
        let directory = entry("", Kind::Directory);
        make(&directory, &from, &to, &Cancel::never(), &mut |_| ()).unwrap();
        let mode = || fs::metadata(&to).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o700);
        finish(std::iter::once(&directory), &to).unwrap();
        assert_eq!(mode(), 0o755);
    }

    #[test]
    fn a_copy_that_cannot_fit_is_refused() {
        let root = tempfile::tempdir().unwrap();
        require_space(root.path(), 1, "for a copy").unwrap();
        let error = require_space(root.path(), u64::MAX, "for a copy").unwrap_err();
        assert_eq!(error.kind(), ocore_core::port::ErrorKind::Transient);
        assert!(error.to_string().contains("no space is left"), "{error}");
    }
}
