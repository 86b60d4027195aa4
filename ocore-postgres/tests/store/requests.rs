//! Requests: within the host's transaction, and by many at once.

use std::collections::BTreeSet;

use ocore_core::{
    engine::{Engine, EngineError},
    environment::{EnvironmentSpec, InstanceSpec},
    port::{Enqueued, HistoryStore as _, QueueStore as _},
    request::{DeployRequest, Trigger},
    testing::{fakes::World, laws::store::lab},
};
use sqlx::Connection as _;

use crate::place::{Place, save};

#[tokio::test]
async fn a_deployment_is_accepted_with_the_hosts_transaction_or_not_at_all() {
    let place = Place::new();
    let store = place.open().await;
    save(&store, "a").await;
    let mut host = place.connect().await;
    for (number, commits) in [(1, false), (2, true)] {
        let mut transaction = host.begin().await.unwrap();
        let new = lab::new_deployment(number, &lab::name("a"), Trigger::Manual);
        let enqueued = store.deploy_in(&mut transaction)(new.clone(), lab::at(0)).await.unwrap();
        assert!(matches!(enqueued, Enqueued::Accepted { .. }), "{enqueued:?}");
        assert_eq!(store.deployment(new.id).await.unwrap(), None, "not before the commit");
        if commits {
            transaction.commit().await.unwrap()
        } else {
            transaction.rollback().await.unwrap()
        }
        assert_eq!(store.deployment(new.id).await.unwrap().is_some(), commits);
    }
    let lane = store.lane(&lab::name("a")).await.unwrap().unwrap();
    assert_eq!(lane.waiting.len(), 1);
}

#[tokio::test]
async fn a_request_within_the_hosts_transaction_is_checked_like_any_other() {
    let place = Place::new();
    let store = place.open().await;
    let world = World::new();
    let engine = Engine::builder()
        .store(store.clone())
        .source(world.source())
        .builder(world.builder())
        .snapshotter(world.snapshotter())
        .runtime(world.runtime())
        .probe(world.probe())
        .build()
        .unwrap();
    engine
        .save_environment(
            EnvironmentSpec::new("shop", "https://git.example.org/shop.git")
                .branch("main")
                .instance(InstanceSpec::new("web")),
        )
        .await
        .unwrap();
    let mut host = place.connect().await;
    let mut transaction = host.begin().await.unwrap();
    let ask = DeployRequest::api("shop").idempotency_key("order 7");
    let accepted = engine.deploy_with(ask.clone(), store.deploy_in(&mut transaction)).await.unwrap();
    let again = engine.deploy_with(ask.clone(), store.deploy_in(&mut transaction)).await.unwrap();
    assert_eq!((again.id, again.existing), (accepted.id, true), "the transaction sees what it has asked for");
    transaction.commit().await.unwrap();
    assert_eq!(engine.deploy(ask).await.unwrap().id, accepted.id);
    let mut transaction = host.begin().await.unwrap();
    let nowhere = engine.deploy_with(DeployRequest::api("nowhere"), store.deploy_in(&mut transaction)).await;
    assert!(matches!(nowhere, Err(EngineError::NoSuchEnvironment { .. })), "{nowhere:?}");
}

#[tokio::test]
async fn of_many_who_ask_under_one_key_one_is_accepted() {
    let place = Place::new();
    let store = place.open().await;
    save(&store, "a").await;
    let ask = |number| {
        let (store, mut new) = (store.clone(), lab::new_deployment(number, &lab::name("a"), Trigger::Manual));
        new.request.key = Some("delivery".to_owned());
        async move { store.enqueue(new, lab::at(0)).await.unwrap() }
    };
    let answers = futures::future::join_all((1..=8).map(ask)).await;
    let accepted = answers.iter().filter(|answer| matches!(answer, Enqueued::Accepted { .. })).count();
    assert_eq!(accepted, 1, "{answers:?}");
}

#[tokio::test]
async fn many_who_ask_at_once_get_numbers_without_a_gap() {
    let place = Place::new();
    let store = place.open().await;
    save(&store, "a").await;
    let ask = |number| {
        let (store, new) = (store.clone(), lab::new_deployment(number, &lab::name("a"), Trigger::Manual));
        async move { store.enqueue(new, lab::at(0)).await.unwrap() }
    };
    let answers = futures::future::join_all((1..=40).map(ask)).await;
    let numbers: BTreeSet<u64> = answers
        .into_iter()
        .map(|answer| match answer {
            Enqueued::Accepted { deployment, .. } => deployment.kept_by_store.seq.get(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(numbers, (1..=40).collect());
}
