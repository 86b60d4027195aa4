//! What is missing is named before anything is touched.

use ocore_core::port::{ErrorKind, Snapshotter as _};
use ocore_postgres::snapshot::Strategy;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::site::{PASSWORD, Site};

/// A snapshot is refused for good, in words that have these in them; nothing is left of it.
async fn check(site: &Site, words: &[&str]) {
    let caller = site.caller();
    let error = site.snapshotter.take(&caller.call(1, 1), caller.instance()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    let text = format!("{error} {:?}", error.detail());
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
    assert!(!text.contains(PASSWORD), "{text}");
    assert_eq!(site.directories(), [].into());
    assert_eq!(site.other_databases().await, [].into());
}

async fn site() -> Site {
    let site = Site::with(|it| it.strategy(Strategy::Dump)).await;
    site.sql("CREATE TABLE t AS SELECT 1 AS id").await;
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_missing_are_named_with_what_to_do() {
    let site = site().await;
    site.as_superuser(&format!("ALTER ROLE {} NOCREATEDB", site.role)).await;
    check(&site, &["may not make databases", "CREATEDB"]).await;
    site.as_superuser(&format!("ALTER ROLE {} CREATEDB", site.role)).await;
    site.as_superuser(&format!("ALTER DATABASE {} OWNER TO postgres", site.database)).await;
    check(&site, &["does not own it", "ALTER DATABASE"]).await;
    site.as_superuser(&format!("ALTER DATABASE {} OWNER TO {}", site.database, site.role)).await;
    site.as_superuser(&format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", site.database)).await;
    check(&site, &["nobody can connect to it", "ALLOW_CONNECTIONS true"]).await;
    site.as_superuser(&format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", site.database)).await;
    site.take().await;
}

/// H3b: `pg_dump` stops at such a table, and leaves an empty file.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_cannot_be_read_whole_are_named() {
    let site = site().await;
    site.as_superuser_in(&site.database, "CREATE TABLE public.g (id int)").await;
    check(&site, &["may not read", "g", "GRANT SELECT"]).await;
    site.as_superuser_in(&site.database, "DROP TABLE public.g").await;
    site.sql("ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE t FORCE ROW LEVEL SECURITY").await;
    check(&site, &["row security hides rows", "NO FORCE ROW LEVEL SECURITY"]).await;
}

/// What a restore would have to say of the database, and may not: it is said and taken back before.
#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_only_a_superuser_can_restore_is_named() {
    let site = site().await;
    site.as_superuser(&format!("ALTER DATABASE {} SET log_min_duration_statement = '5s'", site.database))
        .await;
    check(&site, &["log_min_duration_statement", "permission denied"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_that_only_a_superuser_can_make_is_named() {
    let site = site().await;
    site.as_superuser_in(&site.database, "CREATE EXTENSION pageinspect").await;
    check(&site, &["pageinspect", "template database"]).await;
}

/// H10: tools of another version are found out before the dump, not at the restore.
#[tokio::test(flavor = "multi_thread")]
async fn tools_that_do_not_fit_the_server_are_named() {
    let site = Site::with(|it| it.strategy(Strategy::Dump).tools("/no/such/directory")).await;
    site.sql("CREATE TABLE t (id int)").await;
    check(&site, &["no pg_dump and pg_restore fit", "install postgresql-client-"]).await;
}

/// H3: a role that is gone by the time of the restore.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_gone_is_named_and_the_database_untouched() {
    let site = site().await;
    let ghost = format!("ghost_{}", site.role);
    site.as_superuser(&format!("CREATE ROLE {ghost}")).await;
    site.sql(&format!("GRANT SELECT ON t TO {ghost}")).await;
    let snapshot = site.take().await;
    site.sql(&format!("REVOKE ALL ON t FROM {ghost}; UPDATE t SET id = 2")).await;
    site.as_superuser(&format!("DROP ROLE {ghost}")).await;
    let caller = site.caller();
    let error = site.snapshotter.restore(&caller.call(2, 2), caller.instance(), &snapshot).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    assert!(error.to_string().contains(&format!("role {ghost} is not there")), "{error}");
    assert_eq!(site.one(&site.database, "SELECT id::text FROM t").await, "2");
    assert_eq!(site.other_databases().await, [].into());
}

/// H11, H29: a password is in no argument list, and limits of the role change nothing.
#[tokio::test(flavor = "multi_thread")]
async fn limits_of_the_role_do_not_end_a_snapshot() {
    let site = site().await;
    for setting in ["statement_timeout = '1ms'", "lock_timeout = '1ms'", "default_transaction_read_only = on"]
    {
        site.as_superuser(&format!("ALTER ROLE {} SET {setting}", site.role)).await;
    }
    let snapshot = site.take().await;
    site.restore(&snapshot).await;
    let mut session = site.connect_as_superuser(&site.database).await;
    session.execute(AssertSqlSafe("SELECT id FROM t")).await.unwrap();
}

/// H30: names are cut to 63 bytes without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_63_bytes_is_no_trouble() {
    for strategy in [Strategy::Dump, Strategy::Clone] {
        let mut site = Site::with(|it| it.strategy(strategy)).await;
        let long = format!("{}-{}", site.database, "x".repeat(62 - site.database.len()));
        site.as_superuser(&format!("CREATE DATABASE \"{long}\" OWNER {}", site.role)).await;
        site.database = long;
        site.sql("CREATE TABLE t AS SELECT 1 AS id").await;
        let snapshot = site.take().await;
        site.sql("DROP TABLE t").await;
        site.restore(&snapshot).await;
        assert_eq!(site.one(&site.database, "SELECT id::text FROM t").await, "1");
    }
}
