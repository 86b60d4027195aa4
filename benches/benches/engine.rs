//! What the engine itself costs: a whole deployment whose adapters do nothing, from the request to Running.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ocore_benches::{deploy, engine, memory_store, save_environment};
use ocore_core::{engine::Engine, port::Store};
use ocore_local::{Durability, SqliteStore};
use tokio::runtime::{self, Runtime};

/// The sizes of the history that deployments are added to.
const HISTORY: [usize; 5] = [10, 100, 1_000, 10_000, 100_000];

/// Fills the store with a history of so many deployments.
async fn seed(store: impl Store, length: usize) {
    let engine = engine(store);
    save_environment(&engine, "bench").await;
    let seeded = async {
        for _ in 0..length {
            deploy(&engine, "bench").await;
        }
    };
    engine.run_until(seeded).await.expect("the store works");
}

/// An engine whose worker runs for as long as the runtime does.
async fn at_work(store: impl Store) -> Engine {
    let engine = engine(store);
    let worker = engine.clone();
    tokio::spawn(async move { worker.run_until(std::future::pending()).await });
    engine
}

/// One thread: on two, half of what is measured is the kernel waking the other one.
fn one_thread() -> Runtime {
    runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

fn memory(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("no-op deployment, in memory");
    for length in HISTORY {
        let runtime = one_thread();
        let store = memory_store();
        runtime.block_on(seed(store.clone(), length));
        let engine = runtime.block_on(at_work(store));
        group.bench_function(BenchmarkId::from_parameter(length), |bencher| {
            bencher.to_async(&runtime).iter(|| deploy(&engine, "bench"));
        });
    }
    group.finish();
}

fn sqlite(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("no-op deployment, SQLite");
    group.sample_size(20).measurement_time(Duration::from_secs(10));
    for length in HISTORY {
        let runtime = one_thread();
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let file = directory.path().join("ocore.sqlite");
        // The history of 100,000 would take an hour if each of its commits went to the disk.
        let quick = runtime.block_on(SqliteStore::open_with(&file, Durability::Relaxed));
        runtime.block_on(seed(quick.expect("the file is new"), length));
        let store = runtime.block_on(SqliteStore::open(&file)).expect("the file was just made");
        let engine = runtime.block_on(at_work(store));
        group.bench_function(BenchmarkId::from_parameter(length), |bencher| {
            bencher.to_async(&runtime).iter(|| deploy(&engine, "bench"));
        });
    }
    group.finish();
}

criterion_group!(benches, memory, sqlite);
criterion_main!(benches);
