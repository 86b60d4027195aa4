//! What follows a snapshot: the dump of a clone, in the background; and what ends it: removal, by name or as a leftover.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use ocore_core::{
    event::{Progress, Stream},
    name::InstanceName,
    port::{Context, Error, Leftovers, Result, Sink},
    secret::Secret,
};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Shared,
    ledger::{Kind, Ledger, Made, snapshot_key},
    manifest::{self, Cloned, Manifest},
    server::name,
    shelf::{self, DUMP, DUMP_PARTIAL, made_for},
    take::Dumping,
};

/// The dumps of clones that this process is at. Dropped, they stop.
#[derive(Debug, Default)]
pub(super) struct Background {
    tasks: Mutex<HashMap<String, Task>>,
}

#[derive(Debug)]
struct Task {
    handle: JoinHandle<()>,
    _stop: DropGuard,
}

/// Nobody waits for what is told here.
struct Silence;

impl Sink for Silence {
    fn log(&self, _: Option<&InstanceName>, _: Stream, line: &str) {
        tracing::debug!("{line}");
    }
    fn progress(&self, _: Option<&InstanceName>, _: Progress) {}
    fn hide(&self, _: &Secret) {}
}

impl Background {
    /// Begins to dump the clone of a snapshot, unless this process is at it.
    pub(super) fn dump(&self, shared: &Arc<Shared>, context: &Context, reference: &str) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|_, task| !task.handle.is_finished());
        if tasks.contains_key(reference) {
            return;
        }
        let token = CancellationToken::new();
        let environment = Arc::new(context.environment().clone());
        let context = Context::new(
            context.deployment(),
            environment,
            context.fence(),
            token.clone(),
            Arc::new(Silence),
        );
        let (shared, wanted) = (shared.clone(), reference.to_owned());
        let handle = tokio::spawn(async move {
            if let Err(error) = shared.dump_clone(&context, &wanted).await {
                // The next call for this database, or the next sweep, begins again.
                tracing::warn!(snapshot = wanted, "the dump of the clone has still to be made: {error}");
            }
        });
        tasks.insert(reference.to_owned(), Task { handle, _stop: token.drop_guard() });
    }

    /// Waits until this process is at none.
    pub(super) async fn finish(&self) {
        loop {
            let task = {
                let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(reference) = tasks.keys().next().cloned() else { return };
                tasks.remove(&reference)
            };
            if let Some(mut task) = task {
                // How it ended is in the log, and on the disk.
                drop((&mut task.handle).await);
            }
        }
    }
}

impl Shared {
    /// Dumps a snapshot's clone, if that has not been done, and nobody else is at it.
    async fn dump_clone(&self, context: &Context, reference: &str) -> Result<()> {
        let mut ledger = Ledger::open(&self.server, context, &self.application(context)).await?;
        if !ledger.try_lock(&snapshot_key(reference)).await? {
            return Ok(());
        }
        let directory = self.shelf.place(reference)?;
        let manifest = Manifest::read(&directory)?;
        let Some(clone) = undumped(&manifest) else { return Ok(()) };
        if !ledger.is_intact(&clone).await? {
            return Err(Error::permanent(format!("the clone {} is not there any more", clone.database)));
        }
        let quoted = name(&clone.database);
        // Hidden from those who list databases; only its owner comes in.
        let open = [
            format!("REVOKE CONNECT ON DATABASE {quoted} FROM PUBLIC"),
            format!("ALTER DATABASE {quoted} WITH IS_TEMPLATE true ALLOW_CONNECTIONS true"),
        ];
        for statement in open {
            ledger.session.run(statement, "open the clone for its dump").await?;
        }
        let partial = directory.join(DUMP_PARTIAL);
        shelf::at(shelf::remove_file(&partial), "remove", &partial)?;
        let dumping = Dumping { database: &clone.database, directory: &directory, file: DUMP_PARTIAL };
        let dumped = self.dump(context, &dumping).await;
        if dumped.is_err() {
            drop(shelf::remove_file(&partial));
        }
        let dump = dumped?;
        ledger.close_to_all(&clone.database).await?;
        let is_ours = ledger.try_lock(&snapshot_key(reference)).await?;
        if !is_ours || context.is_cancelled() {
            return Err(Error::cancelled());
        }
        let path = directory.join(DUMP);
        shelf::at(std::fs::rename(&partial, &path), "rename into place", &path)?;
        let mut manifest = manifest;
        if let manifest::Held::Database(copied) = &mut manifest.data {
            copied.dump = Some(dump);
        }
        shelf::replace_manifest(&directory, &manifest)?;
        ledger.session.close().await;
        Ok(())
    }

