//! How fast a store is drained: every lane strictly in order, the history kept.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::fill::Size;
use ocore_core::{
    executor::TokioExecutor,
    id::WorkerId,
    name::{EnvironmentName, PoolName},
    port::{Beat, Claim, Claimed, Committed, Finish, Store, Worker},
    testing::laws::store::lab,
};
use tokio::{sync::mpsc, task::JoinHandle};

/// How many lanes a worker works on at the same time.
const SLOTS: usize = 64;

/// A worker whose lease is kept for as long as this lives.
pub(crate) struct AtWork {
    pub(crate) worker: Worker,
    beats: JoinHandle<()>,
}

impl AtWork {
    pub(crate) async fn begin(store: &Arc<dyn Store>) -> Self {
        let id = WorkerId::fresh(&TokioExecutor::new());
        let worker = Worker::new(id, vec![PoolName::default()], Duration::from_secs(10));
        let (store, beating) = (store.clone(), worker.clone());
        assert!(matches!(store.heartbeat(&worker).await, Ok(Beat::Alive(_))));
        let beats = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(3)).await;
                let beat = store.heartbeat(&beating).await;
                assert!(matches!(beat, Ok(Beat::Alive(_))), "{beat:?}");
            }
        });
        Self { worker, beats }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.beats.abort();
    }
}

/// Drains the store as a worker does that has so many slots: one claim after the other while a slot is free, and of each
/// lane one deployment after the other, each ended by one commit that claims its successor. Returns the deployments per
/// second.
///
/// # Panics
/// If a lane's order is not kept, or not every deployment is seen once.
pub(crate) async fn drain(store: &Arc<dyn Store>, size: Size) -> f64 {
    let at_work = AtWork::begin(store).await;
    let done = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut busy: BTreeMap<EnvironmentName, JoinHandle<()>> = BTreeMap::new();
    let (sender, mut ended) = mpsc::unbounded_channel();
    let mut is_empty = false;
    while !is_empty || !busy.is_empty() {
        if is_empty || busy.len() == SLOTS {
            let name = ended.recv().await.expect("a driver is under way");
            busy.remove(&name).expect("it was busy").await.expect("it ended well");
            continue;
        }
        let known: Vec<EnvironmentName> = busy.keys().cloned().collect();
        match store.claim(&at_work.worker, &known).await.expect("the store works") {
            Claimed::Work(claim) => {
                let name = claim.environment.name().clone();
                let driver = drive(store.clone(), at_work.worker.clone(), *claim, done.clone());
                let sender = sender.clone();
                let driver = async move { sender.send(driver.await).expect("the drain waits") };
                busy.insert(name, tokio::spawn(driver));
            }
            Claimed::Idle { .. } => is_empty = true,
            other => panic!("the worker is alive: {other:?}"),
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(done.load(Ordering::Relaxed), size.deployments, "every deployment was seen once");
    per_second(size.deployments, seconds)
}

async fn drive(store: Arc<dyn Store>, worker: Worker, claim: Claim, done: Arc<AtomicU64>) -> EnvironmentName {
    let name = claim.environment.name().clone();
    let (mut next, mut before) = (Some(claim), None);
    while let Some(claim) = next {
        let seq = claim.deployment.kept_by_store.seq;
        assert!(before.is_none_or(|before| before < seq), "{name} is in order");
        before = Some(seq);
        let mut finish = Finish::default();
        finish.claim_next = true;
        next = match store.commit(&lab::fail(&worker, &claim, finish)).await.expect("the store works") {
            Committed::Finished { successor } => successor.map(|it| *it),
            other => panic!("the lane is held: {other:?}"),
        };
        done.fetch_add(1, Ordering::Relaxed);
    }
    name
}

#[expect(clippy::cast_precision_loss, reason = "numbers that people read")]
pub(crate) fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}
