//! A copy of a directory that may be in use.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use chrono::{DateTime, Utc};
use ocore_core::{
    environment::Instance,
    name::InstanceName,
    port::{Context, Error, Result},
    release::Snapshot,
};

use super::{DATA, Head, Held, LIMIT, VERSION, place::Place};
use crate::{
    blocking::Cancel,
    builder::Reading,
    durable::{self, At},
    shelf::Shelf,
    tree::{
        self, Entry, Kind,
        copy::{self, digest_on_disk},
        manifest::{FILE_NAME, Listed, Manifest},
    },
};

/// How often the directory is looked at until it holds still.
const LOOKS_MAX: usize = 12;
/// The file system's clock moves in steps of up to 10 milliseconds: two writes within one step look like one.
const STEP: Duration = Duration::from_millis(20);

/// A snapshot that is being taken.
pub(super) struct Take {
    snapshots: Shelf,
    context: Context,
    instance: InstanceName,
    place: Option<Place>,
    /// Names this call.
    call: String,
}

impl Take {
    pub(super) fn new(snapshots: Shelf, context: Context, instance: &Instance, place: Option<Place>) -> Self {
        Self { snapshots, context, instance: instance.name.clone(), place, call: durable::unique() }
    }

    pub(super) fn run(&self, cancel: &Cancel) -> Result<Snapshot> {
        cancel.check()?;
        self.prepare()?;
        let name = self.free_name();
        let (directory, partial) = (self.snapshots.place(&name), self.snapshots.beside(&name, &self.call));
        let taken = self.fill(&partial, cancel).and_then(|(taken_at, size_bytes)| {
            cancel.check()?;
            let fence = self.context.fence();
            if self.place.as_ref().is_some_and(|place| place.fenced.overtaken(fence)) {
                return Err(Error::fenced());
            }
            fs::rename(&partial, &directory).at("rename into place", &directory)?;
            Ok((taken_at, size_bytes))
        });
        let (taken_at, size_bytes) = taken.inspect_err(|_| {
            // The first error is the one that explains; the next call removes what this one cannot.
            drop(durable::remove_tree(&partial));
        })?;
        durable::sync_directory(self.snapshots.path()).at("write", self.snapshots.path())?;
        self.context.log(format!("snapshot {name}: {size_bytes} bytes"));
        Ok(Snapshot::new(name, taken_at, size_bytes))
    }

    fn stem(&self) -> String {
        format!("{}-{}-", self.context.deployment(), self.instance)
    }

    /// The directory of snapshots, without what earlier calls for this deployment and instance, and processes that are
    /// gone, left unfinished.
    fn prepare(&self) -> Result<()> {
        let snapshots = self.snapshots.path();
        if let Some(root) = snapshots.parent() {
            durable::create_directories(root).at("make", root)?;
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(snapshots).at("make", snapshots)?;
        self.snapshots.remove_unfinished(&self.stem(), self.context.fence(), &self.call)
    }

    /// A name that no snapshot has: one of this very fence may be there, taken by a call whose answer was lost.
    fn free_name(&self) -> String {
        let name = format!("{}{}", self.stem(), self.context.fence());
        let numbered = (1..).map(|number| format!("{name}.{number}"));
        let mut names = std::iter::once(name.clone()).chain(numbered);
        let is_free = |name: &String| !self.snapshots.place(name).exists();
        names.find(is_free).expect("there are more numbers than snapshots")
    }

    fn fill(&self, partial: &Path, cancel: &Cancel) -> Result<(DateTime<Utc>, u64)> {
        fs::create_dir(partial).at("make", partial)?;
        let mut taken_at = Utc::now();
        let (data, entries) = match &self.place {
            None => (Held::Unmanaged, Vec::new()),
            Some(place) if !place.exists() => (Held::Absent, Vec::new()),
            Some(place) => {
                let mut copying = Copying::new(&self.context, &place.data, partial.join(DATA));
                taken_at = copying.run(cancel)?;
                (Held::Directory, copying.finish(cancel)?)
            }
        };
        let head = Head {
            version: VERSION,
            deployment: self.context.deployment(),
            instance: self.instance.clone(),
            taken_at,
            data,
        };
        let manifest = Manifest { head, entries };
        manifest.write(partial)?;
        let path = partial.join(FILE_NAME);
        let occupied = manifest.bytes() + fs::metadata(&path).at("read", &path)?.len();
        Ok((taken_at, if data == Held::Directory { occupied } else { 0 }))
    }
}

/// A copy that follows its original until that holds still.
struct Copying<'a> {
    context: &'a Context,
    from: &'a Path,
    to: PathBuf,
    copied: BTreeMap<PathBuf, Copied>,
}

struct Copied {
    listed: Listed,
    /// Whether a later write would certainly have changed the time stamp.
    settled: bool,
}

impl<'a> Copying<'a> {
    const fn new(context: &'a Context, from: &'a Path, to: PathBuf) -> Self {
        Self { context, from, to, copied: BTreeMap::new() }
    }

