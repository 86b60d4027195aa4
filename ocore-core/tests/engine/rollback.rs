use std::collections::BTreeSet;

use ocore_core::{
    engine::{EngineError, Loss, RollbackRequest},
    environment::InstanceSpec,
    machine::Status,
    testing::fakes::Behaviour,
};

use crate::stage::{Stage, shop};

#[tokio::test(start_paused = true)]
async fn a_rollback_brings_back_the_release_and_the_data_that_belongs_to_it() {
    let mut stage = Stage::new().await;
    stage.work();
    let first = stage.deploy("first", Behaviour::good()).await;
    let early = stage.write();
    let failed = stage.deploy("failed", Behaviour::good().updates().unhealthy()).await;
    assert_eq!(failed.status(), Status::RolledBack);
    let late = stage.write();
    let (data, running) = (stage.data().unwrap(), stage.running());
    let second = stage.deploy("second", Behaviour::good().updates()).await;
    let lost = stage.write();

    let request = RollbackRequest::to(first.id).actor("bob");
    let (accepted, preview) = stage.engine.roll_back(request).await.unwrap();
    let Loss::Since { moments, .. } = &preview.loss else { panic!("{preview:?}") };
    assert_eq!(moments.values().collect::<Vec<_>>(), [&second.snapshots.values().next().unwrap().taken_at]);
    let rollback = stage.end(accepted.id).await;
    assert_eq!((rollback.status(), rollback.answers()), (Status::Running, Some(first.id)));
    assert_eq!(stage.running(), running);
    let restored = stage.data().unwrap();
    // What was written after the deployment that was rolled back belongs to the first one too.
    assert!(restored.writes.contains(&early) && restored.writes.contains(&late));
    assert!(!restored.writes.contains(&lost));
    assert_eq!(restored.writes, data.writes);

    let back = RollbackRequest::to(second.id);
    let undone = stage.end(stage.engine.roll_back(back).await.unwrap().0.id).await;
    assert_eq!(undone.status(), Status::Running);
    assert!(stage.data().unwrap().writes.contains(&lost), "a rollback can itself be undone");
}

#[tokio::test(start_paused = true)]
async fn a_rollback_of_the_code_leaves_the_data() {
    let mut stage = Stage::new().await;
    stage.work();
    let first = stage.deploy("first", Behaviour::good()).await;
    let running = stage.running();
    stage.deploy("second", Behaviour::good()).await;
    let kept = stage.write();
    stage.world.lose_images();
    let request = RollbackRequest::to(first.id).code_only();
    let (accepted, preview) = stage.engine.roll_back(request).await.unwrap();
    assert_eq!(preview.loss, Loss::Nothing);
    assert_eq!(stage.end(accepted.id).await.status(), Status::Running);
    assert_eq!(stage.running(), running, "the image was gone and has been built again");
    assert!(stage.data().unwrap().writes.contains(&kept));
}

/// The answer may have been lost: the rollback has made its target live meanwhile.
#[tokio::test(start_paused = true)]
async fn a_rollback_that_was_accepted_is_answered_again() {
    let mut stage = Stage::new().await;
    stage.work();
    let first = stage.deploy("first", Behaviour::good()).await;
    stage.deploy("second", Behaviour::good()).await;
    let request = RollbackRequest::to(first.id).idempotency_key("k");
    let (once, _) = stage.engine.roll_back(request.clone()).await.unwrap();
    stage.end(once.id).await;
    let second = stage.deploy("third", Behaviour::good()).await;
    stage.engine.save_environment(shop().instance(InstanceSpec::new("admin").port(8070))).await.unwrap();
    let refused = stage.engine.roll_back(RollbackRequest::to(first.id)).await.unwrap_err();
    assert!(matches!(refused, EngineError::CannotRollBack { .. }), "{refused}");
    let (twice, preview) = stage.engine.roll_back(request).await.unwrap();
    assert_eq!((twice.id, twice.existing, preview.loss), (once.id, true, Loss::SaidBefore));
    assert!(stage.engine.details(second.id).await.unwrap().is_live, "nothing was done again");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_rolled_back_to_is_said() {
    let mut stage = Stage::new().await;
    stage.work();
    let live = stage.deploy("first", Behaviour::good()).await;
    let failed = stage.deploy("second", Behaviour::good().unbuildable()).await;
    let refused = async |id| stage.engine.roll_back(RollbackRequest::to(id)).await.unwrap_err();
    assert!(matches!(refused(live.id).await, EngineError::LiveAlready { .. }));
    let never = refused(failed.id).await.to_string();
    assert!(never.contains("it was never live; it is Failed"), "{never}");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_was_added_later_has_no_data_to_go_back_to() {
    let mut stage = Stage::new().await;
    stage.work();
    let first = stage.deploy("first", Behaviour::good()).await;
    stage.deploy("second", Behaviour::good()).await;
    let two = shop().instance(InstanceSpec::new("admin").port(8070));
    stage.engine.save_environment(two).await.unwrap();
    let request = RollbackRequest::to(first.id);
    let refused = stage.engine.roll_back(request.clone()).await.unwrap_err().to_string();
    assert!(refused.contains("instance admin was added later"), "{refused}");
    assert!(refused.contains("roll back the code only"), "{refused}");

    // Asked for while there was one instance, it is refused all the same if there are two when its turn comes.
    stage.engine.save_environment(shop()).await.unwrap();
    stage.engine.pause("shop", "ada").await.unwrap();
    let asked = stage.engine.roll_back(request).await.unwrap().0.id;
    stage.engine.save_environment(shop().instance(InstanceSpec::new("admin").port(8070))).await.unwrap();
    stage.engine.resume("shop").await.unwrap();
    let late = stage.end(asked).await;
    assert_eq!(late.status(), Status::Failed);
    assert!(late.failure().unwrap().message.contains("instance admin was added later"));
    assert_eq!(stage.running().len(), 1, "what served goes on");
}

#[tokio::test(start_paused = true)]
async fn retention_keeps_what_is_wanted_and_removes_the_rest() {
    let spec = shop().policy(|policy| {
        policy.retention.snapshots_last = 2;
        policy.retention.snapshots_age = std::time::Duration::ZERO;
        policy.retention.images_last = 2;
    });
    let mut stage = Stage::with(spec, |builder| builder).await;
    stage.work();
    let mut ids = Vec::new();
    for n in 0..6 {
        let behaviour = if n % 2 == 0 { Behaviour::good() } else { Behaviour::good().unhealthy() };
        ids.push(stage.deploy(&n.to_string(), behaviour).await.id);
    }
    stage.shut_down().await;
    let kept: BTreeSet<_> =
        stage.engine.snapshots("shop").await.unwrap().into_iter().map(|it| it.deployment).collect();
    // The newest two deployments, and the live one, which is one of them.
    assert_eq!(kept, BTreeSet::from([ids[4], ids[5]]));
    let [checkouts, images, snapshots] = stage.world.counts();
    assert_eq!((checkouts, images, snapshots), (0, 2, 2));
}
