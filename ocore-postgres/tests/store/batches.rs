//! Commits of many lanes at the same time, which are written together.

use std::time::Duration;

use futures::future::join_all;
use ocore_core::{
    name::InstanceName,
    port::{
        Claim, Claimed, Commit, Committed, Finish, Next, QueueStore as _, SnapshotRecord, SnapshotStore as _,
        Worker,
    },
    release::Snapshot,
    testing::laws::store::lab,
};
use ocore_postgres::store::PostgresStore;
use sqlx::Connection as _;

use crate::place::{Place, enqueue, save, worker};

const LANES: u64 = 24;

/// A worker that holds every lane.
async fn at_work(store: &PostgresStore) -> (Worker, Vec<Claim>) {
    let own = worker(store, 100).await;
    let mut claims: Vec<Claim> = Vec::new();
    for lane in 0..LANES {
        save(store, &format!("lane-{lane}")).await;
        enqueue(store, lane + 1, &format!("lane-{lane}")).await;
        let busy: Vec<_> = claims.iter().map(|claim| claim.environment.name().clone()).collect();
        match store.claim(&own, &busy).await.expect("the store answers") {
            Claimed::Work(claim) => claims.push(*claim),
            other => panic!("there is a free lane: {other:?}"),
        }
    }
    (own, claims)
}

fn finish(worker: &Worker, claim: &Claim) -> Commit {
    lab::fail(worker, claim, Finish::default())
}

fn continued(answer: &Committed) -> bool {
    matches!(answer, Committed::Continued { .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_somebody_has_locked_holds_up_no_other_lane() {
    let place = Place::new();
    let store = place.open().await;
    let (own, claims) = at_work(&store).await;
    let mut host = place.connect().await;
    let mut transaction = host.begin().await.unwrap();
    let lock = place.text("SELECT 1 FROM ocore.lanes WHERE name = 'lane-0' FOR UPDATE");
    sqlx::raw_sql(lock).execute(&mut *transaction).await.unwrap();
    let stuck = tokio::spawn({
        let (store, commit) = (store.clone(), finish(&own, &claims[0]));
        async move { store.commit(&commit).await }
    });
    for _ in 0..3 {
        let commits: Vec<_> = claims[1..].iter().map(|claim| lab::go_on(&own, claim)).collect();
        let answers = join_all(commits.iter().map(|commit| store.commit(commit)));
        let answers = tokio::time::timeout(Duration::from_secs(20), answers).await.expect("they do not wait");
        assert!(answers.iter().all(|answer| continued(answer.as_ref().unwrap())), "{answers:?}");
    }
    assert!(!stuck.is_finished(), "the lane is locked");
    transaction.commit().await.unwrap();
    assert_eq!(stuck.await.unwrap().unwrap(), Committed::Finished { successor: None });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_cannot_work_fails_alone() {
    let place = Place::new();
    let store = place.open().await;
    let (own, claims) = at_work(&store).await;
    let commits: Vec<_> = claims.iter().map(|claim| lab::go_on(&own, claim)).collect();
    let with_snapshot = |mut commit: Commit, reference: &str| {
        let snapshot = Snapshot::new(reference.to_owned(), lab::at(0), 1);
        let (deployment, instance) = (commit.deployment.id, InstanceName::new("web").unwrap());
        let lane = commit.deployment.environment.clone();
        commit.snapshots.push(SnapshotRecord::new(lane, deployment, instance, snapshot, None));
        commit
    };
    let commits: Vec<_> = (0..)
        .zip(commits)
        .map(|(number, commit)| {
            // PostgreSQL's texts hold no NUL.
            with_snapshot(commit, &if number == 20 { "\0".to_owned() } else { format!("snapshot-{number}") })
        })
        .collect();
    let answers = join_all(commits.iter().map(|commit| store.commit(commit))).await;
    for (number, answer) in answers.iter().enumerate() {
        match answer {
            Ok(answer) => assert!(continued(answer) && number != 20, "{number}: {answer:?}"),
            Err(error) => assert_eq!(number, 20, "{error}"),
        }
        let taken = store.snapshots(claims[number].environment.name()).await.unwrap();
        let taken: Vec<_> = taken.into_iter().map(|it| it.snapshot.reference).collect();
        let expected = if number == 20 { Vec::new() } else { vec![format!("snapshot-{number}")] };
        assert_eq!(taken, expected, "each lane has its own");
    }
    // Made again, each is answered as the first time.
    let again = join_all(commits.iter().map(|commit| store.commit(commit))).await;
    for (first, again) in answers.iter().zip(&again) {
        assert_eq!(first.as_ref().ok(), again.as_ref().ok());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_commit_among_others_changes_nothing() {
    let place = Place::new();
    let store = place.open().await;
    let (own, claims) = at_work(&store).await;
    let others = worker(&store, 200).await;
    let commits: Vec<_> = (0..)
        .zip(&claims)
        .map(|(number, claim)| match number % 3 {
            0 => finish(&others, claim),
            1 => Commit::new(
                own.id,
                claim.fence,
                finish(&own, claim).deployment,
                Next::Continue { fresh_fence: true },
            ),
            _ => finish(&own, claim),
        })
        .collect();
    let answers = join_all(commits.iter().map(|commit| store.commit(commit))).await;
    for (number, answer) in answers.into_iter().enumerate() {
        match (number % 3, answer.unwrap()) {
            (0, Committed::Fenced) | (2, Committed::Finished { successor: None }) => {}
            (1, Committed::Continued { fence, cancel: false }) => assert!(fence > claims[number].fence),
            (_, other) => panic!("{number}: {other:?}"),
        }
    }
    let active = place.count("SELECT count(*) FROM ocore.lanes WHERE active IS NOT NULL").await;
    assert_eq!(active, i64::try_from(LANES * 2 / 3).unwrap());
}
