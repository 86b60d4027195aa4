//! Environments and what they occupy.

use super::{
    Fixture,
    lab::{Lab, environment, go_on, name},
};
use crate::{
    environment::{Environment, InstanceSpec},
    id::Fence,
    port::{EnvironmentRecord, Saved},
};

/// Saving again replaces the settings, for every claim from then on, and nothing else. All are listed by name.
pub async fn an_environment_is_saved_and_replaced(fixture: impl Fixture) {
    let lab = Lab::new(fixture).await;
    for text in ["b", "a", "c"] {
        lab.lane(text).await;
    }
    let all = lab.store.environments().await.expect("environments can be listed");
    let names: Vec<_> = all.iter().map(|record| record.environment.name().as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let first = EnvironmentRecord::new(all[0].environment.clone());
    assert_eq!((&all[0], all[0].fence), (&first, Fence::default()));
    lab.manual(&name("a")).await;
    lab.store.set_paused(&name("a"), true).await.expect("an environment can be paused");
    let changed = environment("a", |spec| spec.branch("develop"));
    assert_eq!(lab.save(&changed).await, Saved::Updated);
    let record = lab.environment(&name("a")).await;
    assert_eq!((record.environment.as_ref(), record.paused, record.queued), (&changed, true, 1));
    lab.store.set_paused(&name("a"), false).await.expect("an environment can be resumed");
    let worker = lab.worker().await;
    assert_eq!(*lab.claim(&worker, &[]).await.environment, changed);
}

fn at_port(text: &str, port: u16) -> Environment {
    environment(text, |spec| spec.instance(InstanceSpec::new("web").port(port)))
}

async fn check_conflict<F: Fixture>(lab: &Lab<F>, wanted: &Environment, with: &str, resource: &str) {
    match lab.save(wanted).await {
        Saved::Conflict { resource: found, environment } => {
            assert!(found.contains(resource), "{found}");
            assert_eq!(environment, name(with));
        }
        other => panic!("{resource} is shared with {with}: {other:?}"),
    }
}

/// No two environments of a pool use the same port, database or directory; a refused one is not saved at all.
pub async fn two_environments_share_nothing(fixture: impl Fixture) {
    let lab = Lab::new(fixture).await;
    let instance = || InstanceSpec::new("web").port(80).database("shop").data_directory("/srv/shop");
    assert_eq!(lab.save(&environment("a", |spec| spec.instance(instance()))).await, Saved::Created);
    check_conflict(&lab, &at_port("b", 80), "a", "port 80").await;
    let database = |text| environment(text, |spec| spec.instance(InstanceSpec::new("x").database("shop")));
    check_conflict(&lab, &database("b"), "a", "database shop").await;
    let directory = |it: InstanceSpec| environment("b", |spec| spec.instance(it.data_directory("/srv/shop")));
    check_conflict(&lab, &directory(InstanceSpec::new("x")), "a", "data directory /srv/shop").await;
    assert_eq!(lab.store.environment(&name("b")).await.expect("it can be asked for"), None);
    let elsewhere = environment("b", |spec| spec.pool("far").instance(instance()));
    assert_eq!(lab.save(&elsewhere).await, Saved::Created, "another pool is another machine");
    check_conflict(&lab, &at_port("b", 80), "a", "port 80").await;
    assert_eq!(*lab.environment(&name("b")).await.environment, elsewhere);
    assert_eq!(
        lab.save(&at_port("a", 80)).await,
        Saved::Updated,
        "an environment is no conflict with itself"
    );
    assert_eq!(lab.save(&at_port("c", 81)).await, Saved::Created);
}

/// What an environment still serves is its own, even if its settings name something else by now.
pub async fn what_serves_is_not_shared_either(fixture: impl Fixture) {
    let lab = Lab::new(fixture).await;
    assert_eq!(lab.save(&at_port("a", 80)).await, Saved::Created);
    lab.manual(&name("a")).await;
    let worker = lab.worker().await;
    lab.make_live(&worker).await;
    assert_eq!(lab.save(&at_port("a", 81)).await, Saved::Updated);
    check_conflict(&lab, &at_port("b", 80), "a", "port 80").await;
    check_conflict(&lab, &at_port("b", 81), "a", "port 81").await;
    lab.manual(&name("a")).await;
    lab.make_live(&worker).await;
    assert_eq!(lab.save(&at_port("b", 80)).await, Saved::Created);
}

/// What a deployment under way has started with is its environment's until it is over.
pub async fn what_is_being_deployed_is_not_shared_either(fixture: impl Fixture) {
    let lab = Lab::new(fixture).await;
    assert_eq!(lab.save(&at_port("a", 80)).await, Saved::Created);
    lab.manual(&name("a")).await;
    let worker = lab.worker().await;
    let mut claim = lab.claim(&worker, &[]).await;
    lab.go_on(&worker, &mut claim).await;
    assert_eq!(lab.save(&at_port("a", 81)).await, Saved::Updated);
    check_conflict(&lab, &at_port("b", 80), "a", "port 80").await;
    lab.write(&go_on(&worker, &claim)).await;
    let again = lab.claim(&worker, &[]).await;
    lab.finish(&worker, &again).await;
    assert_eq!(lab.save(&at_port("b", 80)).await, Saved::Created);
}
