//! Taking a snapshot: a dump, or a clone.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use ocore_core::{
    environment::{Instance, SnapshotWhen},
    port::{Context, Error, Result},
    release::Snapshot,
};

use super::{
    Shared, Strategy, Verification, contents,
    dump::{self, Origin},
    ledger::{Held, Kind, Ledger, Made, beside, exists},
    manifest::{self, Cloned, Copied, Counters, Dumped, Manifest, Source, Verified},
    preflight::Report,
    server::{Argument::Text, Session, column, name},
    shelf::{self, DUMP},
    tools::Tools,
};

/// A database that is being dumped.
pub(super) struct Dumping<'a> {
    pub(super) database: &'a str,
    /// The directory for the file, and the file's name until it is complete.
    pub(super) directory: &'a Path,
    pub(super) file: &'a str,
}

impl Shared {
    /// Takes a snapshot, and says whether its dump has still to follow.
    pub(super) async fn take(&self, context: &Context, instance: &Instance) -> Result<Snapshot> {
        if context.is_cancelled() {
            return Err(Error::cancelled());
        }
        self.shelf.prepare()?;
        let Some(database) = instance.database.as_deref() else {
            return self.record_nothing(context, instance, "", manifest::Held::Unmanaged);
        };
        let ledger = Ledger::open(&self.server, context, &self.application(context)).await?;
        let mut held = ledger.enter(context, database).await?;
        self.settle(&mut held).await?;
        if !exists(&mut held.ledger.session, database).await? {
            return self.record_nothing(context, instance, database, manifest::Held::Absent);
        }
        let report = self.preflight(context, &mut held).await?;
        if context.environment().policy().snapshot == SnapshotWhen::AfterStop {
            self.shut_logins_out(context, &mut held).await?;
        }
        let reference = self.shelf.free_reference(context, &instance.name);
        let partial = self.shelf.begin(&reference, database)?;
        let (strategy, because) = (report.strategy, report.because.clone());
        context.log(format!("snapshot {reference}: {} ({because})", strategy.text()));
        let (taken_at, copied) = match strategy {
            Strategy::Clone | Strategy::CloneThenDump => {
                self.take_clone(context, &mut held, report, &reference).await?
            }
            Strategy::Dump | Strategy::Auto => {
                self.take_dump(context, &mut held, report, partial.path()).await?
            }
        };
        let data = manifest::Held::Database(Box::new(copied));
        let manifest = self.manifest(context, instance, reference, taken_at, data);
        let last = async {
            held.check().await?;
            if context.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
        };
        if let Err(error) = last.await {
            self.settle(&mut held).await?;
            return Err(error);
        }
        partial.finish(&self.shelf, &manifest)?;
        context.log(format!("snapshot {}: {} bytes", manifest.reference, manifest.size_bytes()));
        held.ledger.session.close().await;
        Ok(Snapshot::new(manifest.reference.clone(), taken_at, manifest.size_bytes()))
    }

    fn record_nothing(
        &self,
        context: &Context,
        instance: &Instance,
        database: &str,
        data: manifest::Held,
    ) -> Result<Snapshot> {
        let reference = self.shelf.free_reference(context, &instance.name);
        let partial = self.shelf.begin(&reference, database)?;
        let manifest = self.manifest(context, instance, reference, Utc::now(), data);
        partial.finish(&self.shelf, &manifest)?;
        Ok(Snapshot::new(manifest.reference, manifest.taken_at, 0))
    }

    fn manifest(
        &self,
        context: &Context,
        instance: &Instance,
        reference: String,
        taken_at: DateTime<Utc>,
        data: manifest::Held,
    ) -> Manifest {
        let (deployment, instance) = (context.deployment(), instance.name.clone());
        Manifest { version: manifest::VERSION, reference, deployment, instance, taken_at, data }
    }

    /// Puts in order what earlier calls for the database have left: on the server, and on the disk.
    pub(super) async fn settle(&self, held: &mut Held) -> Result<()> {
        held.settle().await?;
        let database = held.database.clone();
        for made in held.ledger.made(Kind::Clone, Some(&database)).await? {
            if self.clone_of(&made.reference).is_none_or(|clone| clone.database != made.name) {
                held.ledger.drop_made(&made.name).await?;
            }
        }
        if self.keep_replaced.is_zero() {
            for made in held.ledger.made(Kind::Replaced, Some(&database)).await? {
                held.ledger.drop_made(&made.name).await?;
            }
        }
        self.shelf.remove_unfinished(&database)
    }

