//! Random calls by several clients: a store and the in-memory model must answer the same.
//!
//! Which calls come is for the caller to draw, as lists of numbers: what makes tests shrink stays with whoever has it.

use std::{fmt::Debug, sync::Arc, time::Duration};

use crate::{
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
        laws::store::{Fixture, lab},
        memory::MemoryStore,
    },
};

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

/// Numbers that were drawn, each below 65,536.
struct Drawn(std::array::IntoIter<u16, 6>);

impl Drawn {
    /// The next number, below this.
    fn below(&mut self, end: u16) -> u16 {
        self.0.next().unwrap_or_default() % end
    }

    fn one_in(&mut self, times: u16) -> bool {
        self.below(times) == times - 1
    }

    /// The next number, to choose with from a list.
    fn pick(&mut self) -> usize {
        usize::from(self.0.next().unwrap_or_default())
    }

    fn lane(&mut self) -> usize {
        self.pick() % LANES.len()
    }

    fn worker(&mut self) -> usize {
        self.pick() % WORKERS
    }

    fn small(&mut self, end: u8) -> u8 {
        u8::try_from(self.below(u16::from(end))).unwrap_or_default()
    }
}

impl Call {
    /// The call that these numbers mean.
    fn of(numbers: [u16; 6]) -> Self {
        let mut it = Drawn(numbers.into_iter());
        match it.below(37) {
            0..3 => Self::Pass { seconds: it.below(6).into() },
            3..9 => {
                let (lane, trigger, target) = (it.lane(), it.small(6), it.pick());
                let key = it.small(8);
                Self::Enqueue { lane, trigger, target, key: (key < 4).then_some(key), again: it.one_in(10) }
            }
            9..15 => Self::Claim { worker: it.worker(), forgetful: it.one_in(10) },
            15..23 => {
                let (claim, next, flags) = (it.pick(), it.small(8), it.small(u8::MAX));
                Self::Commit { claim, next, flags, again: it.one_in(5) }
            }
            23 | 24 => Self::Beat { worker: it.worker() },
            25 | 26 => Self::Append { claim: it.pick(), lines: 1 + it.pick() % 4 },
            27 | 28 => Self::Cancel { deployment: it.pick() },
            29 => Self::Retire { worker: it.worker() },
            30 => Self::Pause { lane: it.lane(), paused: it.one_in(2) },
            31 => Self::Acknowledge { lane: it.lane() },
            32 => Self::RetireSnapshots { lane: it.lane(), at: it.below(4).into() },
            33 => Self::ForgetSnapshots { lane: it.lane() },
            34 | 35 => {
                let (lane, deployment, ends) = (it.lane(), it.pick(), it.below(8));
                let ends = (ends < 4).then_some(ends.into());
                Self::PinSnapshots { lane, deployment, ends, unpin: it.one_in(2) }
            }
            _ => {
                let (lane, port) = (it.lane(), 80 + it.below(4));
                Self::Save { lane, port, pool: it.one_in(2), supersede: it.one_in(2) }
            }
        }
    }
}

/// Makes the calls that the numbers mean, and compares: the answers always, everything that can be seen after every
/// `compare_every` calls and at the end.
///
/// # Panics
/// If the store differs from the model.
pub async fn agree<F: Fixture>(fixture: F, calls: &[[u16; 6]], compare_every: usize) {
    let mut both = Both::new(fixture).await;
    for (number, call) in (1..).zip(calls) {
        both.make(Call::of(*call)).await;
        if usize::is_multiple_of(number, compare_every) {
            both.compare().await;
        }
    }
    both.compare().await;
}

/// The model, and two clients of the store.
struct Both<F> {
    fixture: F,
    clock: ManualClock,
    model: MemoryStore,
    clients: [Arc<dyn Store>; 2],
    made: usize,
    calls: Vec<Call>,
    drawn: u64,
    workers: Vec<Worker>,
    deployments: Vec<DeploymentId>,
    /// The claims that were given, old ones included: late workers use them.
    claims: Vec<(WorkerId, Claim)>,
    commits: Vec<Commit>,
}

