//! Random calls by several clients: the server and the in-memory model must answer the same.

use std::{fmt::Debug, sync::Arc, time::Duration};

use ocore_core::{
    environment::InstanceSpec,
    event::NewEvent,
    id::{DeploymentId, EventSeq, WorkerId},
    name::{EnvironmentName, InstanceName, PoolName},
    port::{
        Beat, Claim, Claimed, Commit, Committed, Filter, Finish, LogLimit, Next, SnapshotPin, SnapshotRecord,
        Store, StoreResult, Worker,
    },
    release::Snapshot,
    request::Trigger,
    testing::{
        clock::ManualClock,
        laws::store::{Fixture as _, lab},
        memory::MemoryStore,
    },
};
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use tokio::runtime::Runtime;

use super::InSchema;
use crate::store::PostgresStore;

const LANES: [&str; 3] = ["a", "b", "c"];
const WORKERS: usize = 3;

/// A call. Numbers choose among what there is, counted around.
#[derive(Debug, Clone)]
enum Call {
    Save { lane: usize, port: u16, pool: bool, supersede: bool },
    Enqueue { lane: usize, trigger: u8, target: usize, key: Option<u8>, again: bool },
    Beat { worker: usize },
    Claim { worker: usize, forgetful: bool },
    Commit { claim: usize, next: u8, flags: u8, again: bool },
    Append { claim: usize, lines: usize },
    Cancel { deployment: usize },
    Retire { worker: usize },
    Pause { lane: usize, paused: bool },
    Acknowledge { lane: usize },
    RetireSnapshots { lane: usize, at: i64 },
    ForgetSnapshots { lane: usize },
    PinSnapshots { lane: usize, deployment: usize, ends: Option<i64>, unpin: bool },
    Pass { seconds: u64 },
}

fn call() -> impl Strategy<Value = Call> {
    let lane = || 0..LANES.len();
    let one = || any::<prop::sample::Index>().prop_map(|index| index.index(1 << 16));
    prop_oneof![
        1 => (lane(), 80..84u16, any::<bool>(), any::<bool>())
            .prop_map(|(lane, port, pool, supersede)| Call::Save { lane, port, pool, supersede }),
        6 => (lane(), 0..6u8, one(), prop::option::of(0..4u8), prop::bool::weighted(0.1))
            .prop_map(|(lane, trigger, target, key, again)| Call::Enqueue { lane, trigger, target, key, again }),
        2 => (0..WORKERS).prop_map(|worker| Call::Beat { worker }),
        6 => (0..WORKERS, prop::bool::weighted(0.1))
            .prop_map(|(worker, forgetful)| Call::Claim { worker, forgetful }),
        8 => (one(), 0..8u8, any::<u8>(), prop::bool::weighted(0.2))
            .prop_map(|(claim, next, flags, again)| Call::Commit { claim, next, flags, again }),
        2 => (one(), 1..5usize).prop_map(|(claim, lines)| Call::Append { claim, lines }),
        2 => one().prop_map(|deployment| Call::Cancel { deployment }),
        1 => (0..WORKERS).prop_map(|worker| Call::Retire { worker }),
        1 => (lane(), any::<bool>()).prop_map(|(lane, paused)| Call::Pause { lane, paused }),
        1 => lane().prop_map(|lane| Call::Acknowledge { lane }),
        1 => (lane(), 0..4i64).prop_map(|(lane, at)| Call::RetireSnapshots { lane, at }),
        1 => lane().prop_map(|lane| Call::ForgetSnapshots { lane }),
        2 => (lane(), one(), prop::option::of(0..4i64), any::<bool>()).prop_map(
            |(lane, deployment, ends, unpin)| Call::PinSnapshots { lane, deployment, ends, unpin }
        ),
        3 => (0..6u64).prop_map(|seconds| Call::Pass { seconds }),
    ]
}

/// Which calls come is chance alone: what they may do is the stores' own business.
struct Calls;

impl ReferenceStateMachine for Calls {
    type State = ();
    type Transition = Call;

    fn init_state() -> BoxedStrategy<()> {
        Just(()).boxed()
    }

    fn transitions((): &()) -> BoxedStrategy<Call> {
        call().boxed()
    }

    fn apply((): (), _: &Call) {}
}

