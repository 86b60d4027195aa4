//! Two and three sessions of the store, stepped through every order of their statements: what comes of it is what comes of
//! whole calls, one after the other, in the answers and in every row.
//!
//! A step goes from one seam to the next. Seams are before every statement, of the client's and of the schema's functions; in
//! statements that lock, when the snapshot is taken and the first row is found; and before the transaction ends. Orders that
//! differ in nothing that a session could notice are made once.
//!
//! By default the calls that meet most often, and some orders of three; `OCORE_STEPPED=every` steps all pairs of the calls of a
//! scene and every order of three. `OCORE_SEED` chooses other orders of three.

mod calls;
mod gate;
mod orders;
mod planted;
mod seams;
mod stage;

use std::collections::BTreeSet;

use self::{
    calls::{Call, Scene},
    orders::Orders,
    planted::{MISTAKES, Mistake},
    stage::{Run, Stage},
};

/// So many orders of three calls are made by default.
const SOME: usize = 40;

fn is_every() -> bool {
    std::env::var("OCORE_STEPPED").is_ok_and(|it| it == "every")
}

fn seed() -> u64 {
    std::env::var("OCORE_SEED").ok().and_then(|it| it.parse().ok()).unwrap_or(1)
}

/// What was seen in the orders of some calls.
#[derive(Debug, Default)]
struct Seen {
    orders: usize,
    /// How often one session waited for another's lock.
    waits: usize,
    outcomes: usize,
}

/// Makes the calls in these orders.
///
/// # Errors
/// The first order that comes to something else than whole calls do.
async fn step(
    stage: &mut Stage,
    calls: &[Call],
    mut orders: Orders,
    mistake: Option<&Mistake>,
) -> Result<Seen, String> {
    let allowed = stage.allowed(calls).await;
    if let Some(mistake) = mistake {
        stage.plant(mistake).await;
        assert_eq!(stage.allowed(calls).await, allowed, "{mistake:?}: whole calls do what they did before");
    }
    let (mut seen, mut outcomes) = (Seen::default(), BTreeSet::new());
    loop {
        if let Some(run) = stage.run(calls, &mut orders).await {
            if run.is_deadlock {
                return Err(in_words(&run, "they wait for each other"));
            }
            if !allowed.contains(&run.outcome) {
                let allowed: Vec<_> =
                    allowed.iter().map(|outcome| format!("{:#?}", outcome.answers)).collect();
                return Err(in_words(&run, &format!("whole calls answer {}", allowed.join("\nor "))));
            }
            (seen.orders, seen.waits) = (seen.orders + 1, seen.waits + run.waits);
            outcomes.insert(run.outcome);
        }
        if !orders.advance() {
            seen.outcomes = outcomes.len();
            return Ok(seen);
        }
    }
}

fn in_words(run: &Run, what: &str) -> String {
    let (steps, answers, rows) = (run.steps.join("\n"), &run.outcome.answers, &run.outcome.rows);
    format!("{what}\nbut in this order:\n{steps}\nthe answers are {answers:#?}\nand the rows {rows}")
}

