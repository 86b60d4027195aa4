//! What becomes of the file: dropped calls, a full disk, a reboot, records that cannot be read, query plans.

use std::{
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::future::BoxFuture;
use ocore_core::{
    deployment::Deployment,
    environment::Environment,
    id::{DeploymentId, Seq, WorkerId},
    name::PoolName,
    port::{
        Beat, Claimed, EnvironmentStore, Filter, HistoryStore, LogLimit, LogStore, QueueStore, Saved,
        SnapshotPin, SnapshotStore, StoreError, StoreErrorKind, Worker,
    },
    request::{Goal, NewDeployment, RollbackMode, Trigger},
    stored,
    testing::laws::store::lab::{self, name},
};
use sqlx::{AssertSqlSafe, ConnectOptions, Row, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{InFile, SqliteStore};

fn environment(text: &str) -> Environment {
    lab::environment(text, |spec| spec)
}

fn new(number: u64, lane: &str) -> NewDeployment {
    lab::new_deployment(number, &name(lane), Trigger::Manual)
}

fn worker(number: u128) -> Worker {
    Worker::new(WorkerId::from_u128(number), vec![PoolName::default()], Duration::from_secs(10))
}

impl InFile {
    /// A connection beside the store, as another program would have.
    async fn beside(&self) -> SqliteConnection {
        SqliteConnectOptions::new().filename(self.path()).connect().await.unwrap()
    }

    async fn execute(&self, statement: &'static str) {
        sqlx::raw_sql(statement).execute(&mut self.beside().await).await.unwrap();
    }
}

type Call = (&'static str, fn(SqliteStore, u64) -> BoxFuture<'static, Result<(), StoreError>>);

/// Every kind of call, as a future that owns what it needs.
fn calls() -> Vec<Call> {
    vec![
        ("save", |store, _| {
            Box::pin(async move { store.save_environment(&environment("b")).await.map(drop) })
        }),
        ("enqueue", |store, n| {
            Box::pin(async move { store.enqueue(new(n, "a"), lab::at(0)).await.map(drop) })
        }),
        ("heartbeat", |store, n| {
            Box::pin(async move { store.heartbeat(&worker(u128::from(n))).await.map(drop) })
        }),
        ("claim", |store, _| Box::pin(async move { store.claim(&worker(1), &[]).await.map(drop) })),
        ("commit", |store, _| {
            Box::pin(async move {
                let Claimed::Work(claim) = store.claim(&worker(1), &[]).await? else { return Ok(()) };
                store.commit(&lab::go_on(&worker(1), &claim)).await.map(drop)
            })
        }),
        ("append", |store, _| {
            Box::pin(async move {
                let Claimed::Work(claim) = store.claim(&worker(1), &[]).await? else { return Ok(()) };
                let (id, lines) = (claim.deployment.id, vec![lab::line("x")]);
                store.append(&name("a"), id, claim.fence, lines, LogLimit::DEFAULT).await.map(drop)
            })
        }),
        ("acknowledge", |store, n| {
            let id = DeploymentId::from_u128(u128::from(n));
            Box::pin(async move { store.acknowledge(&name("a"), id, "eve", lab::at(9)).await.map(drop) })
        }),
        ("retire snapshots", |store, _| {
            Box::pin(async move {
                store.retire_snapshots(&name("a"), &["x".to_owned()], lab::at(0)).await.map(drop)
            })
        }),
        ("pin snapshots", |store, n| {
            let (id, pin) =
                (DeploymentId::from_u128(u128::from(n)), SnapshotPin::new("ada", "why", lab::at(0)));
            Box::pin(async move { store.pin_snapshots(&name("a"), id, &pin).await.map(drop) })
        }),
        ("snapshots", |store, _| Box::pin(async move { store.snapshots(&name("a")).await.map(drop) })),
        ("lane", |store, _| Box::pin(async move { store.lane(&name("a")).await.map(drop) })),
        ("environment", |store, _| Box::pin(async move { store.environment(&name("a")).await.map(drop) })),
        ("cancel", |store, n| {
            let id = DeploymentId::from_u128(u128::from(n));
            Box::pin(async move { store.request_cancel(id, "ada", lab::at(0)).await.map(drop) })
        }),
        ("retire", |store, n| {
            Box::pin(async move { store.retire(WorkerId::from_u128(u128::from(n))).await })
        }),
        ("pause", |store, _| Box::pin(async move { store.set_paused(&name("a"), None).await.map(drop) })),
        ("forget", |store, _| Box::pin(async move { store.forget_snapshots(&name("a"), &[]).await })),
        ("environments", |store, _| Box::pin(async move { store.environments().await.map(drop) })),
        ("history", |store, _| {
            Box::pin(async move { store.history(&Filter::default(), None, 9).await.map(drop) })
        }),
        ("events", |store, n| {
            let id = DeploymentId::from_u128(u128::from(n));
            Box::pin(async move { store.events(id, ocore_core::id::EventSeq::default(), 9).await.map(drop) })
        }),
    ]
}

/// Polls the future so many times, with a little time for its task in between, and drops it. Whether it ended.
async fn drop_after(mut future: BoxFuture<'static, Result<(), StoreError>>, polls: u32) -> bool {
    for _ in 0..polls {
        if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            result.unwrap();
            return true;
        }
        tokio::task::yield_now().await;
    }
    false
}

#[tokio::test]
async fn a_dropped_call_leaves_no_transaction_open() {
    let file = InFile::new();
    let store = file.open().await;
    store.save_environment(&environment("a")).await.unwrap();
    store.heartbeat(&worker(1)).await.unwrap();
    let mut number = 100;
    for (what, call) in calls() {
        for polls in 0..60 {
            number += 1;
            let ended = drop_after(call(store.clone(), number), polls).await;
            // A plain write right behind it is durable: another connection sees it at once, and it is not
            // part of anything that could still be rolled back.
            number += 1;
            store.enqueue(new(number, "a"), lab::at(0)).await.unwrap();
            let id = DeploymentId::from_u128(u128::from(number));
            let seen = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM deployments WHERE id = ?1");
            let seen = seen.bind(id.as_u128().to_be_bytes().to_vec());
            assert_eq!(
                seen.fetch_one(&mut file.beside().await).await.unwrap(),
                1,
                "{what} after {polls} polls"
            );
            store.request_cancel(id, "ada", lab::at(0)).await.unwrap();
            if ended {
                break;
            }
        }
    }
    // Whoever could still hold a transaction would keep this one from beginning.
    let mut db = file.beside().await;
    sqlx::raw_sql("BEGIN EXCLUSIVE; COMMIT").execute(&mut db).await.unwrap();
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_power_failure() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path().join("store.sqlite")).await.unwrap();
    let pragmas = store.database.write_silently("ask", |db, _| {
        Box::pin(async move {
            let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut *db).await?;
            let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *db).await?;
            let keys: i64 = sqlx::query_scalar("PRAGMA foreign_keys").fetch_one(&mut *db).await?;
            Ok((synchronous, journal, keys))
        })
    });
    let full = 2;
    assert_eq!(pragmas.await.unwrap(), (full, "wal".to_owned(), 1));
}

