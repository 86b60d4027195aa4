//! The modules of a repository, and the folders that hold them.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::manifest::{Manifest, ManifestError};

const MANIFEST: &str = "__manifest__.py";
/// How large a manifest may be, in bytes: those that are seen have a hundredth of it.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// How deep below the repository's top a module may lie.
const DEPTH_MAX: usize = 16;
/// How many folders are looked into.
const FOLDERS_MAX: usize = 100_000;

/// What of a repository Odoo would look at: folders that hold modules, in the order of their paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addons {
    folders: BTreeMap<PathBuf, BTreeMap<String, Result<Manifest, Unreadable>>>,
}

/// A module that Odoo would find: of several with one name the one in the first folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Module<'a> {
    /// Its name, which is its folder's.
    pub name: &'a str,
    /// The folder that holds it, relative to the repository's top; empty for the top itself.
    pub folder: &'a Path,
    /// Its manifest.
    pub manifest: &'a Manifest,
}

/// Why a repository cannot be looked through.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddonsError {
    /// The file system refused.
    #[error("read {}", path.display())]
    Io {
        /// What was to be read.
        path: PathBuf,
        /// Why it could not.
        source: io::Error,
    },
    /// It has more folders than a repository of modules has.
    #[error("the repository has more than {FOLDERS_MAX} folders: no modules are looked for in so many")]
    TooLarge,
}

/// Why a manifest could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("{0}")]
    Wrong(ManifestError),
    #[error("it is not encoded in UTF-8, first at byte {0}")]
    Encoding(usize),
    #[error("it has {0} bytes, more than {MANIFEST_BYTES_MAX}")]
    TooLarge(u64),
    #[error("it is no file")]
    NoFile,
}

impl Addons {
    /// Looks through a repository's files for modules: folders with a `__manifest__.py`.
    ///
    /// Links are not followed: where a folder of links to modules stands beside the modules, as for packaging, each is
    /// found once. Nor are modules looked for in a module, or in a folder whose name begins with a point.
    ///
    /// # Errors
    ///
    /// A folder or a file that cannot be read. A manifest that is wrong is no error yet: [`check`](Self::check) names all
    /// that are.
    pub fn find(repository: &Path) -> Result<Self, AddonsError> {
        let mut addons = Self::default();
        let (mut open, mut seen) = (vec![(PathBuf::new(), 0)], 0);
        while let Some((folder, depth)) = open.pop() {
            seen += 1;
            if seen > FOLDERS_MAX {
                return Err(AddonsError::TooLarge);
            }
            for (name, child) in folders(repository, &folder)? {
                match read(&repository.join(&child).join(MANIFEST))? {
                    Some(manifest) => {
                        addons.folders.entry(folder.clone()).or_default().insert(name, manifest);
                    }
                    None if depth < DEPTH_MAX => open.push((child, depth + 1)),
                    None => {}
                }
            }
        }
        Ok(addons)
    }

    /// The folders that hold modules, relative to the repository's top: what `addons_path` needs.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.folders.keys().map(PathBuf::as_path)
    }

    /// The modules that Odoo would find and whose manifests can be read, by name.
    #[must_use]
    pub fn modules(&self) -> BTreeMap<&str, Module<'_>> {
        let mut modules = BTreeMap::new();
        for (folder, name, manifest) in self.all() {
            if let Ok(manifest) = manifest {
                modules.entry(name).or_insert(Module { name, folder, manifest });
            }
        }
        modules
    }

    /// Modules that Odoo would not see, because a folder before has one of the same name: those that lie there, each
    /// with the folder that comes before.
    #[must_use]
    pub fn hidden(&self) -> Vec<(PathBuf, &Path)> {
        let (mut first, mut hidden) = (BTreeMap::new(), Vec::new());
        for (folder, name, _) in self.all() {
            match first.get(name) {
                Some(before) => hidden.push((folder.join(name), *before)),
                None => drop(first.insert(name, folder)),
            }
        }
        hidden
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&Path, &str, &Result<Manifest, Unreadable>)> {
        let modules = |(folder, modules): (_, _)| {
            let (folder, modules): (&PathBuf, &BTreeMap<String, _>) = (folder, modules);
            modules.iter().map(|(name, manifest)| (folder.as_path(), name.as_str(), manifest))
        };
        self.folders.iter().flat_map(modules)
    }
}

/// The folders in a folder, by name. One whose name is not UTF-8 holds no module that Python could import.
fn folders(repository: &Path, folder: &Path) -> Result<Vec<(String, PathBuf)>, AddonsError> {
    let path = repository.join(folder);
    let failed = |source| AddonsError::Io { path: path.clone(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(&path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_folder = entry.file_type().map_err(failed)?.is_dir();
        if let (true, Ok(name)) = (is_folder, entry.file_name().into_string())
            && !name.starts_with('.')
        {
            let child = folder.join(&name);
            found.push((name, child));
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Option<Result<Manifest, Unreadable>>, AddonsError> {
    let failed = |source| AddonsError::Io { path: path.to_owned(), source };
    let size = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(metadata) if metadata.is_file() => metadata.len(),
        Ok(_) => return Ok(Some(Err(Unreadable::NoFile))),
        Err(error) => return Err(failed(error)),
    };
    if size > MANIFEST_BYTES_MAX {
        return Ok(Some(Err(Unreadable::TooLarge(size))));
    }
    let manifest = match String::from_utf8(fs::read(path).map_err(failed)?) {
        Ok(text) => Manifest::parse(&text).map_err(Unreadable::Wrong),
        Err(error) => Err(Unreadable::Encoding(error.utf8_error().valid_up_to())),
    };
    Ok(Some(manifest))
}
