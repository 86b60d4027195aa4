//! What the engine itself costs: a whole deployment whose adapters do nothing, from the request to Running.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ocore_benches::{deploy, engine, memory_store, save_environment};
use ocore_core::{engine::Engine, port::Store};
use ocore_local::SqliteStore;
use tokio::runtime::{self, Runtime};

/// The sizes of the history that deployments are added to.
const HISTORY: [usize; 5] = [10, 100, 1_000, 10_000, 100_000];

/// A worker on a store, and a history of so many deployments.
async fn with_history(store: impl Store, length: usize) -> Engine {
    let engine = engine(store);
    save_environment(&engine, "bench").await;
    let worker = engine.clone();
    tokio::spawn(async move { worker.run_until(std::future::pending()).await });
    for _ in 0..length {
        deploy(&engine, "bench").await;
    }
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
        let engine = runtime.block_on(with_history(memory_store(), length));
        group.bench_function(BenchmarkId::from_parameter(length), |bencher| {
            bencher.to_async(&runtime).iter(|| deploy(&engine, "bench"));
        });
    }
    group.finish();
}

fn sqlite(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("no-op deployment, SQLite");
    group.sample_size(20).measurement_time(Duration::from_secs(10));
    for length in [10, 1_000, 100_000] {
        let runtime = Runtime::new().expect("a runtime can be made");
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let engine = runtime.block_on(async {
            let store =
                SqliteStore::open(directory.path().join("ocore.sqlite")).await.expect("the file is new");
            with_history(store, length).await
        });
        group.bench_function(BenchmarkId::from_parameter(length), |bencher| {
            bencher.to_async(&runtime).iter(|| deploy(&engine, "bench"));
        });
    }
    group.finish();
}

criterion_group!(benches, memory, sqlite);
criterion_main!(benches);
