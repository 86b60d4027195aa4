//! Order, claims, superseding, pauses, attention.

use std::collections::BTreeSet;

use super::{
    Fixture,
    lab::{Lab, and_claim_next, at, environment, fail, go_on, name, release},
};
use crate::{
    environment::InstanceSpec,
    event::EventKind,
    id::{DeploymentId, Seq, WorkerId},
    machine::Status,
    name::{EnvironmentName, PoolName},
    port::{Acknowledged, Claimed, Committed, Enqueued, Finish, LaneQueue, Next, Saved, Worker},
    request::Trigger,
};

/// Deployments of a lane are started in the order in which they were accepted, and numbered by it.
pub async fn a_lane_keeps_the_order_of_acceptance(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let mut accepted = Vec::new();
    for _ in 0..4 {
        accepted.push(lab.manual(&lane).await);
    }
    let queue = lab.store.lane(&lane).await.expect("a lane can be read").expect("the lane is there");
    let waiting = accepted.iter().map(|id| (*id, None)).collect();
    assert_eq!(queue, LaneQueue { waiting, ..LaneQueue::default() });
    let worker = lab.worker().await;
    for (number, id) in (1..).zip(accepted) {
        let claim = lab.claim(&worker, &[]).await;
        assert_eq!((claim.deployment.id, claim.deployment.kept_by_store.seq), (id, Seq::new(number)));
        lab.finish(&worker, &claim).await;
    }
    lab.idle(&worker, &[]).await;
}

/// While a deployment is under way, nobody gets another one of its lane, and the lane shows it.
pub async fn one_deployment_of_a_lane_is_active(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let (first, second) = (lab.manual(&lane).await, lab.manual(&lane).await);
    let (worker, other) = (lab.worker().await, lab.worker().await);
    let mut claim = lab.claim(&worker, &[]).await;
    lab.idle(&other, &[]).await;
    lab.idle(&worker, std::slice::from_ref(&lane)).await;
    lab.go_on(&worker, &mut claim).await;
    lab.idle(&other, &[]).await;
    let queue = lab.store.lane(&lane).await.expect("a lane can be read").expect("the lane is there");
    let expected = LaneQueue { active: Some(first), waiting: vec![(second, None)], ..LaneQueue::default() };
    assert_eq!(queue, expected);
    let record = lab.environment(&lane).await;
    assert_eq!((record.active, record.queued, record.fence), (Some(first), 1, claim.fence));
}

/// Many clients that claim at the same time get each lane once.
pub async fn two_workers_never_claim_the_same_lane(fixture: impl Fixture) {
    let lab = Lab::new(fixture).await;
    let mut expected = BTreeSet::new();
    for number in 0..12 {
        let lane = lab.lane(&format!("lane-{number}")).await;
        expected.insert(lab.manual(&lane).await);
        lab.manual(&lane).await;
    }
    let mut clients = Vec::new();
    for _ in 0..4 {
        let (client, worker) = (lab.client().await, lab.worker().await);
        clients.push(tokio::spawn(async move {
            let (mut claimed, mut busy) = (Vec::new(), Vec::new());
            while let Claimed::Work(claim) = client.claim(&worker, &busy).await.expect("a claim is answered")
            {
                busy.push(claim.deployment.environment.clone());
                claimed.push(claim.deployment.id);
                assert!(claimed.len() < 100, "there are not that many lanes");
            }
            claimed
        }));
    }
    let mut claimed = Vec::new();
    for client in clients {
        claimed.extend(client.await.expect("a client does not panic"));
    }
    assert_eq!(claimed.len(), expected.len(), "each lane is claimed once");
    assert_eq!(claimed.into_iter().collect::<BTreeSet<_>>(), expected);
}

/// A claim, a rescue, a fresh fence and a successor each raise the fence; the lane shows the highest.
pub async fn the_fence_grows_with_every_claim(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    for _ in 0..2 {
        lab.manual(&lane).await;
    }
    let mut fences = vec![lab.environment(&lane).await.fence];
    let lost = lab.worker_for(1).await;
    fences.push(lab.claim(&lost, &[]).await.fence);
    lab.store.retire(lost.id).await.expect("a worker can retire");
    let worker = lab.worker().await;
    let mut claim = lab.claim(&worker, &[]).await;
    fences.push(claim.fence);
    let mut commit = go_on(&worker, &claim);
    commit.next = Next::Continue { fresh_fence: true };
    let Committed::Continued { fence, .. } = lab.write(&commit).await else { panic!("it goes on") };
    fences.push(fence);
    (claim.deployment, claim.fence) = (commit.deployment, fence);
    let commit = release(&worker, &claim, lab.units(0));
    assert_eq!(lab.write(&commit).await, Committed::Released);
    let claim = lab.claim(&worker, &[]).await;
    fences.push(claim.fence);
    let Committed::Finished { successor: Some(successor) } =
        lab.write(&fail(&worker, &claim, and_claim_next())).await
    else {
        panic!("there is a successor")
    };
    fences.push(successor.fence);
    assert!(fences.is_sorted_by(|a, b| a < b), "{fences:?}");
    assert_eq!(lab.environment(&lane).await.fence, successor.fence);
}

