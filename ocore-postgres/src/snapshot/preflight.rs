//! What is looked at before anything is touched: whether a snapshot can be taken and, later, restored.

use std::sync::PoisonError;

use ocore_core::{
    environment::SnapshotWhen,
    port::{Context, Error, Result},
};

use super::{
    Fingerprint, Shared, Strategy,
    attributes::Attributes,
    contents::take_stock,
    fill::make_extensions,
    ledger::{Held, Made, beside, exists},
    manifest::Contents,
    server::{
        Argument::{Text, Texts},
        Session, column, name,
    },
    shelf::too_little,
    tools::Tools,
};

/// What is known of a database before its snapshot is taken.
pub(super) struct Report {
    pub(super) attributes: Attributes,
    pub(super) oid: i64,
    pub(super) size_bytes: u64,
    pub(super) strategy: Strategy,
    pub(super) because: String,
}

/// What is missing, each with what to do about it.
#[derive(Default)]
struct Missing(Vec<String>);

impl Missing {
    fn add_if(&mut self, missing: bool, what: impl FnOnce() -> String) {
        if missing {
            self.0.push(what());
        }
    }

    fn or_error(self, what: &str) -> Result<Self> {
        match self.0.as_slice() {
            [] => Ok(self),
            [one] => Err(Error::permanent(format!("{what}: {one}"))),
            [first, rest @ ..] => Err(Error::permanent(format!("{what}: {first} (and {} more)", rest.len()))
                .with_detail(self.0.iter().cloned())),
        }
    }
}

/// How many sets of extensions are remembered that could be made.
const REHEARSED_MAX: usize = 1000;

/// The room that copies need, as parts of the database's size: a dump has at most 0.6 of it.
const DUMP_PERCENT: u64 = 60;
const COPY_PERCENT: u64 = 110;

impl Shared {
    /// Looks at a database that is there, and decides how its snapshot is taken.
    pub(super) async fn preflight(&self, context: &Context, held: &mut Held) -> Result<Report> {
        let database = held.database.clone();
        let session = &mut held.ledger.session;
        let Some(attributes) = Attributes::read(session, &database).await? else {
            return Err(Error::transient(format!("database {database} is not there any more")));
        };
        let mut missing = self.rights(session, &database).await?;
        let open = "SELECT datallowconn FROM pg_database WHERE datname = $1";
        let open = session.is(open, &[Text(&database)]).await?;
        missing.add_if(!open, || {
            format!("nobody can connect to it: ALTER DATABASE {} ALLOW_CONNECTIONS true", name(&database))
        });
        let what = format!("no snapshot of database {database} could be restored");
        // Without these nothing else can be looked at.
        missing = missing.or_error(&what)?;
        let (oid, size_bytes) = size(session, &database).await?;
        let obstacle = self.obstacle(session, &database, size_bytes).await?;
        let (strategy, because) = self.decide(context, obstacle)?;
        if strategy != Strategy::Clone {
            self.dump_is_possible(&mut missing, session.version(), size_bytes)?;
            let contents = self.everything_is_readable(context, &mut missing, &database).await?;
            missing = missing.or_error(&what)?;
            self.extensions_can_be_made(context, held, &attributes, &contents).await?;
        }
        let session = &mut held.ledger.session;
        rehearse(session, &database, &attributes, &mut missing).await?;
        missing.or_error(&what)?;
        Ok(Report { attributes, oid, size_bytes, strategy, because })
    }

    /// What this role must be allowed to.
    async fn rights(&self, session: &mut Session, database: &str) -> Result<Missing> {
        let user = name(self.server.user());
        let mut missing = Missing::default();
        let creates = "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user";
        missing.add_if(!session.is(creates, &[]).await?, || {
            format!("role {user} may not make databases: ALTER ROLE {user} CREATEDB")
        });
        let owns = "SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = $1";
        let owns = session.is(owns, &[Text(database)]).await? || !exists(session, database).await?;
        missing.add_if(!owns, || {
            let database = name(database);
            format!("role {user} does not own it: ALTER DATABASE {database} OWNER TO {user}, or make {user} a member of its owner")
        });
        Ok(missing)
    }

