//! Clones, and the dumps that follow them in the background.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use ocore_core::{
    port::{Leftovers, Snapshotter as _},
    release::Snapshot,
    secret::Secret,
    testing::laws::caller::eventually,
};
use ocore_postgres::snapshot::{Fingerprint, PostgresSnapshotter, Strategy};
use sqlx::{Connection as _, PgConnection};

use crate::site::{PASSWORD, Site};

async fn site(strategy: Strategy) -> Site {
    let site = Site::with(|it| it.strategy(strategy).fingerprint(Fingerprint::Rows)).await;
    site.sql("CREATE TABLE t AS SELECT n AS id, md5(n::text) FROM generate_series(1, 1000) AS n").await;
    site
}

/// Another worker's snapshotter for the same databases and the same directory.
fn another(site: &Site) -> PostgresSnapshotter {
    let options = site.superuser.clone().username(&site.role).password(PASSWORD).database(&site.maintenance);
    PostgresSnapshotter::builder(options, Secret::new(PASSWORD), site.snapshots())
        .strategy(Strategy::CloneThenDump)
        .fingerprint(Fingerprint::Rows)
        .build()
}

fn parts(site: &Site, snapshot: &Snapshot) -> (Option<String>, bool) {
    let database = &site.manifest(snapshot)["data"]["database"];
    (database["clone"]["database"].as_str().map(str::to_owned), !database["dump"].is_null())
}

async fn count(site: &Site) -> String {
    site.one(&site.database, "SELECT count(*)::text FROM t").await
}

/// H34: a clone that others can see is one that they connect to, and run their scheduled jobs in.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_can_connect_to_a_clone() {
    let site = site(Strategy::Clone).await;
    let snapshot = site.take().await;
    let (clone, dumped) = parts(&site, &snapshot);
    assert!(!dumped);
    let question = format!(
        "SELECT datallowconn::text || pg_get_userbyid(datdba) FROM pg_database WHERE datname = '{}'",
        clone.unwrap()
    );
    assert_eq!(site.one("postgres", &question).await, format!("false{}", site.role));
    // As often as it takes: the clone is the only copy.
    for fence in [2, 3] {
        site.sql("TRUNCATE t").await;
        let caller = site.caller();
        site.snapshotter.restore(&caller.call(2, fence), caller.instance(), &snapshot).await.unwrap();
        assert_eq!(count(&site).await, "1000");
    }
}

/// H9c: whoever connects to a database that is being copied waits for the whole copy. Here he is refused at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_connects_while_a_clone_is_made_is_refused_at_once() {
    let site = Arc::new(site(Strategy::Clone).await);
    site.sql(
        "CREATE TABLE ballast AS SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 60000) AS n",
    )
    .await;
    let (over, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let client = tokio::spawn({
        let (site, over, refused) = (site.clone(), over.clone(), refused.clone());
        async move {
            let options =
                site.superuser.clone().username(&site.role).password(PASSWORD).database(&site.database);
            while !over.load(Ordering::Relaxed) {
                match PgConnection::connect_with(&options).await {
                    Ok(session) => drop(session.close().await),
                    Err(error) => {
                        let at_once = error.to_string().contains("not currently accepting connections");
                        refused.fetch_or(at_once, Ordering::Relaxed);
                    }
                }
            }
        }
    });
    // A clone may be over between two attempts.
    for _ in 0..10 {
        site.take().await;
        if refused.load(Ordering::Relaxed) {
            break;
        }
    }
    over.store(true, Ordering::Relaxed);
    client.await.unwrap();
    assert!(refused.load(Ordering::Relaxed), "nobody was refused");
    assert_eq!(count(&site).await, "1000");
}

