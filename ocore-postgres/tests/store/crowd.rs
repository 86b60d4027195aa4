//! Many workers at once: every lane in order, nothing twice, nothing lost.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use ocore_core::{
    id::{DeploymentId, Fence},
    name::EnvironmentName,
    port::{Committed, Finish, QueueStore as _},
    testing::laws::store::lab,
};

use crate::place::{Place, claim, enqueue, save, worker};

const LANES: u64 = 12;
const EACH: u64 = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_workers_does_everything_once_and_in_order() {
    let place = Place::new();
    let store = place.open().await;
    for lane in 0..LANES {
        save(&store, &format!("lane-{lane}")).await;
    }
    for number in 0..EACH {
        for lane in 0..LANES {
            enqueue(&store, number * LANES + lane + 1, &format!("lane-{lane}")).await;
        }
    }
    type Done = BTreeMap<EnvironmentName, Vec<(DeploymentId, Fence)>>;
    let done = Arc::new(Mutex::new(Done::new()));
    let work = |number: u128| {
        let (place, done) = (place.builder().connections_max(2), done.clone());
        async move {
            let store = place.open().await.unwrap();
            let own = worker(&store, 100 + number).await;
            while let Some(claimed) = claim(&store, &own).await {
                let mut next = Some(claimed);
                while let Some(claimed) = next.take() {
                    let lane = claimed.deployment.environment.clone();
                    done.lock()
                        .unwrap()
                        .entry(lane)
                        .or_default()
                        .push((claimed.deployment.id, claimed.fence));
                    let mut finish = Finish::default();
                    finish.claim_next = number.is_multiple_of(2);
                    match store.commit(&lab::fail(&own, &claimed, finish)).await.unwrap() {
                        Committed::Finished { successor } => next = successor.map(|it| *it),
                        other => panic!("the lane is held: {other:?}"),
                    }
                }
            }
        }
    };
    let workers: Vec<_> = (0..6).map(|number| tokio::spawn(work(number))).collect();
    for worker in workers {
        worker.await.unwrap();
    }
    let done = done.lock().unwrap();
    assert_eq!(done.len() as u64, LANES);
    for (lane, done) in &*done {
        let number: u64 = lane.as_str().trim_start_matches("lane-").parse().unwrap();
        let ids: Vec<_> = done.iter().map(|(id, _)| *id).collect();
        let expected: Vec<_> = (0..EACH).map(|each| lab::id(each * LANES + number + 1)).collect();
        assert_eq!(ids, expected, "{lane}");
        assert!(done.windows(2).all(|pair| pair[0].1 < pair[1].1), "the fence grows: {done:?}");
    }
}
