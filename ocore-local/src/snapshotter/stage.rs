//! The directory that is to take the data's place, built beside it.

use std::path::{Path, PathBuf};

use ocore_core::port::{Context, Error, Result};

use super::{DATA, Head, Held, place::Place, read};
use crate::{
    blocking::Cancel,
    builder::Reading,
    durable,
    tree::{copy, manifest::Manifest},
};

/// A restore that is prepared.
pub(super) struct Stage {
    pub(super) place: Place,
    pub(super) directory: PathBuf,
    pub(super) context: Context,
}

/// What is to take the data's place.
pub(super) struct Staged {
    place: Place,
    context: Context,
    /// Removed when this is dropped before the exchange.
    directory: Option<PathBuf>,
}

impl Stage {
    pub(super) fn run(self, cancel: &Cancel) -> Result<Staged> {
        let manifest = read(&self.directory)?;
        let mut staged = Staged { place: self.place.clone(), context: self.context.clone(), directory: None };
        match manifest.head.data {
            Held::Absent => {}
            Held::Unmanaged => {
                return Err(Error::permanent(format!(
                    "{} was taken when the instance had no data directory: it says nothing about {}",
                    self.directory.display(),
                    self.place.data.display()
                )));
            }
            Held::Directory => {
                let to = self.place.beside(self.context.fence(), "new");
                // From here on, so that what is made by half is removed as well.
                staged.directory = Some(to.clone());
                copy::require_space(self.place.parent(), manifest.bytes(), "for the restored data")?;
                self.copy(&manifest, &to, cancel)?;
            }
        }
        Ok(staged)
    }

    fn copy(&self, manifest: &Manifest<Head>, to: &Path, cancel: &Cancel) -> Result<()> {
        let from = self.directory.join(DATA);
        let mut reading = Reading::new(&self.context, "restoring data", manifest.bytes());
        for listed in &manifest.entries {
            let corrupt = || {
                let path = from.join(&listed.entry.path);
                Error::permanent(format!(
                    "{} of the snapshot is corrupt; nothing was restored",
                    path.display()
                ))
            };
            let found = std::fs::symlink_metadata(from.join(&listed.entry.path));
            if !found.is_ok_and(|found| listed.entry.size() == 0 || found.len() == listed.entry.size()) {
                return Err(corrupt());
            }
            let blake3 = copy::make(&listed.entry, &from, to, cancel, &mut |bytes| reading.add(bytes))?;
            if blake3 != listed.blake3 {
                return Err(corrupt());
            }
        }
        copy::finish(manifest.entries.iter().map(|listed| &listed.entry), to)
    }
}

impl Staged {
    /// Puts it into place; the caller holds the data directory.
    pub(super) fn swap(mut self) -> Result<()> {
        let fence = self.context.fence();
        match self.directory.take() {
            Some(directory) => self.place.exchange(&directory, fence),
            None => self.place.vanish(fence),
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            // What cannot be removed now is removed by the next call.
            drop(durable::remove_tree(directory));
        }
    }
}
