//! Putting a snapshot back: a side database is made and checked, and then takes the application's place.

use std::path::Path;

use ocore_core::{
    environment::Instance,
    port::{Context, Error, Result},
    release::Snapshot,
};

use super::{
    Shared, dump,
    fill::Original,
    ledger::{Held, Kind, Ledger, Made, beside, exists, snapshot_key},
    manifest::{self, Cloned, Copied, Manifest},
    server::{Argument::Text, literal, name},
    shelf::{self, DUMP},
};

impl Shared {
    /// Puts a snapshot back.
    pub(super) async fn restore(
        &self,
        context: &Context,
        instance: &Instance,
        snapshot: &Snapshot,
    ) -> Result<()> {
        if context.is_cancelled() {
            return Err(Error::cancelled());
        }
        let directory = self.shelf.place(&snapshot.reference)?;
        let manifest = Manifest::read(&directory)?;
        let reference = &snapshot.reference;
        match (&manifest.data, instance.database.as_deref()) {
            (manifest::Held::Unmanaged | manifest::Held::Absent, None) => Ok(()),
            (manifest::Held::Unmanaged, Some(database)) => Err(Error::permanent(format!(
                "snapshot {reference} was taken when the instance had no database: it says nothing about {database}"
            ))),
            (manifest::Held::Database(_), None) => Err(Error::permanent(format!(
                "{} has no database to restore {reference} to: give it one",
                instance.name
            ))),
            (manifest::Held::Absent, Some(database)) => {
                let mut held = self.enter(context, database).await?;
                self.shut_logins_out(context, &mut held).await?;
                self.remove_database(context, &mut held, reference).await
            }
            (manifest::Held::Database(copied), Some(database)) => {
                let mut held = self.enter(context, database).await?;
                self.shut_logins_out(context, &mut held).await?;
                let side = self.side(context, &mut held, &manifest, copied, &directory).await?;
                self.replace(context, &mut held, Some((&side, copied)), reference).await
            }
        }
    }

    pub(super) async fn enter(&self, context: &Context, database: &str) -> Result<Held> {
        let ledger = Ledger::open(&self.server, context, &self.application(context)).await?;
        let mut held = ledger.enter(context, database).await?;
        self.settle(&mut held).await?;
        Ok(held)
    }

    async fn remove_database(&self, context: &Context, held: &mut Held, reference: &str) -> Result<()> {
        if !exists(&mut held.ledger.session, &held.database.clone()).await? {
            return Ok(());
        }
        self.replace(context, held, None, reference).await
    }

    /// A database beside the application's that is what the snapshot holds.
    async fn side(
        &self,
        context: &Context,
        held: &mut Held,
        manifest: &Manifest,
        copied: &Copied,
        directory: &Path,
    ) -> Result<Made> {
        let reference = &manifest.reference;
        let key = format!("{reference} {}", held.fence);
        let database = held.database.clone();
        let side = Made::new(beside(&database, "ocr", &key), &database, context.deployment(), reference);
        let roles = copied.dump.as_ref().map_or(&[][..], |dump| &dump.contents.roles);
        self.can_restore(held, &copied.attributes, roles, reference).await?;
        let clone = match &copied.clone {
            Some(clone) if held.ledger.is_intact(clone).await? => Some(clone),
            Some(_) | None => None,
        };
        match (clone, &copied.dump) {
            (Some(clone), Some(_)) => self.give_up_clone(context, held, manifest, clone, directory).await,
            (Some(clone), None) => {
                // Its dump may be under way; the clone stays, as the only copy there is.
                held.ledger.take_over(context, &snapshot_key(reference)).await?;
                self.close_clone(held, clone).await?;
                let owner = &copied.attributes.owner;
                let copying = self.copy(context, held, Kind::Side, &side, &clone.database, owner, "").await;
                self.or_removed(context, held, &side, copying.map(drop)).await?;
                Ok(side)
            }
            (None, Some(dump)) => {
                let path = directory.join(DUMP);
                // All of it, before any of it is believed.
                dump::check_file(context, &path, &dump.written()).await?;
                let filled =
                    self.fill_side(context, held, &side, &Original { copied, dump, path: &path }).await;
                self.or_removed(context, held, &side, filled).await?;
                Ok(side)
            }
            (None, None) => {
                Err(Error::permanent(format!("the clone of snapshot {reference} is not there any more")))
            }
        }
    }

    /// A side database that was not finished is removed at once, if that can be.
    async fn or_removed(
        &self,
        context: &Context,
        held: &mut Held,
        side: &Made,
        made: Result<()>,
    ) -> Result<()> {
        if made.is_err()
            && let Err(error) = held.ledger.drop_made(&side.name).await
        {
            context.log(format!("database {} is removed by the next call: {error}", side.name));
        }
        made
    }

    async fn close_clone(&self, held: &mut Held, clone: &Cloned) -> Result<()> {
        let close = format!(
            "ALTER DATABASE {} WITH IS_TEMPLATE false ALLOW_CONNECTIONS false",
            name(&clone.database)
        );
        held.ledger.session.run(close, "close the clone").await?;
        held.ledger.empty(&clone.database).await
    }