    /// The clone that belongs to a finished snapshot.
    pub(super) fn clone_of(&self, reference: &str) -> Option<Cloned> {
        let manifest = Manifest::read(&self.shelf.place(reference).ok()?).ok()?;
        match manifest.data {
            manifest::Held::Database(copied) => copied.clone,
            manifest::Held::Absent | manifest::Held::Unmanaged => None,
        }
    }

    /// The counters of a database, and in the end the session that asked for them.
    async fn look_inside(&self, context: &Context, held: &mut Held) -> Result<(Session, Counters)> {
        let database = held.database.clone();
        let mut inside = self.server.session(context, &database, &self.application(context)).await?;
        let sequences = contents::sequences(&mut inside).await?;
        let counters = contents::counters(&mut held.ledger.session, &database, sequences).await?;
        Ok((inside, counters))
    }

    async fn take_dump(
        &self,
        context: &Context,
        held: &mut Held,
        report: Report,
        directory: &Path,
    ) -> Result<(DateTime<Utc>, Copied)> {
        // Counted before the moment that is dumped: so nothing that is written later can be missed.
        let (inside, counters) = self.look_inside(context, held).await?;
        inside.close().await;
        let taken_at = Utc::now();
        let dumping = Dumping { database: &held.database, directory, file: DUMP };
        let dump = self.dump(context, &dumping).await?;
        let mut copied = report.copied(&held.database, held.ledger.session.version(), counters);
        copied.dump = Some(dump);
        if self.verification == Verification::Drill {
            self.drill(context, held, &copied, &directory.join(DUMP)).await?;
        }
        Ok((taken_at, copied))
    }

