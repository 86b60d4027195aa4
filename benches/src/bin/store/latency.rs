//! How long things take that somebody waits for, one at a time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ocore_benches::save_environment;
use ocore_core::{
    engine::{Engine, Timing},
    id::DeploymentId,
    port::{Claimed, Committed, Store},
    request::DeployRequest,
    testing::laws::store::lab,
};
use tokio::task::JoinHandle;

use crate::{
    drain::AtWork,
    fill,
    place::Place,
    stopwatch::{At, Reached, engine, next},
};

/// Milliseconds, one value for each sample.
pub(crate) type Samples = Vec<f64>;

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// A worker that runs until this drops; then it is gone as in a crash.
struct Running(JoinHandle<()>);

impl Running {
    fn start(engine: &Engine) -> Self {
        let engine = engine.clone();
        Self(tokio::spawn(
            async move { engine.run_until(std::future::pending()).await.expect("the store works") },
        ))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Lets the worker become idle, by an amount that nothing can be in step with.
async fn pause(number: usize) {
    tokio::time::sleep(Duration::from_micros(30_000 + (number as u64 * 7_919) % 20_000)).await;
}

async fn deploy(engine: &Engine) -> DeploymentId {
    engine.deploy(DeployRequest::api("bench")).await.expect("the request is valid").id
}

async fn ended(engine: &Engine, deployment: DeploymentId) {
    let mut events = engine.watch(deployment).await.expect("it was accepted");
    while events.next().await.expect("the store works").is_some() {}
}

/// From the request to the beginning of the first step, on an idle worker: another process's, or the one that asks.
pub(crate) async fn start(place: &Place, samples: usize, is_own_worker: bool) -> Samples {
    let own = place.store().await;
    let (worker, mut reached) = engine(own.client().await, Timing::default(), false);
    save_environment(&worker, "bench").await;
    let _running = Running::start(&worker);
    let host =
        if is_own_worker { worker.clone() } else { engine(own.client().await, Timing::default(), false).0 };
    let mut taken = Samples::new();
    for number in 0..samples {
        pause(number).await;
        let begun = Instant::now();
        let deployment = deploy(&host).await;
        taken.push(millis(next(&mut reached, At::Begin).await - begun));
        ended(&worker, deployment).await;
    }
    taken
}

/// From the last check of a deployment to the first step of the lane's next one.
pub(crate) async fn successor(place: &Place, samples: usize) -> Samples {
    let own = place.store().await;
    let (worker, mut reached) = engine(own.client().await, Timing::default(), false);
    save_environment(&worker, "bench").await;
    for _ in 0..=samples {
        deploy(&worker).await;
    }
    let _running = Running::start(&worker);
    next(&mut reached, At::Begin).await;
    let mut taken = Samples::new();
    for _ in 0..samples {
        let checked = next(&mut reached, At::Check).await;
        taken.push(millis(next(&mut reached, At::Begin).await - checked));
    }
    taken
}

/// One commit between two steps.
pub(crate) async fn checkpoint(place: &Place, samples: usize) -> Samples {
    let store: Arc<dyn Store> = place.store().await.store;
    fill::lanes(&store, 1).await;
    fill::ask(&store, fill::Size { lanes: 1, deployments: 1 }, 1).await;
    let at_work = AtWork::begin(&store).await;
    let Ok(Claimed::Work(mut claim)) = store.claim(&at_work.worker, &[]).await else {
        panic!("a deployment waits");
    };
    let mut taken = Samples::new();
    for _ in 0..samples {
        let commit = lab::go_on(&at_work.worker, &claim);
        let begun = Instant::now();
        let committed = store.commit(&commit).await.expect("the store works");
        taken.push(millis(begun.elapsed()));
        assert!(matches!(committed, Committed::Continued { .. }), "{committed:?}");
        claim.deployment = commit.deployment;
    }
    taken
}

/// From a cancel to the running step that hears of it; with hints, or by heartbeats alone.
pub(crate) async fn cancel(place: &Place, samples: usize, hints: bool) -> Samples {
    let own = place.store().await;
    let (client, asker) = if hints {
        (own.client().await, own.client().await)
    } else {
        (own.deaf_client().await, own.deaf_client().await)
    };
    let (worker, mut reached) = engine(client, Timing::default(), true);
    let (host, _) = engine(asker, Timing::default(), true);
    save_environment(&worker, "bench").await;
    let _running = Running::start(&worker);
    let mut taken = Samples::new();
    for number in 0..samples {
        let deployment = deploy(&host).await;
        next(&mut reached, At::Begin).await;
        pause(number).await;
        // Long after its first lines were written, whose answer would tell too.
        tokio::time::sleep(Duration::from_millis(if hints { 150 } else { 400 + number as u64 * 377 % 3000 }))
            .await;
        let begun = Instant::now();
        host.cancel(deployment, "ada").await.expect("it is under way");
        taken.push(millis(next(&mut reached, At::Cancelled).await - begun));
        ended(&worker, deployment).await;
    }
    taken
}

/// From the death of a worker in its step to another one that begins the step again.
pub(crate) async fn crash(place: &Place, samples: usize, timing: Timing) -> Samples {
    let own = place.store().await;
    let (host, _) = engine(own.client().await, timing, true);
    save_environment(&host, "bench").await;
    let mut taken = Samples::new();
    for number in 0..samples {
        let (first, mut begun): (_, Reached) = engine(own.client().await, timing, true);
        let running = Running::start(&first);
        let deployment = deploy(&host).await;
        next(&mut begun, At::Begin).await;
        let (second, mut resumed) = engine(own.client().await, timing, true);
        let _other = Running::start(&second);
        // A heartbeat may be just over, or just due.
        tokio::time::sleep(timing.heartbeat.mul_f64(0.3 + number as f64 / samples as f64)).await;
        drop(running);
        let died = Instant::now();
        taken.push(millis(next(&mut resumed, At::Begin).await - died));
        host.cancel(deployment, "ada").await.expect("it is under way");
        ended(&host, deployment).await;
    }
    taken
}

/// Transactions per second of a worker that has nothing to do, from its process alone.
pub(crate) async fn idle(place: &Place, duration: Duration) -> f64 {
    let own = place.store().await;
    let (worker, _reached) = engine(own.client().await, Timing::default(), false);
    save_environment(&worker, "bench").await;
    own.db.close().await;
    let admin = sqlx::PgPool::connect(&place.cluster.url("postgres")).await.expect("the server answers");
    let count = || async {
        // The server's processes report within a second after they become idle.
        let count: i64 =
            sqlx::query_scalar("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1")
                .bind(&own.name)
                .fetch_one(&admin)
                .await
                .expect("the server counts");
        count
    };
    let _running = Running::start(&worker);
    // Until it has looked in vain so often that it counts as idle.
    tokio::time::sleep(Duration::from_secs(40)).await;
    let (before, begun) = (count().await, Instant::now());
    tokio::time::sleep(duration).await;
    let after = count().await;
    (after - before) as f64 / begun.elapsed().as_secs_f64()
}