/// The clone takes the application's place itself once its dump is there; then the dump is the snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_with_a_dump_takes_the_place_and_the_dump_remains() {
    let site = site(Strategy::CloneThenDump).await;
    let snapshot = site.take().await;
    site.snapshotter.finish_dumps().await;
    let (clone, dumped) = parts(&site, &snapshot);
    assert!(clone.is_some() && dumped);
    assert!(snapshot.size_bytes > 1_000_000, "{}", snapshot.size_bytes);
    let closed = format!(
        "SELECT (datallowconn OR datistemplate)::text FROM pg_database WHERE datname = '{}'",
        clone.unwrap()
    );
    assert_eq!(site.one("postgres", &closed).await, "false");
    let oid = format!("SELECT oid::text FROM pg_database WHERE datname = '{}'", site.database);
    let before = site.one("postgres", &oid).await;
    site.sql("TRUNCATE t").await;
    site.restore(&snapshot).await;
    assert_eq!(count(&site).await, "1000");
    assert_ne!(site.one("postgres", &oid).await, before);
    assert_eq!(parts(&site, &snapshot), (None, true));
    site.sql("TRUNCATE t").await;
    let (caller, began) = (site.caller(), Instant::now());
    site.snapshotter.restore(&caller.call(2, 3), caller.instance(), &snapshot).await.unwrap();
    assert_eq!(count(&site).await, "1000");
    println!("from the dump: {:?}", began.elapsed());
}

/// A worker that dies when it has the clone leaves the dump to the next one, whoever that is.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_a_worker_did_not_finish_is_made_by_the_next_one() {
    let site = site(Strategy::CloneThenDump).await;
    let (worker, caller) = (another(&site), site.caller());
    let snapshot = worker.take(&caller.call(1, 1), caller.instance()).await.unwrap();
    // Its background work ends with it.
    drop(worker);
    let next = another(&site);
    let leftovers = Leftovers::new([].into(), [snapshot.reference.clone()].into());
    let made = || async {
        next.sweep(&caller.call(2, 2), &leftovers).await.unwrap();
        next.finish_dumps().await;
        parts(&site, &snapshot).1
    };
    eventually("the dump is made", made).await;
    let names: Vec<_> = std::fs::read_dir(site.snapshots().join(&snapshot.reference))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    site.sql("TRUNCATE t").await;
    next.restore(&caller.call(2, 3), caller.instance(), &snapshot).await.unwrap();
    assert_eq!(count(&site).await, "1000");
}

/// H33: what happens to the application's database meanwhile does not concern the dump of the clone.
#[tokio::test(flavor = "multi_thread")]
async fn the_dump_of_a_clone_is_of_the_moment_of_the_clone() {
    let site = site(Strategy::CloneThenDump).await;
    let snapshot = site.take().await;
    site.sql("ALTER TABLE t ADD later int; UPDATE t SET id = 0; DELETE FROM t WHERE ctid < '(2,0)'").await;
    site.snapshotter.finish_dumps().await;
    let caller = site.caller();
    for fence in [2, 3] {
        site.snapshotter.restore(&caller.call(2, fence), caller.instance(), &snapshot).await.unwrap();
        assert_eq!(site.one(&site.database, "SELECT sum(id)::text FROM t").await, "500500");
    }
}

/// A database that only has the clone's name is not dumped as if it were the snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_was_exchanged_is_neither_dumped_nor_restored() {
    let site = site(Strategy::CloneThenDump).await;
    let (worker, caller) = (another(&site), site.caller());
    let snapshot = worker.take(&caller.call(1, 1), caller.instance()).await.unwrap();
    drop(worker);
    let clone = parts(&site, &snapshot).0.unwrap();
    let exchange = async || {
        let hidden = format!("ALTER DATABASE {clone} IS_TEMPLATE false");
        sqlx::query(sqlx::AssertSqlSafe(hidden))
            .execute(&mut site.connect_as_superuser("postgres").await)
            .await?;
        let drop = format!("DROP DATABASE {clone} WITH (FORCE)");
        sqlx::query(sqlx::AssertSqlSafe(drop)).execute(&mut site.connect_as_superuser("postgres").await).await
    };
    eventually("the worker's dump is over", || async { exchange().await.is_ok() }).await;
    site.as_superuser(&format!("CREATE DATABASE {clone} OWNER {}", site.role)).await;
    let next = another(&site);
    let leftovers = Leftovers::new([].into(), [snapshot.reference.clone()].into());
    next.sweep(&caller.call(2, 2), &leftovers).await.unwrap();
    next.finish_dumps().await;
    assert!(!parts(&site, &snapshot).1, "something else was dumped");
    let error = next.restore(&caller.call(2, 3), caller.instance(), &snapshot).await.unwrap_err();
    assert!(error.to_string().contains("is not there any more"), "{error}");
    assert_eq!(count(&site).await, "1000");
}