#[tokio::test]
async fn workers_that_are_over_are_forgotten_after_a_day() {
    let file = InFile::new();
    let store = file.open().await;
    store.save_environment(&environment("a")).await.unwrap();
    store.enqueue(new(1, "a"), lab::at(0)).await.unwrap();
    for number in 1..4 {
        store.heartbeat(&worker(number)).await.unwrap();
    }
    // The lane still names the first.
    assert!(matches!(store.claim(&worker(1), &[]).await.unwrap(), Claimed::Work(_)));
    let known_after = async |passed, number| {
        file.clock.advance(passed);
        store.heartbeat(&worker(number)).await.unwrap();
        store.retire(WorkerId::from_u128(number)).await.unwrap();
        let ids = sqlx::query_scalar::<_, Vec<u8>>("SELECT id FROM workers ORDER BY id");
        let ids = ids.fetch_all(&mut file.beside().await).await.unwrap();
        ids.into_iter().map(|id| id[15]).collect::<Vec<_>>()
    };
    let day = Duration::from_secs(24 * 60 * 60);
    assert_eq!(known_after(day / 2, 4).await, [1, 2, 3, 4]);
    assert_eq!(store.heartbeat(&worker(2)).await.unwrap(), Beat::Expired);
    assert_eq!(known_after(day * 3 / 4, 5).await, [1, 4, 5]);
}