impl<F: Fixture> Both<F> {
    async fn new(fixture: F) -> Self {
        let clock = ManualClock::new(1);
        let model = MemoryStore::new(Arc::new(clock.clone()));
        let clients = [fixture.client().await, fixture.client().await];
        let mut both = Self {
            fixture,
            clock,
            model,
            clients,
            made: 0,
            calls: Vec::new(),
            drawn: 0,
            workers: Vec::new(),
            deployments: Vec::new(),
            claims: Vec::new(),
            commits: Vec::new(),
        };
        for lane in LANES {
            let environment = lab::environment(lane, |spec| spec);
            both.same(async |store| store.save_environment(&environment).await).await;
        }
        for _ in 0..WORKERS {
            let worker = both.fresh_worker().await;
            both.workers.push(worker);
        }
        both
    }

    /// Calls both stores. Their answers must be the same.
    async fn same<T: PartialEq + Debug>(&mut self, call: impl AsyncFn(&dyn Store) -> StoreResult<T>) -> T {
        self.made += 1;
        let client = &self.clients[self.made % 2];
        let expected = call(&self.model).await.expect("the model answers");
        let found = call(&**client).await.expect("the store answers");
        assert_eq!(found, expected, "the store differs from the model in the last of {:#?}", self.calls);
        expected
    }

    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.drawn
    }

    async fn fresh_worker(&mut self) -> Worker {
        let id = WorkerId::from_u128(u128::from(self.draw()));
        let worker = Worker::new(id, vec![PoolName::default()], Duration::from_secs(5));
        self.same(async |store| store.heartbeat(&worker).await).await;
        worker
    }

    async fn enqueue(&mut self, lane: usize, trigger: u8, target: usize, key: Option<u8>, again: bool) {
        let lane = lab::name(LANES[lane]);
        let target = pick(&self.deployments, target).copied().unwrap_or_else(|| lab::id(1));
        let record = self.same(async |store| store.environment(&lane).await).await;
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
        let at = lab::at(i64::try_from(number).unwrap_or(i64::MAX));
        self.same(async |store| store.enqueue(new.clone(), at).await).await;
    }

    async fn claim(&mut self, worker: usize, forgetful: bool) {
        let own = self.workers[worker].clone();
        let held = self.same(async |store| store.heartbeat(&own).await).await;
        let busy: Vec<EnvironmentName> = match held {
            Beat::Alive(held) if !forgetful => held.into_iter().map(|held| held.environment).collect(),
            _ => Vec::new(),
        };
        match self.same(async |store| store.claim(&own, &busy).await).await {
            Claimed::Work(claim) => self.claims.push((own.id, *claim)),
            Claimed::Expired => self.workers[worker] = self.fresh_worker().await,
            _ => {}
        }
    }

    async fn commit(&mut self, claim: usize, next: u8, flags: u8, again: bool) {
        if again && !self.commits.is_empty() {
            let commit = pick(&self.commits, claim).cloned().expect("there are some");
            self.same(async |store| store.commit(&commit).await).await;
            return;
        }
        let recent = self.claims.len().saturating_sub(4);
        let Some((worker, claim)) = pick(&self.claims[recent..], claim).cloned() else { return };
        let mut commit = self.next_commit(worker, &claim, next, flags);
        // A worker that commits again after the same claim says the same again.
        if let Some(before) = self.commits.iter().find(|before| is_again(before, &commit)) {
            commit = before.clone();
        }
        let committed = self.same(async |store| store.commit(&commit).await).await;
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
        let attention = flag(1).then_some(flag(2));
        let finish = Finish { claim_next: flag(0), attention, ..Finish::default() };
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
            let instance = InstanceName::new("web").expect("the name is allowed");
            let snapshot =
                Snapshot::new(format!("{}-{}", id.short(), flags % 2), lab::at(0), u64::from(flags));
            let lane = claim.deployment.environment.clone();
            commit.snapshots.push(SnapshotRecord::new(lane, id, instance, snapshot, None));
        }
        commit
    }

    fn lines(&mut self, count: usize) -> Vec<NewEvent> {
        (0..count)
            .map(|_| lab::line(&"x".repeat(usize::try_from(self.draw() % 70).unwrap_or_default())))
            .collect()
    }

    async fn append(&mut self, claim: usize, lines: usize) {
        let Some((_, claim)) = pick(&self.claims, claim).cloned() else { return };
        let (lane, id) = (claim.deployment.environment, claim.deployment.id);
        let lines = self.lines(lines);
        self.same(async |store| store.append(&lane, id, claim.fence, lines.clone(), limit()).await).await;
    }

    async fn make(&mut self, call: Call) {
        self.calls.push(call.clone());
        match call {
            Call::Save { lane, port, pool, supersede } => {
                let pool = if pool { "default" } else { "far" };
                let environment = lab::environment(LANES[lane], |spec| {
                    let spec = spec.pool(pool).instance(InstanceSpec::new("web").port(port));
                    spec.policy(|policy| (policy.supersede, policy.queue_length_max) = (supersede, 4))
                });
                self.same(async |store| store.save_environment(&environment).await).await;
            }
            Call::Enqueue { lane, trigger, target, key, again } => {
                self.enqueue(lane, trigger, target, key, again).await;
            }
            Call::Beat { worker } => {
                let own = self.workers[worker].clone();
                if self.same(async |store| store.heartbeat(&own).await).await == Beat::Expired {
                    self.workers[worker] = self.fresh_worker().await;
                }
            }
            Call::Claim { worker, forgetful } => self.claim(worker, forgetful).await,
            Call::Commit { claim, next, flags, again } => self.commit(claim, next, flags, again).await,
            Call::Append { claim, lines } => self.append(claim, lines).await,
            Call::Cancel { deployment } => {
                let Some(id) = pick(&self.deployments, deployment).copied() else { return };
                self.same(async |store| store.request_cancel(id, "ada", lab::at(9)).await).await;
            }
            Call::Retire { worker } => {
                let id = self.workers[worker].id;
                self.same(async |store| store.retire(id).await).await;
            }
            Call::Pass { seconds } => {
                self.clock.advance(Duration::from_secs(seconds));
                self.fixture.pass(Duration::from_secs(seconds)).await;
            }
            Call::Pause { lane, paused } => {
                self.same(async |store| {
                    store.set_paused(&lab::name(LANES[lane]), paused.then(|| "ada".to_owned())).await
                })
                .await;
            }
            Call::Acknowledge { lane } => {
                let lane = lab::name(LANES[lane]);
                let record = self.same(async |store| store.environment(&lane).await).await;
                let Some(stranded) = record.and_then(|record| record.attention) else { return };
                self.same(async |store| store.acknowledge(&lane, stranded, "eve", lab::at(9)).await).await;
            }
            Call::RetireSnapshots { lane, at } => {
                let lane = lab::name(LANES[lane]);
                let some = self.some_snapshots(&lane).await;
                self.same(async |store| {
                    let mut retired = store.retire_snapshots(&lane, &some, lab::at(at)).await?;
                    retired.sort();
                    Ok(retired)
                })
                .await;
            }
            Call::ForgetSnapshots { lane } => {
                let lane = lab::name(LANES[lane]);
                let some = self.some_snapshots(&lane).await;
                self.same(async |store| store.forget_snapshots(&lane, &some).await).await;
            }
            Call::PinSnapshots { lane, deployment, ends, unpin } => {
                let lane = lab::name(LANES[lane]);
                let all = self.same(async |store| store.snapshots(&lane).await).await;
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
                self.same(async |store| store.pin_snapshots(&lane, id, &pin).await).await;
            }
        }
    }

    async fn some_snapshots(&mut self, lane: &EnvironmentName) -> Vec<String> {
        let all = self.same(async |store| store.snapshots(lane).await).await;
        all.into_iter().step_by(2).map(|it| it.snapshot.reference).collect()
    }

    /// Everything that can be seen is the same.
    async fn compare(&mut self) {
        self.same(async |store| store.environments().await).await;
        let page = self.same(async |store| store.history(&Filter::default(), None, 100).await).await;
        for deployment in page.deployments.iter().take(3) {
            self.same(async |store| store.events(deployment.id, EventSeq::default(), 1000).await).await;
        }
        for lane in LANES.map(lab::name) {
            self.same(async |store| store.lane(&lane).await).await;
            self.same(async |store| store.snapshots(&lane).await).await;
            let filter = Filter::environment(lane);
            self.same(async |store| store.history(&filter, None, 5).await).await;
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

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::testing::laws;

    /// The model itself.
    struct Memory {
        clock: ManualClock,
        store: MemoryStore,
    }

    impl Memory {
        fn new() -> Self {
            let clock = ManualClock::new(1);
            Self { store: MemoryStore::new(Arc::new(clock.clone())), clock }
        }
    }

    #[async_trait]
    impl Fixture for Memory {
        async fn client(&self) -> Arc<dyn Store> {
            Arc::new(self.store.clone())
        }

        async fn pass(&self, duration: Duration) {
            self.clock.advance(duration);
        }

        fn unit(&self) -> Duration {
            Duration::from_secs(1)
        }
    }

    /// Calls that are drawn by chance.
    fn drawn(seed: u64, count: usize) -> Vec<[u16; 6]> {
        let mut state = seed;
        let mut number = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u16::try_from(state >> 48).unwrap()
        };
        (0..count).map(|_| std::array::from_fn(|_| number())).collect()
    }

    /// The calls are worth comparing: they claim, finish, hand over, cancel and strand.
    #[test]
    fn the_calls_reach_what_matters() {
        let (mut finished, mut repeated, mut rescued, mut stranded, mut pinned) = (0, 0, 0, 0, 0);
        laws::run(async {
            for seed in 0..48 {
                let mut both = Both::new(Memory::new()).await;
                for numbers in drawn(seed, 100) {
                    let call = Call::of(numbers);
                    repeated += usize::from(matches!(call, Call::Commit { again: true, .. }));
                    both.make(call).await;
                }
                rescued += both.claims.iter().filter(|(_, claim)| claim.lost_worker).count();
                let page = both.same(async |store| store.history(&Filter::default(), None, 1000).await).await;
                finished += page.deployments.iter().filter(|it| it.live().is_some()).count();
                let all = both.same(async |store| store.environments().await).await;
                stranded += all.iter().filter(|record| record.attention.is_some()).count();
                for lane in LANES.map(lab::name) {
                    let snapshots = both.same(async |store| store.snapshots(&lane).await).await;
                    pinned += snapshots.iter().filter(|it| it.pin.is_some()).count();
                }
            }
        });
        assert!(
            finished > 30 && repeated > 100 && rescued > 60 && stranded > 4 && pinned > 20,
            "{finished} finished, {repeated} repeated, {rescued} rescued, {stranded} stranded, {pinned} pinned"
        );
    }

    #[test]
    fn a_store_whose_time_stands_still_is_noticed() {
        struct Still(Memory);

        #[async_trait]
        impl Fixture for Still {
            async fn client(&self) -> Arc<dyn Store> {
                self.0.client().await
            }

            async fn pass(&self, _: Duration) {}

            fn unit(&self) -> Duration {
                self.0.unit()
            }
        }

        let agree = |calls: &[[u16; 6]]| laws::run(agree(Still(Memory::new()), calls, 1));
        let differs = std::panic::catch_unwind(|| agree(&drawn(1, 200))).unwrap_err();
        let why = differs.downcast_ref::<String>().unwrap();
        assert!(why.contains("the store differs from the model"), "{why}");
    }
}
