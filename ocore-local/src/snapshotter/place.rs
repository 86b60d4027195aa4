//! A data directory, what is made beside it, and the exchange.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use ocore_core::{
    id::Fence,
    port::{Error, Result},
};
use rustix::{
    fs::{Access, CWD, RenameFlags},
    io::Errno,
};

use super::{DATA, SNAPSHOTS};
use crate::{
    builder::RELEASES,
    durable::{self, At},
    fenced::Fenced,
    runtime::INSTANCES,
};

/// A data directory.
#[derive(Debug, Clone)]
pub(super) struct Place {
    root: PathBuf,
    /// Without links above it: one directory has one path, and with it one lock.
    pub(super) data: PathBuf,
    pub(super) fenced: Fenced,
}

impl Place {
    pub(super) fn find(root: &Path, data: &Path) -> Result<Self> {
        let parent = data.parent().unwrap_or(Path::new("/"));
        let above = parent.canonicalize().at("find the directory above the data directory,", parent)?;
        let data = above.join(data.file_name().unwrap_or_default());
        let digest = blake3::hash(data.as_os_str().as_encoded_bytes()).to_hex();
        let directory = root.join(DATA).join(&digest.as_str()[..32]);
        Ok(Self { root: root.to_owned(), data, fenced: Fenced::new(directory) })
    }

    /// Refuses early what could not be restored later.
    pub(super) fn check(&self) -> Result<()> {
        self.refuse_overlap()?;
        let parent = self.parent();
        let above = fs::metadata(parent).at("find the directory above the data directory,", parent)?;
        rustix::fs::access(parent, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(io::Error::from)
            .at("write into the directory above the data directory,", parent)?;
        let data = self.data.display();
        let metadata = match fs::symlink_metadata(&self.data) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.at("read", &self.data)?,
        };
        if metadata.is_symlink() {
            let what = format!("the data directory {data} is a link: use the path of what it points to");
            return Err(Error::permanent(what));
        }
        if !metadata.is_dir() {
            return Err(Error::permanent(format!("the data directory {data} is not a directory")));
        }
        if metadata.dev() != above.dev() {
            let what = format!("the data directory {data} is a mount point: use a directory inside of it");
            return Err(Error::permanent(what));
        }
        // The application runs as the same user as this.
        rustix::fs::access(&self.data, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)
            .map_err(io::Error::from)
            .at("read and write the data directory", &self.data)
    }

    /// What ocore keeps must not be a part of the data, nor the other way round.
    fn refuse_overlap(&self) -> Result<()> {
        let root = self.root.canonicalize().at("find", &self.root)?;
        let own = [RELEASES, INSTANCES, SNAPSHOTS, DATA].map(|name| root.join(name));
        if own.iter().any(|own| own.starts_with(&self.data) || self.data.starts_with(own)) {
            return Err(Error::permanent(format!(
                "the data directory {} and ocore's own files in {} are in each other: choose another place for one \
                 of them",
                self.data.display(),
                root.display()
            )));
        }
        Ok(())
    }

    pub(super) fn exists(&self) -> bool {
        fs::symlink_metadata(&self.data).is_ok()
    }

    pub(super) fn parent(&self) -> &Path {
        self.data.parent().unwrap_or(Path::new("/"))
    }

    /// A name beside the data directory that only this call uses: `.NAME.ocore-FENCE-CALL-WHAT`.
    pub(super) fn beside(&self, fence: Fence, what: &str) -> PathBuf {
        let mut name = self.prefix();
        name.push(format!("{fence}-{}-{what}", durable::unique()));
        self.data.with_file_name(name)
    }

    fn prefix(&self) -> OsString {
        let mut prefix = OsString::from(".");
        prefix.push(self.data.file_name().unwrap_or_default());
        prefix.push(".ocore-");
        prefix
    }

    /// Where it is written that an exchange by two renames has begun.
    fn intent(&self) -> PathBuf {
        let mut name = self.prefix();
        name.push("swap");
        self.data.with_file_name(name)
    }

    /// Finishes an exchange that was interrupted, and removes what earlier calls have left beside the data directory.
    pub(super) fn settle(&self, fence: Fence) -> Result<()> {
        let intent = self.intent();
        match fs::read(&intent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => self.finish_exchange(&other.at("read", &intent)?)?,
        }
        let (prefix, renamed) = (self.prefix(), self.beside(fence, "left"));
        for found in fs::read_dir(self.parent()).at("list", self.parent())? {
            let found = found.at("list", self.parent())?;
            if is_leftover(&found.file_name(), &prefix, fence) {
                durable::remove_renamed(&found.path(), &renamed).at("remove", &found.path())?;
            }
        }
        Ok(())
    }

