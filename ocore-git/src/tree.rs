//! Writes a commit's tree into a directory. Not libgit2's checkout: no filters, no attributes, no links that lead
//! out, no names that some file system takes for `.git`, and every limit is checked before the disk is touched.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions},
    io::Write,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, OpenOptionsExt, symlink},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use git2::{ObjectType, Odb, Oid, Repository, Tree, TreeEntry};
use ocore_core::{
    event::{Progress, Unit},
    port::{Context, Error, Result},
};

use crate::{
    failure::{Fault, of_file},
    gitmodules,
    leftovers::hold,
    names::{check_link, check_name, folded},
    policy::{CaseCollisions, SourcePolicy, Submodules},
    stop::Stop,
};

const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
const DIRECTORY: i32 = 0o040_000;
const FILE: i32 = 0o100_644;
const FILE_OF_A_GROUP: i32 = 0o100_664;
const PROGRAM: i32 = 0o100_755;
const LINK: i32 = 0o120_000;
const SUBMODULE: i32 = 0o160_000;

/// A submodule that is to be written into a directory that was made for it.
#[derive(Debug)]
pub(crate) struct Submodule {
    /// Relative to the checkout's root.
    pub(crate) path: PathBuf,
    pub(crate) url: String,
    pub(crate) sha: String,
}

/// One checkout on its way to the disk; its counters go on through all submodules.
pub(crate) struct Writer {
    root: PathBuf,
    _held: Option<File>,
    policy: SourcePolicy,
    context: Context,
    bytes: u64,
    files: u64,
    links: Vec<(PathBuf, Vec<u8>)>,
    reported: Instant,
}

impl Writer {
    /// A writer into the directory `root`, which it makes and holds: what nobody holds is left by the dead.
    pub(crate) fn new(root: PathBuf, policy: SourcePolicy, context: Context) -> Result<Self> {
        let made = DirBuilder::new().mode(0o755).create(&root);
        made.map_err(|error| of_file(error, "make the checkout's directory"))?;
        // Where the file system cannot hold a directory, nobody else can, and nobody sweeps.
        let held = hold(&root).ok();
        let (links, reported) = (Vec::new(), Instant::now());
        Ok(Self { root, _held: held, policy, context, bytes: 0, files: 0, links, reported })
    }

    /// Writes the commit's tree into the directory `base` below the root; its links wait for
    /// [`finish`](Self::finish). Gives the submodules that it found.
    pub(crate) fn write(
        &mut self,
        repository: &Repository,
        sha: &str,
        base: &Path,
        stop: &Stop,
    ) -> Result<Vec<Submodule>, Fault> {
        let damage = |error| Fault::of_mirror(error, "read the commit's tree");
        let commit = Oid::from_str(sha).and_then(|id| repository.find_commit(id)).map_err(damage)?;
        let top = commit.tree().map_err(damage)?;
        let objects = repository.odb().map_err(damage)?;
        let mut submodules = Vec::new();
        // `depth` counts the directories below this repository's own root, which its links must not leave.
        let mut waiting = vec![(top.id(), base.to_owned(), 0)];
        while let Some((id, directory, depth)) = waiting.pop() {
            let tree = repository.find_tree(id).map_err(damage)?;
            self.check_collisions(&tree, &directory)?;
            for entry in &tree {
                stop.check()?;
                let path = self.check_path(&entry, &directory)?;
                match entry.filemode_raw() {
                    DIRECTORY => {
                        self.make_directory(&path)?;
                        waiting.push((entry.id(), path, depth + 1));
                    }
                    FILE | FILE_OF_A_GROUP => self.write_file(&objects, entry.id(), &path, 0o644)?,
                    PROGRAM => self.write_file(&objects, entry.id(), &path, 0o755)?,
                    LINK => self.keep_link(&objects, entry.id(), path, depth)?,
                    SUBMODULE => {
                        self.make_directory(&path)?;
                        submodules.push((path, entry.id().to_string()));
                    }
                    mode => {
                        return Err(
                            refused(&path, &format!("has the mode {mode:o}, which is no file")).into()
                        );
                    }
                }
                self.report(false);
            }
        }
        self.with_urls(repository, &top, base, submodules)
    }

    /// Writes the links, after everything else: nothing is ever written through one.
    pub(crate) fn finish(&mut self, stop: &Stop) -> Result<()> {
        for (path, target) in std::mem::take(&mut self.links) {
            stop.check()?;
            symlink(OsStr::from_bytes(&target), self.root.join(&path))
                .map_err(|error| of_file(error, format!("write the link {}", shown(&path))))?;
        }
        self.report(true);
        Ok(())
    }

    fn check_collisions(&self, tree: &Tree<'_>, directory: &Path) -> Result<()> {
        let (mut exact, mut all) = (HashSet::new(), HashSet::new());
        for entry in tree {
            let name = entry.name_bytes();
            if !exact.insert(name.to_vec()) {
                return Err(refused(&directory.join(OsStr::from_bytes(name)), "is there twice"));
            }
            if self.policy.case_collisions == CaseCollisions::Refused && !all.insert(folded(name)) {
                let path = directory.join(OsStr::from_bytes(name));
                return Err(refused(&path, "differs from another name in case only; see CaseCollisions"));
            }
        }
        Ok(())
    }

    fn check_path(&self, entry: &TreeEntry<'_>, directory: &Path) -> Result<PathBuf> {
        let name = entry.name_bytes();
        let path = directory.join(OsStr::from_bytes(name));
        check_name(name)
            .map_err(|reason| refused(&path, &format!("must not be written: its name {reason}")))?;
        if entry.filemode_raw() == LINK && folded(name) == b".gitmodules" {
            return Err(refused(&path, "is a symbolic link"));
        }
        let (length, depth) = (path.as_os_str().len(), path.components().count());
        self.limit("path_length_max", length as u64, self.policy.limits.path_length_max as u64, &path)?;
        self.limit("path_depth_max", depth as u64, self.policy.limits.path_depth_max as u64, &path)?;
        Ok(path)
    }

