//! The exchange of two databases: what users see of it, what stays the same, what stands in its way.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ocore_core::{
    port::{ErrorKind, Leftovers, Snapshotter as _},
    release::Snapshot,
    testing::laws::caller::eventually,
};
use ocore_postgres::snapshot::{Fingerprint, Strategy};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};

use crate::site::{PASSWORD, Site};

/// Everything of a database that no dump holds.
async fn attributes(site: &Site) -> Vec<String> {
    let question = format!(
        "SELECT concat_ws('|', datname, pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype, \
         to_jsonb(d) ->> 'datlocprovider', \
         coalesce(to_jsonb(d) ->> 'daticulocale', to_jsonb(d) ->> 'datlocale'), datistemplate, datallowconn, datconnlimit, \
         (SELECT string_agg(concat_ws(' ', a.grantee::regrole, a.privilege_type, a.is_grantable), ',' ORDER BY a.grantee, a.privilege_type) \
         FROM aclexplode(coalesce(datacl, acldefault('d', datdba))) AS a), shobj_description(d.oid, 'pg_database'), \
         (SELECT string_agg(concat_ws(' ', s.setrole, array_to_string(s.setconfig, ';')), ',' ORDER BY s.setrole) \
         FROM pg_db_role_setting AS s WHERE s.setdatabase = d.oid)) FROM pg_database AS d WHERE datname = '{}'",
        site.database
    );
    site.ask("postgres", &question).await
}

/// H3c, H4: a restore that forgets them opens the database to everybody, sorts otherwise, loses its settings.
#[tokio::test(flavor = "multi_thread")]
async fn access_settings_limit_comment_and_locale_are_the_same_after_a_restore() {
    for strategy in [Strategy::Dump, Strategy::Clone] {
        let site = Site::with(|it| it.strategy(strategy)).await;
        let (role, database) = (&site.role, &site.database);
        let make = format!(
            "CREATE DATABASE {database} OWNER {role} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
        );
        site.as_superuser(&make).await;
        site.sql(&format!(
            "ALTER DATABASE {database} SET work_mem = '7MB'; \
             ALTER DATABASE {database} SET search_path = \"$user\", 'odd, \"path\"', public; \
             ALTER ROLE {role} IN DATABASE {database} SET statement_timeout = '300ms'; \
             REVOKE CONNECT ON DATABASE {database} FROM PUBLIC; \
             GRANT CREATE ON DATABASE {database} TO pg_monitor WITH GRANT OPTION; \
             ALTER DATABASE {database} CONNECTION LIMIT 33; \
             COMMENT ON DATABASE {database} IS 'the shop''s'; CREATE TABLE public.t AS SELECT 1 AS id"
        ))
        .await;
        let before = attributes(&site).await;
        assert!(before[0].contains("LATIN1|C|C|c") && before[0].contains("odd"), "{before:?}");
        let snapshot = site.take().await;
        site.sql(&format!(
            "ALTER DATABASE {database} RESET ALL; ALTER DATABASE {database} CONNECTION LIMIT 5"
        ))
        .await;
        site.restore(&snapshot).await;
        assert_eq!(attributes(&site).await, before);
        // A database without any of it.
        let plain = Site::with(|it| it.strategy(strategy)).await;
        plain.sql("CREATE TABLE t (id int)").await;
        let before = attributes(&plain).await;
        let snapshot = plain.take().await;
        plain.restore(&snapshot).await;
        assert_eq!(attributes(&plain).await, before);
    }
}

/// H8: with clients that connect again at once, `terminate` and then `RENAME` fails more often than not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_connect_again_at_once_do_not_get_in_the_way() {
    let site = Arc::new(Site::with(|it| it.strategy(Strategy::Dump).fingerprint(Fingerprint::Rows)).await);
    site.sql("CREATE TABLE t AS SELECT 'old' AS value").await;
    let snapshot = site.take().await;
    site.sql("UPDATE t SET value = 'new'").await;
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (site, over) = (site.clone(), over.clone());
            tokio::spawn(async move {
                let options =
                    site.superuser.clone().username(&site.role).password(PASSWORD).database(&site.database);
                let mut seen = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let Ok(mut session) = PgConnection::connect_with(&options).await else { continue };
                    while let Ok(row) = session.fetch_one("SELECT value FROM t").await {
                        seen.push((Instant::now(), row.get::<String, _>(0)));
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                }
                seen
            })
        })
        .collect();
    let caller = site.caller();
    site.snapshotter.restore(&caller.call(2, 2), caller.instance(), &snapshot).await.unwrap();
    let restored = Instant::now();
    let reads = || async {
        let reader = site.one(&site.database, "SELECT value FROM t").await;
        reader == "old" && restored.elapsed() > Duration::from_millis(500)
    };
    eventually("it is read again", reads).await;
    over.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    for client in clients {
        let seen = client.await.unwrap();
        let first_old = seen.iter().position(|(_, value)| value == "old").expect("it came back");
        assert!(
            seen[first_old..].iter().all(|(_, value)| value == "old"),
            "the replaced data was read again"
        );
        all.extend(seen);
    }
    let last_new = all.iter().filter(|(_, value)| value == "new").map(|(at, _)| *at).max().unwrap();
    let first_old = all.iter().filter(|(_, value)| value == "old").map(|(at, _)| *at).min().unwrap();
    println!("nobody was served for {:?}", first_old - last_new);
}

