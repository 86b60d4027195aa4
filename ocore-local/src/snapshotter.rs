//! Snapshots of data directories.

mod place;
mod stage;
mod take;

use std::{
    fs,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use ocore_core::{
    environment::Instance,
    id::DeploymentId,
    name::InstanceName,
    port::{Context, Error, Leftovers, Result, Snapshotter},
    release::Snapshot,
};
use serde::{Deserialize, Serialize};

use self::{place::Place, stage::Stage, take::Take};
use crate::{
    blocking, runtime,
    shelf::Shelf,
    tree::{self, Limit, manifest::Manifest},
};

/// Copies an instance's data directory, and puts a copy back atomically.
///
/// **A snapshot** is a copy of the directory with a manifest: kind, size, mode, owner and time of every entry, and a
/// BLAKE3 checksum of every file and of the manifest. It is written beside, read back from the disk, and renamed into
/// place. While the application runs, what changed during the copy is copied again until two looks at the directory
/// agree: so the copy is the directory as it was at one moment. A directory that never holds still for a tenth of a
/// second gives a transient error; then the environment's policy must be to take the snapshot after the stop. There must
/// be room for the snapshot and, beside the data, for restoring it: otherwise none is taken.
///
/// **A restore** builds the directory anew beside the old one, checking every checksum, and exchanges the two in one
/// step (`renameat2`; where the file system cannot, two renames that the next call finishes). Killed at any moment,
/// there is the old data or the new. The data directory must not be a mount point or a link, and the worker must be
/// allowed to write into the directory above it, which needs room for a second copy. No process of another instance may
/// work on it, of another root neither.
///
/// **Not kept**: extended attributes, access control lists, hard links (they become copies), holes in sparse files.
/// Sockets and pipes are left out; devices are refused. Writes through shared memory maps are seen when the kernel
/// writes them back.
///
/// ```
/// let snapshotter = ocore_local::LocalSnapshotter::new("/var/lib/ocore");
/// ```
#[derive(Debug, Clone)]
pub struct LocalSnapshotter {
    root: PathBuf,
}

/// The directory of all snapshots, below the root.
const SNAPSHOTS: &str = "snapshots";
/// The data, below a snapshot's own directory; and below the root, a lock and a fence per data directory.
const DATA: &str = "data";
const LIMIT: Limit = Limit { entries: 10_000_000, bytes: u64::MAX };
const VERSION: u32 = 1;

/// The head of a snapshot's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    version: u32,
    deployment: DeploymentId,
    instance: InstanceName,
    taken_at: DateTime<Utc>,
    data: Held,
}

/// What there was to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Held {
    /// A directory.
    Directory,
    /// The data directory was not there.
    Absent,
    /// The instance had no data directory in its configuration.
    Unmanaged,
}

impl LocalSnapshotter {
    /// A snapshotter that keeps its snapshots below `root`, that of the runtime. They are as secret as the data is: only the worker's user
    /// can read them.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: crate::absolute(root.into()) }
    }

    /// The directory of a snapshot, if its reference is a name that this snapshotter gives.
    fn directory(&self, snapshot: &Snapshot) -> Result<PathBuf> {
        let name = &snapshot.reference;
        if !is_name(name) {
            return Err(Error::permanent(format!("{name:?} is no snapshot of the local snapshotter")));
        }
        Ok(self.snapshots().place(name))
    }

    fn snapshots(&self) -> Shelf {
        Shelf::new(self.root.join(SNAPSHOTS))
    }

    fn place(&self, instance: &Instance) -> Result<Option<Place>> {
        instance.data_directory.as_deref().map(|data| Place::find(&self.root, data)).transpose()
    }
}

#[async_trait]
impl Snapshotter for LocalSnapshotter {
    async fn take(&self, context: &Context, instance: &Instance) -> Result<Snapshot> {
        let place = self.place(instance)?;
        let take = Take::new(self.snapshots(), context.clone(), instance, place.clone());
        if let Some(place) = place {
            let held = place.fenced.enter(context).await?;
            let (root, calling, instance) = (self.root.clone(), context.clone(), instance.clone());
            blocking::run(context, move |_| {
                let _held = held;
                place.check()?;
                runtime::refuse_sharing(&root, &calling, &instance, &place.data)?;
                place.settle(calling.fence())
            })
            .await?;
        }
        blocking::run(context, move |cancel| take.run(cancel)).await
    }

