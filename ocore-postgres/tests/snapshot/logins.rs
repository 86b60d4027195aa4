//! One login role for each fence: what a zombie has started is refused by the server itself.

use ocore_core::port::{ErrorKind, Snapshotter as _};
use ocore_postgres::snapshot::{Login, Logins, Strategy};
use ocore_test_postgres::Cluster;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, postgres::PgConnectOptions};

use crate::site::{PASSWORD, Site};

/// A server whose databases belong to an owner that cannot log in, and a platform whose role makes the logins.
pub(crate) struct Platform {
    site: Site,
    owner: String,
    logins: Logins,
}

/// A server that writes down every statement.
fn cluster() -> Cluster {
    Cluster::start(&[("log_statement", "all")])
}

impl Platform {
    pub(crate) async fn on(cluster: &Cluster, strategy: Strategy) -> Self {
        let site = Site::on(&cluster.url("postgres"), |it| it.strategy(strategy).shut_out_logins(true)).await;
        let (role, database, owner) = (&site.role, &site.database, format!("owner_{}", site.role));
        site.as_superuser(&format!("ALTER ROLE {role} CREATEROLE")).await;
        site.as_superuser(&format!("CREATE ROLE {owner} NOLOGIN")).await;
        site.as_superuser(&format!("GRANT {owner} TO {role} WITH ADMIN OPTION")).await;
        site.as_superuser(&format!("CREATE DATABASE {database} OWNER {owner}")).await;
        let options = site.superuser.clone().username(role).password(PASSWORD).database(&site.maintenance);
        let logins = Logins::new(options, ocore_core::secret::Secret::new(PASSWORD));
        Self { site, owner, logins }
    }

    pub(crate) async fn admit(&self, deployment: u128, fence: u64) -> Login {
        self.logins.admit(&self.site.caller().call(deployment, fence), &self.site.database).await.unwrap()
    }

    fn options(&self, login: &Login) -> PgConnectOptions {
        let site = &self.site;
        site.superuser
            .clone()
            .username(&login.role)
            .password(login.password.expose())
            .database(&site.database)
    }

    async fn connect(&self, login: &Login) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect_with(&self.options(login)).await
    }

    /// The roles that were made for applications, and whether they may log in.
    async fn roles(&self) -> Vec<String> {
        let question = format!(
            "SELECT rolname || ' ' || rolcanlogin FROM pg_roles WHERE rolname LIKE '{}\\_\\_%' ORDER BY 1",
            self.site.database
        );
        self.site.ask("postgres", &question).await
    }
}

/// R3, R4: a worker that is frozen in the middle of a migration has lost the lane; what it writes when it goes on is
/// refused, before, during and after the restore.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_write_of_a_zombie_is_refused() {
    for strategy in [Strategy::Dump, Strategy::Clone] {
        let cluster = cluster();
        let platform = Platform::on(&cluster, strategy).await;
        let site = &platform.site;
        let first = platform.admit(1, 1).await;
        let mut application = platform.connect(&first).await.unwrap();
        application.execute("CREATE TABLE t AS SELECT 1 AS id").await.unwrap();
        let owner = "SELECT relowner::regrole::text FROM pg_class WHERE relname = 't'";
        assert_eq!(site.one(&site.database, owner).await, platform.owner);
        // The snapshot of a stopped application: whoever is still in it is a zombie.
        let caller = site.caller();
        let snapshot = site.snapshotter.take(&caller.call(2, 2), caller.instance()).await.unwrap();
        application.execute("INSERT INTO t VALUES (2)").await.expect_err("its session was ended");
        let refused = platform.connect(&first).await.expect_err("it may not come back");
        assert!(refused.to_string().contains("not permitted to log in"), "{refused}");
        // The migration, of a worker that freezes.
        let second = platform.admit(2, 2).await;
        let mut migration = platform.connect(&second).await.unwrap();
        migration.execute("INSERT INTO t VALUES (3)").await.unwrap();
        assert_eq!(platform.roles().await, [format!("{} true", second.role)]);
        // Another worker has the lane, and puts everything back.
        site.snapshotter.restore(&caller.call(2, 3), caller.instance(), &snapshot).await.unwrap();
        migration.execute("INSERT INTO t VALUES (4)").await.expect_err("its session was ended");
        platform.connect(&second).await.expect_err("it may not come back");
        let third = platform.admit(2, 3).await;
        let mut revived = platform.connect(&third).await.unwrap();
        revived.execute("INSERT INTO t VALUES (5)").await.unwrap();
        platform.connect(&second).await.expect_err("its role is gone");
        assert_eq!(site.ask(&site.database, "SELECT id::text FROM t ORDER BY 1").await, ["1", "5"]);
        assert_eq!(site.one(&site.database, owner).await, platform.owner);
        revived.close().await.unwrap();
    }
}