    /// The staged directory takes the data directory's place; what was there is removed.
    pub(super) fn exchange(&self, staged: &Path, fence: Fence) -> Result<()> {
        let renamed = if self.exists() {
            rustix::fs::renameat_with(CWD, staged, CWD, &self.data, RenameFlags::EXCHANGE)
        } else {
            rustix::fs::rename(staged, &self.data)
        };
        match renamed {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                self.begin_exchange(staged)?;
                return self.two_renames(staged, fence);
            }
            other => other.map_err(io::Error::from).at("put the restored data into place at", &self.data)?,
        }
        self.sync()?;
        durable::remove_tree(staged).at("remove the old data,", staged)
    }

    /// The data directory disappears in one step.
    pub(super) fn vanish(&self, fence: Fence) -> Result<()> {
        let old = self.beside(fence, "old");
        match fs::rename(&self.data, &old) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.at("remove", &self.data)?,
        }
        self.sync()?;
        durable::remove_tree(&old).at("remove", &old)
    }

    fn begin_exchange(&self, staged: &Path) -> Result<()> {
        let intent = self.intent();
        let name = staged.file_name().unwrap_or_default();
        durable::write(&intent, name.as_encoded_bytes()).at("write", &intent)
    }

    fn two_renames(&self, staged: &Path, fence: Fence) -> Result<()> {
        let old = self.beside(fence, "old");
        fs::rename(&self.data, &old).at("move the old data away from", &self.data)?;
        fs::rename(staged, &self.data).at("put the restored data into place at", &self.data)?;
        self.end_exchange()?;
        durable::remove_tree(&old).at("remove the old data,", &old)
    }

    fn finish_exchange(&self, staged: &[u8]) -> Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let staged = self.data.with_file_name(OsStr::from_bytes(staged));
        if !self.exists() {
            fs::rename(&staged, &self.data).at("finish the interrupted restore: rename", &staged)?;
        }
        self.end_exchange()
    }

    fn end_exchange(&self) -> Result<()> {
        self.sync()?;
        let intent = self.intent();
        fs::remove_file(&intent).at("remove", &intent)?;
        self.sync()
    }

    fn sync(&self) -> Result<()> {
        durable::sync_directory(self.parent()).at("write", self.parent())
    }
}

/// Whether a name is one that a call with this fence or a lower one has left.
fn is_leftover(name: &OsStr, prefix: &OsStr, fence: Fence) -> bool {
    let rest = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
    let number = rest.and_then(|rest| std::str::from_utf8(rest).ok()?.split_once('-')?.0.parse().ok());
    number.is_some_and(|number: u64| number <= fence.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(root: &Path) -> (Place, PathBuf) {
        let place = Place::find(&root.join("state"), &root.join("data")).unwrap();
        let staged = place.beside(Fence::new(1), "new");
        fs::create_dir(&place.data).unwrap();
        fs::write(place.data.join("file"), "old").unwrap();
        fs::create_dir(&staged).unwrap();
        fs::write(staged.join("file"), "new").unwrap();
        (place, staged)
    }

    fn names(root: &Path) -> Vec<String> {
        let names = fs::read_dir(root).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn two_renames_can_be_interrupted_anywhere() {
        for killed_after in 0..5 {
            let root = tempfile::tempdir().unwrap();
            let (place, staged) = place(root.path());
            let old = place.beside(Fence::new(1), "old");
            let steps: [&dyn Fn(); 4] = [
                &|| place.begin_exchange(&staged).unwrap(),
                &|| fs::rename(&place.data, &old).unwrap(),
                &|| fs::rename(&staged, &place.data).unwrap(),
                &|| place.end_exchange().unwrap(),
            ];
            for step in &steps[..killed_after] {
                step();
            }
            place.settle(Fence::new(2)).unwrap();
            let content = fs::read_to_string(place.data.join("file")).unwrap();
            assert_eq!(content, if killed_after < 2 { "old" } else { "new" }, "killed after {killed_after}");
            assert_eq!(names(root.path()), ["data"], "killed after {killed_after}");
        }
    }

    #[test]
    fn both_ways_of_exchanging_end_the_same() {
        for by_two_renames in [false, true] {
            let root = tempfile::tempdir().unwrap();
            let (place, staged) = place(root.path());
            if by_two_renames {
                place.begin_exchange(&staged).unwrap();
                place.two_renames(&staged, Fence::new(1)).unwrap();
            } else {
                place.exchange(&staged, Fence::new(1)).unwrap();
            }
            assert_eq!(fs::read_to_string(place.data.join("file")).unwrap(), "new");
            assert_eq!(names(root.path()), ["data"]);
        }
    }

    #[test]
    fn what_a_newer_call_makes_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let (place, staged) = place(root.path());
        fs::write(root.path().join(".data.ocore-note"), "a person's").unwrap();
        place.settle(Fence::new(0)).unwrap();
        assert!(staged.exists());
        place.settle(Fence::new(1)).unwrap();
        assert!(!staged.exists() && root.path().join(".data.ocore-note").exists());
    }
}
