//! What is written down on the server, before anything is made there.

use std::time::Duration;

use ocore_core::{
    id::{DeploymentId, Fence},
    port::{Context, Error, Result},
};
use tokio::time::{Instant, sleep};

use super::{
    manifest::Cloned,
    server::{
        Argument::{Number, Text},
        Server, Session, column, literal, name,
    },
};

/// How long a call waits for another one to leave a database, or for a database to be empty.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(10);
pub(super) const POLL: Duration = Duration::from_millis(10);

/// A session that manages databases: it keeps the ledger, in the schema `ocore_snapshot` of the maintenance database.
///
/// `place` has the highest fence that was let in per database, and whether the database is closed to everybody. `made`
/// has the databases that exist beside it: a row is written before its database is made. `login` has the roles that were
/// made for applications.
pub(super) struct Ledger {
    pub(super) session: Session,
}

/// The right to change a database: nobody else has it while this session lives.
pub(super) struct Held {
    pub(super) ledger: Ledger,
    pub(super) database: String,
    pub(super) fence: i64,
}

/// What a database is, that was made beside the application's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Will take the application's place, or be removed.
    Side,
    /// A snapshot, or a part of one.
    Clone,
    /// Was the application's until a restore took its place.
    Replaced,
}

impl Kind {
    const fn text(self) -> &'static str {
        match self {
            Self::Side => "side",
            Self::Clone => "clone",
            Self::Replaced => "replaced",
        }
    }
}

/// A database that was made, as it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) name: String,
    pub(super) database: String,
    pub(super) deployment: String,
    /// Of the snapshot that it belongs to.
    pub(super) reference: String,
    pub(super) age_seconds: i64,
}

const TABLES: &str = "
    CREATE SCHEMA IF NOT EXISTS ocore_snapshot;
    CREATE TABLE IF NOT EXISTS ocore_snapshot.place (
        database text PRIMARY KEY,
        fence bigint NOT NULL,
        closed boolean NOT NULL DEFAULT false
    );
    CREATE TABLE IF NOT EXISTS ocore_snapshot.made (
        name text PRIMARY KEY,
        kind text NOT NULL CHECK (kind IN ('side', 'clone', 'replaced')),
        database text NOT NULL,
        deployment text NOT NULL,
        reference text NOT NULL,
        made_at timestamptz NOT NULL DEFAULT clock_timestamp()
    );
    CREATE TABLE IF NOT EXISTS ocore_snapshot.login (
        role text PRIMARY KEY,
        database text NOT NULL,
        fence bigint NOT NULL
    );
    COMMENT ON SCHEMA ocore_snapshot IS 'ocore: the databases that it has made, and who may change one'";

impl Ledger {
    /// Opens a session in the maintenance database; the ledger is made if it is not there.
    pub(super) async fn open(server: &Server, context: &Context, application: &str) -> Result<Self> {
        let mut session = server.session(context, server.maintenance(), application).await?;
        let is_there = "SELECT to_regclass('ocore_snapshot.login') IS NOT NULL";
        if !session.is(is_there, &[]).await? {
            if !session.is("SELECT has_database_privilege(current_database(), 'CREATE')", &[]).await? {
                let (database, user) = (name(server.maintenance()), name(server.user()));
                return Err(Error::permanent(format!(
                    "the schema ocore_snapshot cannot be made: GRANT CREATE ON DATABASE {database} TO {user}, or give \
                     the snapshotter a maintenance database of its own, CREATE DATABASE ocore OWNER {user}"
                )));
            }
            // Two may come at once; the second waits and finds it done.
            let lock = "SELECT pg_advisory_xact_lock(hashtextextended('ocore_snapshot', 0))";
            session.run(format!("BEGIN; {lock}; {TABLES}; COMMIT"), "make the schema ocore_snapshot").await?;
        }
        Ok(Self { session })
    }

    /// Comes in to change a database: refuses an older fence, remembers a newer one, ends what an earlier call has left
    /// running, and waits until it is over.
    pub(super) async fn enter(mut self, context: &Context, database: &str) -> Result<Held> {
        let fence = number(context.fence())?;
        let raise = "INSERT INTO ocore_snapshot.place AS p (database, fence) VALUES ($1, $2) \
                     ON CONFLICT (database) DO UPDATE SET fence = excluded.fence WHERE p.fence <= excluded.fence";
        if self.session.change(raise, &[Text(database), Number(fence)]).await? == 0 {
            return Err(Error::fenced());
        }
        self.lock(context, &place_key(database), fence).await?;
        let mut held = Held { ledger: self, database: database.to_owned(), fence };
        held.check().await?;
        Ok(held)
    }