/// The lane that has waited longest is claimed first; one that has just had its turn comes last.
pub async fn lanes_take_turns(fixture: impl Fixture) {
    let lab = Lab::new(fixture).await;
    let mut lanes = Vec::new();
    for text in ["c", "a", "b"] {
        let lane = lab.lane(text).await;
        for _ in 0..2 {
            lab.manual(&lane).await;
        }
        lanes.push(lane);
    }
    let worker = lab.worker().await;
    for lane in lanes.iter().chain(&lanes) {
        let claim = lab.claim(&worker, &[]).await;
        assert_eq!(claim.deployment.environment, *lane);
        lab.finish(&worker, &claim).await;
    }
}

/// A worker gets lanes of its own pools only: free ones, waiting ones and abandoned ones. A lane whose
/// environment moves, with nothing deployed in it, goes to the workers of the new pool.
pub async fn a_worker_takes_only_from_its_pools(fixture: impl Fixture) {
    let lab = Lab::new(fixture).await;
    let far = PoolName::new("far").expect("a pool name");
    let there = environment("a", |spec| spec.pool("far").instance(InstanceSpec::new("web")));
    assert_eq!(lab.save(&there).await, Saved::Created);
    let first = lab.manual(&name("a")).await;
    let near = lab.worker().await;
    assert_eq!(lab.idle(&near, &[]).await, None);
    let mut distant = Worker::new(WorkerId::from_u128(7), vec![far, PoolName::default()], lab.units(100));
    lab.held(&distant).await;
    let claim = lab.claim(&distant, &[]).await;
    assert_eq!(claim.deployment.id, first);
    assert_eq!(lab.idle(&near, &[]).await, None, "the lease of another pool's worker is nobody's business");
    assert_eq!(lab.write(&release(&distant, &claim, lab.units(0))).await, Committed::Released);
    assert_eq!(lab.idle(&near, &[]).await, None);
    let claim = lab.claim(&distant, &[]).await;
    lab.store.retire(distant.id).await.expect("a worker can retire");
    assert_eq!(lab.idle(&near, &[]).await, None);
    distant.id = WorkerId::from_u128(8);
    distant.pools.pop();
    lab.held(&distant).await;
    let rescued = lab.claim(&distant, &[]).await;
    assert_eq!(rescued.deployment.id, first);
    lab.finish(&distant, &rescued).await;
    assert!(rescued.fence > claim.fence);
    let second = lab.manual(&name("a")).await;
    let here = environment("a", |spec| spec.instance(InstanceSpec::new("web")));
    assert_eq!(lab.save(&here).await, Saved::Updated);
    assert_eq!(lab.idle(&distant, &[]).await, None);
    assert_eq!(lab.claim(&near, &[]).await.deployment.id, second);
}

/// An enqueue that is made again answers with the first one's deployment, as it is now.
pub async fn a_repeated_enqueue_makes_nothing_new(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let new = lab.new_deployment(&lane, Trigger::Manual);
    let Enqueued::Accepted { deployment, superseded } = lab.try_enqueue(new.clone()).await else {
        panic!("it is accepted")
    };
    assert_eq!((deployment.status(), superseded), (Status::Queued, Vec::new()));
    assert_eq!((deployment.id, &deployment.request), (new.id, &new.request));
    assert_eq!((deployment.requested_at, deployment.kept_by_store.version), (at(0), 1));
    assert_eq!(lab.try_enqueue(new.clone()).await, Enqueued::Existing(deployment));
    assert_eq!(lab.environment(&lane).await.queued, 1);
    let worker = lab.worker().await;
    lab.make_live(&worker).await;
    let Enqueued::Existing(existing) = lab.try_enqueue(new).await else { panic!("it exists") };
    assert_eq!(existing.status(), Status::Running);
    lab.idle(&worker, &[]).await;
}

