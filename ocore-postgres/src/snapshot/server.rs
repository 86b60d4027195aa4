//! The server: sessions with it, and what programs need to reach it.

use std::{collections::BTreeMap, fmt, process::Command, time::Duration};

use ocore_core::{
    port::{Classify as _, Context, Error, Result},
    secret::{REDACTED, Secret},
};
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _,
    postgres::{PgConnectOptions, PgRow, PgSslMode},
};
use tokio::time::timeout;

/// How long the server goes on with a statement whose client has gone.
const CLIENT_CHECK: &str = "200ms";
/// Limits that a role or a database sets for its sessions end no program.
const NO_LIMITS: &str = "-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 \
     -c default_transaction_read_only=off";
/// How long the server may take to answer a new connection.
const CONNECT_MAX: Duration = Duration::from_secs(30);
/// How long a statement, or a program, waits for a lock that somebody else holds, unless said otherwise.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// How the server is reached. Its `Debug` shows no password.
#[derive(Clone)]
pub(super) struct Server {
    options: PgConnectOptions,
    password: Secret,
    pub(super) lock_wait: Duration,
    /// More of libpq's variables for the programs.
    pub(super) variables: BTreeMap<String, String>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.options;
        f.debug_struct("Server")
            .field("host", &options.get_host())
            .field("port", &options.get_port())
            .field("user", &options.get_username())
            .finish_non_exhaustive()
    }
}

impl Server {
    pub(super) fn new(options: PgConnectOptions, password: Secret) -> Self {
        let options = match password.expose() {
            "" => options,
            password => options.password(password),
        };
        // What a role or a database sets must not decide how a snapshot ends.
        let options = options.options([
            ("statement_timeout", "0"),
            ("idle_in_transaction_session_timeout", "0"),
            ("client_connection_check_interval", CLIENT_CHECK),
            ("default_transaction_read_only", "off"),
            ("default_transaction_isolation", "read committed"),
            ("standard_conforming_strings", "on"),
            ("synchronous_commit", "on"),
            ("search_path", "pg_catalog"),
            ("datestyle", "ISO"),
            ("intervalstyle", "postgres"),
            ("timezone", "UTC"),
            ("bytea_output", "hex"),
        ]);
        let options = options.extra_float_digits(3).statement_cache_capacity(16);
        Self { options, password, lock_wait: LOCK_WAIT, variables: BTreeMap::new() }
    }

    /// The database of the sessions that manage others.
    pub(super) fn maintenance(&self) -> &str {
        self.options.get_database().unwrap_or("postgres")
    }

    pub(super) fn user(&self) -> &str {
        self.options.get_username()
    }

    /// Opens a session in a database, which the server lists under this name.
    pub(super) async fn session(&self, context: &Context, database: &str, name: &str) -> Result<Session> {
        context.hide(&self.password);
        tokio::select! {
            biased;
            () = context.cancelled() => Err(Error::cancelled()),
            session = self.connect(database, name) => session,
        }
    }

    async fn connect(&self, database: &str, name: &str) -> Result<Session> {
        let options = self.options.clone().database(database).application_name(name);
        let options = options.options([("lock_timeout", self.lock_wait.as_millis())]);
        let connecting = timeout(CONNECT_MAX, PgConnection::connect_with(&options)).await;
        let connected = connecting.unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut));
        let connection = sql(connected, || format!("connect to database {database}"))?;
        let mut session = Session { connection, process: 0 };
        let process = session.row("SELECT pg_backend_pid()", &[]).await?;
        session.process = process.map(|row| column(&row, 0)).transpose()?.unwrap_or(0);
        Ok(session)
    }

    /// Runs one statement that takes long. Cancelled, the server stops it, and this returns when it has.
    pub(super) async fn run_long(
        &self,
        context: &Context,
        session: &mut Session,
        statement: &str,
        doing: &str,
    ) -> Result<()> {
        let process = session.process;
        let running = session.run(statement, doing);
        tokio::pin!(running);
        tokio::select! {
            ended = &mut running => return ended,
            () = context.cancelled() => {}
        }
        let mut other = self.connect(self.maintenance(), "ocore-snapshot cancels").await?;
        other.rows("SELECT pg_cancel_backend($1::int)", &[Argument::Number(i64::from(process))]).await?;
        other.close().await;
        drop(running.await);
        Err(Error::cancelled())
    }

    /// A program of PostgreSQL that talks to a database: how to reach it is in variables, as an argument can be read by
    /// every user of the machine.
    pub(super) fn equip(&self, command: &mut Command, database: &str, name: &str, settings: &str) {
        let options = &self.options;
        let socket = options.get_socket().map(|path| path.display().to_string());
        command
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("LC_ALL", "C")
            .env("PGHOST", socket.unwrap_or_else(|| options.get_host().to_owned()))
            .env("PGPORT", options.get_port().to_string())
            .env("PGUSER", options.get_username())
            .env("PGDATABASE", database)
            .env("PGAPPNAME", name)
            .env("PGCONNECT_TIMEOUT", "30")
            .env("PGSSLMODE", ssl_mode(options.get_ssl_mode()))
            .env(
                "PGOPTIONS",
                format!("-c client_connection_check_interval={CLIENT_CHECK} {NO_LIMITS} {settings}"),
            );
        if !self.password.expose().is_empty() {
            command.env("PGPASSWORD", self.password.expose());
        }
        command.envs(&self.variables);
    }

    /// A text that somebody else wrote, without the password.
    pub(super) fn scrub(&self, text: &str) -> String {
        match self.password.expose() {
            "" => text.to_owned(),
            password => text.replace(password, REDACTED),
        }
    }
}

