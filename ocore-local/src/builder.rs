//! Releases as directories.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use ocore_core::{
    event::{Progress, Unit},
    id::{DeploymentId, Fence},
    link,
    port::{Builder, Checkout, Classify, Context, Error, Leftovers, Result},
    release::Image,
};
use serde::{Deserialize, Serialize};

use crate::{
    blocking::{self, Cancel},
    durable::{self, At},
    procfile::{LENGTH_MAX, Procfile, RELEASE, WEB},
    runtime::refuse_unstartable,
    shelf::Shelf,
    tree::{
        self, Entry, Kind, Limit, Listing,
        copy::{self, digest_on_disk},
        manifest::{Listed, Manifest},
    },
};

/// The directory of all releases, below the root.
pub(crate) const RELEASES: &str = "releases";
/// The application's files, below a release's own directory.
pub(crate) const TREE: &str = "tree";

/// Makes a release directory of a checkout: `ROOT/releases/DEPLOYMENT-FENCE/`.
///
/// The repository's `Procfile` says what to run: `web: COMMAND` (required) serves, and `release: COMMAND`, where there
/// is one, is the Update step. A command is split into words like a shell does it, with `'…'`, `"…"` and `\`, and
/// `$PORT`, `$DATA_DIR`, `$RELEASE_DIR` and the instance's variables are put in at the start; there is no shell.
/// Nothing else is built: what the application needs is in the repository or on the machine.
///
/// What could not be started is not built, so that nothing is stopped for it: a command whose program is neither in the
/// repository nor on the machine, and an instance whose port another program listens on.
///
/// The tree is copied beside, synced, listed with a checksum per file, and renamed into place: a release is there
/// complete or not at all. Its files are write-protected. Links are kept if they are relative and stay inside; others,
/// and devices, are refused. Sockets and pipes are left out.
///
/// ```
/// let builder = ocore_local::LocalBuilder::new("/var/lib/ocore");
/// ```
#[derive(Debug, Clone)]
pub struct LocalBuilder {
    root: PathBuf,
    limit: Limit,
}

/// The head of a release's manifest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    version: u32,
    deployment: DeploymentId,
    fence: Fence,
    commit: String,
    web: String,
    release: Option<String>,
}

const VERSION: u32 = 1;

impl LocalBuilder {
    /// A builder that keeps its releases below `root`, an absolute path on a local file system. It is made when it is
    /// first needed. A release may hold 8 GiB in a million files.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: crate::absolute(root.into()), limit: Limit { entries: 1_000_000, bytes: 8 << 30 } }
    }

    /// The same builder with another limit on the size of a release, in bytes.
    #[must_use]
    pub const fn size_max(mut self, bytes: u64) -> Self {
        self.limit.bytes = bytes;
        self
    }

    fn releases(&self) -> Shelf {
        Shelf::new(self.root.join(RELEASES))
    }
}

#[async_trait]
impl Builder for LocalBuilder {
    async fn build(&self, context: &Context, checkout: &Checkout) -> Result<Image> {
        let build = Build {
            root: self.root.clone(),
            call: durable::unique(),
            releases: self.releases(),
            name: format!("{}-{}", context.deployment(), context.fence()),
            limit: self.limit,
            checkout: checkout.clone(),
            context: context.clone(),
        };
        blocking::run(context, move |cancel| build.run(cancel)).await
    }

    async fn locate(&self, context: &Context, image: &Image) -> Result<bool> {
        let Some(directory) = directory(&self.root, image) else { return Ok(false) };
        blocking::run(context, move |cancel| intact(&directory, cancel)).await
    }

    async fn remove(&self, context: &Context, image: &Image) -> Result<()> {
        if directory(&self.root, image).is_none() {
            return Err(Error::permanent(format!(
                "{:?} is no release of this builder: it is not removed",
                image.reference
            )));
        }
        let (releases, name) = (self.releases(), image.reference.clone());
        blocking::run(context, move |cancel| {
            cancel.check()?;
            releases.remove(&name)
        })
        .await
    }

    async fn sweep(&self, context: &Context, leftovers: &Leftovers) -> Result<()> {
        let (releases, leftovers) = (self.releases(), leftovers.clone());
        blocking::run(context, move |cancel| releases.sweep(&leftovers, cancel)).await
    }
}

/// The directory of an image, if its reference is a name that this builder gives.
pub(crate) fn directory(root: &Path, image: &Image) -> Option<PathBuf> {
    let (deployment, fence) = image.reference.rsplit_once('-')?;
    let deployment: DeploymentId = deployment.parse().ok()?;
    let fence: u64 = fence.parse().ok()?;
    // The canonical form only: other spellings of an id were not given by this builder.
    let name = format!("{deployment}-{fence}");
    (name == image.reference).then(|| root.join(RELEASES).join(name))
}

struct Build {
    root: PathBuf,
    /// Names this call.
    call: String,
    releases: Shelf,
    name: String,
    limit: Limit,
    checkout: Checkout,
    context: Context,
}

impl Build {
    fn run(&self, cancel: &Cancel) -> Result<Image> {
        cancel.check()?;
        durable::create_directories(self.releases.path()).at("make", self.releases.path())?;
        let procfile = self.procfile()?;
        let (web, release) = (procfile.web.as_str(), procfile.release.as_deref());
        refuse_unstartable(&self.root, &self.context, &self.checkout.path, web, release)?;
        let deployment = format!("{}-", self.context.deployment());
        self.releases.remove_unfinished(&deployment, self.context.fence(), &self.call)?;
        let directory = self.releases.place(&self.name);
        if !(directory.exists() && intact(&directory, cancel)?) {
            self.make(&directory, &procfile, cancel)?;
        }
        let image = Image::new(self.name.clone()).with_setting(WEB, procfile.web);
        Ok(match procfile.release {
            Some(release) => image.with_update(true).with_setting(RELEASE, release),
            None => image,
        })
    }