/// A key makes one deployment per environment, for ever.
pub async fn a_key_is_accepted_once(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let other = lab.lane("b").await;
    let with_key = |lane| {
        let mut new = lab.new_deployment(lane, Trigger::Api);
        new.request.key = Some("delivery-1".to_owned());
        new
    };
    let (first, elsewhere) = (with_key(&lane), with_key(&other));
    assert!(matches!(lab.try_enqueue(first.clone()).await, Enqueued::Accepted { .. }));
    assert!(matches!(lab.try_enqueue(elsewhere).await, Enqueued::Accepted { .. }));
    let worker = lab.worker().await;
    for _ in 0..2 {
        let Enqueued::Existing(existing) = lab.try_enqueue(with_key(&lane)).await else {
            panic!("the key was seen before")
        };
        assert_eq!(existing.id, first.id);
        if existing.status() == Status::Queued {
            lab.make_live(&worker).await;
        }
    }
    assert_eq!(lab.environment(&lane).await.queued, 0);
}

/// A push takes the place of the queued pushes before it. Both records say so, and so do the events.
pub async fn a_newer_push_supersedes_queued_pushes(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let old = lab.enqueue(&lane, Trigger::Push).await;
    let new = lab.new_deployment(&lane, Trigger::Push);
    let by = new.id;
    let Enqueued::Accepted { deployment, superseded } = lab.try_enqueue(new).await else {
        panic!("it is accepted")
    };
    assert_eq!((superseded, &deployment.superseded), (vec![old], &vec![old]));
    assert_eq!(lab.deployment(by).await, *deployment);
    let ended = lab.deployment(old).await;
    assert_eq!((ended.status(), ended.superseded_by()), (Status::Cancelled, Some(by)));
    assert_eq!((ended.finished_at, ended.kept_by_store.version), (Some(at(0)), 2));
    let events = lab.events(old).await;
    let told = events.last().map(|event| event.kind.clone());
    let Some(EventKind::Finished { status: Status::Cancelled, superseded_by, .. }) = told else {
        panic!("the end is not told: {told:?}")
    };
    assert_eq!(superseded_by, Some(by));
    let other = lab.lane("b").await;
    lab.manual(&other).await;
    let newest = lab.enqueue(&lane, Trigger::Push).await;
    let worker = lab.worker().await;
    assert_eq!(lab.claim(&worker, &[]).await.deployment.id, newest, "the lane keeps its place in the line");
}

/// A push supersedes neither what is under way, nor what a person asked for; nothing but a push supersedes; and
/// nothing does where the policy forbids it.
pub async fn nothing_but_a_queued_push_is_superseded(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    let begun = lab.enqueue(&lane, Trigger::Push).await;
    assert_eq!(lab.claim(&worker, &[]).await.deployment.id, begun);
    let mut expected = Vec::new();
    for trigger in
        [Trigger::Manual, Trigger::Api, Trigger::Retry { of: begun }, Trigger::Push, Trigger::Manual]
    {
        expected.push((lab.enqueue(&lane, trigger).await, None));
    }
    let queue = lab.store.lane(&lane).await.expect("a lane can be read").expect("the lane is there");
    assert_eq!((queue.active, queue.waiting), (Some(begun), expected));
    let patient = lab.lane_with("b", |policy| policy.supersede = false).await;
    lab.enqueue(&patient, Trigger::Push).await;
    lab.enqueue(&patient, Trigger::Push).await;
    assert_eq!(lab.environment(&patient).await.queued, 2);
}

/// No more deployments wait than the environment allows; a push that takes another's place needs none.
pub async fn a_full_queue_refuses(fixture: impl Fixture) {
    let lab = Lab::new(fixture).await;
    let lane = lab.lane_with("a", |policy| policy.queue_length_max = 2).await;
    lab.manual(&lane).await;
    let old = lab.enqueue(&lane, Trigger::Push).await;
    let refused = lab.try_enqueue(lab.new_deployment(&lane, Trigger::Manual)).await;
    assert_eq!(refused, Enqueued::Full { length_max: 2 });
    let new = lab.enqueue(&lane, Trigger::Push).await;
    assert_eq!(lab.deployment(old).await.superseded_by(), Some(new));
    let worker = lab.worker().await;
    lab.claim(&worker, &[]).await;
    lab.manual(&lane).await;
    assert_eq!(lab.environment(&lane).await.queued, 2);
}