fn ssl_mode(mode: PgSslMode) -> &'static str {
    match mode {
        PgSslMode::Disable => "disable",
        PgSslMode::Allow => "allow",
        PgSslMode::Prefer => "prefer",
        PgSslMode::Require => "require",
        PgSslMode::VerifyCa => "verify-ca",
        PgSslMode::VerifyFull => "verify-full",
    }
}

/// A session with one database. Dropped, it is closed, and what it was doing is rolled back.
pub(super) struct Session {
    connection: PgConnection,
    /// The number of the server's process.
    process: i32,
}

impl Session {
    /// The server's version as a number: 150018 is 15.18.
    pub(super) fn version(&self) -> u32 {
        self.connection.server_version_num().unwrap_or(0)
    }

    /// Runs one statement.
    pub(super) async fn run(&mut self, statement: impl Into<String>, doing: &str) -> Result<()> {
        let ran = self.connection.execute(AssertSqlSafe(statement.into())).await;
        sql(ran, || doing.to_owned()).map(drop)
    }

    /// Runs one statement with arguments, and says how many rows it changed or found.
    pub(super) async fn change(
        &mut self,
        statement: &'static str,
        arguments: &[Argument<'_>],
    ) -> Result<u64> {
        let ran = bind(statement, arguments).execute(&mut self.connection).await;
        Ok(sql(ran, || first_words(statement))?.rows_affected())
    }

    /// The rows of a question.
    pub(super) async fn rows(&mut self, question: &str, arguments: &[Argument<'_>]) -> Result<Vec<PgRow>> {
        let rows = bind(question, arguments).fetch_all(&mut self.connection).await;
        sql(rows, || first_words(question))
    }

    /// The first row of a question, if there is one.
    pub(super) async fn row(&mut self, question: &str, arguments: &[Argument<'_>]) -> Result<Option<PgRow>> {
        Ok(self.rows(question, arguments).await?.into_iter().next())
    }

    /// The one value that a question asks for, as text.
    pub(super) async fn text(
        &mut self,
        question: &str,
        arguments: &[Argument<'_>],
    ) -> Result<Option<String>> {
        let row = self.row(question, arguments).await?;
        row.map(|row| column(&row, 0)).transpose().map(Option::flatten)
    }

    /// Whether the answer is yes.
    pub(super) async fn is(&mut self, question: &str, arguments: &[Argument<'_>]) -> Result<bool> {
        let row = self.row(question, arguments).await?;
        Ok(row.map(|row| column::<Option<bool>>(&row, 0)).transpose()?.flatten().unwrap_or(false))
    }

    /// Says good-bye, so that the server need not find out by itself.
    pub(super) async fn close(self) {
        // It is closed either way.
        drop(self.connection.close().await);
    }
}

/// An argument of a statement.
#[derive(Debug, Clone, Copy)]
pub(super) enum Argument<'a> {
    Text(&'a str),
    Number(i64),
    Texts(&'a [String]),
}

fn bind<'q>(
    statement: &str,
    arguments: &'q [Argument<'q>],
) -> sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments> {
    let query = sqlx::query(AssertSqlSafe(statement.to_owned()));
    arguments.iter().fold(query, |query, argument| match *argument {
        Argument::Text(text) => query.bind(text),
        Argument::Number(number) => query.bind(number),
        Argument::Texts(texts) => query.bind(texts),
    })
}

/// A column of a row.
pub(super) fn column<'r, T>(row: &'r PgRow, index: usize) -> Result<T>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.try_get(index).permanent("understand the server's answer")
}

fn first_words(statement: &str) -> String {
    let words: Vec<_> = statement.split_whitespace().take(8).collect();
    words.join(" ")
}

/// Classifies an error of the server: what may pass is transient.
pub(super) fn sql<T>(result: Result<T, sqlx::Error>, doing: impl FnOnce() -> String) -> Result<T> {
    match result {
        Err(error) if is_passing(&error) => Err(error).transient(doing()),
        other => other.permanent(doing()),
    }
}

/// Whether it may work when it is tried again: the server is away, is full, or somebody was in the way.
fn is_passing(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return true };
    let code = error.code().unwrap_or_default();
    let classes = ["08", "40", "53", "57", "58", "XX"];
    let codes = ["55006", "55P03", "3D000"];
    classes.iter().any(|class| code.starts_with(class)) || codes.contains(&code.as_ref())
}

/// A name as SQL writes it.
pub(super) fn name(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// A text as SQL writes it.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_quoted() {
        assert_eq!(name(r#"a"b"#), r#""a""b""#);
        assert_eq!(literal(r"it's \n"), r"'it''s \n'");
    }

    #[test]
    fn a_password_is_in_no_text_and_no_argument() {
        let server = Server::new(PgConnectOptions::new_without_pgpass(), Secret::new("s3cr3t-Pw"));
        assert!(!format!("{server:?}").contains("s3cr3t"));
        assert_eq!(server.scrub("for s3cr3t-Pw: no"), format!("for {REDACTED}: no"));
        let mut command = Command::new("pg_dump");
        server.equip(&mut command, "shop", "test", "");
        assert!(command.get_args().next().is_none());
        assert!(command.get_envs().any(|(name, value)| name == "PGPASSWORD" && value.is_some()));
    }
}
