//! The schema: its versions, and what it forbids.

use ocore_core::{
    port::{QueueStore as _, StoreErrorKind},
    testing::laws::store::lab,
};
use ocore_postgres::store::MIGRATIONS;

use crate::place::{Place, claim, enqueue, save, worker};

#[tokio::test]
async fn a_schema_that_is_missing_or_older_is_refused_in_words() {
    let place = Place::new();
    let error = place.builder().open().await.expect_err("there is no schema");
    assert_eq!(error.kind(), StoreErrorKind::Broken);
    assert!(
        error.to_string().contains("has version 0") && error.to_string().contains("run `migrate`"),
        "{error}"
    );
}

#[tokio::test]
async fn a_newer_schema_is_refused_in_words() {
    let place = Place::new();
    place.open().await;
    place.run("UPDATE ocore.schema_version SET version = 1000").await.unwrap();
    for refused in [place.builder().open().await, place.builder().migrate().await] {
        let error = refused.expect_err("the schema is newer");
        assert_eq!(error.kind(), StoreErrorKind::Broken);
        assert!(error.to_string().contains("newer ocore (version 1000"), "{error}");
    }
    let error = place.builder().revert_to(0).await.expect_err("the schema is newer");
    assert!(error.to_string().contains("newer ocore"), "{error}");
}

#[tokio::test]
async fn several_processes_bring_the_schema_up_to_date_at_the_same_time() {
    let place = Place::new();
    let stores = futures::future::join_all((0..4).map(|_| place.builder().migrate())).await;
    for store in stores {
        store.expect("each finds the schema up to date");
    }
    assert_eq!(place.count("SELECT count(*) FROM ocore.schema_version").await, 1);
}

#[tokio::test]
async fn every_migration_leads_back_and_up_again() {
    let place = Place::new();
    let objects = "SELECT count(*) FROM pg_depend d JOIN pg_namespace n ON n.oid = d.refobjid
                   WHERE n.nspname = replace('ocore.', '.', '') AND d.refclassid = 'pg_namespace'::regclass";
    let objects = objects.replace("replace('ocore.', '.', '')", &format!("'{}'", place.schema));
    place.open().await;
    let full = place.count(&objects).await;
    for migration in MIGRATIONS.iter().rev() {
        place.builder().revert_to(migration.version - 1).await.unwrap();
    }
    assert_eq!(place.count(&objects).await, 1, "only the table of the version is left");
    place.open().await;
    assert_eq!(place.count(&objects).await, full);
}

#[tokio::test]
async fn a_role_that_may_make_no_schema_uses_one_that_was_made_for_it() {
    let place = Place::new();
    let role = place.schema.clone();
    place
        .run(&format!(
            "CREATE ROLE \"{role}\" LOGIN PASSWORD 'x'; CREATE SCHEMA \"{role}\" AUTHORIZATION \"{role}\""
        ))
        .await
        .unwrap();
    let (_, rest) = place.url.split_once('@').unwrap();
    let place = Place { url: format!("postgres://{role}:x@{rest}"), schema: role };
    save(&place.open().await, "a").await;
}

async fn refuses(place: &Place, statement: &str, why: &str) {
    let error = place.run(statement).await.expect_err(statement);
    assert!(error.to_string().contains(why), "{statement}: {error}");
}

#[tokio::test]
async fn what_the_types_forbid_the_schema_forbids_too() {
    let place = Place::new();
    let store = place.open().await;
    save(&store, "a").await;
    for number in 1..=3 {
        enqueue(&store, number, "a").await;
    }
    let own = worker(&store, 1).await;
    let first = claim(&store, &own).await.expect("there is work");
    store.commit(&lab::fail(&own, &first, ocore_core::port::Finish::default())).await.unwrap();
    claim(&store, &own).await.expect("there is more work");
    refuses(&place, "UPDATE ocore.lanes SET fence = fence - 1", "the fence of a lane never falls").await;
    refuses(&place, "UPDATE ocore.lanes SET seq = seq - 1", "the numbers of a lane never fall").await;
    let over = "a deployment that is over does not change";
    refuses(&place, "UPDATE ocore.deployments SET record = record || ' ' WHERE phase = 'over'", over).await;
    refuses(
        &place,
        "UPDATE ocore.deployments SET phase = 'waiting', status = 'Queued' WHERE phase = 'over'",
        over,
    )
    .await;
    refuses(&place, "UPDATE ocore.deployments SET status = 'Running' WHERE phase = 'over'", over).await;
    refuses(
        &place,
        "UPDATE ocore.deployments SET version = version + 2 WHERE phase = 'active'",
        "a version follows",
    )
    .await;
    refuses(
        &place,
        "UPDATE ocore.deployments SET phase = 'active', status = 'Building' WHERE phase = 'waiting'",
        "deployments_active",
    )
    .await;
    refuses(&place, "UPDATE ocore.deployments SET phase = 'over' WHERE phase = 'active'", "check").await;
    refuses(&place, "UPDATE ocore.lanes SET active = NULL", "check").await;
}