/// Every order of these pairs; or of every two calls that are in them.
async fn pairs(scene: Scene, pairs: &[[Call; 2]]) {
    let mut pairs = pairs.to_vec();
    if is_every() {
        let calls: BTreeSet<Call> = pairs.concat().into_iter().collect();
        let all = calls.iter().flat_map(|one| calls.range(*one..).map(|other| [*one, *other]));
        pairs = all.collect();
    }
    let mut stage = Stage::build(scene, 2).await;
    let mut waits = 0;
    for pair in pairs {
        let seen = step(&mut stage, &pair, Orders::every(), None).await;
        let seen = seen.unwrap_or_else(|why| panic!("{scene:?}, {pair:?}: {why}"));
        assert!(seen.orders > 1, "{pair:?} do not meet");
        waits += seen.waits;
    }
    assert!(waits > 0, "nobody waited for another's lock");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_for_a_lane_that_waits_are_as_if_one_after_the_other() {
    use Call::{Cancel, Claim, Enqueue, Move, Pause, Push};
    let calls = [
        [Claim(2), Claim(3)],
        [Claim(2), Enqueue(4)],
        [Claim(2), Push(5)],
        [Claim(2), Cancel(1)],
        [Claim(2), Pause],
        [Claim(2), Move],
        [Enqueue(4), Enqueue(5)],
        [Enqueue(4), Push(5)],
        [Push(5), Cancel(3)],
    ];
    pairs(Scene::Free, &calls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_for_a_lane_that_is_worked_on_are_as_if_one_after_the_other() {
    use Call::{
        Append, Beat, Cancel, Claim, Continue, Enqueue, Finish, FreshFence, Pause, Release, Retire, Strand,
        Succeed,
    };
    let calls = [
        [Claim(2), Finish],
        [Beat, FreshFence],
        [Beat, Finish],
        [Beat, Retire],
        [Beat, Cancel(1)],
        [Continue, Continue],
        [Continue, Cancel(1)],
        [FreshFence, Append],
        [Finish, Finish],
        [Finish, Append],
        [Finish, Enqueue(4)],
        [Finish, Cancel(2)],
        [Finish, Pause],
        [Strand, Enqueue(4)],
        [Succeed, Cancel(1)],
        [Release, Cancel(1)],
    ];
    pairs(Scene::Held, &calls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_for_a_lane_whose_worker_is_lost_are_as_if_one_after_the_other() {
    use Call::{Append, Beat, Cancel, Claim, Continue, Finish, Release, Retire};
    let calls = [
        [Claim(2), Claim(3)],
        [Claim(2), Beat],
        [Claim(2), Continue],
        [Claim(2), Release],
        [Claim(2), Finish],
        [Claim(2), Append],
        [Claim(2), Retire],
        [Claim(2), Cancel(1)],
    ];
    pairs(Scene::Expired, &calls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_for_a_lane_that_waits_for_a_worker_are_as_if_one_after_the_other() {
    use Call::{Cancel, Claim, Move, Pause};
    let calls = [[Claim(2), Claim(3)], [Claim(2), Cancel(1)], [Claim(2), Move], [Claim(2), Pause]];
    pairs(Scene::Released, &calls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_for_a_lane_that_needs_a_person_are_as_if_one_after_the_other() {
    use Call::{Acknowledge, Claim, Enqueue, Recover};
    let calls = [
        [Claim(2), Acknowledge],
        [Claim(2), Recover(4)],
        [Acknowledge, Acknowledge],
        [Acknowledge, Recover(4)],
        [Recover(4), Recover(5)],
        [Recover(4), Enqueue(6)],
    ];
    pairs(Scene::Stranded, &calls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_about_snapshots_are_as_if_one_after_the_other() {
    use Call::{Claim, ForgetSnapshots, Keyed, Pin, RetireSnapshots, Rollback};
    let calls = [
        [Claim(2), Rollback(4)],
        [Claim(2), RetireSnapshots],
        [RetireSnapshots, Rollback(4)],
        [RetireSnapshots, Pin],
        [RetireSnapshots, ForgetSnapshots],
        [ForgetSnapshots, Pin],
        [Keyed(5), Keyed(6)],
    ];
    pairs(Scene::Ended, &calls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_calls_at_once_are_as_if_one_after_the_other() {
    use Call::{Append, Beat, Cancel, Claim, Enqueue, Finish, Pause, Retire};
    let calls = [
        (Scene::Free, [Claim(2), Claim(3), Pause]),
        (Scene::Held, [Retire, Beat, Append]),
        (Scene::Held, [Finish, Cancel(1), Enqueue(4)]),
        (Scene::Expired, [Claim(2), Beat, Claim(3)]),
        (Scene::Expired, [Claim(2), Beat, Append]),
        (Scene::Expired, [Claim(2), Claim(3), Finish]),
    ];
    for (scene, calls) in calls {
        let mut stage = Stage::build(scene, 3).await;
        let orders = if is_every() { Orders::every() } else { Orders::some(SOME, seed()) };
        let seen = step(&mut stage, &calls, orders, None).await;
        let seen = seen.unwrap_or_else(|why| panic!("{scene:?}, {calls:?}, OCORE_SEED={}: {why}", seed()));
        println!("{scene:?} {calls:?} {seen:?}");
        assert!(seen.waits > 0 && seen.outcomes > 1, "{calls:?} do not meet: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_the_usual_mistakes_is_found() {
    for (scene, calls, mistake) in MISTAKES {
        let mut stage = Stage::build(scene, 2).await;
        let found = step(&mut stage, &calls, Orders::every(), Some(&mistake)).await;
        let seen = found.err().unwrap_or_else(|| panic!("not found: {mistake:?}"));
        println!("{mistake:?}\n{seen}");
    }
}