    fn limit(&self, name: &str, found: u64, limit: u64, path: &Path) -> Result<()> {
        if found <= limit {
            return Ok(());
        }
        let text = format!("comes to {found}, more than the limit {name}, {limit}; raise it in the policy");
        Err(refused(path, &text))
    }

    /// Counts one more thing of this size, before it is made.
    fn count(&mut self, size: u64, path: &Path) -> Result<()> {
        self.files += 1;
        self.bytes += size;
        self.limit("files_max", self.files, self.policy.limits.files_max, path)?;
        self.limit("checkout_bytes_max", self.bytes, self.policy.limits.checkout_bytes_max, path)
    }

    fn make_directory(&mut self, path: &Path) -> Result<()> {
        self.count(0, path)?;
        let made = DirBuilder::new().mode(0o755).create(self.root.join(path));
        made.map_err(|error| of_file(error, format!("make the directory {}", shown(path))))
    }

    fn write_file(&mut self, objects: &Odb<'_>, id: Oid, path: &Path, mode: u32) -> Result<(), Fault> {
        let size = self.size_of(objects, id, path)?;
        self.limit("file_bytes_max", size, self.policy.limits.file_bytes_max, path)?;
        self.count(size, path)?;
        let object = objects.read(id).map_err(|error| Fault::of_mirror(error, "read a file"))?;
        let options = OpenOptions::new().write(true).create_new(true).mode(mode).open(self.root.join(path));
        let written = options.and_then(|mut file| file.write_all(object.data()));
        written.map_err(|error| of_file(error, format!("write {}", shown(path))).into())
    }

    fn keep_link(&mut self, objects: &Odb<'_>, id: Oid, path: PathBuf, depth: usize) -> Result<(), Fault> {
        let size = self.size_of(objects, id, &path)?;
        self.limit("4095 bytes for a link's target", size, 4095, &path)?;
        self.count(size, &path)?;
        let object = objects.read(id).map_err(|error| Fault::of_mirror(error, "read a link"))?;
        check_link(object.data(), depth)
            .map_err(|reason| refused(&path, &format!("is a symbolic link whose target {reason}")))?;
        self.links.push((path, object.data().to_vec()));
        Ok(())
    }

    /// The size is known before the content is unpacked: a small pack may hold a very large file.
    fn size_of(&self, objects: &Odb<'_>, id: Oid, path: &Path) -> Result<u64, Fault> {
        let header =
            objects.read_header(id).map_err(|error| Fault::of_mirror(error, "read a file's size"))?;
        match header {
            (size, ObjectType::Blob) => Ok(size as u64),
            _ => Err(refused(path, "is not a file's content").into()),
        }
    }

    /// Finds the URL of each submodule.
    fn with_urls(
        &self,
        repository: &Repository,
        top: &Tree<'_>,
        base: &Path,
        found: Vec<(PathBuf, String)>,
    ) -> Result<Vec<Submodule>, Fault> {
        let Some((first, _)) = found.first() else { return Ok(Vec::new()) };
        match self.policy.submodules {
            Submodules::Fetched { .. } => {}
            Submodules::Empty => return Ok(Vec::new()),
            Submodules::Refused => {
                return Err(
                    refused(first, "is a submodule, which the policy of this Source does not allow").into()
                );
            }
        }
        let urls = read_gitmodules(repository, top)?;
        let with_url = |(path, sha): (PathBuf, String)| {
            let own = path.strip_prefix(base).unwrap_or(&path).to_string_lossy().into_owned();
            match urls.get(&own) {
                Some(url) => Ok(Submodule { path, url: url.clone(), sha }),
                None => Err(refused(&path, "is a submodule, and .gitmodules has no URL for it").into()),
            }
        };
        found.into_iter().map(with_url).collect()
    }

    fn report(&mut self, last: bool) {
        if last || self.reported.elapsed() >= PROGRESS_INTERVAL {
            self.reported = Instant::now();
            self.context.progress(Progress::new("writing files", self.files, None, Unit::Items));
        }
    }
}

fn read_gitmodules(repository: &Repository, top: &Tree<'_>) -> Result<BTreeMap<String, String>, Fault> {
    let Some(entry) = top.get_name(".gitmodules").filter(|entry| entry.kind() == Some(ObjectType::Blob))
    else {
        return Ok(BTreeMap::new());
    };
    let damage = |error| Fault::of_mirror(error, "read .gitmodules");
    let objects = repository.odb().map_err(damage)?;
    let (size, _) = objects.read_header(entry.id()).map_err(damage)?;
    if size as u64 > gitmodules::BYTES_MAX {
        return Err(refused(Path::new(".gitmodules"), "has more than 1 MiB").into());
    }
    Ok(gitmodules::parse(objects.read(entry.id()).map_err(damage)?.data())?)
}

fn refused(path: &Path, reason: &str) -> Error {
    Error::permanent(format!("check out the commit: {} {reason}", shown(path)))
}

/// The path for an error: printable, and not longer than a line.
fn shown(path: &Path) -> String {
    let text: String = path.to_string_lossy().chars().take(200).collect();
    format!("{text:?}")
}

/// Puts a finished directory in its place, instead of what may be there.
pub(crate) fn put_in_place(from: &Path, to: &Path) -> Result<()> {
    let placed = crate::leftovers::remove_directory(to).and_then(|()| fs::rename(from, to));
    placed.map_err(|error| of_file(error, "put the checkout in its place"))
}