#[tokio::test]
async fn a_full_disk_is_told_in_words_and_nothing_is_half_written() {
    let file = InFile::new();
    let store = file.open().await;
    store.save_environment(&environment("a")).await.unwrap();
    limit_pages(&store, true).await;
    let error = loop {
        let number = store.environment(&name("a")).await.unwrap().unwrap().queued + 1;
        match store.enqueue(new(number, "a"), lab::at(0)).await {
            Ok(_) => assert!(number < 1000, "the limit is not felt"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), StoreErrorKind::NotSent);
    assert!(error.to_string().contains("the disk is full"), "{error}");
    let record = store.environment(&name("a")).await.unwrap().unwrap();
    let all = store.history(&Filter::default(), None, 10_000).await.unwrap().deployments;
    assert_eq!(all.len() as u64, record.queued);
    limit_pages(&store, false).await;
    store.enqueue(new(record.queued + 1, "a"), lab::at(0)).await.unwrap();
}

/// Lets the file grow by no page more, as if the disk were full, or lifts the limit.
async fn limit_pages(store: &SqliteStore, limited: bool) {
    let statement = if limited { "PRAGMA max_page_count = 1" } else { "PRAGMA max_page_count = 1000000" };
    let limit = store.database.write_silently("limit the file", move |db, _| {
        Box::pin(async move { sqlx::raw_sql(statement).execute(db).await.map(drop) })
    });
    limit.await.unwrap();
}

#[tokio::test]
async fn after_a_reboot_every_lease_has_run_out() {
    let file = InFile::new();
    let store = file.open().await;
    store.save_environment(&environment("a")).await.unwrap();
    store.enqueue(new(1, "a"), lab::at(0)).await.unwrap();
    store.heartbeat(&worker(1)).await.unwrap();
    assert!(matches!(store.claim(&worker(1), &[]).await.unwrap(), Claimed::Work(_)));
    drop(store);
    // The new boot's clock begins anew, and may be behind the old one's.
    let store = file.open_after("boot 2").await;
    file.clock.advance(Duration::from_millis(1));
    assert_eq!(store.heartbeat(&worker(1)).await.unwrap(), Beat::Expired);
    store.heartbeat(&worker(2)).await.unwrap();
    let Claimed::Work(claim) = store.claim(&worker(2), &[]).await.unwrap() else {
        panic!("it can be rescued")
    };
    assert!(claim.lost_worker);
}

#[tokio::test]
async fn a_record_of_a_newer_version_is_left_alone() {
    let file = InFile::new();
    let store = file.open().await;
    for (number, lane) in [(1, "a"), (2, "b")] {
        store.save_environment(&environment(lane)).await.unwrap();
        store.enqueue(new(number, lane), lab::at(0)).await.unwrap();
    }
    file.execute("UPDATE deployments SET record = '{\"v\":99,\"is\":{}}' WHERE environment = 'a'").await;
    store.heartbeat(&worker(1)).await.unwrap();
    let Claimed::Work(claim) = store.claim(&worker(1), &[]).await.unwrap() else {
        panic!("b can be claimed")
    };
    assert_eq!(claim.deployment.environment, name("b"));
    let idle = store.claim(&worker(1), &[name("b")]).await.unwrap();
    assert_eq!(idle, Claimed::Idle { next: None });
    let error = store.deployment(DeploymentId::from_u128(1)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Broken);
    assert!(error.to_string().contains("newer ocore"), "{error}");
}

/// Each kind of record that cannot be read costs what it belongs to, and nothing else.
#[tokio::test]
async fn what_cannot_be_read_keeps_nobody_else_from_working() {
    let file = InFile::new();
    let store = file.open().await;
    for (number, lane) in [(1, "a"), (2, "b"), (3, "b")] {
        store.save_environment(&environment(lane)).await.unwrap();
        store.enqueue(new(number, lane), lab::at(0)).await.unwrap();
    }
    for damage in [
        "UPDATE lanes SET settings = '{\"v\":99}' WHERE name = 'a'",
        "UPDATE lanes SET settings = (SELECT settings FROM lanes WHERE name = 'b'), live = '{' WHERE name = 'a'",
    ] {
        file.execute(damage).await;
        let names: Vec<_> = store.environments().await.unwrap();
        let names: Vec<_> = names.iter().map(|it| it.environment.name().as_str()).collect();
        assert_eq!(names, ["b"]);
        assert_eq!(store.environment(&name("a")).await.unwrap_err().kind(), StoreErrorKind::Broken);
        assert_eq!(store.save_environment(&environment("b")).await.unwrap(), Saved::Updated);
    }
    file.execute("UPDATE deployments SET record = '{' WHERE seq = 1").await;
    let id = DeploymentId::from_u128;
    let page = store.history(&Filter::default(), None, 2).await.unwrap();
    assert_eq!((page.deployments[0].id, page.unreadable, page.next), (id(3), vec![id(2)], Some(id(2))));
    let page = store.history(&Filter::default(), page.next, 2).await.unwrap();
    assert_eq!((page.deployments, page.unreadable, page.next), (vec![], vec![id(1)], None));
    assert_eq!(store.deployment(id(1)).await.unwrap_err().kind(), StoreErrorKind::Broken);
}

#[tokio::test]
async fn settings_of_a_newer_version_are_said_to_be_newer() {
    let file = InFile::new();
    let store = file.open().await;
    store.save_environment(&environment("a")).await.unwrap();
    file.execute("UPDATE lanes SET settings = '{\"v\":99,\"is\":{}}'").await;
    let error = store.environment(&name("a")).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Broken);
    assert!(
        error.to_string().contains("settings cannot be read: written in form 99 by a newer ocore"),
        "{error}"
    );
}

