//! One login role for each fence of a database: what a worker that has lost the lane has started cannot write any more.

use std::fmt;

use ocore_core::{
    port::{Context, Error, Result},
    secret::Secret,
};
use postgres_protocol::password::scram_sha_256;
use sqlx::postgres::PgConnectOptions;
use tokio::time::{Instant, sleep};

use super::{
    Shared,
    ledger::{Held, Ledger, POLL, WAIT_MAX},
    server::{
        Argument::{Text, Texts},
        Server, Session, column, literal, name,
    },
};

/// Since this version a role may only give away what it was given to give away.
const ADMIN_OPTION: u32 = 160_000;

/// Makes the roles by which applications come into their databases, for platforms that manage the roles.
///
/// The owner of the database cannot log in. Each fence of the lane has a login role of its own, which acts as the owner
/// (`ALTER ROLE … SET role`), so that everything it makes is the owner's. [`admit`](Self::admit) makes it, and before that
/// shuts out all others: they may not log in any more, and their sessions are ended. So a container that a frozen worker
/// started, and that goes on when the worker's lane has long been somebody else's, is refused by the server itself.
///
/// **In a deployment**: the runtime asks for a login when it starts an application, also when it revives the one before;
/// the snapshotter shuts all of them out ([`shut_out_logins`](super::PostgresSnapshotterBuilder::shut_out_logins)).
///
/// **The role** that is given here needs LOGIN and CREATEROLE and must be a member of the owner, from PostgreSQL 16 on
/// with the admin option. It needs the schema `ocore_snapshot`, as the snapshotter does, and may be the snapshotter's.
///
/// Passwords are made here, of 244 random bits, and the server is only told their SCRAM-SHA-256 verifiers.
///
/// ```
/// use ocore_core::secret::Secret;
/// use ocore_postgres::snapshot::Logins;
/// use sqlx::postgres::PgConnectOptions;
///
/// let options = PgConnectOptions::new_without_pgpass().host("db.example.org").username("platform").database("ocore");
/// let logins = Logins::new(options, Secret::new("…"));
/// ```
#[derive(Debug, Clone)]
pub struct Logins {
    server: Server,
}

/// How an application comes into its database.
#[derive(Clone)]
#[non_exhaustive]
pub struct Login {
    /// The role's name.
    pub role: String,
    /// Its password. The one of an earlier call is void.
    pub password: Secret,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("role", &self.role).finish_non_exhaustive()
    }
}

impl Logins {
    /// For the databases of a server; the database of the options is the maintenance database. The password is given beside
    /// the options, because they do not show one that they have; an empty one means that none is needed.
    #[must_use]
    pub fn new(options: PgConnectOptions, password: Secret) -> Self {
        Self { server: Server::new(options, password) }
    }

    /// Lets the application of this call's fence into its database, and nobody else: gives it a login, after all earlier
    /// ones were shut out. Called again, with the same fence, it gives a new password.
    ///
    /// # Errors
    /// Fenced if a newer fence has come in. Permanent if the database is not there, if its owner can log in, or if this
    /// role may not do what it must: says what to do. Transient if the server does not answer, or a session does not end
    /// in ten seconds.
    pub async fn admit(&self, context: &Context, database: &str) -> Result<Login> {
        let mut held = self.enter(context, database).await?;
        let owner = owner(&mut held.ledger.session, database).await?;
        let login = Login { role: login_name(database, held.fence), password: password() };
        context.hide(&login.password);
        let others = held.other_logins(Some(&login.role)).await?;
        held.shut_out(context, &others).await?;
        let statements = login.statements(&mut held, &owner).await?;
        held.all_or_none(&statements, "make the application's login role").await?;
        held.remove_logins(context, others).await?;
        held.ledger.session.close().await;
        Ok(login)
    }