/// H1, H31: a dump is one moment, whatever is written meanwhile; and its count of rows is of that very moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_under_writers_is_one_moment() {
    let mut site = Site::with(|it| it.strategy(Strategy::Auto).fingerprint(Fingerprint::Rows)).await;
    site.when = ocore_core::environment::SnapshotWhen::BeforeStop;
    let site = Arc::new(site);
    site.sql(
        "CREATE TABLE account AS SELECT n AS id, 1000 AS balance FROM generate_series(0, 99) AS n; \
         CREATE TABLE transfer (id bigint GENERATED ALWAYS AS IDENTITY, amount int); \
         CREATE TABLE ballast AS SELECT n, md5(n::text) FROM generate_series(1, 100000) AS n",
    )
    .await;
    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (site, over) = (site.clone(), over.clone());
            tokio::spawn(async move {
                let mut session = site.connect(&site.database).await;
                let mut written = 0;
                while !over.load(Ordering::Relaxed) {
                    let (from, to) = (writer * 25 + written % 25, (writer * 25 + written * 7 + 1) % 100);
                    let transfer = format!(
                        "BEGIN; UPDATE account SET balance = balance - 1 WHERE id = {from}; \
                         UPDATE account SET balance = balance + 1 WHERE id = {to}; \
                         INSERT INTO transfer (amount) VALUES (1); COMMIT"
                    );
                    // Two that wait for each other: one is told so.
                    if session.execute(AssertSqlSafe(transfer)).await.is_err() {
                        session.execute("ROLLBACK").await.unwrap();
                    }
                    written += 1;
                }
                written
            })
        })
        .collect();
    let snapshot = site.take().await;
    let caller = site.caller();
    let changed =
        site.snapshotter.changed_since(&caller.call(1, 1), caller.instance(), &snapshot).await.unwrap();
    assert!(changed, "writers were at work");
    over.store(true, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        written += writer.await.unwrap();
    }
    assert!(written > 20, "{written}");
    assert_eq!(site.manifest(&snapshot)["data"]["database"]["strategy"], "dump");
    site.restore(&snapshot).await;
    let sum = "SELECT sum(balance)::text FROM account";
    assert_eq!(site.one(&site.database, sum).await, "100000");
    let transfers = site.one(&site.database, "SELECT count(*)::text FROM transfer").await;
    let counted = &site.manifest(&snapshot)["data"]["database"]["dump"]["contents"]["tables"]["public.transfer"]
        ["rows"];
    assert_eq!(transfers, counted.to_string());
}

/// H2: a restore in place leaves the tables that a migration made, and fails at those that refer to older ones; a reader who
/// forgot his transaction makes it wait for ever.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_migration_made_is_gone_after_a_restore() {
    for strategy in [Strategy::Dump, Strategy::Clone] {
        let site = Site::with(|it| it.strategy(strategy)).await;
        site.sql(
            "CREATE TABLE partner (id int PRIMARY KEY, name text); INSERT INTO partner VALUES (1, 'old')",
        )
        .await;
        let snapshot = site.take().await;
        site.sql(
            "ALTER TABLE partner RENAME name TO title; UPDATE partner SET title = 'new'; \
             CREATE TABLE tag (id int, partner int REFERENCES partner); INSERT INTO tag VALUES (1, 1)",
        )
        .await;
        let mut reader = site.connect(&site.database).await;
        reader.execute("BEGIN; SELECT * FROM partner").await.unwrap();
        site.restore(&snapshot).await;
        let tables = "SELECT string_agg(relname, ' ') FROM pg_class WHERE relnamespace = 'public'::regnamespace \
                      AND relkind = 'r'";
        assert_eq!(site.one(&site.database, tables).await, "partner");
        assert_eq!(site.one(&site.database, "SELECT name FROM partner").await, "old");
    }
}

/// H7: a prepared transaction is in nobody's session, and no rename, clone or removal gets past it.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_is_named_before_anything_is_touched() {
    let site = Site::with(|it| it.strategy(Strategy::Clone)).await;
    site.sql("CREATE TABLE t AS SELECT 1 AS id").await;
    let snapshot = site.take().await;
    let gid = format!("waiting_{}", site.role);
    site.sql(&format!("BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION '{gid}'")).await;
    let (caller, before) = (site.caller(), site.other_databases().await);
    let taken = site.snapshotter.take(&caller.call(1, 1), caller.instance()).await.unwrap_err();
    let restored =
        site.snapshotter.restore(&caller.call(1, 2), caller.instance(), &snapshot).await.unwrap_err();
    for error in [&taken, &restored] {
        assert!(
            error.to_string().contains(&gid) && error.to_string().contains("ROLLBACK PREPARED"),
            "{error}"
        );
    }
    assert_eq!(site.other_databases().await, before);
    assert_eq!(site.one(&site.database, "SELECT count(*)::text FROM t").await, "1");
    site.sql(&format!("ROLLBACK PREPARED '{gid}'")).await;
    site.snapshotter.restore(&caller.call(1, 3), caller.instance(), &snapshot).await.unwrap();
}