/// A file as the first schema had it: settings without an envelope, nothing said of what a retry goes back to, and ids
/// whose order is not that of acceptance.
#[tokio::test]
async fn a_file_of_the_first_schema_is_brought_up_to_date() {
    let file = InFile::new();
    let saved = environment("a");
    let mut again = lab::new_deployment(1, &name("a"), Trigger::Retry { of: DeploymentId::from_u128(7) });
    again.request.goal = Goal::Rollback { to: DeploymentId::from_u128(0xabc), mode: RollbackMode::CodeOnly };
    let first = SqliteConnectOptions::new().filename(file.path()).create_if_missing(true);
    let mut db = first.connect().await.unwrap();
    sqlx::raw_sql(include_str!("../../../migrations/0001_begin.sql")).execute(&mut db).await.unwrap();
    let lane = sqlx::query("INSERT INTO lanes (name, pool, settings, seq) VALUES ('a', 'default', ?1, 2)");
    lane.bind(serde_json::to_string(&saved).unwrap()).execute(&mut db).await.unwrap();
    for (seq, new) in [(1, new(2, "a")), (2, again)] {
        let deployment = Deployment::accepted(new, Seq::new(seq), lab::at(0));
        let insert = sqlx::query(
            "INSERT INTO deployments (id, environment, seq, version, phase, status, trigger_kind, requested_at, record)
             VALUES (?1, 'a', ?2, 1, 'waiting', 'Queued', ?3, 0, ?4)",
        );
        let insert =
            insert.bind(deployment.id.as_u128().to_be_bytes().to_vec()).bind(i64::try_from(seq).unwrap());
        let insert = insert.bind(deployment.request.trigger.kind()).bind(stored::encode(&deployment));
        insert.execute(&mut db).await.unwrap();
    }
    drop(db);

    let store = file.open().await;
    assert_eq!(*store.environment(&name("a")).await.unwrap().unwrap().environment, saved);
    let ids = async |filter: &Filter| {
        let page = store.history(filter, None, 9).await.unwrap();
        page.deployments.iter().map(|it| it.id.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&Filter::default()).await, [1, 2], "the newest comes first");
    let mut filter = Filter::default();
    filter.answers = Some(DeploymentId::from_u128(0xabc));
    assert_eq!(ids(&filter).await, [1]);
    store.enqueue(new(0, "a"), lab::at(0)).await.unwrap();
    assert_eq!(ids(&Filter::default()).await, [0, 1, 2]);
}