/// The model, and two clients of the server.
struct Both {
    runtime: Runtime,
    server: InSchema,
    clock: ManualClock,
    model: MemoryStore,
    clients: [PostgresStore; 2],
    calls: usize,
    applied: usize,
    drawn: u64,
    workers: Vec<Worker>,
    deployments: Vec<DeploymentId>,
    /// The claims that were given, old ones included: late workers use them.
    claims: Vec<(WorkerId, Claim)>,
    commits: Vec<Commit>,
}

impl Both {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let server = runtime.block_on(InSchema::new());
        let clock = ManualClock::new(1);
        let model = MemoryStore::new(Arc::new(clock.clone()));
        let clients = runtime.block_on(async { [server.open().await, server.open().await] });
        let mut both = Self {
            runtime,
            server,
            clock,
            model,
            clients,
            calls: 0,
            applied: 0,
            drawn: 0,
            workers: Vec::new(),
            deployments: Vec::new(),
            claims: Vec::new(),
            commits: Vec::new(),
        };
        for lane in LANES {
            let environment = lab::environment(lane, |spec| spec);
            both.same(async |store| store.save_environment(&environment).await);
        }
        for _ in 0..WORKERS {
            let worker = both.fresh_worker();
            both.workers.push(worker);
        }
        both
    }

    /// Calls both stores. Their answers must be the same.
    fn same<T: PartialEq + Debug>(&mut self, call: impl AsyncFn(&dyn Store) -> StoreResult<T>) -> T {
        self.calls += 1;
        let client = &self.clients[self.calls % 2];
        let expected = self.runtime.block_on(call(&self.model)).expect("the model answers");
        let found = self.runtime.block_on(call(client)).expect("the server answers");
        assert_eq!(found, expected, "the server differs from the model");
        expected
    }

    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.drawn
    }

    fn fresh_worker(&mut self) -> Worker {
        let id = WorkerId::from_u128(u128::from(self.draw()));
        let worker = Worker::new(id, vec![PoolName::default()], Duration::from_secs(5));
        self.same(async |store| store.heartbeat(&worker).await);
        worker
    }

    fn enqueue(&mut self, lane: usize, trigger: u8, target: usize, key: Option<u8>, again: bool) {
        let lane = lab::name(LANES[lane]);
        let target = pick(&self.deployments, target).copied().unwrap_or_else(|| lab::id(1));
        let record = self.same(async |store| store.environment(&lane).await);
        let stranded = record.and_then(|record| record.attention).unwrap_or(target);
        let trigger = match trigger {
            0 | 1 => Trigger::Push,
            2 => Trigger::Manual,
            3 => Trigger::Rollback { to: target },
            4 => Trigger::Retry { of: target },
            _ => Trigger::Recovery { of: stranded },
        };
        let number = self.draw();
        let mut new = lab::new_deployment(number, &lane, trigger);
        if again {
            new.id = target;
        }
        new.request.key = key.map(|key| format!("key {key}"));
        self.deployments.push(new.id);
        let at = lab::at(i64::try_from(number).unwrap());
        self.same(async |store| store.enqueue(new.clone(), at).await);
    }

    fn claim(&mut self, worker: usize, forgetful: bool) {
        let own = self.workers[worker].clone();
        let held = self.same(async |store| store.heartbeat(&own).await);
        let busy: Vec<EnvironmentName> = match held {
            Beat::Alive(held) if !forgetful => held.into_iter().map(|held| held.environment).collect(),
            _ => Vec::new(),
        };
        match self.same(async |store| store.claim(&own, &busy).await) {
            Claimed::Work(claim) => self.claims.push((own.id, *claim)),
            Claimed::Expired => self.workers[worker] = self.fresh_worker(),
            _ => {}
        }
    }

    fn commit(&mut self, claim: usize, next: u8, flags: u8, again: bool) {
        if again && !self.commits.is_empty() {
            let commit = pick(&self.commits, claim).cloned().unwrap();
            self.same(async |store| store.commit(&commit).await);
            return;
        }
        let recent = self.claims.len().saturating_sub(4);
        let Some((worker, claim)) = pick(&self.claims[recent..], claim).cloned() else { return };
        let mut commit = self.next_commit(worker, &claim, next, flags);
        // A worker that commits again after the same claim says the same again.
        if let Some(before) = self.commits.iter().find(|before| is_again(before, &commit)) {
            commit = before.clone();
        }
        let committed = self.same(async |store| store.commit(&commit).await);
        self.commits.push(commit.clone());
        match committed {
            Committed::Continued { fence, .. } => {
                let mut claim = claim;
                (claim.deployment, claim.fence) = (commit.deployment, fence);
                self.claims.push((worker, claim));
            }
            Committed::Finished { successor: Some(successor) } => self.claims.push((worker, *successor)),
            _ => {}
        }
    }

    fn next_commit(&mut self, worker: WorkerId, claim: &Claim, next: u8, flags: u8) -> Commit {
        let flag = |bit: u8| flags & (1 << bit) != 0;
        let holder = Worker::new(worker, Vec::new(), Duration::ZERO);
        let id = claim.deployment.id;
        let mut finish = Finish::default();
        finish.claim_next = flag(0);
        finish.attention = flag(1).then_some(flag(2));
        let mut commit = match next {
            0..3 => lab::go_on(&holder, claim),
            3 => lab::release(&holder, claim, Duration::from_secs(u64::from(flags % 8))),
            4 | 5 => lab::fail(&holder, claim, finish),
            _ => {
                let mut commit = lab::succeed(&holder, claim, &lab::live(&claim.environment, id));
                if let Next::Finish(finish) = &mut commit.next {
                    finish.claim_next = flag(0);
                }
                commit
            }
        };
        if let Next::Continue { fresh_fence } = &mut commit.next {
            *fresh_fence = flag(0);
        }
        commit.log_limit = limit();
        commit.events = self.lines(usize::from(flags % 3));
        if flag(3) {
            let instance = InstanceName::new("web").unwrap();
            let snapshot =
                Snapshot::new(format!("{}-{}", id.short(), flags % 2), lab::at(0), u64::from(flags));
            let lane = claim.deployment.environment.clone();
            commit.snapshots.push(SnapshotRecord::new(lane, id, instance, snapshot, None));
        }
        commit
    }

    fn lines(&mut self, count: usize) -> Vec<NewEvent> {
        (0..count).map(|_| lab::line(&"x".repeat(usize::try_from(self.draw() % 70).unwrap()))).collect()
    }

    fn append(&mut self, claim: usize, lines: usize) {
        let Some((_, claim)) = pick(&self.claims, claim).cloned() else { return };
        let (lane, id) = (claim.deployment.environment, claim.deployment.id);
        let lines = self.lines(lines);
        self.same(async |store| store.append(&lane, id, claim.fence, lines.clone(), limit()).await);
    }

    fn call(&mut self, call: Call) {
        match call {
            Call::Save { lane, port, pool, supersede } => {
                let pool = if pool { "default" } else { "far" };
                let environment = lab::environment(LANES[lane], |spec| {
                    let spec = spec.pool(pool).instance(InstanceSpec::new("web").port(port));
                    spec.policy(|policy| (policy.supersede, policy.queue_length_max) = (supersede, 4))
                });
                self.same(async |store| store.save_environment(&environment).await);
            }
            Call::Enqueue { lane, trigger, target, key, again } => {
                self.enqueue(lane, trigger, target, key, again);
            }
            Call::Beat { worker } => {
                let own = self.workers[worker].clone();
                if self.same(async |store| store.heartbeat(&own).await) == Beat::Expired {
                    self.workers[worker] = self.fresh_worker();
                }
            }
            Call::Claim { worker, forgetful } => self.claim(worker, forgetful),
            Call::Commit { claim, next, flags, again } => self.commit(claim, next, flags, again),
            Call::Append { claim, lines } => self.append(claim, lines),
            Call::Cancel { deployment } => {
                let Some(id) = pick(&self.deployments, deployment).copied() else { return };
                self.same(async |store| store.request_cancel(id, "ada", lab::at(9)).await);
            }
            Call::Retire { worker } => {
                let id = self.workers[worker].id;
                self.same(async |store| store.retire(id).await);
            }
            Call::Pass { seconds } => {
                self.clock.advance(Duration::from_secs(seconds));
                self.runtime.block_on(self.server.pass(Duration::from_secs(seconds)));
            }
            Call::Pause { lane, paused } => {
                self.same(async |store| {
                    store.set_paused(&lab::name(LANES[lane]), paused.then(|| "ada".to_owned())).await
                });
            }
            Call::Acknowledge { lane } => {
                let lane = lab::name(LANES[lane]);
                let record = self.same(async |store| store.environment(&lane).await);
                let Some(stranded) = record.and_then(|record| record.attention) else { return };
                self.same(async |store| store.acknowledge(&lane, stranded, "eve", lab::at(9)).await);
            }
            Call::RetireSnapshots { lane, at } => {
                let lane = lab::name(LANES[lane]);
                let some = self.some_snapshots(&lane);
                self.same(async |store| {
                    let mut retired = store.retire_snapshots(&lane, &some, lab::at(at)).await?;
                    retired.sort();
                    Ok(retired)
                });
            }
            Call::ForgetSnapshots { lane } => {
                let lane = lab::name(LANES[lane]);
                let some = self.some_snapshots(&lane);
                self.same(async |store| store.forget_snapshots(&lane, &some).await);
            }
            Call::PinSnapshots { lane, deployment, ends, unpin } => {
                let lane = lab::name(LANES[lane]);
                let all = self.same(async |store| store.snapshots(&lane).await);
                let taken: Vec<_> = all.iter().map(|it| it.deployment).collect();
                let Some(id) =
                    pick(&taken, deployment).or_else(|| pick(&self.deployments, deployment)).copied()
                else {
                    return;
                };
                let mut pin = SnapshotPin::new("ada", "the books are closed", lab::at(0));
                pin.until = ends.map(lab::at);
                if unpin {
                    pin = pin.unpinned("bob", lab::at(1) - SnapshotPin::GRACE);
                }
                self.same(async |store| store.pin_snapshots(&lane, id, &pin).await);
            }
        }
    }

    fn some_snapshots(&mut self, lane: &EnvironmentName) -> Vec<String> {
        let all = self.same(async |store| store.snapshots(lane).await);
        all.into_iter().step_by(2).map(|it| it.snapshot.reference).collect()
    }

    /// Everything that can be seen is the same.
    fn compare(&mut self) {
        self.same(async |store| store.environments().await);
        let page = self.same(async |store| store.history(&Filter::default(), None, 100).await);
        for deployment in page.deployments.iter().take(3) {
            self.same(async |store| store.events(deployment.id, EventSeq::default(), 1000).await);
        }
        for lane in LANES.map(lab::name) {
            self.same(async |store| store.lane(&lane).await);
            self.same(async |store| store.snapshots(&lane).await);
            let filter = Filter::environment(lane);
            self.same(async |store| store.history(&filter, None, 5).await);
        }
    }
}