    /// Waits for a lock of this session. Whoever holds it is ended: a call that was given up, or a worker that has lost the
    /// lane.
    async fn lock(&mut self, context: &Context, key: &str, fence: i64) -> Result<()> {
        let deadline = Instant::now() + WAIT_MAX;
        while !self.try_lock(key).await? {
            if Instant::now() > deadline {
                return Err(Error::transient("another worker is still at work on the database"));
            }
            self.end_holder(key, fence).await?;
            tokio::select! {
                () = context.cancelled() => return Err(Error::cancelled()),
                () = sleep(POLL) => {}
            }
        }
        Ok(())
    }

    /// Takes a lock of this session, if nobody has it.
    pub(super) async fn try_lock(&mut self, key: &str) -> Result<bool> {
        self.session.is("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", &[Text(key)]).await
    }

    /// Waits for a lock and ends whoever holds it.
    pub(super) async fn take_over(&mut self, context: &Context, key: &str) -> Result<()> {
        let deadline = Instant::now() + WAIT_MAX;
        while !self.try_lock(key).await? {
            if Instant::now() > deadline {
                return Err(Error::transient("another worker is still at work on the snapshot"));
            }
            self.session.rows(&format!("SELECT pg_terminate_backend(pid) {HOLDERS}"), &[Text(key)]).await?;
            tokio::select! {
                () = context.cancelled() => return Err(Error::cancelled()),
                () = sleep(POLL) => {}
            }
        }
        Ok(())
    }

    async fn end_holder(&mut self, key: &str, fence: i64) -> Result<()> {
        // Only while this call's fence is the highest: a newer one has every right to be there.
        let end = format!(
            "SELECT pg_terminate_backend(pid) {HOLDERS} AND EXISTS (SELECT 1 FROM ocore_snapshot.place AS p \
             WHERE $1 = 'ocore_snapshot place ' || p.database AND p.fence = $2)"
        );
        self.session.rows(&end, &[Text(key), Number(fence)]).await.map(drop)
    }

    /// Removes a database that is nobody's. Succeeds if it is gone.
    async fn drop_database(&mut self, database: &str) -> Result<()> {
        let state = "SELECT datconnlimit = -2 FROM pg_database WHERE datname = $1";
        let Some(row) = self.session.row(state, &[Text(database)]).await? else { return Ok(()) };
        // One whose removal was interrupted can only be removed.
        if !column::<bool>(&row, 0)? {
            self.close_to_all(database).await?;
        }
        let drop = format!("DROP DATABASE IF EXISTS {}", name(database));
        self.session.run(drop, &format!("remove database {database}")).await
    }

    /// Whether a clone is there, and the very one that was made.
    pub(super) async fn is_intact(&mut self, clone: &Cloned) -> Result<bool> {
        let same = "SELECT datconnlimit <> -2 FROM pg_database WHERE datname = $1 AND oid = $2::bigint::oid";
        self.session.is(same, &[Text(&clone.database), Number(clone.oid)]).await
    }

    /// The databases of a kind; of all places, or of one.
    pub(super) async fn made(&mut self, kind: Kind, database: Option<&str>) -> Result<Vec<Made>> {
        let question = "SELECT name, database, deployment, reference, \
                        extract(epoch FROM clock_timestamp() - made_at)::bigint \
                        FROM ocore_snapshot.made WHERE kind = $1 AND ($2 = '' OR database = $2) ORDER BY made_at, name";
        let rows = self.session.rows(question, &[Text(kind.text()), Text(database.unwrap_or(""))]).await?;
        let made = rows.iter().map(|row| {
            Ok(Made {
                name: column(row, 0)?,
                database: column(row, 1)?,
                deployment: column(row, 2)?,
                reference: column(row, 3)?,
                age_seconds: column(row, 4)?,
            })
        });
        made.collect()
    }

    /// Writes down what is about to be made.
    pub(super) async fn announce(&mut self, kind: Kind, made: &Made) -> Result<()> {
        let insert = "INSERT INTO ocore_snapshot.made (name, kind, database, deployment, reference) \
                      VALUES ($1, $2, $3, $4, $5)";
        let Made { name, database, deployment, reference, .. } = made;
        let arguments = [name, kind.text(), database, deployment, reference].map(Text);
        self.session.change(insert, &arguments).await.map(drop)
    }

    /// Takes the right to a database's surroundings, if nobody is at work on it.
    pub(super) async fn try_place(&mut self, database: &str) -> Result<bool> {
        self.try_lock(&place_key(database)).await
    }

    /// Gives it back.
    pub(super) async fn leave_place(&mut self, database: &str) -> Result<()> {
        let unlock = "SELECT pg_advisory_unlock(hashtextextended($1, 0))";
        self.session.rows(unlock, &[Text(&place_key(database))]).await.map(drop)
    }

