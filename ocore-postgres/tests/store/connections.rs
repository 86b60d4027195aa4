//! Servers that stop, connections that are lost, records that cannot be read.

use std::{future::Future, time::Duration};

use ocore_core::{
    port::{Claimed, Enqueued, EnvironmentStore as _, QueueStore as _, StoreErrorKind, StoreResult},
    request::Trigger,
    testing::laws::store::lab,
};
use ocore_postgres::store::PostgresStore;
use ocore_test_postgres::{Cluster, Stop};
use tokio::time::{Instant, sleep, timeout};

use crate::place::{Place, claim, enqueue, save, worker};

/// Asks again until it works, as the engine does; what failed must have been said to be worth another try.
async fn insist<T, F: Future<Output = StoreResult<T>>>(ask: impl Fn() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => {
                assert_ne!(error.kind(), StoreErrorKind::Broken, "{error}");
                assert!(Instant::now() < deadline, "{error}");
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_restarted_is_found_again_and_nothing_is_lost() {
    let cluster = Cluster::start(&[]);
    let place = Place::on(cluster.url("postgres"));
    let store = place.open().await;
    save(&store, "a").await;
    let own = worker(&store, 1).await;
    for (number, how) in (1..).zip([Stop::Fast, Stop::Immediate, Stop::Kill]) {
        let requests = tokio::spawn({
            let store = store.clone();
            async move {
                for request in 0..20 {
                    let new = lab::new_deployment(number * 100 + request, &lab::name("a"), Trigger::Manual);
                    let answer = insist(|| store.enqueue(new.clone(), lab::at(0))).await;
                    // A call whose answer was lost finds what it has done.
                    assert!(
                        matches!(answer, Enqueued::Accepted { .. } | Enqueued::Existing(_)),
                        "{answer:?}"
                    );
                }
            }
        });
        tokio::task::block_in_place(|| cluster.restart(how));
        requests.await.unwrap();
        insist(|| store.heartbeat(&own)).await;
        let lane = insist(|| async { store.lane(&lab::name("a")).await }).await.unwrap();
        assert_eq!(lane.waiting.len() as u64, number * 20, "{how:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_not_to_have_heard_anything() {
    let builder = PostgresStore::builder("postgres://nobody@127.0.0.1:1/none".parse().unwrap());
    let error = builder.connect_timeout(Duration::from_millis(300)).open().await.expect_err("nobody listens");
    assert_eq!(error.kind(), StoreErrorKind::NotSent, "{error}");
}

#[tokio::test]
async fn a_wrong_password_and_a_missing_database_say_what_to_do() {
    let url = ocore_test_postgres::shared_url("postgres");
    let (_, host) = url.split_once('@').unwrap();
    let (server, _) = url.rsplit_once('/').unwrap();
    let wrong = format!("postgres://postgres:guess-1234@{host}");
    for (url, advice) in
        [(wrong, "the password"), (format!("{server}/no-such-database"), "there is no such database")]
    {
        let error = PostgresStore::builder(url.parse().unwrap()).open().await.expect_err("it cannot work");
        assert!(error.to_string().contains(advice), "{error}");
        assert!(
            !error.to_string().contains("guess-1234") && !format!("{error:?}").contains("guess-1234"),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_connection_that_the_server_ends_is_replaced() {
    let place = Place::new();
    let store = place.builder().connections_max(1).migrate().await.unwrap();
    save(&store, "a").await;
    let own = worker(&store, 1).await;
    for number in 1..=5 {
        place
            .run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE application_name = 'ocore' AND pid <> pg_backend_pid() AND query LIKE '%' || 'ocore.' || '%'",
            )
            .await
            .unwrap();
        let new = lab::new_deployment(number, &lab::name("a"), Trigger::Manual);
        insist(|| store.enqueue(new.clone(), lab::at(0))).await;
        insist(|| store.heartbeat(&own)).await;
    }
    let lane = store.lane(&lab::name("a")).await.unwrap().unwrap();
    assert_eq!(lane.waiting.len(), 5);
}

#[tokio::test]
async fn other_clients_are_told_of_a_change() {
    let place = Place::new();
    let (store, other) = (place.open().await, place.open().await);
    save(&store, "a").await;
    let told = async {
        // The listener may not be there yet: then the first changes are not heard.
        for number in 1.. {
            let heard = other.changed();
            enqueue(&store, number, "a").await;
            if timeout(Duration::from_millis(500), heard).await.is_ok() {
                return;
            }
        }
    };
    timeout(Duration::from_secs(20), told).await.expect("the other client hears of a change");
    // Its own beginning makes a noise, too: what is heard then is heard again.
    let heard = other.changed();
    enqueue(&store, 1000, "a").await;
    timeout(Duration::from_secs(5), heard).await.expect("and of every change after that");
}

#[tokio::test]
async fn a_lane_that_cannot_be_read_is_given_back_and_keeps_no_other_from_being_claimed() {
    let place = Place::new();
    let store = place.open().await;
    for (number, lane) in [(1, "a"), (2, "b")] {
        save(&store, lane).await;
        enqueue(&store, number, lane).await;
    }
    place
        .run("UPDATE ocore.environments SET settings = '{\"v\":99,\"is\":{}}' WHERE name = 'a'")
        .await
        .unwrap();
    let own = worker(&store, 1).await;
    let claimed = claim(&store, &own).await.expect("the other lane is claimed");
    assert_eq!(claimed.deployment.environment, lab::name("b"));
    let again = store.claim(&own, &[lab::name("b")]).await.unwrap();
    assert!(matches!(again, Claimed::Idle { .. }), "the lane is not tried again at once: {again:?}");
    assert!(store.environment(&lab::name("a")).await.is_err(), "reading it alone says what is wrong");
    let waits =
        "SELECT count(*) FROM ocore.deployments WHERE environment = 'a' AND phase = 'waiting' AND NOT begun";
    assert_eq!(place.count(waits).await, 1, "the deployment waits as before");
    assert_eq!(place.count("SELECT count(*) FROM ocore.lanes WHERE name = 'a' AND holder IS NULL").await, 1);
}
