//! Calls whose futures are dropped in the middle: by a timeout, a `select!`, a caller that is gone.

use std::{pin::pin, time::Duration};

use ocore_postgres::store::PostgresStore;

use crate::{
    place::Place,
    scene::{CALLS, Call, Eyes, Scene, difference},
};

/// Polls the call so often, then drops it. Whether it had ended by then.
async fn drop_at(polls: u64, scene: &Scene, store: &PostgresStore) -> bool {
    let mut call = pin!(scene.make(store));
    for poll in 0..polls {
        if futures::poll!(call.as_mut()).is_ready() {
            return true;
        }
        // Sometimes the server has answered by the next poll, sometimes not.
        match poll % 3 {
            0 => tokio::task::yield_now().await,
            _ => tokio::time::sleep(Duration::from_micros(300 * poll)).await,
        }
    }
    false
}

async fn dropped_everywhere(place: &Place, store: &PostgresStore) {
    let mut eyes = Eyes::open(place).await;
    for (number, call) in (0..).zip(CALLS) {
        // What the call does when nobody drops it.
        let whole = Scene::begin(store, call, number * 100).await;
        let before = whole.seen(&mut eyes).await;
        whole.make(store).await.expect("the store answers");
        let after = whole.seen(&mut eyes).await;
        assert_eq!(before == after, call == Call::Read, "{call:?} changes something");
        for polls in 1..100 {
            let scene = Scene::begin(store, call, number * 100 + polls).await;
            let ended = drop_at(polls, &scene, store).await;
            // A plain write through the same connections is on the disk once it is acknowledged.
            let other = Scene::begin(store, Call::Enqueue, 100_000 + number * 100 + polls).await;
            other.make(store).await.expect("the store answers");
            assert!(other.seen(&mut eyes).await.contains("Queued"), "{call:?}: a write was lost");
            if !scene.adds() {
                scene.make(store).await.expect("the store answers");
                let differs = difference(&scene.seen(&mut eyes).await, &after);
                assert_eq!(differs, None, "{call:?}, dropped at poll {polls} and made again");
            }
            if ended {
                break;
            }
            assert!(polls < 90, "{call:?} does not end");
        }
    }
    let open = place.count(
        "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'
                            AND query LIKE '%' || 'ocore.' || '%'",
    );
    assert_eq!(open.await, 0, "a connection was left in a transaction");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_that_is_dropped_at_any_poll_happens_wholly_or_not_at_all() {
    let place = Place::new();
    let store = place.builder().connections_max(2).migrate().await.unwrap();
    dropped_everywhere(&place, &store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_holds_behind_a_pooler() {
    let place = Place::new();
    let store = place.builder().behind_pooler().connections_max(2).migrate().await.unwrap();
    dropped_everywhere(&place, &store).await;
}