    /// The snapshots whose dumps have still to be made: of a database, or of all.
    pub(super) fn undumped(&self, database: Option<&str>) -> Result<Vec<String>> {
        let references = self.shelf.references()?.into_iter();
        let undumped = references.filter(|reference| {
            let manifest = self.shelf.place(reference).and_then(|directory| Manifest::read(&directory));
            manifest.is_ok_and(|manifest| match &manifest.data {
                manifest::Held::Database(copied) => {
                    let is_meant = database.is_none_or(|database| database == copied.source.database);
                    is_meant && undumped(&manifest).is_some()
                }
                manifest::Held::Absent | manifest::Held::Unmanaged => false,
            })
        });
        Ok(undumped.collect())
    }

    /// Removes a snapshot, wherever it is.
    pub(super) async fn remove(&self, context: &Context, reference: &str) -> Result<()> {
        let directory = self.shelf.place(reference)?;
        if context.is_cancelled() {
            return Err(Error::cancelled());
        }
        let manifest = Manifest::read(&directory);
        let has_clone = match &manifest {
            Ok(manifest) => match &manifest.data {
                manifest::Held::Database(copied) => copied.strategy != super::Strategy::Dump.text(),
                manifest::Held::Absent | manifest::Held::Unmanaged => false,
            },
            // Nobody knows what it had.
            Err(_) => true,
        };
        if has_clone {
            let mut ledger = Ledger::open(&self.server, context, &self.application(context)).await?;
            ledger.take_over(context, &snapshot_key(reference)).await?;
            // From here on it is no snapshot any more, and a half of it is a leftover.
            self.shelf.remove(reference)?;
            for made in
                ledger.made(Kind::Clone, None).await?.iter().filter(|made| made.reference == reference)
            {
                ledger.drop_made(&made.name).await?;
            }
            ledger.session.close().await;
            return Ok(());
        }
        self.shelf.remove(reference)
    }

    /// Removes what is left of deployments that are over, and databases that are kept no longer.
    pub(super) async fn sweep(&self, context: &Context, leftovers: &Leftovers) -> Result<()> {
        if context.is_cancelled() {
            return Err(Error::cancelled());
        }
        for reference in self.shelf.leftovers(leftovers)? {
            self.remove(context, &reference).await?;
        }
        let mut ledger = Ledger::open(&self.server, context, &self.application(context)).await?;
        for kind in [Kind::Side, Kind::Clone, Kind::Replaced] {
            for made in ledger.made(kind, None).await? {
                if self.is_left(kind, &made, leftovers) && ledger.try_place(&made.database).await? {
                    ledger.drop_made(&made.name).await?;
                    ledger.leave_place(&made.database).await?;
                }
            }
        }
        self.give_up_old_clones(&mut ledger).await?;
        ledger.session.close().await;
        Ok(())
    }

    fn is_left(&self, kind: Kind, made: &Made, leftovers: &Leftovers) -> bool {
        let Ok(deployment) = made.deployment.parse() else { return false };
        match kind {
            Kind::Side => leftovers.ended.contains(&deployment),
            Kind::Clone => {
                leftovers.include(deployment, &made.reference)
                    && made_for(&made.reference) == Some(deployment)
                    && self.clone_of(&made.reference).is_none()
            }
            Kind::Replaced => leftovers.ended.contains(&deployment) && made.is_older_than(self.keep_replaced),
        }
    }

    /// A clone that has a dump is there for a fast rollback only: as long as it is kept, and none is newer.
    async fn give_up_old_clones(&self, ledger: &mut Ledger) -> Result<()> {
        let clones = ledger.made(Kind::Clone, None).await?;
        for (index, made) in clones.iter().enumerate() {
            let is_newest = clones[index + 1..].iter().all(|newer| newer.database != made.database);
            if is_newest && !made.is_older_than(self.keep_clones) {
                continue;
            }
            if !ledger.try_lock(&snapshot_key(&made.reference)).await? {
                continue;
            }
            let Ok(directory) = self.shelf.place(&made.reference) else { continue };
            let Ok(manifest) = Manifest::read(&directory) else { continue };
            let manifest::Held::Database(copied) = &manifest.data else { continue };
            if copied.dump.is_some() && copied.clone.as_ref().is_some_and(|clone| clone.database == made.name)
            {
                shelf::replace_manifest(&directory, &manifest.without_clone())?;
                ledger.drop_made(&made.name).await?;
            }
        }
        Ok(())
    }
}

/// The clone that has still to be dumped.
fn undumped(manifest: &Manifest) -> Option<Cloned> {
    let manifest::Held::Database(copied) = &manifest.data else { return None };
    let wanted = copied.strategy == super::Strategy::CloneThenDump.text() && copied.dump.is_none();
    copied.clone.clone().filter(|_| wanted)
}