/// The recovery of a stranded deployment is accepted into a full queue, which could not go on without it.
pub async fn a_recovery_fits_into_a_full_queue(fixture: impl Fixture) {
    let lab = Lab::new(fixture).await;
    let lane = lab.lane_with("a", |policy| policy.queue_length_max = 1).await;
    let worker = lab.worker().await;
    lab.manual(&lane).await;
    let stranded = lab.strand(&worker).await;
    lab.manual(&lane).await;
    let refused = lab.try_enqueue(lab.new_deployment(&lane, Trigger::Manual)).await;
    assert_eq!(refused, Enqueued::Full { length_max: 1 });
    let recovery = lab.enqueue(&lane, Trigger::Recovery { of: stranded }).await;
    assert_eq!(lab.claim(&worker, &[]).await.deployment.id, recovery);
}

/// What is not there is not there: no error, no deployment.
pub async fn an_unknown_environment_accepts_nothing(fixture: impl Fixture) {
    let lab = Lab::new(fixture).await;
    let nowhere = name("nowhere");
    let new = lab.new_deployment(&nowhere, Trigger::Manual);
    let stranded = new.id;
    assert_eq!(lab.try_enqueue(new).await, Enqueued::NoSuchEnvironment);
    let store = &lab.store;
    assert_eq!(store.deployment(stranded).await.expect("it can be asked for"), None);
    assert_eq!(store.lane(&nowhere).await.expect("it can be asked for"), None);
    assert_eq!(store.environment(&nowhere).await.expect("it can be asked for"), None);
    assert!(!store.set_paused(&nowhere, Some("ada".to_owned())).await.expect("it can be asked for"));
    assert_eq!(acknowledge(&lab, &nowhere, stranded).await, Acknowledged::NotWaiting);
    assert_eq!(store.snapshots(&nowhere).await.expect("it can be asked for"), Vec::new());
    assert_eq!(lab.events(stranded).await, Vec::new());
}

/// A paused environment starts nothing, not even as a successor; what is under way goes on, through waits and
/// rescues.
pub async fn a_paused_environment_starts_nothing(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    lab.manual(&lane).await;
    let waiting = lab.manual(&lane).await;
    let claim = lab.claim(&worker, &[]).await;
    pause(&lab, &lane, true).await;
    let released = release(&worker, &claim, lab.units(0));
    assert_eq!(lab.write(&released).await, Committed::Released);
    let claim = lab.claim(&worker, &[]).await;
    let finish = fail(&worker, &claim, and_claim_next());
    assert_eq!(lab.write(&finish).await, Committed::Finished { successor: None });
    assert_eq!(lab.idle(&worker, &[]).await, None);
    assert!(lab.environment(&lane).await.paused);
    pause(&lab, &lane, false).await;
    assert_eq!(lab.claim(&worker, &[]).await.deployment.id, waiting);
}

async fn pause<F: Fixture>(lab: &Lab<F>, lane: &EnvironmentName, paused: bool) {
    assert!(
        lab.store
            .set_paused(lane, paused.then(|| "ada".to_owned()))
            .await
            .expect("an environment can be paused")
    );
}

/// While the environment needs a person, only the recovery of what stranded is accepted and started, once, even if
/// the environment is paused; when it is over, the queue goes on.
pub async fn attention_stops_everything_but_the_recovery(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    let first = lab.manual(&lane).await;
    let waiting = lab.manual(&lane).await;
    let refused = lab.try_enqueue(lab.new_deployment(&lane, Trigger::Recovery { of: first })).await;
    assert_eq!(refused, Enqueued::NotWaiting, "nothing has stranded yet");
    let claim = lab.claim(&worker, &[]).await;
    let finish = Finish { attention: Some(true), ..and_claim_next() };
    let finished = lab.write(&fail(&worker, &claim, finish)).await;
    assert_eq!(finished, Committed::Finished { successor: None });
    assert_eq!(lab.environment(&lane).await.attention, Some(first));
    lab.idle(&worker, &[]).await;
    let other = lab.new_deployment(&lane, Trigger::Recovery { of: waiting });
    assert_eq!(lab.try_enqueue(other).await, Enqueued::NotWaiting);
    pause(&lab, &lane, true).await;
    let recovery = lab.enqueue(&lane, Trigger::Recovery { of: first }).await;
    let again = || lab.new_deployment(&lane, Trigger::Recovery { of: first });
    assert_eq!(lab.try_enqueue(again()).await, Enqueued::NotWaiting, "a recovery waits");
    let claim = lab.claim(&worker, &[]).await;
    assert_eq!(claim.deployment.id, recovery);
    assert_eq!(lab.try_enqueue(again()).await, Enqueued::NotWaiting, "a recovery is under way");
    pause(&lab, &lane, false).await;
    let finish = Finish { attention: Some(false), ..and_claim_next() };
    let finished = lab.write(&fail(&worker, &claim, finish)).await;
    let Committed::Finished { successor: Some(successor) } = finished else { panic!("{finished:?}") };
    assert_eq!((successor.deployment.id, lab.environment(&lane).await.attention), (waiting, None));
}

