//! Snapshots of PostgreSQL databases.

mod attributes;
mod builder;
mod child;
mod contents;
mod dump;
mod fill;
mod finish;
mod ledger;
mod logins;
mod manifest;
mod preflight;
mod replaced;
mod restore;
mod server;
mod shelf;
mod take;
mod tools;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use ocore_core::{
    environment::Instance,
    port::{Context, Leftovers, Result, Snapshotter},
    release::Snapshot,
};

pub use self::{
    builder::PostgresSnapshotterBuilder,
    logins::{Login, Logins},
    replaced::Replaced,
};
use self::{
    finish::Background,
    ledger::{Ledger, exists},
    manifest::{Held, Manifest},
    server::{Argument::Text, Server},
    shelf::Shelf,
};

/// The template of side databases, unless another one is given: the one without anything in it.
const TEMPLATE: &str = "template0";

/// How a snapshot is taken. While the application runs (`SnapshotWhen::BeforeStop`) it is always a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Strategy {
    /// One full `pg_dump`: portable, off the server, a restore takes long.
    Dump,
    /// A copy of the database on its server, while nobody is in it: fast both ways, as large as the database, and lost
    /// with the server.
    Clone,
    /// A clone, and then a dump of the clone in the background: the downtime is the clone's, a rollback within
    /// [`keep_clones`](PostgresSnapshotterBuilder::keep_clones) exchanges two names, and what remains is a dump.
    CloneThenDump,
    /// `CloneThenDump` where that is possible, `Dump` otherwise; the manifest says why.
    #[default]
    Auto,
}

impl Strategy {
    const fn text(self) -> &'static str {
        match self {
            Self::Dump => "dump",
            Self::Clone => "clone",
            Self::CloneThenDump => "clone_then_dump",
            Self::Auto => "auto",
        }
    }
}

/// How thoroughly a dump is read again before the deployment goes on. Every restore compares the checksum again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Verification {
    /// Its length, and its table of contents.
    Length,
    /// Its checksum, read from the disk.
    Checksum,
    /// `pg_restore` reads every block of it, and the checksum is compared. A quarter of the time that the dump takes.
    #[default]
    ReadThrough,
    /// It is restored into a side database, which is compared and removed.
    Drill,
}

impl Verification {
    const fn level(self) -> u8 {
        match self {
            Self::Length => 0,
            Self::Checksum => 1,
            Self::ReadThrough => 2,
            Self::Drill => 3,
        }
    }
}

/// What is counted in the very moment of the dump, and compared with what a restore gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Fingerprint {
    /// Nothing but large objects, extensions and their functions.
    None,
    /// The rows of every table.
    #[default]
    Counts,
    /// The rows of every table with their values: a third of the time that the dump takes.
    Rows,
}

/// Copies an instance's PostgreSQL database, and puts a copy back atomically.
///
/// **A snapshot** is a directory with a manifest and, but for pure clones, one dump: `pg_dump`'s custom format in a zstd
/// file, so that `zstd -d` and `pg_restore` read it without ocore. It is written beside, with a BLAKE3 checksum, read
/// again, and renamed into place. The manifest holds what a dump leaves out: owner, encoding, locale, access rights,
/// settings, connection limit and comment of the database, what `ALTER FUNCTION` made of functions of extensions.
///
/// **A restore** makes a database beside the application's, compares it with what was dumped, and exchanges the two in one
/// transaction, while nobody can connect: killed at any moment, there is the old data or the new. What was replaced is
/// kept for a while ([`replaced`](Self::replaced)), and [`undo`](Self::undo) brings it back.
///
/// **The role** needs LOGIN, CREATEDB and to own the database, and no more. In the maintenance database (the one of the
/// connect options, directly, not through a pooler) it needs a schema `ocore_snapshot`, which is made if the role may:
/// there is written which databases were made, and per database the highest fence, below which every call is refused.
/// What is missing is named before anything is touched.
///
/// **Servers** from 14 on, with `pg_dump` and `pg_restore` of the server's major version. The directory must be the same for
/// all workers of a pool.
///
/// ```
/// use ocore_core::secret::Secret;
/// use ocore_postgres::snapshot::{PostgresSnapshotter, Strategy};
/// use sqlx::postgres::PgConnectOptions;
///
/// let options = PgConnectOptions::new_without_pgpass().host("db.example.org").username("odoo").database("ocore");
/// let snapshotter = PostgresSnapshotter::builder(options, Secret::new("…"), "/var/lib/ocore/databases")
///     .strategy(Strategy::CloneThenDump)
///     .build();
/// ```
#[derive(Debug, Clone)]
pub struct PostgresSnapshotter {
    shared: Arc<Shared>,
    background: Arc<Background>,
}