    /// Copies what is new or has changed since the last look, until a look finds nothing of that kind: then the copy
    /// is the directory as it was when that look began.
    fn run(&mut self, cancel: &Cancel) -> Result<DateTime<Utc>> {
        let mut moving = PathBuf::new();
        for look in 0..LOOKS_MAX {
            let began = Utc::now();
            let listing = tree::list(self.from, LIMIT, cancel)?;
            if look == 0 {
                self.require_space(listing.bytes())?;
                for path in &listing.skipped {
                    self.context.log(format!("left out: {} is a socket or a pipe", path.display()));
                }
            }
            let stale = self.stale(&listing.entries);
            match stale.last() {
                None => return Ok(began),
                Some(path) => moving.clone_from(path),
            }
            self.remove(&stale)?;
            self.copy(listing.entries, began, cancel)?;
            thread::sleep(STEP * 2);
        }
        Err(Error::transient(format!(
            "{} keeps changing while it is copied ({}): let the environment take its snapshots after the stop",
            self.from.display(),
            self.from.join(moving).display()
        )))
    }

    /// Room for the copy, and beside the data for the one that a restore makes: a snapshot that could not be restored
    /// must fail now, and not when nothing serves any more.
    fn require_space(&self, bytes: u64) -> Result<()> {
        let (copy, data) = (self.to.parent().unwrap_or(&self.to), self.from.parent().unwrap_or(self.from));
        let device = |path: &Path| fs::metadata(path).at("read", path).map(|metadata| metadata.dev());
        if device(copy)? == device(data)? {
            return copy::require_space(
                copy,
                bytes.saturating_mul(2),
                "for the snapshot and for restoring it",
            );
        }
        copy::require_space(copy, bytes, "for the snapshot")?;
        copy::require_space(data, bytes, "for restoring the snapshot")
    }

    /// The paths where copy and original may differ, sorted.
    fn stale(&self, now: &[Entry]) -> Vec<PathBuf> {
        let mut before: BTreeMap<&Path, &Copied> =
            self.copied.iter().map(|(path, copied)| (path.as_path(), copied)).collect();
        let mut stale = Vec::new();
        for entry in now {
            let copied = before.remove(entry.path.as_path());
            if copied.is_none_or(|copied| !copied.settled || copied.listed.entry != *entry) {
                stale.push(entry.path.clone());
            }
        }
        stale.extend(before.into_keys().map(Path::to_owned));
        stale.sort_unstable();
        stale
    }

    /// Removes files and links that are stale, and directories that are no more; the innermost first.
    fn remove(&mut self, stale: &[PathBuf]) -> Result<()> {
        for path in stale.iter().rev() {
            let is_directory = fs::symlink_metadata(self.from.join(path)).is_ok_and(|found| found.is_dir());
            let Some(copied) = self.copied.get(path) else { continue };
            if is_directory && copied.listed.entry.kind == Kind::Directory {
                continue;
            }
            copy::unmake(&copied.listed.entry, &self.to)?;
            self.copied.remove(path);
        }
        Ok(())
    }

    fn copy(&mut self, entries: Vec<Entry>, now: DateTime<Utc>, cancel: &Cancel) -> Result<()> {
        let (from, to) = (self.from, &self.to);
        let missing = entries.iter().filter(|entry| !self.copied.contains_key(&entry.path));
        let mut reading = Reading::new(self.context, "copying data", missing.map(Entry::size).sum());
        for entry in entries {
            let settled = entry.kind == Kind::Directory || is_settled(&entry, now);
            if let Some(copied) = self.copied.get_mut(&entry.path) {
                copied.listed.entry = entry;
                copied.settled |= settled;
                continue;
            }
            match copy::make(&entry, from, to, cancel, &mut |bytes| reading.add(bytes)) {
                Ok(blake3) => {
                    let path = entry.path.clone();
                    self.copied.insert(path, Copied { listed: Listed { entry, blake3 }, settled });
                }
                // Gone since the look: the next one tells the same.
                Err(_) if fs::symlink_metadata(from.join(&entry.path)).is_err() => copy::unmake(&entry, to)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives directories their attributes, and reads every file back from the disk.
    fn finish(self, cancel: &Cancel) -> Result<Vec<Listed>> {
        let listed: Vec<Listed> = self.copied.into_values().map(|copied| copied.listed).collect();
        copy::finish(listed.iter().map(|listed| &listed.entry), &self.to)?;
        let bytes = listed.iter().map(|listed| listed.entry.size()).sum();
        let mut reading = Reading::new(self.context, "verifying the copy", bytes);
        for Listed { entry, blake3 } in listed.iter().filter(|listed| listed.blake3.is_some()) {
            let path = self.to.join(&entry.path);
            if blake3.as_ref() != Some(&digest_on_disk(&path, cancel)?) {
                let path = path.display();
                return Err(Error::transient(format!(
                    "{path} is not on the disk as it was written: is the disk failing?"
                )));
            }
            reading.add(entry.size());
        }
        Ok(listed)
    }
}

/// Whether the entry's last change is far enough from now that another one would have another time.
fn is_settled(entry: &Entry, now: DateTime<Utc>) -> bool {
    let stamp = entry.changed;
    let nanoseconds = u32::try_from(stamp.1).unwrap_or(0);
    DateTime::from_timestamp(stamp.0, nanoseconds)
        .is_none_or(|changed| (now - changed).abs().to_std().is_ok_and(|distance| distance > STEP))
}
