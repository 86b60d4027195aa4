//! What a deployment writes into a SQLite store: one transaction per step, counted in the file's write-ahead log.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{fs, path::Path};

use ocore_benches::{deploy, engine, save_environment};
use ocore_core::event::EventKind;
use ocore_local::SqliteStore;

/// Enqueue, claim, and a heartbeat that may come in between.
const BESIDE_THE_STEPS: usize = 3;

/// How many transactions are in the log: a frame that ends one says how long the file is then.
fn transactions(log: &Path) -> usize {
    let bytes = fs::read(log).unwrap();
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let (page, salts) = (usize::try_from(number(8)).unwrap(), &bytes[16..24]);
    let frames = (32..).step_by(24 + page).take_while(|at| at + 24 + page <= bytes.len());
    frames.filter(|at| bytes[at + 8..at + 16] == *salts && number(at + 4) != 0).count()
}

#[tokio::test]
async fn a_step_is_one_commit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ocore.sqlite");
    let engine = engine(SqliteStore::open(&path).await.unwrap());
    save_environment(&engine, "bench").await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = tokio::spawn({
        let engine = engine.clone();
        async move { engine.run_until(async { drop(stopped.await) }).await }
    });
    deploy(&engine, "bench").await;
    let log = directory.path().join("ocore.sqlite-wal");
    let before = transactions(&log);
    let id = deploy(&engine, "bench").await;
    let written = transactions(&log) - before;
    let (mut events, mut steps) = (engine.watch(id).await.unwrap(), 0);
    while let Some(event) = events.next().await.unwrap() {
        steps += usize::from(matches!(event.kind, EventKind::Began { .. }));
    }
    assert!(steps > 4, "only {steps} steps were seen");
    assert!(
        (steps..=steps + BESIDE_THE_STEPS).contains(&written),
        "{written} transactions for {steps} steps"
    );
    drop(stop);
    worker.await.unwrap().unwrap();
}