    /// What stands in the way of a clone; of a restore too, but that may be gone by then.
    async fn obstacle(
        &self,
        session: &mut Session,
        database: &str,
        size_bytes: u64,
    ) -> Result<Option<String>> {
        if let Some(gid) = prepared(session, database).await? {
            return Ok(Some(format!(
                "transaction {gid} is prepared in it: COMMIT PREPARED or ROLLBACK PREPARED it"
            )));
        }
        let beyond = "SELECT 'process ' || a.pid || ' of ' || a.usename FROM pg_stat_activity AS a \
                      JOIN pg_roles AS r ON r.oid = a.usesysid WHERE a.datname = $1 AND r.rolsuper \
                      AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)";
        if let Some(session) = session.text(beyond, &[Text(database)]).await? {
            return Ok(Some(format!(
                "a superuser is connected to it ({session}), whom this role cannot disconnect: end that session"
            )));
        }
        let Some(files) = &self.server_files else { return Ok(None) };
        let wal = "SELECT setting::bigint * 1048576 FROM pg_settings WHERE name = 'max_wal_size'";
        let wal = session.row(wal, &[]).await?.map(|row| column::<i64>(&row, 0)).transpose()?.unwrap_or(0);
        let needed = part(size_bytes, COPY_PERCENT) + u64::try_from(wal).unwrap_or(0);
        Ok(too_little(files, needed).map(|free| {
            format!("{} has {free} bytes free, and a copy needs {needed}: free some", files.display())
        }))
    }

    fn decide(&self, context: &Context, obstacle: Option<String>) -> Result<(Strategy, String)> {
        let served = context.environment().policy().snapshot == SnapshotWhen::BeforeStop;
        match (self.strategy, obstacle) {
            _ if served => {
                Ok((Strategy::Dump, "the application runs while the snapshot is taken".to_owned()))
            }
            (Strategy::Dump, _) => Ok((Strategy::Dump, "configured".to_owned())),
            (Strategy::Auto, Some(obstacle)) => {
                Ok((Strategy::Dump, format!("a clone is not possible: {obstacle}")))
            }
            (Strategy::Auto, None) => Ok((
                Strategy::CloneThenDump,
                "the application is stopped, and a clone is possible".to_owned(),
            )),
            (strategy, None) => Ok((strategy, "configured".to_owned())),
            (_, Some(obstacle)) => {
                Err(Error::transient(format!("the database cannot be cloned: {obstacle}")))
            }
        }
    }

    fn dump_is_possible(&self, missing: &mut Missing, server_version: u32, size_bytes: u64) -> Result<()> {
        if let Err(error) = Tools::find(self.tools.as_deref(), server_version) {
            missing.0.push(error.to_string());
        }
        let (needed, directory) = (part(size_bytes, DUMP_PERCENT), self.shelf.path());
        match too_little(directory, needed) {
            // It may be there later: this one passes.
            Some(free) => Err(Error::transient(format!(
                "{} has {free} bytes free, and the dump may need {needed}: free some",
                directory.display()
            ))),
            None => Ok(()),
        }
    }

    /// `pg_dump` reads every table, and refuses one of which it would see a part only.
    async fn everything_is_readable(
        &self,
        context: &Context,
        missing: &mut Missing,
        database: &str,
    ) -> Result<Contents> {
        let mut inside = self.server.session(context, database, &self.application(context)).await?;
        let user = name(self.server.user());
        let unreadable = "SELECT c.oid::regclass::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
                          WHERE c.relkind IN ('r', 'p', 'S', 'm') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
                          AND NOT CASE c.relkind WHEN 'S' THEN has_sequence_privilege(c.oid, 'SELECT') \
                          ELSE has_table_privilege(c.oid, 'SELECT') END ORDER BY 1 LIMIT 5";
        for row in inside.rows(unreadable, &[]).await? {
            let table: String = column(&row, 0)?;
            missing.0.push(format!("role {user} may not read {table}: GRANT SELECT ON {table} TO {user}"));
        }
        let hidden = "SELECT c.oid::regclass::text FROM pg_class AS c WHERE c.relrowsecurity AND c.relkind IN ('r', 'p') \
                      AND row_security_active(c.oid) ORDER BY 1 LIMIT 5";
        for row in inside.rows(hidden, &[]).await? {
            let table: String = column(&row, 0)?;
            missing.0.push(format!(
                "row security hides rows of {table} from role {user}: ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY"
            ));
        }
        let superuser = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user";
        if self.template == super::TEMPLATE && !inside.is(superuser, &[]).await? {
            let strange = "SELECT e.extname::text FROM pg_extension AS e WHERE NOT EXISTS (SELECT 1 \
                           FROM pg_available_extension_versions AS v WHERE v.name = e.extname \
                           AND (v.trusted OR NOT v.superuser)) AND e.extname <> 'plpgsql' ORDER BY 1";
            for row in inside.rows(strange, &[]).await? {
                let extension: String = column(&row, 0)?;
                missing.0.push(format!(
                    "only a superuser can make extension {extension}: give the snapshotter a template database that has it"
                ));
            }
        }
        let contents = take_stock(&mut inside, context, Fingerprint::None).await?;
        inside.close().await;
        Ok(contents)
    }