fn is_again(before: &Commit, commit: &Commit) -> bool {
    let place = |commit: &Commit| (commit.deployment.id, commit.deployment.kept_by_store.version);
    (before.worker, before.fence, place(before)) == (commit.worker, commit.fence, place(commit))
}

/// Small, so that logs are cut.
const fn limit() -> LogLimit {
    LogLimit::new(150, 200)
}

/// One of the list, counted around.
fn pick<T>(list: &[T], number: usize) -> Option<&T> {
    list.get(number.checked_rem(list.len())?)
}

struct Agreement;

impl StateMachineTest for Agreement {
    type SystemUnderTest = Both;
    type Reference = Calls;

    fn init_test((): &()) -> Both {
        Both::new()
    }

    fn apply(mut both: Both, (): &(), call: Call) -> Both {
        both.call(call);
        // The answers are compared always; everything else now and then, and at the end.
        both.applied += 1;
        if both.applied.is_multiple_of(5) {
            both.compare();
        }
        both
    }

    fn teardown(mut both: Both, (): ()) {
        both.compare();
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig {
        cases: 16, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn the_server_answers_as_the_model(sequential 20..90 => Agreement);
}

/// The calls are worth comparing: they claim, finish, hand over, cancel and strand.
#[test]
fn the_calls_reach_what_matters() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let (mut finished, mut repeated, mut rescued, mut stranded) = (0, 0, 0, 0);
    for _ in 0..12 {
        let mut both = Both::new();
        for _ in 0..100 {
            let call = call().new_tree(&mut runner).unwrap().current();
            repeated += usize::from(matches!(call, Call::Commit { again: true, .. }));
            both.call(call);
        }
        rescued += both.claims.iter().filter(|(_, claim)| claim.lost_worker).count();
        let page = both.same(async |store| store.history(&Filter::default(), None, 1000).await);
        finished += page.deployments.iter().filter(|it| it.live().is_some()).count();
        let all = both.same(async |store| store.environments().await);
        stranded += all.iter().filter(|record| record.attention.is_some()).count();
    }
    assert!(
        finished > 10 && repeated > 20 && rescued > 10 && stranded > 1,
        "{finished} finished, {repeated} repeated, {rescued} rescued, {stranded} stranded"
    );
}