/// The zombie's worker may itself ask for a login.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_fence_gets_no_login_and_shuts_nobody_out() {
    let cluster = cluster();
    let platform = Platform::on(&cluster, Strategy::Dump).await;
    let caller = platform.site.caller();
    let login = platform.admit(1, 7).await;
    let mut session = platform.connect(&login).await.unwrap();
    let late = caller.call(1, 6);
    let database = &platform.site.database;
    for refused in [
        platform.logins.admit(&late, database).await.map(drop),
        platform.logins.shut_out(&late, database).await,
    ] {
        let error = refused.unwrap_err();
        assert!(error.to_string().contains("another worker has taken over"), "{error}");
    }
    session.execute("SELECT 1").await.unwrap();
    // The same fence again: a new password, the same role, and whoever is in stays in.
    let again = platform.admit(1, 7).await;
    assert_eq!(again.role, login.role);
    session.execute("SELECT 1").await.unwrap();
    platform.connect(&login).await.expect_err("its password is void");
    platform.connect(&again).await.unwrap().close().await.unwrap();
    platform.logins.shut_out(&caller.call(1, 8), database).await.unwrap();
    session.execute("SELECT 1").await.expect_err("its session was ended");
    assert_eq!(platform.roles().await, [format!("{} false", login.role)]);
}

/// A role on which something depends cannot be removed; it cannot log in either.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_cannot_be_removed_stays_shut_out() {
    let cluster = cluster();
    let platform = Platform::on(&cluster, Strategy::Dump).await;
    let first = platform.admit(1, 1).await;
    let mut application = platform.connect(&first).await.unwrap();
    application.execute("SET ROLE NONE").await.unwrap();
    let schema = format!("CREATE SCHEMA own AUTHORIZATION \"{}\"", first.role);
    application.execute(AssertSqlSafe(schema)).await.unwrap();
    platform.admit(2, 2).await;
    assert_eq!(platform.roles().await.len(), 2);
    let refused = platform.connect(&first).await.expect_err("it may not come back");
    assert!(refused.to_string().contains("not permitted to log in"), "{refused}");
    let lines = platform.site.caller();
    let again = platform.logins.admit(&lines.call(3, 3), &platform.site.database).await.unwrap();
    assert!(lines.lines().iter().any(|(_, line)| line.contains("stays, and cannot log in")));
    platform.connect(&again).await.unwrap().close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_named() {
    let cluster = cluster();
    let platform = Platform::on(&cluster, Strategy::Dump).await;
    let (site, owner) = (&platform.site, &platform.owner);
    let refusal = async |database: &str| {
        let error = platform.logins.admit(&site.caller().call(1, 1), database).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
        error.to_string()
    };
    site.as_superuser(&format!("ALTER ROLE {owner} LOGIN")).await;
    assert!(refusal(&site.database).await.contains(&format!("ALTER ROLE \"{owner}\" NOLOGIN")));
    site.as_superuser(&format!("ALTER ROLE {owner} NOLOGIN; REVOKE {owner} FROM {}", site.role)).await;
    assert!(refusal(&site.database).await.contains(&format!("GRANT \"{owner}\" TO")));
    site.as_superuser(&format!("ALTER ROLE {} NOCREATEROLE", site.role)).await;
    assert!(refusal(&site.database).await.contains("CREATEROLE"));
    assert!(refusal("no_such").await.contains("there is no database no_such"));
    assert_eq!(platform.roles().await, [""; 0]);
}

/// The server writes every statement down here, and is told no password.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_is_told_a_verifier_only() {
    let cluster = cluster();
    let platform = Platform::on(&cluster, Strategy::Dump).await;
    let login = platform.admit(1, 1).await;
    platform.connect(&login).await.unwrap().close().await.unwrap();
    let log = cluster.log();
    assert!(log.contains("SCRAM-SHA-256$4096:"), "the statement is not in the log");
    assert!(!log.contains(login.password.expose()));
}
