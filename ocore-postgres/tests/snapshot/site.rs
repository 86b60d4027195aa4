//! A plain role with a database on the server that all tests share, and a snapshotter for it.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use ocore_core::{
    environment::{Environment, EnvironmentSpec, InstanceSpec, SnapshotWhen},
    port::Snapshotter,
    release::Snapshot,
    secret::Secret,
    testing::laws::{
        caller::Caller,
        snapshotter::{Contents, SnapshotterFixture},
    },
};
use ocore_postgres::snapshot::{PostgresSnapshotter, PostgresSnapshotterBuilder};
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _, postgres::PgConnectOptions,
};
use tempfile::TempDir;

/// What a test has for itself: a role that may log in and make databases, its application database, its maintenance
/// database, and a directory for snapshots. All of it is named after a number of its own.
pub(crate) struct Site {
    pub(crate) role: String,
    pub(crate) database: String,
    pub(crate) maintenance: String,
    pub(crate) files: TempDir,
    pub(crate) superuser: PgConnectOptions,
    pub(crate) when: SnapshotWhen,
    pub(crate) snapshotter: PostgresSnapshotter,
}

pub(crate) const PASSWORD: &str = "s3cr3t-Pw-of-the-role";

fn number() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Site {
    /// On the shared server, with a snapshotter that is set up as `change` says.
    pub(crate) async fn with(
        change: impl FnOnce(PostgresSnapshotterBuilder) -> PostgresSnapshotterBuilder,
    ) -> Self {
        Self::on(&ocore_test_postgres::shared_url("postgres"), change).await
    }

    /// On a server that has this superuser.
    pub(crate) async fn on(
        superuser: &str,
        change: impl FnOnce(PostgresSnapshotterBuilder) -> PostgresSnapshotterBuilder,
    ) -> Self {
        let superuser: PgConnectOptions = superuser.parse().unwrap();
        let number = number();
        let (role, database, maintenance) =
            (format!("app_{number}"), format!("shop_{number}"), format!("ocore_{number}"));
        let files = tempfile::tempdir().unwrap();
        let options = superuser.clone().username(&role).password(PASSWORD).database(&maintenance);
        let builder =
            PostgresSnapshotter::builder(options, Secret::new(PASSWORD), files.path().join("snapshots"));
        let snapshotter = change(builder).build();
        let site = Self {
            role,
            database,
            maintenance,
            files,
            superuser,
            when: SnapshotWhen::AfterStop,
            snapshotter,
        };
        let (role, maintenance) = (&site.role, &site.maintenance);
        site.as_superuser(&format!("CREATE ROLE {role} LOGIN CREATEDB PASSWORD '{PASSWORD}'")).await;
        site.as_superuser(&format!("CREATE DATABASE {maintenance} OWNER {role}")).await;
        site
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.files.path().join("snapshots")
    }

    /// An environment whose instance has this database, for a worker that stops the application first.
    pub(crate) fn environment_stopped(database: &str) -> Arc<Environment> {
        environment(Some(database), SnapshotWhen::AfterStop)
    }

    pub(crate) fn caller(&self) -> Caller {
        Caller::new(environment(Some(&self.database), self.when))
    }

    /// A session of the role in a database.
    pub(crate) async fn connect(&self, database: &str) -> PgConnection {
        let options = self.superuser.clone().username(&self.role).password(PASSWORD).database(database);
        PgConnection::connect_with(&options).await.unwrap()
    }

    pub(crate) async fn connect_as_superuser(&self, database: &str) -> PgConnection {
        PgConnection::connect_with(&self.superuser.clone().database(database)).await.unwrap()
    }

    /// Statements of the role in its application's database, made if it is not there.
    pub(crate) async fn sql(&self, statements: &str) {
        self.make_database().await;
        let mut session = self.connect(&self.database).await;
        session.execute(AssertSqlSafe(statements.to_owned())).await.unwrap();
        session.close().await.unwrap();
    }

    pub(crate) async fn make_database(&self) {
        if !self.exists(&self.database).await {
            let mut session = self.connect(&self.maintenance).await;
            session.execute(AssertSqlSafe(format!("CREATE DATABASE {}", self.database))).await.unwrap();
            session.close().await.unwrap();
        }
    }

    /// A statement of the superuser outside of the application's database.
    pub(crate) async fn as_superuser(&self, statement: &str) {
        self.as_superuser_in("postgres", statement).await;
    }

    pub(crate) async fn as_superuser_in(&self, database: &str, statement: &str) {
        let mut session = self.connect_as_superuser(database).await;
        session.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
        session.close().await.unwrap();
    }

    /// The first column of the superuser's question, as text.
    pub(crate) async fn ask(&self, database: &str, question: &str) -> Vec<String> {
        let mut session = self.connect_as_superuser(database).await;
        let rows = session.fetch_all(AssertSqlSafe(question.to_owned())).await.unwrap();
        session.close().await.unwrap();
        rows.iter().map(|row| row.try_get::<Option<String>, _>(0).unwrap().unwrap_or_default()).collect()
    }

    pub(crate) async fn one(&self, database: &str, question: &str) -> String {
        self.ask(database, question).await.pop().unwrap_or_default()
    }

    pub(crate) async fn exists(&self, database: &str) -> bool {
        !self
            .ask("postgres", &format!("SELECT datname::text FROM pg_database WHERE datname = '{database}'"))
            .await
            .is_empty()
    }

    /// The databases of the role but its application's and its maintenance database.
    pub(crate) async fn other_databases(&self) -> BTreeSet<String> {
        let (role, database, maintenance) = (&self.role, &self.database, &self.maintenance);
        let question = format!(
            "SELECT datname::text FROM pg_database WHERE datdba = '{role}'::regrole \
             AND datname NOT IN ('{database}', '{maintenance}')"
        );
        self.ask("postgres", &question).await.into_iter().collect()
    }

    pub(crate) fn directories(&self) -> BTreeSet<String> {
        let Ok(found) = fs::read_dir(self.snapshots()) else { return BTreeSet::new() };
        found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub(crate) async fn take(&self) -> Snapshot {
        let caller = self.caller();
        self.snapshotter.take(&caller.call(1, 1), caller.instance()).await.unwrap()
    }

    pub(crate) async fn restore(&self, snapshot: &Snapshot) {
        let caller = self.caller();
        self.snapshotter.restore(&caller.call(2, 2), caller.instance(), snapshot).await.unwrap();
    }

    pub(crate) fn manifest(&self, snapshot: &Snapshot) -> serde_json::Value {
        let path = self.snapshots().join(&snapshot.reference).join("manifest.json");
        let sealed: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        sealed["manifest"].clone()
    }

    pub(crate) fn dump_file(&self, snapshot: &Snapshot) -> PathBuf {
        self.snapshots().join(&snapshot.reference).join("database.dump.zst")
    }
}

pub(crate) fn environment(database: Option<&str>, when: SnapshotWhen) -> Arc<Environment> {
    let mut instance = InstanceSpec::new("web");
    instance.database = database.map(str::to_owned);
    let spec = EnvironmentSpec::new("test", "https://git.example.org/test.git").instance(instance);
    Arc::new(spec.policy(|policy| policy.snapshot = when).try_into().unwrap())
}

#[async_trait]
impl SnapshotterFixture for Site {
    fn snapshotter(&self) -> &dyn Snapshotter {
        &self.snapshotter
    }
    fn environment(&self) -> Arc<Environment> {
        environment(Some(&self.database), self.when)
    }
    async fn write(&self, data: Option<&Contents>) {
        let Some(contents) = data else {
            let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.database);
            return self.as_superuser(&statement).await;
        };
        self.sql("CREATE TABLE IF NOT EXISTS entry (name text PRIMARY KEY, value text NOT NULL)").await;
        let mut session = self.connect(&self.database).await;
        let (names, values): (Vec<_>, Vec<_>) =
            contents.iter().map(|(name, value)| (name.clone(), value.clone())).unzip();
        let mut transaction = session.begin().await.unwrap();
        sqlx::query("DELETE FROM entry").execute(&mut *transaction).await.unwrap();
        sqlx::query("INSERT INTO entry SELECT * FROM unnest($1::text[], $2::text[])")
            .bind(names)
            .bind(values)
            .execute(&mut *transaction)
            .await
            .unwrap();
        transaction.commit().await.unwrap();
        session.close().await.unwrap();
    }
    async fn read(&self) -> Option<Contents> {
        if !self.exists(&self.database).await {
            return None;
        }
        // After a call that was dropped, the next one opens the database again.
        let closed = "UPDATE pg_database SET datallowconn = true WHERE datname = ";
        let database = &self.database;
        let open = format!("SELECT datallowconn::text FROM pg_database WHERE datname = '{database}'");
        let was_open = self.one("postgres", &open).await == "true";
        if !was_open {
            self.as_superuser(&format!("{closed}'{database}'")).await;
        }
        let mut session = self.connect(database).await;
        let rows = session.fetch_all("SELECT name, value FROM entry").await.unwrap();
        session.close().await.unwrap();
        Some(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
    async fn corrupt(&self, snapshot: &Snapshot) -> bool {
        self.snapshotter.finish_dumps().await;
        let dump = self.dump_file(snapshot);
        if dump.exists() {
            let mut bytes = fs::read(&dump).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&dump, bytes).unwrap();
        }
        if let Some(clone) = self.manifest(snapshot)["data"]["database"]["clone"]["database"].as_str() {
            self.as_superuser(&format!("DROP DATABASE \"{clone}\" WITH (FORCE)")).await;
            self.as_superuser(&format!("CREATE DATABASE \"{clone}\" OWNER {}", self.role)).await;
        }
        true
    }
    async fn made(&self) -> BTreeSet<String> {
        let directories = self.directories();
        let mut made = directories.clone();
        for database in self.other_databases().await {
            let question = format!(
                "SELECT reference FROM ocore_snapshot.made WHERE name = '{database}' AND kind = 'clone'"
            );
            let reference = self.one(&self.maintenance, &question).await;
            // A snapshot's clone has no name of its own.
            if !directories.contains(&reference) {
                made.insert(database);
            }
        }
        made
    }
    fn refuses_older_fences(&self) -> bool {
        true
    }
}

impl Drop for Site {
    /// The server is shared, and so is its disk.
    fn drop(&mut self) {
        let (superuser, role) = (self.superuser.clone(), self.role.clone());
        let clean = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut session = PgConnection::connect_with(&superuser).await?;
                let question =
                    format!("SELECT datname::text FROM pg_database WHERE datdba = '{role}'::regrole");
                for row in session.fetch_all(AssertSqlSafe(question)).await? {
                    let database: String = row.get(0);
                    let open = format!("ALTER DATABASE \"{database}\" IS_TEMPLATE false");
                    session.execute(AssertSqlSafe(open)).await?;
                    let drop = format!("DROP DATABASE \"{database}\" WITH (FORCE)");
                    session.execute(AssertSqlSafe(drop)).await?;
                }
                session.execute(AssertSqlSafe(format!("DROP ROLE {role}"))).await
            })
        };
        // What cannot be removed goes with the server; a test that has failed has said why before.
        drop(std::thread::spawn(clean).join());
    }
}
