//! A real PgBouncer in transaction mode: every transaction of a client may reach another connection of the server.

use std::time::Duration;

use ocore_core::port::{Claimed, QueueStore as _};
use ocore_postgres::store::PostgresStore;
use ocore_test_postgres::{Pooler, shared_url};
use tokio::time::timeout;

use crate::place::{Place, enqueue, save, worker};

/// A store behind a pooler, with a listener at the server itself.
fn behind(place: &Place, pooler: &Pooler) -> ocore_postgres::store::Builder {
    let builder = PostgresStore::builder(pooler.url("postgres").parse().expect("it is a URL"));
    builder.schema(&place.schema).connect_timeout(Duration::from_secs(60)).behind_pooler()
}

/// Two clients, each with a pool, heartbeats and hints, share the one connection that the pooler has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_share_one_connection_do_all_their_work() {
    let (place, pooler) = (Place::new(), Pooler::start(&shared_url("postgres"), 1));
    let one = behind(&place, &pooler).migrate().await.unwrap();
    let two = behind(&place, &pooler).open().await.unwrap();
    for lane in ["a", "b", "c", "d"] {
        save(&one, lane).await;
    }
    let mut tasks = tokio::task::JoinSet::new();
    for (number, store) in [(1, one.clone()), (2, two)] {
        tasks.spawn(async move {
            let own = worker(&store, u128::from(number)).await;
            for request in 0..20 {
                enqueue(&store, number * 100 + request, ["a", "b", "c", "d"][request as usize % 4]).await;
                let beat = store.heartbeat(&own).await.unwrap();
                assert!(matches!(beat, ocore_core::port::Beat::Alive(_)), "{beat:?}");
            }
            let mut held = Vec::new();
            while let Claimed::Work(claim) = store.claim(&own, &held).await.unwrap() {
                held.push(claim.deployment.environment);
            }
            held.len()
        });
    }
    let claimed: usize = tasks.join_all().await.into_iter().sum();
    // As many as there are lanes: none of them is ended here.
    assert_eq!(claimed, 4);
    let waiting = "SELECT count(*) FROM ocore.deployments WHERE phase = 'waiting'";
    assert_eq!(place.count(waiting).await, 36);
    drop(one);
}

/// Hints need a session that stays: it goes past the pooler.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_past_the_pooler_hears_of_changes() {
    let (place, pooler) = (Place::new(), Pooler::start(&shared_url("postgres"), 2));
    let listener = || shared_url("postgres").parse().unwrap();
    let store = behind(&place, &pooler).listener(listener()).migrate().await.unwrap();
    let other = behind(&place, &pooler).listener(listener()).open().await.unwrap();
    save(&store, "a").await;
    for number in 1.. {
        assert!(number < 40, "the other client hears nothing");
        let heard = other.changed();
        enqueue(&store, number, "a").await;
        if timeout(Duration::from_millis(500), heard).await.is_ok() {
            break;
        }
    }
    // Its own beginning makes a noise too; what comes later is heard because it was told.
    let heard = other.changed();
    enqueue(&store, 1000, "a").await;
    timeout(Duration::from_secs(5), heard).await.expect("every change after that is heard");
}
