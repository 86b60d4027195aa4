//! Environments and what they occupy.

use super::{
    Fixture,
    lab::{Lab, environment, go_on, name},
};
use crate::{
    environment::{Environment, InstanceSpec},
    id::Fence,
    name::PoolName,
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
    lab.store.set_paused(&name("a"), Some("ada".to_owned())).await.expect("an environment can be paused");
    let changed = environment("a", |spec| spec.branch("develop"));
    assert_eq!(lab.save(&changed).await, Saved::Updated);
    let record = lab.environment(&name("a")).await;
    assert_eq!((record.environment.as_ref(), record.paused, record.queued), (&changed, true, 1));
    assert_eq!(record.paused_by.as_deref(), Some("ada"));
    lab.store.set_paused(&name("a"), None).await.expect("an environment can be resumed");
    assert_eq!(lab.environment(&name("a")).await.paused_by, None);
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

/// A data directory that lies in another environment's, or around it, is not its own: whoever restores the outer one
/// would exchange the inner one with it.
pub async fn no_data_directory_lies_in_another(fixture: impl Fixture) {
    let lab = Lab::new(fixture).await;
    let at = |text, path: &str| {
        environment(text, |spec| spec.instance(InstanceSpec::new("web").data_directory(path)))
    };
    assert_eq!(lab.save(&at("a", "/srv/shop/data")).await, Saved::Created);
    check_conflict(&lab, &at("b", "/srv/shop/data/./b/"), "a", "data directory /srv/shop/data (in which")
        .await;
    check_conflict(&lab, &at("b", "/srv//shop"), "a", "data directory /srv/shop/data (which lies in").await;
    assert_eq!(lab.save(&at("b", "/srv/shop/data2")).await, Saved::Created, "a name is no path");
}

/// While something serves, is under way, or needs a person, the environment stays in its pool: the workers of
/// another one would not find what runs, and would start it a second time.
pub async fn what_is_deployed_stays_in_its_pool(fixture: impl Fixture) {
    let lab = Lab::new(fixture).await;
    let elsewhere = environment("a", |spec| spec.pool("far").branch("next"));
    let lane = lab.lane("a").await;
    let worker = lab.worker().await;
    let stays = async |why: &str| {
        assert_eq!(lab.save(&elsewhere).await, Saved::Deployed { pool: PoolName::default() }, "{why}");
        assert_eq!(lab.environment(&lane).await.environment.branch().as_str(), "main", "nothing is saved");
    };
    lab.manual(&lane).await;
    let claim = lab.claim(&worker, &[]).await;
    stays("a deployment is under way").await;
    lab.finish(&worker, &claim).await;
    lab.manual(&lane).await;
    let stranded = lab.strand(&worker).await;
    stays("a person is needed").await;
    lab.store.acknowledge(&lane, stranded, "eve", super::lab::at(9)).await.expect("it can be acknowledged");
    assert_eq!(lab.save(&elsewhere).await, Saved::Updated, "nothing is deployed any more");
    assert_eq!(lab.save(&environment("a", |spec| spec)).await, Saved::Updated);
    lab.manual(&lane).await;
    lab.make_live(&worker).await;
    stays("something serves").await;
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