/// A recovery that strands is itself what the environment waits for, and what can be recovered.
pub async fn a_recovery_that_strands_is_waited_for(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    lab.manual(&lane).await;
    let first = lab.strand(&worker).await;
    let recovery = lab.enqueue(&lane, Trigger::Recovery { of: first }).await;
    assert_eq!(lab.strand(&worker).await, recovery);
    assert_eq!(lab.environment(&lane).await.attention, Some(recovery));
    let late = lab.new_deployment(&lane, Trigger::Recovery { of: first });
    assert_eq!(lab.try_enqueue(late).await, Enqueued::NotWaiting);
    let second = lab.enqueue(&lane, Trigger::Recovery { of: recovery }).await;
    assert_eq!(lab.claim(&worker, &[]).await.deployment.id, second);
}

/// A person can let the environment go on, once, and only while no recovery waits or is under way.
pub async fn an_acknowledged_environment_goes_on(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    lab.manual(&lane).await;
    let first = lab.strand(&worker).await;
    let waiting = lab.manual(&lane).await;
    assert_eq!(acknowledge(&lab, &lane, waiting).await, Acknowledged::NotWaiting);
    let recovery = lab.enqueue(&lane, Trigger::Recovery { of: first }).await;
    assert_eq!(acknowledge(&lab, &lane, first).await, Acknowledged::NotWaiting, "a recovery waits");
    let claim = lab.claim(&worker, &[]).await;
    assert_eq!(acknowledge(&lab, &lane, first).await, Acknowledged::NotWaiting, "one is under way");
    let finish = Finish { attention: Some(true), ..Finish::default() };
    lab.write(&fail(&worker, &claim, finish)).await;
    lab.idle(&worker, &[]).await;
    assert_eq!(acknowledge(&lab, &lane, recovery).await, Acknowledged::Done);
    assert_eq!(acknowledge(&lab, &lane, recovery).await, Acknowledged::NotWaiting, "it goes on already");
    assert_eq!(lab.claim(&worker, &[]).await.deployment.id, waiting);
}

/// Who acknowledged is in the log of what stranded. Until a deployment ends Running, the environment and every claim of
/// it tell of what was acknowledged, and no snapshot is retired.
pub async fn what_was_acknowledged_is_remembered_until_something_runs(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    lab.manual(&lane).await;
    let first = lab.strand(&worker).await;
    acknowledge(&lab, &lane, first).await;
    let told = lab.events(first).await.pop().map(|event| event.kind);
    assert_eq!(told, Some(EventKind::Acknowledged { actor: "eve".to_owned() }));
    lab.manual(&lane).await;
    let second = lab.strand(&worker).await;
    assert_eq!(lab.environment(&lane).await.acknowledged, [first]);
    acknowledge(&lab, &lane, second).await;
    lab.manual(&lane).await;
    let claim = lab.claim(&worker, &[]).await;
    assert_eq!(claim.acknowledged, [first, second]);
    lab.write(&fail(&worker, &claim, Finish::default())).await;
    assert_eq!(lab.environment(&lane).await.acknowledged, [first, second]);

    let running = lab.manual(&lane).await;
    let waiting = lab.manual(&lane).await;
    let claim = lab.claim(&worker, &[]).await;
    assert_eq!(claim.deployment.id, running);
    let verdict = Finish { verdict: true, ..and_claim_next() };
    let Committed::Finished { successor: Some(successor) } = lab.write(&fail(&worker, &claim, verdict)).await
    else {
        panic!("there is a successor");
    };
    assert_eq!((successor.deployment.id, successor.acknowledged), (waiting, Vec::new()));
    assert_eq!(lab.environment(&lane).await.acknowledged, Vec::new());
}

async fn acknowledge<F: Fixture>(
    lab: &Lab<F>,
    lane: &EnvironmentName,
    stranded: DeploymentId,
) -> Acknowledged {
    lab.store.acknowledge(lane, stranded, "eve", at(9)).await.expect("an acknowledgement is answered")
}