#[derive(Debug)]
struct Shared {
    server: Server,
    shelf: Shelf,
    strategy: Strategy,
    verification: Verification,
    fingerprint: Fingerprint,
    tools: Option<PathBuf>,
    template: String,
    server_files: Option<PathBuf>,
    keep_replaced: Duration,
    keep_clones: Duration,
    shut_out: bool,
    restore_jobs: usize,
    /// The extensions that could be made in an empty database.
    rehearsed: Mutex<BTreeSet<String>>,
}

impl Shared {
    /// How the server lists the sessions of a call.
    fn application(&self, context: &Context) -> String {
        format!("ocore-snapshot {} {}", context.deployment().short(), context.fence())
    }

    /// What can be compared with a dump: as much as was counted when it was taken.
    fn fingerprint_of(&self, dump: &manifest::Dumped) -> Fingerprint {
        match dump.contents.tables.values().next() {
            None => Fingerprint::None,
            Some(table) if table.hash.is_some() => Fingerprint::Rows,
            Some(_) => Fingerprint::Counts,
        }
    }

    async fn changed_since(
        &self,
        context: &Context,
        instance: &Instance,
        snapshot: &Snapshot,
    ) -> Result<bool> {
        let directory = self.shelf.place(&snapshot.reference)?;
        let Ok(manifest) = Manifest::read(&directory) else { return Ok(true) };
        let (copied, database) = match (&manifest.data, &instance.database) {
            (Held::Unmanaged | Held::Absent, None) => return Ok(false),
            (Held::Absent, Some(database)) => {
                let mut ledger = Ledger::open(&self.server, context, &self.application(context)).await?;
                return exists(&mut ledger.session, database).await;
            }
            (Held::Database(copied), Some(database)) => (copied, database),
            (Held::Unmanaged, Some(_)) | (Held::Database(_), None) => return Ok(true),
        };
        let mut ledger = Ledger::open(&self.server, context, &self.application(context)).await?;
        let session = &mut ledger.session;
        let same =
            "SELECT true FROM pg_database WHERE datname = $1 AND oid = $2::bigint::oid AND datallowconn";
        let arguments = [Text(database), server::Argument::Number(copied.source.oid)];
        if !session.is(same, &arguments).await? {
            return Ok(true);
        }
        // The server adds up what a session has done when that has been idle for ten seconds, or ends.
        let busy = "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid() \
                    AND usesysid IS NOT NULL \
                    AND (state IS DISTINCT FROM 'idle' OR state_change > clock_timestamp() - interval '15 s'))";
        if session.is(busy, &[Text(database)]).await? {
            return Ok(true);
        }
        let mut inside = self.server.session(context, database, &self.application(context)).await?;
        let sequences = contents::sequences(&mut inside).await?;
        inside.close().await;
        let now = contents::counters(session, database, sequences).await?;
        Ok(now != copied.counters)
    }
}

impl PostgresSnapshotter {
    /// A snapshotter for the databases of a server, with a directory for what it keeps. Both are as secret as the data is.
    ///
    /// The password is given beside the options, because they do not show one that they have: the programs need it too.
    /// An empty one means that none is needed.
    #[must_use]
    pub fn builder(
        options: sqlx::postgres::PgConnectOptions,
        password: ocore_core::secret::Secret,
        directory: impl Into<PathBuf>,
    ) -> PostgresSnapshotterBuilder {
        PostgresSnapshotterBuilder::new(Server::new(options, password), Shelf::new(directory.into()))
    }

    /// Waits until the dumps of clones that this process is at have ended, well or badly.
    pub async fn finish_dumps(&self) {
        self.background.finish().await;
    }

    /// Goes on with dumps of clones that a worker before has not finished.
    fn resume_dumps(&self, context: &Context, database: Option<&str>) -> Result<()> {
        for reference in self.shared.undumped(database)? {
            self.background.dump(&self.shared, context, &reference);
        }
        Ok(())
    }
}

#[async_trait]
impl Snapshotter for PostgresSnapshotter {
    async fn take(&self, context: &Context, instance: &Instance) -> Result<Snapshot> {
        let snapshot = self.shared.take(context, instance).await?;
        self.resume_dumps(context, instance.database.as_deref())?;
        Ok(snapshot)
    }

    async fn restore(&self, context: &Context, instance: &Instance, snapshot: &Snapshot) -> Result<()> {
        self.shared.restore(context, instance, snapshot).await?;
        self.resume_dumps(context, instance.database.as_deref())
    }

    async fn changed_since(
        &self,
        context: &Context,
        instance: &Instance,
        snapshot: &Snapshot,
    ) -> Result<bool> {
        self.shared.changed_since(context, instance, snapshot).await
    }

    async fn remove(&self, context: &Context, snapshot: &Snapshot) -> Result<()> {
        self.shared.remove(context, &snapshot.reference).await
    }

    async fn sweep(&self, context: &Context, leftovers: &Leftovers) -> Result<()> {
        self.shared.sweep(context, leftovers).await?;
        self.resume_dumps(context, None)
    }
}