    /// Makes the extensions in an empty database, as a restore will, and removes that: whether their functions can be made
    /// what they are can be known in no other way. Once for the same extensions.
    async fn extensions_can_be_made(
        &self,
        context: &Context,
        held: &mut Held,
        attributes: &Attributes,
        contents: &Contents,
    ) -> Result<()> {
        let key = format!("{:?} {:?}", contents.extensions, contents.functions);
        let known = || self.rehearsed.lock().unwrap_or_else(PoisonError::into_inner);
        if contents.extensions.is_empty() || known().contains(&key) {
            return Ok(());
        }
        let (database, of) = (held.database.clone(), format!("rehearsal {}", held.fence));
        let side = Made::new(beside(&database, "ocp", &of), &database, context.deployment(), &of);
        let made = async {
            let mut inside = self.make_side(context, held, &side, attributes).await?;
            make_extensions(&mut inside, contents, Vec::new()).await?;
            inside.close().await;
            Ok(())
        };
        let made = made.await;
        held.ledger.drop_made(&side.name).await?;
        made?;
        let mut known = known();
        if known.len() < REHEARSED_MAX {
            known.insert(key);
        }
        Ok(())
    }

    /// What must be there before a snapshot is put back.
    pub(super) async fn can_restore(
        &self,
        held: &mut Held,
        attributes: &Attributes,
        roles: &[String],
        of: &str,
    ) -> Result<()> {
        let database = held.database.clone();
        let session = &mut held.ledger.session;
        let mut missing = self.rights(session, &database).await?;
        let named: Vec<String> = attributes.roles().chain(roles).cloned().collect();
        let unknown = "SELECT DISTINCT r FROM unnest($1::text[]) AS r \
                       WHERE NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = r) ORDER BY 1";
        for row in session.rows(unknown, &[Texts(&named)]).await? {
            let role: String = column(&row, 0)?;
            missing.0.push(format!("role {role} is not there: CREATE ROLE {}", name(&role)));
        }
        let tablespace = "SELECT true FROM pg_tablespace WHERE spcname = $1";
        let there = session.is(tablespace, &[Text(&attributes.tablespace)]).await?;
        missing.add_if(!there, || format!("tablespace {} is not there", attributes.tablespace));
        if let Some(gid) = prepared(session, &database).await? {
            missing.0.push(format!(
                "transaction {gid} is prepared in the database: COMMIT PREPARED or ROLLBACK PREPARED it"
            ));
        }
        missing.or_error(&format!("snapshot {of} cannot be restored")).map(drop)
    }
}

async fn prepared(session: &mut Session, database: &str) -> Result<Option<String>> {
    session
        .text("SELECT gid FROM pg_prepared_xacts WHERE database = $1 ORDER BY prepared", &[Text(database)])
        .await
}

async fn size(session: &mut Session, database: &str) -> Result<(i64, u64)> {
    let question = "SELECT oid::bigint, pg_database_size(oid) FROM pg_database WHERE datname = $1";
    let row = session.row(question, &[Text(database)]).await?;
    let row = row.ok_or_else(|| Error::transient(format!("database {database} is not there any more")))?;
    Ok((column(&row, 0)?, u64::try_from(column::<i64>(&row, 1)?).unwrap_or(0)))
}

/// Says every statement that a restore will say of the database's attributes, of the database itself, and takes it back.
async fn rehearse(
    session: &mut Session,
    database: &str,
    attributes: &Attributes,
    missing: &mut Missing,
) -> Result<()> {
    session.run("BEGIN", "rehearse").await?;
    for statement in attributes.dress(database) {
        match session.run(statement.as_str(), &format!("{statement} is refused")).await {
            Err(error) if error.kind() == ocore_core::port::ErrorKind::Permanent => {
                missing.0.push(error.to_string());
                break;
            }
            other => other?,
        }
    }
    session.run("ROLLBACK", "take the rehearsal back").await
}

fn part(bytes: u64, percent: u64) -> u64 {
    bytes / 100 * percent
}