    /// Ends the sessions in a database that is not the application's, for some seconds.
    pub(super) async fn empty(&mut self, database: &str) -> Result<()> {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let Some(left) = end_sessions(&mut self.session, database).await? else { return Ok(()) };
            if Instant::now() > deadline {
                return Err(in_use(database, &left));
            }
            sleep(POLL).await;
        }
    }

    /// Closes a database that is not the application's, and waits until nobody is in it.
    pub(super) async fn close_to_all(&mut self, database: &str) -> Result<()> {
        let close =
            format!("ALTER DATABASE {} WITH IS_TEMPLATE false ALLOW_CONNECTIONS false", name(database));
        self.session.run(close, "close a database").await?;
        self.empty(database).await
    }

    /// Removes a database that was made, with every session in it, and then what is written down of it.
    pub(super) async fn drop_made(&mut self, made: &str) -> Result<()> {
        self.drop_database(made).await?;
        self.session.change("DELETE FROM ocore_snapshot.made WHERE name = $1", &[Text(made)]).await.map(drop)
    }
}

const HOLDERS: &str = "FROM pg_locks AS l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 \
     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
     AND (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended($1, 0) AND l.pid <> pg_backend_pid()";

fn place_key(database: &str) -> String {
    format!("ocore_snapshot place {database}")
}

/// Who holds this finishes the snapshot's dump, or removes the snapshot.
pub(super) fn snapshot_key(reference: &str) -> String {
    format!("ocore_snapshot snapshot {reference}")
}

fn number(fence: Fence) -> Result<i64> {
    let number = i64::try_from(fence.get());
    number.map_err(|_| Error::permanent(format!("the fence {fence} does not fit into the ledger's column")))
}

impl Held {
    /// Refuses when a newer fence has come in meanwhile.
    pub(super) async fn check(&mut self) -> Result<()> {
        let question = "SELECT fence = $2 FROM ocore_snapshot.place WHERE database = $1";
        let arguments = [Text(self.database.as_str()), Number(self.fence)];
        if self.ledger.session.is(question, &arguments).await? { Ok(()) } else { Err(Error::fenced()) }
    }

    /// Begins a transaction in which no newer fence can come in.
    async fn begin(&mut self) -> Result<()> {
        self.ledger.session.run("BEGIN", "begin").await?;
        let question = "SELECT fence = $2 FROM ocore_snapshot.place WHERE database = $1 FOR UPDATE";
        let arguments = [Text(self.database.as_str()), Number(self.fence)];
        if self.ledger.session.is(question, &arguments).await? {
            return Ok(());
        }
        self.ledger.session.run("ROLLBACK", "roll back").await?;
        Err(Error::fenced())
    }

    /// Runs statements in one transaction, which nobody with a newer fence is overtaken by: all of them, or none.
    pub(super) async fn all_or_none(&mut self, statements: &[String], doing: &str) -> Result<()> {
        self.begin().await?;
        for statement in statements {
            if let Err(error) = self.ledger.session.run(statement.as_str(), doing).await {
                // If even this fails the session is gone, and the server rolls back by itself.
                drop(self.ledger.session.run("ROLLBACK", "roll back").await);
                return Err(error);
            }
        }
        match self.ledger.session.run("COMMIT", doing).await {
            Err(error) if error.kind() == ocore_core::port::ErrorKind::Transient => {
                Err(Error::unanswered(format!("{doing}: {error}")))
            }
            other => other,
        }
    }

    /// Closes the database to everybody, superusers too: this is written down in the same transaction.
    pub(super) async fn shut(&mut self) -> Result<()> {
        let statements = [self.closed_is(true), allow(&self.database, false)];
        self.all_or_none(&statements, "close the database").await
    }

    /// Opens it again.
    pub(super) async fn reopen(&mut self) -> Result<()> {
        let statements = [allow(&self.database, true), self.closed_is(false)];
        self.all_or_none(&statements, "open the database again").await
    }

    pub(super) fn closed_is(&self, closed: bool) -> String {
        let database = literal(&self.database);
        format!("UPDATE ocore_snapshot.place SET closed = {closed} WHERE database = {database}")
    }

    /// Ends every session in the closed database and waits until there is none; opens it again if there still is one.
    pub(super) async fn drain(&mut self, context: &Context) -> Result<()> {
        let drained = empty(&mut self.ledger.session, context, &self.database).await;
        if let Err(error) = drained {
            self.reopen().await?;
            return Err(error);
        }
        Ok(())
    }

    /// Puts in order what an earlier call has left: opens what it closed, removes what it did not finish.
    pub(super) async fn settle(&mut self) -> Result<()> {
        let database = self.database.clone();
        let closed = "SELECT closed FROM ocore_snapshot.place WHERE database = $1";
        if self.ledger.session.is(closed, &[Text(&database)]).await? {
            if exists(&mut self.ledger.session, &database).await? {
                self.reopen().await?;
            } else {
                let statement = self.closed_is(false);
                self.all_or_none(&[statement], "forget that the database was closed").await?;
            }
        }
        for made in self.ledger.made(Kind::Side, Some(&database)).await? {
            self.ledger.drop_made(&made.name).await?;
        }
        Ok(())
    }
}

fn allow(database: &str, allowed: bool) -> String {
    format!("ALTER DATABASE {} ALLOW_CONNECTIONS {allowed}", name(database))
}

/// Whether there is a database of this name.
pub(super) async fn exists(session: &mut Session, database: &str) -> Result<bool> {
    session.is("SELECT true FROM pg_database WHERE datname = $1", &[Text(database)]).await
}

/// Sessions that get in the way: all but the server's own workers, which belong to nobody or step aside by themselves. Of a
/// session of somebody else's a plain role is not told what it is.
const IN_THE_WAY: &str = "FROM pg_stat_activity AS a WHERE a.datname = $1 AND a.pid <> pg_backend_pid() \
     AND a.usesysid IS NOT NULL \
     AND coalesce(a.backend_type, 'client backend') NOT IN ('autovacuum worker', 'parallel worker')";
/// Of those, the ones that this role may end.
const MAY_END: &str = "AND (pg_has_role(a.usesysid, 'MEMBER') \
     OR pg_has_role('pg_signal_backend', 'MEMBER')) \
     AND ((SELECT rolsuper FROM pg_roles WHERE rolname = current_user) \
     OR NOT (SELECT rolsuper FROM pg_roles WHERE oid = a.usesysid))";

/// Ends the sessions in a database, as far as this role may, and names one that is still there.
async fn end_sessions(session: &mut Session, database: &str) -> Result<Option<String>> {
    let end = format!("SELECT pg_terminate_backend(a.pid) {IN_THE_WAY} {MAY_END}");
    session.rows(&end, &[Text(database)]).await?;
    let left = format!(
        "SELECT 'process ' || a.pid || ' of ' || coalesce(a.usename::text, 'the server') || ' (' \
         || coalesce(nullif(a.application_name, ''), 'without a name') || ')' {IN_THE_WAY}"
    );
    session.text(&left, &[Text(database)]).await
}

fn in_use(database: &str, left: &str) -> Error {
    let seconds = WAIT_MAX.as_secs();
    Error::transient(format!(
        "database {database} is still in use after {seconds} seconds, by {left}: end that session"
    ))
}

/// Ends the sessions in a database to which nobody can connect any more, and waits until there is none.
async fn empty(session: &mut Session, context: &Context, database: &str) -> Result<()> {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let Some(left) = end_sessions(session, database).await? else { return Ok(()) };
        if Instant::now() > deadline {
            return Err(in_use(database, &left));
        }
        tokio::select! {
            () = context.cancelled() => return Err(Error::cancelled()),
            () = sleep(POLL) => {}
        }
    }
}