    fn procfile(&self) -> Result<Procfile> {
        let path = self.checkout.path.join("Procfile");
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let what = "the repository has no Procfile at its top: add one with a line such as \
                            `web: bin/server --port $PORT`";
                return Err(Error::permanent(what));
            }
            other => other.at("read", &path)?,
        };
        if !metadata.is_file() {
            return Err(Error::permanent("the repository's Procfile is not a file"));
        }
        if metadata.len() > LENGTH_MAX as u64 {
            return Err(Error::permanent(format!(
                "the repository's Procfile is longer than {LENGTH_MAX} bytes"
            )));
        }
        let procfile = Procfile::parse(&fs::read(&path).at("read", &path)?).permanent("read the Procfile")?;
        for (line, name) in &procfile.others {
            self.context
                .log(format!("Procfile line {line}: `{name}` is not run, only `web` and `release` are"));
        }
        Ok(procfile)
    }

    fn make(&self, directory: &Path, procfile: &Procfile, cancel: &Cancel) -> Result<()> {
        let partial = self.releases.beside(&self.name, &self.call);
        let made = self.fill(&partial, procfile, cancel).and_then(|()| {
            cancel.check()?;
            // A release of this very name that is not intact: damaged afterwards.
            durable::remove_tree(directory).at("remove", directory)?;
            fs::rename(&partial, directory).at("rename into place", directory)
        });
        match made {
            Ok(()) => durable::sync_directory(self.releases.path()).at("write", self.releases.path()),
            Err(error) => {
                // The first error is the one that explains; the next call removes what this one cannot.
                drop(durable::remove_tree(&partial));
                Err(error)
            }
        }
    }

    fn fill(&self, partial: &Path, procfile: &Procfile, cancel: &Cancel) -> Result<()> {
        let listing = tree::list(&self.checkout.path, self.limit, cancel)?;
        let entries = self.protected(&listing)?;
        copy::require_space(self.releases.path(), listing.bytes(), "for the release")?;
        fs::create_dir(partial).at("make", partial)?;
        let mut reading = Reading::new(&self.context, "copying files", listing.bytes());
        let mut listed = Vec::with_capacity(entries.len());
        for entry in entries {
            let blake3 =
                copy::make(&entry, &self.checkout.path, &partial.join(TREE), cancel, &mut |bytes| {
                    reading.add(bytes);
                })?;
            listed.push(Listed { entry, blake3 });
        }
        copy::finish(listed.iter().map(|listed| &listed.entry), &partial.join(TREE))?;
        let head = Head {
            version: VERSION,
            deployment: self.context.deployment(),
            fence: self.context.fence(),
            commit: self.checkout.commit.sha.clone(),
            web: procfile.web.clone(),
            release: procfile.release.clone(),
        };
        let files = listed.len();
        Manifest { head, entries: listed }.write(partial)?;
        self.context.log(format!("release {}: {} bytes in {files} entries", self.name, listing.bytes()));
        Ok(())
    }

    /// The checkout's entries as they are in the release: owned by the worker, write-protected.
    fn protected(&self, listing: &Listing) -> Result<Vec<Entry>> {
        for path in &listing.skipped {
            self.context.log(format!("left out: {} is a socket or a pipe", path.display()));
        }
        let owner = rustix::process::geteuid().as_raw();
        let group = rustix::process::getegid().as_raw();
        let protect = |entry: &Entry| {
            let mode = match &entry.kind {
                Kind::Directory => 0o555,
                Kind::File { .. } => 0o444 | (entry.mode & 0o111),
                Kind::Link { target } if link::stays_inside(&entry.path, target) => 0o777,
                Kind::Link { target } => {
                    let (link, target) = (entry.path.display(), target.display());
                    return Err(Error::permanent(format!(
                        "the link {link} leaves the repository (it points to {target}): make it relative, or \
                         remove it"
                    )));
                }
            };
            Ok(Entry { mode, owner, group, ..entry.clone() })
        };
        listing.entries.iter().map(protect).collect()
    }
}

/// Whether the release is complete and no file that belongs to it has changed. What was added counts for nothing.
fn intact(directory: &Path, cancel: &Cancel) -> Result<bool> {
    let Ok(manifest) = Manifest::<Head>::read(directory) else { return Ok(false) };
    let tree = directory.join(TREE);
    for Listed { entry, blake3 } in &manifest.entries {
        cancel.check()?;
        let path = tree.join(&entry.path);
        let Ok(metadata) = fs::symlink_metadata(&path) else { return Ok(false) };
        let same = match &entry.kind {
            Kind::Directory => metadata.is_dir(),
            Kind::Link { target } => fs::read_link(&path).is_ok_and(|found| found == *target),
            Kind::File { size } => {
                metadata.is_file()
                    && metadata.len() == *size
                    && blake3.as_ref() == Some(&digest_on_disk(&path, cancel)?)
            }
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Progress in bytes.
pub(crate) struct Reading<'a> {
    context: &'a Context,
    what: &'static str,
    done: u64,
    total: u64,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(context: &'a Context, what: &'static str, total: u64) -> Self {
        Self { context, what, done: 0, total }
    }

    pub(crate) fn add(&mut self, bytes: u64) {
        self.done += bytes;
        let total = self.total.max(self.done);
        self.context.progress(Progress::new(self.what, self.done, Some(total), Unit::Bytes));
    }
}