/// H25: a superuser's session cannot be ended by a plain role: then nothing changes, and the database is open again.
#[tokio::test(flavor = "multi_thread")]
async fn a_superuser_in_the_database_is_named_and_nothing_changes() {
    let site = Site::with(|it| it.strategy(Strategy::Auto)).await;
    site.sql("CREATE TABLE t AS SELECT 1 AS id").await;
    let mut superuser = site.connect_as_superuser(&site.database).await;
    let snapshot = site.take().await;
    let manifest = site.manifest(&snapshot);
    let because = manifest["data"]["database"]["because"].as_str().unwrap().to_owned();
    assert_eq!(manifest["data"]["database"]["strategy"], "dump");
    assert!(because.contains("superuser is connected"), "{because}");
    site.sql("UPDATE t SET id = 2").await;
    let caller = site.caller();
    let error = site.snapshotter.restore(&caller.call(2, 2), caller.instance(), &snapshot).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(
        error.to_string().contains("still in use") && error.to_string().contains("of postgres"),
        "{error}"
    );
    superuser.execute("SELECT 1").await.unwrap();
    superuser.close().await.unwrap();
    site.sql("INSERT INTO t VALUES (3)").await;
    site.snapshotter.restore(&caller.call(2, 3), caller.instance(), &snapshot).await.unwrap();
    assert_eq!(site.ask(&site.database, "SELECT id::text FROM t").await, ["1"]);
}

/// What users wrote since the snapshot is not thrown away by a restore: it is kept, and comes back by the same exchange.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_replaced_is_kept_and_comes_back() {
    let site = Site::with(|it| it.strategy(Strategy::Clone).keep_replaced(Duration::from_secs(1))).await;
    site.sql("CREATE TABLE t AS SELECT 'old' AS value").await;
    let snapshot = site.take().await;
    site.sql("UPDATE t SET value = 'of users'").await;
    let (caller, instance) = (site.caller(), site.caller().instance().clone());
    let restore =
        async |fence| site.snapshotter.restore(&caller.call(2, fence), &instance, &snapshot).await.unwrap();
    restore(2).await;
    // Another attempt of the same deployment: what it replaces is of no use to anybody.
    site.sql("UPDATE t SET value = 'half migrated'").await;
    restore(3).await;
    let replaced = site.snapshotter.replaced(&caller.call(2, 3), &instance).await.unwrap();
    assert_eq!(replaced.len(), 1, "{replaced:?}");
    assert_eq!(replaced[0].snapshot, snapshot.reference);
    let value = async || site.one(&site.database, "SELECT value FROM t").await;
    assert_eq!(value().await, "old");
    site.snapshotter.undo(&caller.call(2, 4), &instance).await.unwrap();
    assert_eq!(value().await, "of users");
    site.snapshotter.undo(&caller.call(2, 5), &instance).await.unwrap();
    assert_eq!(value().await, "old");
    // As long as the deployment is not over it stays, however old; then it goes.
    let sweep = async |ended: &[u128]| {
        let ended = ended.iter().map(|id| ocore_core::id::DeploymentId::from_u128(*id)).collect();
        let leftovers = Leftovers::new(ended, [snapshot.reference.clone()].into());
        site.snapshotter.sweep(&caller.call(2, 6), &leftovers).await.unwrap();
        site.snapshotter.replaced(&caller.call(2, 6), &instance).await.unwrap().len()
    };
    assert_eq!(sweep(&[1]).await, 1);
    eventually("it is removed", || async { sweep(&[2]).await == 0 }).await;
    let error = site.snapshotter.undo(&caller.call(2, 7), &instance).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    assert_eq!(value().await, "old");
}

/// Nothing written: a rollback loses nothing, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_nobody_writes_to_has_not_changed() {
    let site = Site::with(|it| it.strategy(Strategy::Dump)).await;
    site.sql("CREATE TABLE t (id int) WITH (autovacuum_enabled = false); CREATE SEQUENCE s").await;
    let caller = site.caller();
    let changed = async |snapshot: &Snapshot| {
        site.snapshotter.changed_since(&caller.call(1, 1), caller.instance(), snapshot).await.unwrap()
    };
    // What is known of the statements before is counted when their session has ended.
    let unchanged = async || {
        let snapshot = site.take().await;
        !changed(&snapshot).await
    };
    eventually("nothing is written", || async { unchanged().await }).await;
    let snapshot = site.take().await;
    assert!(!changed(&snapshot).await, "reading is not writing");
    site.sql("SELECT nextval('s')").await;
    assert!(changed(&snapshot).await, "a sequence has moved");
}