    async fn restore(&self, context: &Context, instance: &Instance, snapshot: &Snapshot) -> Result<()> {
        let directory = self.directory(snapshot)?;
        let Some(place) = self.place(instance)? else {
            let manifest = blocking::run(context, move |_| read(&directory)).await?;
            return match manifest.head.data {
                Held::Unmanaged | Held::Absent => Ok(()),
                Held::Directory => Err(Error::permanent(format!(
                    "{} has no data directory to restore {} to: give it one",
                    instance.name, snapshot.reference
                ))),
            };
        };
        let held = place.fenced.enter(context).await?;
        let stage = Stage { place: place.clone(), directory, context: context.clone() };
        let staged = blocking::run(context, move |cancel| {
            // Free again while the copy is made: a call with a higher fence must not wait for it.
            stage.place.check()?;
            stage.place.settle(stage.context.fence())?;
            drop(held);
            stage.run(cancel)
        })
        .await?;
        let held = place.fenced.enter(context).await?;
        blocking::run(context, move |cancel| {
            let _held = held;
            cancel.check()?;
            staged.swap()
        })
        .await
    }

    async fn changed_since(
        &self,
        context: &Context,
        instance: &Instance,
        snapshot: &Snapshot,
    ) -> Result<bool> {
        let directory = self.directory(snapshot)?;
        let data = instance.data_directory.clone();
        blocking::run(context, move |cancel| {
            let Ok(manifest) = read(&directory) else { return Ok(true) };
            let there = |data: &Path| fs::symlink_metadata(data).is_ok();
            match (manifest.head.data, data) {
                (Held::Unmanaged | Held::Absent, None) => Ok(false),
                (Held::Absent, Some(data)) => Ok(there(&data)),
                (Held::Directory, Some(data)) if there(&data) => {
                    let now = tree::list(&data, LIMIT, cancel)?;
                    Ok(!manifest.entries.iter().map(|listed| &listed.entry).eq(&now.entries))
                }
                (Held::Unmanaged, Some(_)) | (Held::Directory, _) => Ok(true),
            }
        })
        .await
    }

    async fn remove(&self, context: &Context, snapshot: &Snapshot) -> Result<()> {
        self.directory(snapshot)?;
        let (snapshots, name) = (self.snapshots(), snapshot.reference.clone());
        blocking::run(context, move |cancel| {
            cancel.check()?;
            snapshots.remove(&name)
        })
        .await
    }

    async fn sweep(&self, context: &Context, leftovers: &Leftovers) -> Result<()> {
        let (snapshots, leftovers) = (self.snapshots(), leftovers.clone());
        blocking::run(context, move |cancel| snapshots.sweep(&leftovers, cancel)).await
    }
}

/// The manifest of a snapshot that is there and of this version.
fn read(directory: &Path) -> Result<Manifest<Head>> {
    if !directory.is_dir() {
        return Err(Error::permanent(format!("the snapshot {} is not there", directory.display())));
    }
    let manifest = Manifest::<Head>::read(directory)?;
    if manifest.head.version != VERSION {
        let (path, version) = (directory.display(), manifest.head.version);
        return Err(Error::permanent(format!(
            "the snapshot {path} is of version {version}: use a newer ocore"
        )));
    }
    Ok(manifest)
}

/// `DEPLOYMENT-INSTANCE-FENCE`, or that with a dot and a number.
fn is_name(name: &str) -> bool {
    let parse = || {
        let (deployment, rest) = name.split_at_checked(36)?;
        let (instance, number) = rest.strip_prefix('-')?.rsplit_once('-')?;
        let numbers =
            number.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
        let _: DeploymentId = deployment.parse().ok()?;
        let _ = InstanceName::new(instance).ok()?;
        numbers.then_some(())
    };
    parse().is_some()
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn only_names_of_our_own_are_paths() {
        let id = "00000000-0000-0000-0000-00000000002a";
        let check = |name: &str, expected| assert_eq!(is_name(name), expected, "{name}");
        check(&format!("{id}-web-7"), true);
        check(&format!("{id}-web-2-7"), true);
        check(&format!("{id}-web-7.1"), true);
        check(&format!("{id}-web-7..1"), false);
        check(&format!("{id}-web-"), false);
        check(&format!("{id}-../x-7"), false);
        check(&format!("{id}-7"), false);
        check("../../etc", false);
        check("", false);
    }
}