    /// The clone itself takes the application's place: nothing is copied. The snapshot is its dump from then on, so
    /// that it can be restored again.
    async fn give_up_clone(
        &self,
        context: &Context,
        held: &mut Held,
        manifest: &Manifest,
        clone: &Cloned,
        directory: &Path,
    ) -> Result<Made> {
        held.ledger.take_over(context, &snapshot_key(&manifest.reference)).await?;
        let dump = match &manifest.data {
            manifest::Held::Database(copied) => copied.dump.as_ref(),
            manifest::Held::Absent | manifest::Held::Unmanaged => None,
        };
        if let Some(dump) = dump {
            // The copy that remains must be a good one.
            dump::check_file(context, &directory.join(DUMP), &dump.written()).await?;
        }
        self.close_clone(held, clone).await?;
        shelf::replace_manifest(directory, &manifest.without_clone())?;
        let change = "UPDATE ocore_snapshot.made SET kind = 'side', deployment = $2 WHERE name = $1";
        let deployment = context.deployment().to_string();
        held.ledger.session.change(change, &[Text(&clone.database), Text(&deployment)]).await?;
        Ok(Made::new(clone.database.clone(), &held.database, context.deployment(), &manifest.reference))
    }

    /// Restores a dump that was just taken, compares, and removes what it made.
    pub(super) async fn drill(
        &self,
        context: &Context,
        held: &mut Held,
        copied: &Copied,
        path: &Path,
    ) -> Result<()> {
        let Some(dump) = &copied.dump else { return Ok(()) };
        let database = held.database.clone();
        let reference = format!("drill {}", held.fence);
        let side =
            Made::new(beside(&database, "ocd", &reference), &database, context.deployment(), &reference);
        let filled = self.fill_side(context, held, &side, &Original { copied, dump, path }).await;
        held.ledger.drop_made(&side.name).await?;
        filled
    }

    /// The side database takes the application's place, or nothing does; what was there is kept under another name.
    async fn replace(
        &self,
        context: &Context,
        held: &mut Held,
        side: Option<(&Made, &Copied)>,
        reference: &str,
    ) -> Result<()> {
        let database = held.database.clone();
        if let Some((side, _)) = side {
            held.ledger.close_to_all(&side.name).await?;
        }
        let mut statements = Vec::new();
        let was_there = exists(&mut held.ledger.session, &database).await?;
        let old =
            Made::new(beside(&database, "old", &unique(held)), &database, context.deployment(), reference);
        let is_first = self.first_replaced(held, &old).await?;
        if was_there {
            held.shut().await?;
            held.drain(context).await?;
            statements.push(rename(&database, &old.name));
            statements.push(old.insert_replaced());
        }
        if let Some((side, copied)) = side {
            statements.push(rename(&side.name, &database));
            statements.extend(copied.attributes.dress(&database));
            statements.push(format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", name(&database)));
            statements.push(format!("DELETE FROM ocore_snapshot.made WHERE name = {}", literal(&side.name)));
        }
        statements.push(held.closed_is(false));
        if context.is_cancelled() {
            return self.give_up(held, was_there, Error::cancelled()).await;
        }
        if let Err(error) =
            held.all_or_none(&statements, "put the side database into the database's place").await
        {
            return self.give_up(held, was_there, error).await;
        }
        context.log(format!("database {database} is what snapshot {reference} holds"));
        if was_there && (!is_first || self.keep_replaced.is_zero()) {
            held.ledger.drop_made(&old.name).await?;
        } else if was_there {
            context.log(format!("what it was before is kept as {}", old.name));
        }
        Ok(())
    }

    /// What is there stays there, and is open again.
    async fn give_up(&self, held: &mut Held, was_there: bool, error: Error) -> Result<()> {
        // An error here is one of a server that is gone: the next call opens it.
        if was_there {
            drop(held.reopen().await);
        }
        drop(self.settle(held).await);
        Err(error)
    }

    /// Of one deployment the first database that was replaced is kept: it has what users wrote. Those of later attempts
    /// hold what a failed update made.
    async fn first_replaced(&self, held: &mut Held, old: &Made) -> Result<bool> {
        let replaced = held.ledger.made(Kind::Replaced, Some(&held.database.clone())).await?;
        Ok(replaced.iter().all(|made| made.deployment != old.deployment))
    }
}

/// Tells one exchange from every other.
pub(super) fn unique(held: &Held) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{} {} {}", held.fence, std::process::id(), now.as_nanos())
}

pub(super) fn rename(from: &str, to: &str) -> String {
    format!("ALTER DATABASE {} RENAME TO {}", name(from), name(to))
}

impl Made {
    pub(super) fn insert_replaced(&self) -> String {
        let Self { name, database, deployment, reference, .. } = self;
        let values: Vec<_> = [name, "replaced", database, deployment, reference].map(literal).into();
        format!(
            "INSERT INTO ocore_snapshot.made (name, kind, database, deployment, reference) VALUES ({})",
            values.join(", ")
        )
    }
}

impl Manifest {
    pub(super) fn without_clone(&self) -> Self {
        let mut changed = self.clone();
        if let manifest::Held::Database(copied) = &mut changed.data {
            copied.clone = None;
        }
        changed
    }
}
