//! Filling a database with a dump: extensions first, then what `pg_restore` makes, and then it is compared.

use std::{
    convert::Infallible,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use ocore_core::{
    event::{Progress, Unit},
    port::{Classify as _, Context, Error, ErrorKind, Result},
};
use tokio::time::sleep;

use super::{
    Shared,
    attributes::Attributes,
    contents,
    dump::{self, Archive, Destination},
    ledger::{Held, Kind, Made},
    manifest::{Contents, Copied, Dumped, Extension},
    server::{Argument::Text, Session, column, literal, name},
    shelf::{self, Partial, too_little},
    tools::Tools,
};

/// How often it is shown what a restore is at.
const SHOWN_EVERY: Duration = Duration::from_millis(250);

/// From so many bytes on it is worth it that a dump is unpacked for several jobs: less is gone with making tables.
const UNPACKED_BYTES_MIN: u64 = 64 << 20;

/// Indexes, and foreign keys, of the tables of a database; and its size.
const MADE: &str = "SELECT (SELECT count(*) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid \
     JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema') \
     + (SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conparentid = 0), \
     pg_database_size(current_database())";

/// What a database is filled with.
pub(super) struct Original<'a> {
    pub(super) copied: &'a Copied,
    pub(super) dump: &'a Dumped,
    /// The file that holds the dump.
    pub(super) path: &'a Path,
}

impl Shared {
    /// Makes an empty database, restores a dump into it and compares what is there with what was dumped.
    ///
    /// Several jobs need what one does not: room, connections, and that they are not in each other's way (what is made of
    /// partitions locks tables that the plan of `pg_restore` does not know of, and the server ends one of two that wait for
    /// each other). So what several jobs fail at, one does again.
    pub(super) async fn fill_side(
        &self,
        context: &Context,
        held: &mut Held,
        side: &Made,
        original: &Original<'_>,
    ) -> Result<()> {
        let jobs = self.jobs_for(original.dump);
        match self.fill_by(jobs, context, held, side, original).await {
            Err(error) if jobs > 1 && error.kind() != ErrorKind::Cancelled => {
                // Where the server does not answer, what the jobs failed at says more.
                let Ok(()) = held.ledger.drop_made(&side.name).await else { return Err(error) };
                context.log(format!("{jobs} jobs failed, one begins again: {error}"));
                self.fill_by(1, context, held, side, original).await
            }
            filled => filled,
        }
    }

    async fn fill_by(
        &self,
        jobs: usize,
        context: &Context,
        held: &mut Held,
        side: &Made,
        original: &Original<'_>,
    ) -> Result<()> {
        let Original { copied, dump, path } = *original;
        let tools = Tools::find(self.tools.as_deref(), held.ledger.session.version())?;
        let application = self.application(context);
        let mut inside = self.make_side(context, held, side, &copied.attributes).await?;
        let entries = dump::list(context, &self.server, &tools, path).await?;
        if entries.len() as u64 != dump.entries {
            return Err(Error::permanent(format!(
                "the dump {} has another table of contents",
                path.display()
            )));
        }
        let entries = make_extensions(&mut inside, &dump.contents, entries).await?;
        let list = list_file(&entries)?;
        let destination = Destination { database: &side.name, name: &application, list: list.path() };
        let written = dump.written();
        let unpacked =
            if jobs > 1 { Some(self.unpack(context, side, dump, path, jobs).await?) } else { None };
        let archive = match &unpacked {
            Some((_, path)) => Archive::Unpacked { path, jobs },
            None => Archive::Packed { path, written: &written },
        };
        // Of a file that is read by its name nobody else can tell how far it is.
        let size_bytes = unpacked.is_some().then_some(copied.source.size_bytes);
        let restoring = dump::restore(context, &self.server, &tools, &destination, &archive);
        tokio::select! {
            restored = restoring => restored?,
            () = self.show_made(context, &side.name, &entries, size_bytes) => {}
        }
        drop(unpacked);
        self.server.run_long(context, &mut inside, "ANALYZE", "analyze the side database").await?;
        let restored = contents::take_stock(&mut inside, context, self.fingerprint_of(dump)).await?;
        inside.close().await;
        match contents::difference(&dump.contents, &restored) {
            None => Ok(()),
            Some(difference) => {
                Err(Error::permanent(format!("what was restored is not what was dumped: {difference}")))
            }
        }
    }

    /// How many sessions restore a dump: one, if it is small, or if it cannot be unpacked for want of room.
    fn jobs_for(&self, dump: &Dumped) -> usize {
        let needed = dump.raw_bytes + dump.raw_bytes / 10;
        let is_possible =
            dump.raw_bytes >= UNPACKED_BYTES_MIN && too_little(self.shelf.path(), needed).is_none();
        if is_possible { self.restore_jobs } else { 1 }
    }

    /// Unpacks a dump into a place of its own, which is removed with what this returns, or by the next call.
    async fn unpack(
        &self,
        context: &Context,
        side: &Made,
        dump: &Dumped,
        path: &Path,
        jobs: usize,
    ) -> Result<(Partial, PathBuf)> {
        let place = self.shelf.begin(&format!("{}-unpacked", context.deployment()), &side.database)?;
        let unpacked = place.path().join("unpacked.dump");
        dump::unpack(context, path, &dump.written(), &unpacked).await?;
        context.log(format!("unpacked {} bytes for {jobs} jobs", dump.raw_bytes));
        Ok((place, unpacked))
    }

