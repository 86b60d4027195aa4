//! Directory trees: what is in them, and copies of them.

pub(crate) mod copy;
pub(crate) mod manifest;

use std::{
    ffi::OsStr,
    fs::{self, Metadata},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Component, Path, PathBuf},
};

use ocore_core::port::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::{blocking::Cancel, durable::At};

/// One thing in a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Relative to the root; empty for the root itself.
    #[serde(with = "path_text")]
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
    /// Permission bits, with set-user-id and the like.
    pub(crate) mode: u32,
    pub(crate) owner: u32,
    pub(crate) group: u32,
    /// When the content was changed last.
    pub(crate) modified: Stamp,
    /// When anything about it was changed last: no program can set this.
    pub(crate) changed: Stamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Directory,
    File {
        size: u64,
    },
    Link {
        #[serde(with = "path_text")]
        target: PathBuf,
    },
}

/// A moment of the file system's clock: seconds and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp(pub(crate) i64, pub(crate) i64);

impl Entry {
    /// What is at `path`; `None` for a socket or a pipe, which hold no data.
    fn read(root: &Path, path: PathBuf, metadata: &Metadata) -> Result<Option<Self>> {
        let file_type = metadata.file_type();
        let kind = if file_type.is_dir() {
            Kind::Directory
        } else if file_type.is_file() {
            Kind::File { size: metadata.len() }
        } else if file_type.is_symlink() {
            let full = root.join(&path);
            Kind::Link { target: fs::read_link(&full).at("read the link", &full)? }
        } else if file_type.is_socket() || file_type.is_fifo() {
            return Ok(None);
        } else {
            let full = root.join(&path);
            return Err(Error::permanent(format!("{} is a device: remove it", full.display())));
        };
        Ok(Some(Self {
            path,
            kind,
            mode: metadata.mode() & 0o7777,
            owner: metadata.uid(),
            group: metadata.gid(),
            modified: Stamp(metadata.mtime(), metadata.mtime_nsec()),
            changed: Stamp(metadata.ctime(), metadata.ctime_nsec()),
        }))
    }

    pub(crate) fn size(&self) -> u64 {
        match self.kind {
            Kind::File { size } => size,
            Kind::Directory | Kind::Link { .. } => 0,
        }
    }
}

/// Limits on a tree.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) entries: usize,
    pub(crate) bytes: u64,
}

/// Everything in a tree, sorted by path: a directory comes before what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) entries: Vec<Entry>,
    /// Sockets and pipes: they hold no data, and the program that uses them makes them anew.
    pub(crate) skipped: Vec<PathBuf>,
}

impl Listing {
    pub(crate) fn bytes(&self) -> u64 {
        self.entries.iter().map(Entry::size).sum()
    }
}

/// Lists the tree at `root`, which must be a directory and not a link to one.
pub(crate) fn list(root: &Path, limit: Limit, cancel: &Cancel) -> Result<Listing> {
    let metadata = fs::symlink_metadata(root).at("read", root)?;
    if !metadata.is_dir() {
        return Err(Error::permanent(format!("{} is not a directory", root.display())));
    }
    let mut listing = Listing { entries: Vec::new(), skipped: Vec::new() };
    listing.entries.extend(Entry::read(root, PathBuf::new(), &metadata)?);
    let mut open = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        cancel.check()?;
        let full = root.join(&directory);
        let found = match fs::read_dir(&full) {
            // Gone since its parent was read: the application is at work.
            Err(error) if error.kind() == io::ErrorKind::NotFound && full != root => continue,
            other => other.at("list", &full)?,
        };
        for found in found {
            let name = found.at("list", &full)?.file_name();
            add(root, directory.join(name), metadata.dev(), &mut open, &mut listing)?;
            if listing.entries.len() > limit.entries {
                let what = format!("{} holds more than {} files", root.display(), limit.entries);
                return Err(Error::permanent(what));
            }
        }
    }
    if listing.bytes() > limit.bytes {
        let what = format!("{} holds more than {} bytes", root.display(), limit.bytes);
        return Err(Error::permanent(what));
    }
    listing.entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(listing)
}

fn add(
    root: &Path,
    path: PathBuf,
    device: u64,
    open: &mut Vec<PathBuf>,
    listing: &mut Listing,
) -> Result<()> {
    let full = root.join(&path);
    let metadata = match fs::symlink_metadata(&full) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.at("read", &full)?,
    };
    if metadata.dev() != device {
        let what = format!("{} is another file system: mount it elsewhere", full.display());
        return Err(Error::permanent(what));
    }
    match Entry::read(root, path.clone(), &metadata)? {
        None => listing.skipped.push(path),
        Some(entry) => {
            if entry.kind == Kind::Directory {
                open.push(path);
            }
            listing.entries.push(entry);
        }
    }
    Ok(())
}

/// Whether a path read from a manifest stays below the root that it is joined to.
fn is_below(path: &Path) -> bool {
    path.components().all(|component| matches!(component, Component::Normal(_)))
}

/// Paths are bytes; in a manifest they are text, with every byte that is not plain ASCII as `%` and two digits.
mod path_text {
    use super::{Deserialize, OsStr, OsStrExt, Path, PathBuf};
    use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};
    use serde::{Deserializer, Serializer};

    const ESCAPED: AsciiSet = CONTROLS.add(b'%');

    pub(super) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&percent_encode(path.as_os_str().as_bytes(), &ESCAPED))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes: Vec<u8> = percent_decode_str(&text).collect();
        Ok(PathBuf::from(OsStr::from_bytes(&bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_survives_the_manifest() {
        let name = OsStr::from_bytes(b"a%41\xff\n\xc3\xa4 b");
        let entry = Entry {
            path: PathBuf::from(name),
            kind: Kind::Link { target: PathBuf::from(name) },
            mode: 0o644,
            owner: 0,
            group: 0,
            modified: Stamp(1, 2),
            changed: Stamp(3, 4),
        };
        let text = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), entry);
    }

    #[test]
    fn sockets_are_skipped_and_limits_hold() {
        let root = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).unwrap();
        fs::write(root.path().join("file"), "12345").unwrap();
        let list = |entries, bytes| list(root.path(), Limit { entries, bytes }, &Cancel::never());
        let listing = list(2, 5).unwrap();
        assert_eq!(listing.skipped, [PathBuf::from("socket")]);
        assert_eq!((listing.entries.len(), listing.bytes()), (2, 5));
        assert!(list(2, 4).unwrap_err().to_string().contains("more than 4 bytes"));
        assert!(list(1, 5).unwrap_err().to_string().contains("more than 1 files"));
    }
}