#[tokio::test]
async fn what_must_not_be_written_is_refused_by_the_file_itself() {
    let file = InFile::new();
    let store = file.open().await;
    store.save_environment(&environment("a")).await.unwrap();
    for number in 1..4 {
        store.enqueue(new(number, "a"), lab::at(0)).await.unwrap();
    }
    store.request_cancel(DeploymentId::from_u128(1), "ada", lab::at(0)).await.unwrap();
    store.heartbeat(&worker(1)).await.unwrap();
    store.claim(&worker(1), &[]).await.unwrap();
    for (statement, reason) in [
        ("UPDATE lanes SET fence = fence - 1", "the fence of a lane never falls"),
        ("UPDATE lanes SET seq = 0", "the numbers of a lane never fall"),
        (
            "UPDATE deployments SET phase = 'active', status = 'Building' WHERE seq = 1",
            "is over does not change",
        ),
        ("UPDATE deployments SET record = '' WHERE seq = 1", "is over does not change"),
        ("UPDATE deployments SET version = version + 2 WHERE seq = 2", "a version follows"),
        ("UPDATE deployments SET phase = 'active', status = 'Building' WHERE seq = 3", "UNIQUE"),
        ("UPDATE deployments SET phase = 'over' WHERE seq = 3", "CHECK"),
        ("UPDATE lanes SET active = NULL", "CHECK"),
    ] {
        let error = sqlx::raw_sql(statement).execute(&mut file.beside().await).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{statement}: {error}");
    }
}

/// No query that workers repeat walks through the history, or sorts it.
#[tokio::test]
async fn claims_never_read_the_history() {
    let file = InFile::new();
    drop(file.open().await);
    let mut db = file.beside().await;
    let sources = [
        include_str!("../claim.rs"),
        include_str!("../commit.rs"),
        include_str!("../environments.rs"),
        include_str!("../lane.rs"),
        include_str!("../log.rs"),
        include_str!("../queue.rs"),
        include_str!("../row.rs"),
        include_str!("../snapshots.rs"),
    ];
    // What finds single deployments, and those that are not over.
    let narrow = [
        "(id=?)",
        "deployments_waiting",
        "deployments_active",
        "deployments_key",
        "deployments_answers",
        // The greatest number.
        "COVERING INDEX deployments_number",
    ];
    let mut seen = 0;
    for statement in sources.into_iter().flat_map(statements) {
        let explain = format!("EXPLAIN QUERY PLAN {statement}");
        let plan = sqlx::query(AssertSqlSafe(explain)).fetch_all(&mut db).await.unwrap();
        for row in plan {
            let line: String = row.get("detail");
            for table in ["deployments", "events", "snapshots"] {
                assert!(!line.starts_with(&format!("SCAN {table}")), "{line}\n{statement}");
            }
            if line.starts_with("SEARCH deployments") {
                assert!(narrow.iter().any(|index| line.contains(index)), "{line}\n{statement}");
                seen += 1;
            }
        }
    }
    assert!(seen > 15, "only {seen} searches were seen: the statements are not found any more");
}

/// The SQL statements in a source file: its string literals that begin like one.
fn statements(source: &str) -> Vec<&str> {
    let literals = source.split('"').skip(1).step_by(2);
    let verbs = ["SELECT ", "UPDATE ", "DELETE ", "INSERT "];
    literals.filter(|text| verbs.iter().any(|verb| text.starts_with(verb))).collect()
}

/// The history is read in the order of an index, one page at a time.
#[tokio::test]
async fn a_page_of_the_history_is_not_sorted() {
    let file = InFile::new();
    drop(file.open().await);
    let mut db = file.beside().await;
    let of_lane = Filter::environment(name("a"));
    let id = Some(DeploymentId::from_u128(1));
    for filter in [Filter::default(), of_lane] {
        for before in [None, id] {
            let query = super::super::history::select(&filter, before);
            let explain = format!("EXPLAIN QUERY PLAN {}", query.sql().as_str());
            let plan = sqlx::query(AssertSqlSafe(explain)).fetch_all(&mut db).await.unwrap();
            let lines: Vec<String> = plan.iter().map(|row| row.get("detail")).collect();
            assert!(lines.iter().all(|line| !line.contains("TEMP B-TREE")), "{filter:?}: {lines:?}");
        }
    }
}