    /// Shows how many indexes and constraints there are of those that are to be made: that takes as long as all the data,
    /// and no bytes tell of it. Before that, the size that the database has reached of the one given. Never ends by itself.
    async fn show_made(&self, context: &Context, side: &str, entries: &[String], size_bytes: Option<u64>) {
        let is_one = |line: &&String| line.contains(" INDEX ") || line.contains(" CONSTRAINT ");
        let total = entries.iter().filter(is_one).count() as u64;
        let watched = async {
            let mut watcher = self.server.session(context, side, &self.application(context)).await?;
            let mut shown = 0;
            loop {
                sleep(SHOWN_EVERY).await;
                let row = watcher.row(MADE, &[]).await?;
                let row = row.ok_or_else(|| Error::transient("there is no answer"))?;
                let number = |at| Ok(u64::try_from(column::<i64>(&row, at)?).unwrap_or(0));
                let (made, bytes) = (number(0)?.min(total), number(1)?);
                if made > 0 {
                    let what = "building indexes and constraints";
                    context.progress(Progress::new(what, made, Some(total), Unit::Items));
                } else if let Some(size_bytes) = size_bytes {
                    shown = bytes.max(shown);
                    let total = Some(size_bytes.max(shown + 1));
                    context.progress(Progress::new("restoring", shown, total, Unit::Bytes));
                }
            }
        };
        // Who cannot watch does not keep the restore from its end.
        let _: Result<Infallible> = watched.await;
        std::future::pending::<()>().await;
    }

    /// Makes an empty database to which nobody but its owner can connect, and opens a session in it.
    pub(super) async fn make_side(
        &self,
        context: &Context,
        held: &mut Held,
        side: &Made,
        attributes: &Attributes,
    ) -> Result<Session> {
        held.check().await?;
        held.ledger.announce(Kind::Side, side).await?;
        let session = &mut held.ledger.session;
        let create = attributes.create(&side.name, &self.template);
        self.server.run_long(context, session, &create, "make the side database").await?;
        let quoted = name(&side.name);
        let revoke = format!("REVOKE CONNECT ON DATABASE {quoted} FROM PUBLIC");
        session.run(revoke, "close the side database").await?;
        let open = format!("ALTER DATABASE {quoted} ALLOW_CONNECTIONS true");
        session.run(open, "open the side database").await?;
        self.server.session(context, &side.name, &self.application(context)).await
    }
}

/// Makes the extensions before anything that uses them, and of their functions what they were: `ALTER FUNCTION …
/// IMMUTABLE` is in no dump, and without it an index on such a function cannot be made. Gives the entries that are left.
pub(super) async fn make_extensions(
    inside: &mut Session,
    contents: &Contents,
    entries: Vec<String>,
) -> Result<Vec<String>> {
    let mut schemas = Vec::new();
    for (extension, Extension { version, schema, schema_owner }) in &contents.extensions {
        let is_there = "SELECT true FROM pg_namespace WHERE nspname = $1";
        if !inside.is(is_there, &[Text(schema)]).await? {
            let make = format!("CREATE SCHEMA {} AUTHORIZATION {}", name(schema), name(schema_owner));
            inside.run(make, "make the schema of an extension").await?;
            schemas.push(schema);
        }
        let known = "SELECT true FROM pg_available_extension_versions WHERE name = $1 AND version = $2";
        let known = inside.is(known, &[Text(extension), Text(version)]).await?;
        let version = if known { format!(" VERSION {}", literal(version)) } else { String::new() };
        let (quoted, schema) = (name(extension), name(schema));
        let make = format!("CREATE EXTENSION IF NOT EXISTS {quoted} SCHEMA {schema}{version} CASCADE");
        inside.run(make, &format!("make extension {extension}")).await?;
    }
    let now = contents::functions(inside).await?;
    let differing = contents.functions.iter().filter(|(function, is)| now.get(*function) != Some(is));
    for (function, is) in differing {
        // The search path is empty but for the server's own schema: the signature is complete.
        let altered = inside.run(format!("ALTER FUNCTION {function} {is}"), "alter").await;
        altered.permanent(format!(
            "function {function} of an extension was made {is}, which this role cannot repeat: give the snapshotter a \
             template database in which it is so"
        ))?;
    }
    let mut theirs = Vec::new();
    let strange = "SELECT extname::text FROM pg_extension WHERE NOT pg_has_role(extowner, 'USAGE')";
    for row in inside.rows(strange, &[]).await? {
        theirs.push(column::<String>(&row, 0)?);
    }
    let made = |line: &str| schemas.iter().any(|schema| line.contains(&format!(" SCHEMA - {schema} ")));
    let commented = |line: &str| {
        theirs.iter().any(|extension| line.contains(&format!(" COMMENT - EXTENSION {extension}")))
    };
    Ok(entries.into_iter().filter(|line| !made(line) && !commented(line)).collect())
}

fn list_file(entries: &[String]) -> Result<ListFile> {
    let path = std::env::temp_dir().join(format!("ocore-list-{}", uuid::Uuid::new_v4().simple()));
    let list = ListFile(path);
    let mut file = shelf::create(list.path())?;
    shelf::at(file.write_all(entries.join("\n").as_bytes()), "write", list.path())?;
    Ok(list)
}

/// A file that is removed with this.
struct ListFile(PathBuf);

impl ListFile {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ListFile {
    fn drop(&mut self) {
        // It holds nothing but names, in a directory that is emptied anyway.
        drop(shelf::remove_file(&self.0));
    }
}
