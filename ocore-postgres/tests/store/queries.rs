//! Every statement of the store, and every function of its schema, is run by a test: by this one.
//!
//! The texts come from the source files: whatever reads as SQL there. What was run says the server, which writes down every
//! statement and counts the calls of functions. A statement or a function that is new, and that nothing here runs, is named.

use std::time::Duration;

use chrono::TimeDelta;
use ocore_core::{
    event::EventKind,
    id::EventSeq,
    machine::Status,
    port::{
        Claimed, Committed, EnvironmentStore as _, Filter, Finish, HistoryStore as _, LogLimit,
        LogStore as _, QueueStore as _,
    },
    request::Trigger,
    testing::laws::store::lab,
};
use ocore_postgres::store::PostgresStore;
use ocore_test_postgres::Cluster;
use tokio::time::{Instant, sleep};

use crate::{
    place::{Place, claim, enqueue, save, worker},
    scene::{CALLS, Scene},
    statements::{RECORDED, Written, sent_to, written_in},
};

/// SQL functions of one expression: the server puts it in their place, and counts no call.
const PUT_IN_PLACE: [&str; 2] = ["fence_min", "now"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_statement_and_every_function_of_the_store_is_run() {
    let cluster = Cluster::start(RECORDED);
    let mut place = Place::on(cluster.url("postgres"));
    "ocore".clone_into(&mut place.schema);
    place.open().await;
    place.builder().revert_to(0).await.unwrap();
    let store = place.open().await;
    for (number, call) in (0..).zip(CALLS) {
        let scene = Scene::begin(&store, call, number).await;
        scene.make(&store).await.unwrap();
    }
    requests(&store).await;
    late_and_long(&store).await;
    questions(&store).await;
    unreadable(&place, &store).await;
    store.told();
    drop(store);
    let written = written_in("src/store");
    assert!(written.len() > 50, "the statements are found: {written:#?}");
    let deadline = Instant::now() + Duration::from_secs(20);
    // Other processes are told a little later, and a session's counts are added up when it ends.
    loop {
        let sent = sent_to(&cluster);
        let never: Vec<&Written> = written.iter().filter(|it| !it.is_in(&sent)).collect();
        let uncalled = uncalled(&place).await;
        if never.is_empty() && uncalled == PUT_IN_PLACE {
            return;
        }
        assert!(Instant::now() < deadline, "never run: {never:#?}, never called: {uncalled:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn uncalled(place: &Place) -> Vec<String> {
    let uncalled = sqlx::query_scalar(
        "SELECT DISTINCT p.proname::text FROM pg_proc p LEFT JOIN pg_stat_user_functions f ON f.funcid = p.oid
         WHERE p.pronamespace = 'ocore'::regnamespace AND f.calls IS NULL ORDER BY 1",
    );
    uncalled.fetch_all(&mut place.connect().await).await.unwrap()
}

/// A push that takes the place of another, and a recovery.
async fn requests(store: &PostgresStore) {
    let environment = lab::environment("pushed", |spec| spec.policy(|policy| policy.supersede = true));
    store.save_environment(&environment).await.unwrap();
    for number in [901, 902] {
        let new = lab::new_deployment(number, &lab::name("pushed"), Trigger::Push);
        store.enqueue(new, lab::at(0)).await.unwrap();
    }
    let own = worker(store, 900).await;
    let claimed = claim(store, &own).await.unwrap();
    let mut finish = Finish::default();
    finish.attention = Some(true);
    store.commit(&lab::fail(&own, &claimed, finish)).await.unwrap();
    let recovery = Trigger::Recovery { of: claimed.deployment.id };
    store.enqueue(lab::new_deployment(903, &lab::name("pushed"), recovery), lab::at(1)).await.unwrap();
    store.retire(own.id).await.unwrap();
}

/// A commit that is made again, and a log that outgrows its limit.
async fn late_and_long(store: &PostgresStore) {
    save(store, "long").await;
    enqueue(store, 910, "long").await;
    let own = worker(store, 910).await;
    let busy = [lab::name("pushed")];
    let claimed = loop {
        match store.claim(&own, &busy).await.unwrap() {
            Claimed::Work(claim) if claim.deployment.environment == lab::name("long") => break claim,
            Claimed::Work(claim) => {
                store.commit(&lab::fail(&own, &claim, Finish::default())).await.map(drop).unwrap()
            }
            other => panic!("the deployment waits: {other:?}"),
        }
    };
    let lines = (0..20).map(|number| lab::line(&format!("line {number}"))).collect();
    let limit = LogLimit::new(150, 200);
    let (lane, id) = (lab::name("long"), claimed.deployment.id);
    assert!(store.append(&lane, id, claimed.fence, lines, limit).await.unwrap());
    let kept = store.events(id, EventSeq::new(0), 100).await.unwrap();
    let lines = kept.iter().filter(|it| matches!(it.kind, EventKind::Log(_))).count();
    assert!((1..20).contains(&lines), "the log is cut: {kept:#?}");
    let commit = lab::fail(&own, &claimed, Finish::default());
    for _ in 0..2 {
        assert!(matches!(store.commit(&commit).await.unwrap(), Committed::Finished { .. }));
    }
}

async fn questions(store: &PostgresStore) {
    let all = store.history(&Filter::default(), None, 3).await.unwrap();
    let mut filter = Filter::environment(lab::name("pushed"));
    let of_one = store.history(&filter, None, 1).await.unwrap();
    filter.statuses = [Status::Failed].into();
    filter.triggers = vec!["push".to_owned()];
    (filter.since, filter.until) = (Some(lab::at(0)), Some(lab::at(0) + TimeDelta::days(1)));
    (filter.answers, filter.replaced) = (Some(lab::id(901)), Some(lab::id(901)));
    filter.key = Some("delivery".to_owned());
    store.history(&filter, of_one.next, 3).await.unwrap();
    store.history(&Filter::default(), all.next, 3).await.unwrap();
    store.environments().await.unwrap();
}

/// A lane that cannot be read is given back.
async fn unreadable(place: &Place, store: &PostgresStore) {
    save(store, "strange").await;
    enqueue(store, 920, "strange").await;
    let change = "UPDATE ocore.environments SET settings = '{\"v\":99,\"is\":{}}' WHERE name = 'strange'";
    place.run(change).await.unwrap();
    let own = worker(store, 920).await;
    while let Claimed::Work(claim) = store.claim(&own, &[]).await.unwrap() {
        store.commit(&lab::fail(&own, &claim, Finish::default())).await.unwrap();
    }
}
