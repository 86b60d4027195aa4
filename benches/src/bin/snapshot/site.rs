//! A server that syncs to its disk, a plain role on it, its databases, and what is done with them.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ocore_core::{
    environment::{Environment, EnvironmentSpec, InstanceSpec, SnapshotWhen},
    secret::Secret,
    testing::laws::caller::Caller,
};
use ocore_postgres::snapshot::{PostgresSnapshotter, PostgresSnapshotterBuilder};
use ocore_test_postgres::{Cluster, find};
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _, postgres::PgConnectOptions,
};
use tempfile::TempDir;

pub(crate) const ROLE: &str = "bench";
const PASSWORD: &str = "bench-pw";
const MAINTENANCE: &str = "bench_ocore";

/// As the store's bench has it, with PostgreSQL's own checkpoints.
const SETTINGS: &[(&str, &str)] =
    &[("fsync", "on"), ("max_connections", "100"), ("shared_buffers", "2GB"), ("max_wal_size", "8GB")];

pub(crate) struct Site {
    pub(crate) cluster: Cluster,
    pub(crate) files: TempDir,
}

impl Site {
    pub(crate) async fn start() -> Self {
        let files = tempfile::tempdir().expect("a directory can be made");
        let site = Self { cluster: Cluster::start(SETTINGS), files };
        let role = format!("CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{PASSWORD}'");
        for statement in [role, format!("CREATE DATABASE {MAINTENANCE} OWNER {ROLE}")] {
            site.as_superuser("postgres", &[statement]).await;
        }
        site
    }

    /// Makes a database with what these statements make; gives its size in bytes.
    pub(crate) async fn make(&self, database: &str, statements: &[String]) -> f64 {
        self.as_superuser("postgres", &[format!("CREATE DATABASE {database} OWNER {ROLE}")]).await;
        let mut session = self.session(database).await;
        for statement in statements {
            session.execute(AssertSqlSafe(statement.clone())).await.expect("the database can be filled");
        }
        session.close().await.expect("the session ends");
        // Nothing that is measured pays for what was written here.
        self.as_superuser("postgres", &["CHECKPOINT".to_owned()]).await;
        self.number(&format!("SELECT pg_database_size('{database}')")).await
    }

    pub(crate) fn options(&self, database: &str) -> PgConnectOptions {
        let options: PgConnectOptions = self.cluster.url(database).parse().expect("it is a URL");
        options.username(ROLE).password(PASSWORD)
    }

    /// A session of the role.
    pub(crate) async fn session(&self, database: &str) -> PgConnection {
        PgConnection::connect_with(&self.options(database)).await.expect("the server answers")
    }

    pub(crate) async fn as_superuser(&self, database: &str, statements: &[String]) {
        let mut session =
            PgConnection::connect(&self.cluster.url(database)).await.expect("the server answers");
        for statement in statements {
            session.execute(AssertSqlSafe(statement.clone())).await.expect("the statement is a good one");
        }
        session.close().await.expect("the session ends");
    }

    /// The superuser's question, whose answer is a number.
    #[expect(clippy::cast_precision_loss, reason = "sizes and counts")]
    pub(crate) async fn number(&self, question: &str) -> f64 {
        let mut session = PgConnection::connect(&self.cluster.url(MAINTENANCE)).await.expect("it answers");
        let row =
            session.fetch_one(AssertSqlSafe(question.to_owned())).await.expect("the question is a good one");
        session.close().await.expect("the session ends");
        row.get::<i64, _>(0) as f64
    }

    /// Removes every database that was made beside the application's.
    pub(crate) async fn tidy(&self) {
        let mut session = PgConnection::connect(&self.cluster.url(MAINTENANCE)).await.expect("it answers");
        let made = "SELECT datname::text FROM pg_database WHERE datname ~ '__oc|__old|^peer_'";
        let made = session.fetch_all(made).await.expect("it answers");
        for name in made.iter().map(|row| row.get::<String, _>(0)) {
            let drop = [
                format!("ALTER DATABASE \"{name}\" IS_TEMPLATE false"),
                format!("DROP DATABASE \"{name}\" WITH (FORCE)"),
            ];
            self.as_superuser("postgres", &drop).await;
        }
        let forget = "DELETE FROM ocore_snapshot.made";
        // Before the first call there is no ledger.
        drop(session.execute(forget).await);
        session.close().await.expect("the session ends");
    }

    /// A snapshotter with a directory of its own.
    pub(crate) fn snapshotter(
        &self,
        directory: &str,
        change: impl FnOnce(PostgresSnapshotterBuilder) -> PostgresSnapshotterBuilder,
    ) -> PostgresSnapshotter {
        let options = self.options(MAINTENANCE);
        change(PostgresSnapshotter::builder(options, Secret::new(PASSWORD), self.path(directory))).build()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// One of PostgreSQL's programs, which reaches a database as the role.
    pub(crate) fn program(&self, name: &str, database: &str) -> Command {
        let mut command = Command::new(find(name).unwrap_or_else(|missing| panic!("{missing}")));
        self.equip(&mut command, database);
        command
    }

    pub(crate) fn equip(&self, command: &mut Command, database: &str) {
        let port = self.cluster.port().to_string();
        command.env("PGHOST", "127.0.0.1").env("PGPORT", port).env("PGUSER", ROLE);
        command.env("PGPASSWORD", PASSWORD).env("PGDATABASE", database).env("LC_ALL", "C");
    }
}

/// A fence above all before it: the server remembers the highest of each database.
pub(crate) fn fence() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// Who calls for a database whose application is served on, or stopped.
pub(crate) fn caller(database: &str, when: SnapshotWhen) -> Caller {
    let mut instance = InstanceSpec::new("web");
    instance.database = Some(database.to_owned());
    let spec = EnvironmentSpec::new("bench", "https://git.example.org/bench.git").instance(instance);
    let environment: Environment =
        spec.policy(|policy| policy.snapshot = when).try_into().expect("the settings are good");
    Caller::new(Arc::new(environment))
}

/// Runs a program to its good end.
pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The size of a file in bytes.
#[expect(clippy::cast_precision_loss, reason = "a size")]
pub(crate) fn size(path: &Path) -> f64 {
    std::fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).len() as f64
}