    /// Dumps a database into a file and verifies that.
    pub(super) async fn dump(&self, context: &Context, dumping: &Dumping<'_>) -> Result<Dumped> {
        let application = self.application(context);
        let mut inside = self.server.session(context, dumping.database, &application).await?;
        let tools = Tools::find(self.tools.as_deref(), inside.version())?;
        let began = Instant::now();
        inside.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "begin").await?;
        let snapshot = inside.text("SELECT pg_export_snapshot()", &[]).await?.unwrap_or_default();
        let contents = contents::take_stock(&mut inside, context, self.fingerprint).await?;
        let path = dumping.directory.join(dumping.file);
        let origin = Origin {
            database: dumping.database,
            snapshot: &snapshot,
            name: &application,
            size_bytes: contents::tables_bytes(&mut inside).await?,
        };
        let written = dump::write(context, &self.server, &tools, &origin, &path).await?;
        inside.run("ROLLBACK", "end the transaction of the dump").await?;
        inside.close().await;
        let mut dumped = Dumped {
            file: DUMP.to_owned(),
            format: "custom+zstd".to_owned(),
            raw_bytes: written.raw_bytes,
            stored_bytes: written.stored_bytes,
            blake3: written.blake3,
            entries: 0,
            pg_dump: tools.dump_version.clone(),
            pg_restore: tools.restore_version.clone(),
            duration_ms: milliseconds(began.elapsed()),
            contents,
            verified: Verified { level: self.verification.level(), at: Utc::now() },
        };
        self.verify(context, &tools, &path, &mut dumped).await?;
        Ok(dumped)
    }

    async fn verify(&self, context: &Context, tools: &Tools, path: &Path, dumped: &mut Dumped) -> Result<()> {
        let written = dumped.written();
        match self.verification {
            Verification::Length => {
                let length = shelf::at(std::fs::metadata(path), "read", path)?.len();
                if length != written.stored_bytes {
                    return Err(Error::transient(format!("{} has {length} bytes", path.display())));
                }
            }
            Verification::Checksum => dump::check_file(context, path, &written).await?,
            Verification::ReadThrough | Verification::Drill => {
                dump::read_through(context, &self.server, tools, path, &written).await?;
            }
        }
        let entries = dump::list(context, &self.server, tools, path).await?;
        dumped.entries = entries.len() as u64;
        dumped.verified.at = Utc::now();
        Ok(())
    }

    /// Copies the database on the server, while nobody is in it.
    async fn take_clone(
        &self,
        context: &Context,
        held: &mut Held,
        report: Report,
        reference: &str,
    ) -> Result<(DateTime<Utc>, Copied)> {
        let (mut inside, counters) = self.look_inside(context, held).await?;
        let how = strategy_clause(&mut held.ledger.session, &mut inside, report.size_bytes).await?;
        inside.close().await;
        let began = Instant::now();
        held.shut().await?;
        held.drain(context).await?;
        let taken_at = Utc::now();
        let database = held.database.clone();
        let clone =
            Made::new(beside(&database, "ocs", reference), &database, context.deployment(), reference);
        let owner = &report.attributes.owner;
        let made = self.copy(context, held, Kind::Clone, &clone, &database, owner, how).await;
        // Whatever came of it, the application's database is open again; the first error explains.
        let opened = held.reopen().await;
        let oid = match (made, opened) {
            (Ok(oid), Ok(())) => oid,
            (Err(error), _) | (Ok(_), Err(error)) => {
                drop(held.ledger.drop_made(&clone.name).await);
                return Err(error);
            }
        };
        let mut copied = report.copied(&database, held.ledger.session.version(), counters);
        let duration_ms = milliseconds(began.elapsed());
        context.log(format!("cloned {database} to {} in {duration_ms} ms", clone.name));
        copied.clone = Some(Cloned { database: clone.name, oid, duration_ms });
        Ok((taken_at, copied))
    }

    /// Copies a database in which nobody is to a new one, which is written down before; gives its number.
    #[expect(clippy::too_many_arguments, reason = "one statement with all its parts")]
    pub(super) async fn copy(
        &self,
        context: &Context,
        held: &mut Held,
        kind: Kind,
        made: &Made,
        from: &str,
        owner: &str,
        how: &str,
    ) -> Result<i64> {
        held.check().await?;
        held.ledger.announce(kind, made).await?;
        let statement = format!(
            "CREATE DATABASE {} TEMPLATE {} OWNER {}{how} ALLOW_CONNECTIONS false",
            name(&made.name),
            name(from),
            name(owner)
        );
        let session = &mut held.ledger.session;
        self.server.run_long(context, session, &statement, &format!("copy database {from}")).await?;
        let question = "SELECT oid::bigint FROM pg_database WHERE datname = $1";
        let row = session.row(question, &[Text(&made.name)]).await?;
        let row = row.ok_or_else(|| Error::transient(format!("database {} is gone again", made.name)))?;
        column(&row, 0)
    }
}

impl Report {
    fn copied(self, database: &str, server: u32, counters: Counters) -> Copied {
        let source = Source {
            database: database.to_owned(),
            oid: self.oid,
            server: format!("{}.{}", server / 10_000, server % 10_000),
            size_bytes: self.size_bytes,
        };
        Copied {
            source,
            attributes: self.attributes,
            counters,
            strategy: self.strategy.text().to_owned(),
            because: self.because,
            clone: None,
            dump: None,
        }
    }
}

/// From so many bytes per file on, copying files is faster than writing everything through the log.
const FILE_COPY_BYTES_MIN: u64 = 256 * 1024;

/// How the server makes a copy. Through its log costs no checkpoint and no sync of each file, but writes as much log as
/// there is data, which archives and replicas must take.
async fn strategy_clause(
    session: &mut Session,
    inside: &mut Session,
    size_bytes: u64,
) -> Result<&'static str> {
    if session.version() < 150_000 {
        return Ok("");
    }
    let followed = "SELECT EXISTS (SELECT 1 FROM pg_stat_replication) \
                    OR current_setting('archive_mode') <> 'off'";
    if session.is(followed, &[]).await? {
        return Ok(" STRATEGY file_copy");
    }
    let files = inside.row("SELECT count(*) FROM pg_class WHERE relfilenode <> 0", &[]).await?;
    let files = files.map(|row| column::<i64>(&row, 0)).transpose()?.unwrap_or(1);
    let per_file = size_bytes / u64::try_from(files).unwrap_or(1).max(1);
    Ok(if per_file >= FILE_COPY_BYTES_MIN { " STRATEGY file_copy" } else { " STRATEGY wal_log" })
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