    /// Shuts every login out of a database: none may log in any more, and every session of theirs is ended. The next
    /// [`admit`](Self::admit) lets one in again.
    ///
    /// # Errors
    /// Fenced if a newer fence has come in; transient if the server does not answer, or a session does not end in ten
    /// seconds.
    pub async fn shut_out(&self, context: &Context, database: &str) -> Result<()> {
        let mut held = self.enter(context, database).await?;
        held.shut_all_out(context).await?;
        held.ledger.session.close().await;
        Ok(())
    }

    async fn enter(&self, context: &Context, database: &str) -> Result<Held> {
        let application = format!("ocore-logins {} {}", context.deployment().short(), context.fence());
        Ledger::open(&self.server, context, &application).await?.enter(context, database).await
    }
}

impl Shared {
    /// Shuts the logins out, where that is the platform's policy.
    pub(super) async fn shut_logins_out(&self, context: &Context, held: &mut Held) -> Result<()> {
        if self.shut_out { held.shut_all_out(context).await } else { Ok(()) }
    }
}

impl Held {
    async fn shut_all_out(&mut self, context: &Context) -> Result<()> {
        let all = self.other_logins(None).await?;
        self.shut_out(context, &all).await
    }

    /// The logins of the database but this one, as they are written down.
    async fn other_logins(&mut self, but: Option<&str>) -> Result<Vec<String>> {
        let question = "SELECT l.role, r.rolname IS NOT NULL FROM ocore_snapshot.login AS l \
                        LEFT JOIN pg_roles AS r ON r.rolname = l.role \
                        WHERE l.database = $1 AND l.role <> $2 ORDER BY l.fence";
        let rows =
            self.ledger.session.rows(question, &[Text(&self.database), Text(but.unwrap_or(""))]).await?;
        let mut logins = Vec::new();
        for row in rows {
            let role: String = column(&row, 0)?;
            if column(&row, 1)? {
                logins.push(role);
            } else {
                self.forget_login(&role).await?;
            }
        }
        Ok(logins)
    }

    async fn forget_login(&mut self, role: &str) -> Result<()> {
        let delete = "DELETE FROM ocore_snapshot.login WHERE role = $1";
        self.ledger.session.change(delete, &[Text(role)]).await.map(drop)
    }

    /// Takes the right to log in from roles, ends their sessions, and waits until there is none.
    async fn shut_out(&mut self, context: &Context, roles: &[String]) -> Result<()> {
        if roles.is_empty() {
            return Ok(());
        }
        let statements: Vec<_> =
            roles.iter().map(|role| format!("ALTER ROLE {} NOLOGIN", name(role))).collect();
        self.all_or_none(&statements, "shut a login role out").await?;
        let deadline = Instant::now() + WAIT_MAX;
        // One that was let in just before is listed a moment later.
        let mut empty_looks = 0;
        while empty_looks < 5 {
            let end = "SELECT pg_terminate_backend(pid)::text, usename::text, pid FROM pg_stat_activity \
                       WHERE usename = ANY ($1::text[])";
            let left = self.ledger.session.rows(end, &[Texts(roles)]).await?;
            empty_looks = if left.is_empty() { empty_looks + 1 } else { 0 };
            if let Some(row) = left.first()
                && Instant::now() > deadline
            {
                let (role, process): (String, i32) = (column(row, 1)?, column(row, 2)?);
                return Err(Error::transient(format!(
                    "process {process} of role {role} does not end: end that session"
                )));
            }
            tokio::select! {
                () = context.cancelled() => return Err(Error::cancelled()),
                () = sleep(POLL) => {}
            }
        }
        Ok(())
    }

    /// Removes roles that were shut out. One that something still depends on stays, and cannot log in.
    async fn remove_logins(&mut self, context: &Context, roles: Vec<String>) -> Result<()> {
        for role in roles {
            match self.ledger.session.run(format!("DROP ROLE IF EXISTS {}", name(&role)), "remove").await {
                Ok(()) => self.forget_login(&role).await?,
                Err(error) => context.log(format!("role {role} stays, and cannot log in: {error}")),
            }
        }
        Ok(())
    }
}

