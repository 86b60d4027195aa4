//! The wire to the server is cut at every byte of every call.
//!
//! By default at three places each way; `OCORE_WIRE=every` cuts at every byte, `OCORE_WIRE=50` at fifty places.

use std::time::Duration;

use ocore_core::port::StoreErrorKind;
use ocore_postgres::store::PostgresStore;
use tokio::time::{Instant, sleep};

use crate::{
    place::Place,
    proxy::{Proxy, WAYS},
    scene::{CALLS, Call, Eyes, Scene, difference},
};

/// Places in a call of so many bytes: before the first, before the last, and as many between as there should be.
fn places(bytes: u64) -> Vec<u64> {
    let number = match std::env::var("OCORE_WIRE") {
        Ok(text) if text == "every" => bytes,
        Ok(text) => text.parse().expect("OCORE_WIRE is `every` or a number"),
        Err(_) => 3,
    };
    let last = bytes.saturating_sub(1);
    let between = number.saturating_sub(1).max(1);
    let mut places: Vec<_> = (0..=between).map(|step| last * step / between).collect();
    places.dedup();
    places
}

/// A call for which the client's connection is made, and whose statements the server knows on it.
async fn prepared(eyes: &Eyes, client: &PostgresStore, number: u64, call: Call) -> Scene {
    let known = Scene::begin(eyes.store(), call, number).await;
    insist(&known, client, "before the wire is cut").await;
    Scene::begin(eyes.store(), call, number + 1).await
}

/// Waits until the server has noticed what was cut: no statement of the store is under way.
async fn settled(eyes: &mut Eyes) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ocore' AND datname = current_database()
                AND state <> 'idle'";
    while eyes.count(busy).await > 0 {
        assert!(Instant::now() < deadline, "the server does not end what was cut");
        sleep(Duration::from_millis(2)).await;
    }
}

async fn cut_everywhere(pooled: bool) {
    let direct = Place::own_database().await;
    let mut eyes = Eyes::open(&direct).await;
    let proxy = Proxy::start(direct.address()).await;
    let through = Place { url: proxy.url(&direct.url), schema: direct.schema.clone() };
    let builder = through.builder().hints(false).connections_max(1);
    let builder = if pooled { builder.behind_pooler() } else { builder };
    let (mut number, mut unknown, mut done) = (0, 0, 0);
    for call in CALLS {
        let client = builder.clone().open().await.expect("the server answers");
        let whole = prepared(&eyes, &client, number, call).await;
        let before = whole.seen(&mut eyes).await;
        proxy.mend();
        whole.make(&client).await.expect("the store answers");
        let bytes = WAYS.map(|way| proxy.passed(way));
        let after = whole.seen(&mut eyes).await;
        for way in WAYS {
            for cut in places(bytes[way as usize]) {
                number += 2;
                let trial = format!("{call:?}, cut after {cut} of {} bytes {way:?}", bytes[way as usize]);
                let scene = prepared(&eyes, &client, number, call).await;
                proxy.cut_after(way, cut);
                let answer = scene.make(&client).await;
                settled(&mut eyes).await;
                let now = scene.seen(&mut eyes).await;
                let (happened, not) = (difference(&now, &after), difference(&now, &before));
                match &answer {
                    Ok(_) => {
                        assert_eq!(happened, None, "{trial}: it was said to be done");
                        done += 1;
                    }
                    Err(error) if error.kind() == StoreErrorKind::NotSent => {
                        assert_eq!(not, None, "{trial}: it was said not to have happened: {error}");
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), StoreErrorKind::Unknown, "{trial}: {error}");
                        assert!(
                            happened.is_none() || not.is_none(),
                            "{trial}: it happened in part: {happened:?}"
                        );
                        unknown += 1;
                    }
                }
                proxy.mend();
                // Lines of a log may be there twice: an append is not repeated by the engine.
                if !(scene.adds() && happened.is_none()) {
                    insist(&scene, &client, &trial).await;
                    let differs = difference(&scene.seen(&mut eyes).await, &after);
                    assert_eq!(differs, None, "{trial}, and made again");
                }
            }
        }
        number += 2;
    }
    assert!(
        unknown > 0 && done > 0,
        "{unknown} calls whose end was not known, {done} that were done all the same"
    );
}

/// Asks again as the engine does: the first connection may be one that was cut.
async fn insist(scene: &Scene, client: &PostgresStore, trial: &str) {
    for _ in 0..5 {
        match scene.make(client).await {
            Ok(_) => return,
            Err(error) => assert_ne!(error.kind(), StoreErrorKind::Broken, "{trial}: {error}"),
        }
    }
    panic!("{trial}: the store does not recover");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wherever_the_wire_is_cut_a_call_happens_once_and_its_answer_is_true() {
    cut_everywhere(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_holds_for_statements_that_are_not_prepared() {
    cut_everywhere(true).await;
}