/// The key of everything that is made for one deployment of a database: enough to tell two apart.
pub(super) fn beside(database: &str, what: &str, of: &str) -> String {
    const NAME_BYTES_MAX: usize = 63;
    let digest = blake3::hash(format!("{database}\n{of}").as_bytes()).to_hex();
    let suffix = format!("__{what}_{}", &digest.as_str()[..16]);
    let room = database.floor_char_boundary(NAME_BYTES_MAX - suffix.len());
    format!("{}{suffix}", &database[..room])
}

impl Made {
    pub(super) fn is_older_than(&self, age: Duration) -> bool {
        u64::try_from(self.age_seconds).is_ok_and(|seconds| seconds >= age.as_secs())
    }

    pub(super) fn new(name: String, database: &str, deployment: DeploymentId, reference: &str) -> Self {
        let (database, reference) = (database.to_owned(), reference.to_owned());
        Self { name, database, deployment: deployment.to_string(), reference, age_seconds: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_beside_fits_and_tells_long_ones_apart() {
        let long = "x".repeat(63);
        let (one, other) = (beside(&long, "ocs", "a"), beside(&format!("{}y", "x".repeat(62)), "ocs", "a"));
        assert_eq!((one.len(), other.len()), (63, 63));
        assert_ne!(one, other);
        assert!(beside("shop", "ocr", "1").starts_with("shop__ocr_"));
    }
}