impl Login {
    /// What makes the role and lets it in, whatever is there already.
    async fn statements(&self, held: &mut Held, owner: &str) -> Result<Vec<String>> {
        let session = &mut held.ledger.session;
        let is_there = "SELECT true FROM pg_roles WHERE rolname = $1";
        let is_there = session.is(is_there, &[Text(&self.role)]).await?;
        let superuser = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user";
        let superuser = session.is(superuser, &[]).await?;
        let verifier = scram_sha_256(self.password.expose().as_bytes());
        let (role, database, fence) = (name(&self.role), literal(&held.database), held.fence);
        let mut statements = vec![format!(
            "INSERT INTO ocore_snapshot.login (role, database, fence) VALUES ({}, {database}, {fence}) \
             ON CONFLICT DO NOTHING",
            literal(&self.role)
        )];
        if !is_there {
            statements.push(format!("CREATE ROLE {role}"));
        }
        statements.push(format!("ALTER ROLE {role} LOGIN PASSWORD {}", literal(&verifier)));
        statements.push(format!("GRANT {} TO {role}", name(owner)));
        statements.push(format!("ALTER ROLE {role} SET role TO {}", literal(owner)));
        if !superuser {
            // Whose member it is, its sessions it may end.
            statements.push(format!("GRANT {role} TO CURRENT_USER"));
        }
        Ok(statements)
    }
}

/// The owner of a database, if this role can make logins that act as it.
async fn owner(session: &mut Session, database: &str) -> Result<String> {
    let owner = "SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = $1";
    let Some(owner) = session.text(owner, &[Text(database)]).await? else {
        return Err(Error::permanent(format!("there is no database {database}: make it first")));
    };
    let refuse = |why: String| Err(Error::permanent(format!("no login for database {database}: {why}")));
    let quoted = name(&owner);
    if session.is("SELECT rolcanlogin FROM pg_roles WHERE rolname = $1", &[Text(&owner)]).await? {
        return refuse(format!(
            "its owner {owner} can log in, and so could whoever must be shut out: ALTER ROLE {quoted} NOLOGIN, or give \
             the database another owner"
        ));
    }
    let creates = "SELECT rolcreaterole OR rolsuper FROM pg_roles WHERE rolname = current_user";
    if !session.is(creates, &[]).await? {
        return refuse("this role may not make roles: ALTER ROLE … CREATEROLE".to_owned());
    }
    let option = if session.version() >= ADMIN_OPTION { "MEMBER WITH ADMIN OPTION" } else { "MEMBER" };
    let clause = option.trim_start_matches("MEMBER");
    let member = "SELECT pg_has_role($1::name, $2)";
    if !session.is(member, &[Text(&owner), Text(option)]).await? {
        return refuse(format!("this role may not give {owner} away: GRANT {quoted} TO …{clause}"));
    }
    Ok(owner)
}

/// 63 bytes at most, with enough of the database's name to be told apart by people, and its digest for everybody else.
fn login_name(database: &str, fence: i64) -> String {
    const NAME_BYTES_MAX: usize = 63;
    let digest = blake3::hash(database.as_bytes()).to_hex();
    let suffix = format!("__{}_{fence}", &digest.as_str()[..8]);
    let room = database.floor_char_boundary(NAME_BYTES_MAX - suffix.len());
    format!("{}{suffix}", &database[..room])
}

fn password() -> Secret {
    let part = || uuid::Uuid::new_v4().simple().to_string();
    Secret::new(part() + &part())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_named_after_its_database_and_fence() {
        let long = login_name(&"x".repeat(63), i64::MAX);
        assert_eq!(long.len(), 63);
        assert_ne!(long, login_name(&"x".repeat(62), i64::MAX));
        assert!(login_name("shop", 17).starts_with("shop__") && login_name("shop", 17).ends_with("_17"));
    }

    #[test]
    fn a_password_is_shown_by_nothing() {
        let login = Login { role: "shop__1".to_owned(), password: password() };
        assert_eq!(login.password.expose().len(), 64);
        assert!(!format!("{login:?}").contains(login.password.expose()));
    }
}