/// Of one database there is one clone that costs as much again: older ones go when they have their dumps.
#[tokio::test(flavor = "multi_thread")]
async fn older_clones_go_when_they_have_dumps() {
    let site = site(Strategy::CloneThenDump).await;
    let caller = site.caller();
    let mut taken = Vec::new();
    for fence in [1, 2] {
        taken.push(site.snapshotter.take(&caller.call(1, fence), caller.instance()).await.unwrap());
        site.snapshotter.finish_dumps().await;
    }
    let recorded = taken.iter().map(|snapshot| snapshot.reference.clone()).collect();
    let leftovers = Leftovers::new([].into(), recorded);
    site.snapshotter.sweep(&caller.call(1, 3), &leftovers).await.unwrap();
    assert_eq!(parts(&site, &taken[0]), (None, true));
    assert!(parts(&site, &taken[1]).0.is_some());
    assert_eq!(site.other_databases().await.len(), 1);
    for (fence, snapshot) in [(4, &taken[1]), (5, &taken[0])] {
        site.sql("TRUNCATE t").await;
        site.snapshotter.restore(&caller.call(1, fence), caller.instance(), snapshot).await.unwrap();
        assert_eq!(count(&site).await, "1000");
    }
}

/// The environment says whether the application runs: then nobody is thrown out of its database.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_application_runs_it_is_always_a_dump() {
    let mut site = site(Strategy::CloneThenDump).await;
    site.when = ocore_core::environment::SnapshotWhen::BeforeStop;
    let mut application = site.connect(&site.database).await;
    let snapshot = site.take().await;
    assert_eq!(parts(&site, &snapshot), (None, true));
    let because = site.manifest(&snapshot)["data"]["database"]["because"].clone();
    assert_eq!(because, "the application runs while the snapshot is taken");
    sqlx::query("SELECT 1").execute(&mut application).await.unwrap();
}

/// R4: a worker that was frozen is thrown out by the next one, and what it does when it wakes up is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_overtaken_changes_nothing() {
    let site = site(Strategy::Dump).await;
    let caller = site.caller();
    let snapshot = site.take().await;
    site.sql("UPDATE t SET id = 0").await;
    let (old, new) = (another(&site), another(&site));
    let (context, later) = (caller.call(2, 2), caller.call(2, 3));
    let frozen = async { old.restore(&context, caller.instance(), &snapshot).await };
    let overtaking = async {
        let side = || async { !site.other_databases().await.is_empty() };
        eventually("the first is at work", side).await;
        new.restore(&later, caller.instance(), &snapshot).await
    };
    let (frozen, overtaking) = tokio::join!(frozen, overtaking);
    overtaking.unwrap();
    frozen.unwrap_err();
    assert_eq!(site.one(&site.database, "SELECT sum(id)::text FROM t").await, "500500");
    site.sql("UPDATE t SET id = 7").await;
    let error = old.restore(&context, caller.instance(), &snapshot).await.unwrap_err();
    assert!(error.to_string().contains("another worker has taken over"), "{error}");
    let taken = old.take(&context, caller.instance()).await.unwrap_err();
    assert!(taken.to_string().contains("another worker has taken over"), "{taken}");
    assert_eq!(site.one(&site.database, "SELECT sum(id)::text FROM t").await, "7000");
    eventually("one database is kept", || async { site.other_databases().await.len() == 1 }).await;
}
