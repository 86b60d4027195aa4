//! Every statement of the snapshotter is one that the server understands.
//!
//! The texts come from the source files: whatever reads as SQL there. Most of them are run here, which the server says, as it
//! writes down every statement; of the others, those that stand in one piece are prepared. A statement that is neither is named.

use ocore_core::{
    environment::SnapshotWhen,
    port::{Leftovers, Snapshotter as _},
};
use ocore_postgres::snapshot::{Fingerprint, Strategy};
use ocore_test_postgres::Cluster;
use sqlx::{AssertSqlSafe, Executor as _, SqlSafeStr as _};

use crate::{
    logins::Platform,
    site::Site,
    statements::{RECORDED, Written, sent_to, written_in},
};

const EVERYTHING: &str = "
    CREATE SCHEMA odd;
    CREATE EXTENSION hstore SCHEMA odd;
    CREATE TABLE t AS SELECT n AS id, md5(n::text) AS text FROM generate_series(1, 100) AS n;
    CREATE SEQUENCE counter;
    CREATE FUNCTION two() RETURNS int LANGUAGE sql AS 'SELECT 2'";

async fn site(cluster: &Cluster, strategy: Strategy) -> Site {
    let site =
        Site::on(&cluster.url("postgres"), |it| it.strategy(strategy).fingerprint(Fingerprint::Rows)).await;
    site.sql(EVERYTHING).await;
    site
}

/// Takes, restores, sweeps and removes a snapshot, while another session holds what each call needs.
async fn use_snapshots(site: &Site) {
    let snapshot = site.take().await;
    site.snapshotter.finish_dumps().await;
    let mut in_the_way = site.connect(&site.maintenance).await;
    for key in [format!("place {}", site.database), format!("snapshot {}", snapshot.reference)] {
        let hold = sqlx::query("SELECT pg_advisory_lock(hashtextextended('ocore_snapshot ' || $1, 0))");
        hold.bind(key).execute(&mut in_the_way).await.unwrap();
        site.restore(&snapshot).await;
        in_the_way = site.connect(&site.maintenance).await;
    }
    let (caller, reference) = (site.caller(), snapshot.reference.clone());
    let leftovers = Leftovers::new([].into(), [reference.clone()].into());
    site.snapshotter.sweep(&caller.call(3, 3), &leftovers).await.unwrap();
    let hold = sqlx::query("SELECT pg_advisory_lock(hashtextextended('ocore_snapshot snapshot ' || $1, 0))");
    hold.bind(reference).execute(&mut in_the_way).await.unwrap();
    site.snapshotter.remove(&caller.call(4, 4), &snapshot).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_statement_of_the_snapshotter_is_one_that_the_server_understands() {
    let cluster = Cluster::start(RECORDED);
    let plain = site(&cluster, Strategy::CloneThenDump).await;
    use_snapshots(&plain).await;
    let mut rich = site(&cluster, Strategy::Dump).await;
    rich.when = SnapshotWhen::BeforeStop;
    let (database, role) = (&rich.database, &rich.role);
    for statement in [
        format!("COMMENT ON DATABASE {database} IS 'the shop'"),
        format!("ALTER DATABASE {database} CONNECTION LIMIT 17"),
        format!("ALTER DATABASE {database} SET work_mem = '7MB'"),
        format!("ALTER ROLE {role} IN DATABASE {database} SET work_mem = '9MB'"),
        format!("GRANT CONNECT ON DATABASE {database} TO pg_monitor WITH GRANT OPTION"),
        format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC"),
    ] {
        rich.as_superuser(&statement).await;
    }
    use_snapshots(&rich).await;
    let platform = Platform::on(&cluster, Strategy::Dump).await;
    for fence in [1, 2] {
        platform.admit(1, fence).await;
    }
    let written = written_in("src/snapshot");
    assert!(written.len() > 80, "the statements are found: {written:#?}");
    let sent = sent_to(&cluster);
    let mut session = rich.connect_as_superuser(&rich.maintenance).await;
    let mut never = Vec::new();
    for it in written.iter().filter(|it| !it.is_in(&sent)) {
        let text = AssertSqlSafe(it.text.clone()).into_sql_str();
        if !is_fixed(it) || session.describe(text).await.is_err() {
            never.push(it);
        }
    }
    assert!(never.is_empty(), "never run, and not to be prepared: {never:#?}");
}

/// Whether it is a whole statement as it stands.
fn is_fixed(written: &Written) -> bool {
    let words = ["SELECT ", "INSERT ", "UPDATE ", "DELETE "];
    words.iter().any(|word| written.text.starts_with(word)) && !written.text.contains('{')
}
