//! A cluster: workers, a client, a supervisor and users, over one store and one world.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::TimeDelta;
use ocore_core::{
    engine::{Engine, Timing},
    environment::{Environment, EnvironmentSpec, InstanceSpec, SnapshotWhen},
    executor::Executor,
    id::DeploymentId,
    port::EnvironmentStore as _,
    secret::Secret,
    testing::{
        fakes::World,
        faults::{Call, Fault, Faults, LATE_MAX},
        memory::MemoryStore,
        mutants,
        sim::{Chance, Ended, Process, Sim, SimExecutor, SimOptions, Trace},
    },
};
use tokio_util::sync::CancellationToken;

use crate::{
    journal::Journal,
    plan::{Blow, Plan, random_blow},
    script,
    verdict::{self, CANARY, now},
    watched::Watched,
};

pub(crate) const ENVIRONMENT: &str = "shop";
pub(crate) const REPOSITORY: &str = "https://git.example.org/shop.git";

/// Everything that is asked for is asked for within this time, whatever fails.
const SCRIPT_MAX: Duration = Duration::from_secs(30 * 60);

/// Once nothing fails any more, everything comes to rest within this time (L1).
const HEAL_MAX: Duration = Duration::from_secs(30 * 60);

/// A dead worker is started again about so often.
const SUPERVISE: Duration = Duration::from_secs(12);

/// The caller number of the client.
const CLIENT: usize = 1000;

/// What came of a schedule.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Outcome {
    /// What was wrong. Nothing, if all is well.
    pub violations: Vec<String>,
    /// The calls that were made.
    pub calls: Vec<Call>,
    /// How often each call failed in each way.
    pub hits: BTreeMap<(Call, Fault), u64>,
    /// How often each worker was polled before it was struck or the faults stopped.
    pub worker_polls: Vec<u64>,
    /// How often all tasks were polled until the script was done.
    pub polls: u64,
    /// How often all tasks were polled in all.
    pub polls_in_all: u64,
    /// How much virtual time passed.
    pub virtual_time: Duration,
    /// What happened, and how often.
    pub marks: BTreeMap<&'static str, u64>,
    /// What happened, in order.
    pub trace: Trace,
}

/// What all tasks of one schedule share.
pub(crate) struct Cluster {
    pub(crate) plan: Plan,
    pub(crate) world: World,
    pub(crate) store: MemoryStore,
    pub(crate) journal: Arc<Journal>,
    pub(crate) clock: Arc<SimExecutor>,
    faults: Faults,
    root: Process,
    state: Mutex<State>,
    healed: AtomicBool,
    at_rest: AtomicBool,
    done: AtomicBool,
}

struct State {
    workers: Vec<Worker>,
    asked: BTreeMap<usize, DeploymentId>,
    chance: Chance,
    started: usize,
}

struct Worker {
    process: Process,
    shutdown: CancellationToken,
    ended: Arc<AtomicBool>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// Runs a schedule, heals what it has broken, and judges what is left.
#[must_use]
pub fn run(plan: &Plan) -> Outcome {
    let _planted = plan.mutant.map(mutants::plant);
    let options = SimOptions::seed(plan.seed).order(plan.order).keep_trace(plan.keep_trace);
    let sim = Sim::new(options);
    let cluster = Arc::new(Cluster::new(&sim, plan.clone()));
    cluster.begin();
    let ended = sim.run_until(SCRIPT_MAX, || cluster.done.load(Ordering::Relaxed));
    let polls = sim.polls();
    let worker_polls = cluster.worker_polls();
    if ended == Ended::OutOfPolls {
        cluster.journal.lock().blame("I10: a livelock".to_owned());
    }
    cluster.heal();
    let limit = sim.now() + HEAL_MAX;
    let ended = sim.run_until(limit, || cluster.at_rest.load(Ordering::Relaxed));
    if ended != Ended::Done {
        cluster.journal.lock().blame(format!("L1: not at rest {HEAL_MAX:?} after healing: {ended:?}"));
    }
    cluster.end_workers();
    let hits = cluster.faults.hits();
    if hits.keys().any(|(_, fault)| matches!(fault, Fault::Late | Fault::LostThenLate)) {
        sim.run_until(sim.now() + LATE_MAX, || false);
    }
    verdict::check(&cluster.journal, &cluster.store, plan.is_thorough());
    if plan.is_thorough() {
        cluster.check_that_recovery_changes_nothing(&sim);
    }
    let accepted = cluster.journal.lock();
    Outcome {
        violations: accepted.violations.clone(),
        calls: cluster.faults.calls(),
        hits,
        worker_polls,
        polls,
        polls_in_all: sim.polls(),
        virtual_time: sim.now(),
        marks: accepted.marks.clone(),
        trace: sim.trace(),
    }
}

impl Cluster {
    fn new(sim: &Sim, plan: Plan) -> Self {
        let root = sim.process("world");
        let clock = root.executor();
        let (world, store) = (World::on(clock.clone()), MemoryStore::new(clock.clone()));
        let environment = environment(&plan);
        let _saved = now(store.save_environment(&environment));
        let instances = environment.instances().iter().map(|instance| instance.name.clone()).collect();
        let name = environment.name().clone();
        let journal = Arc::new(Journal::new(world.clone(), clock.clone(), name, instances, timing()));
        if plan.is_thorough() {
            world.leak(Secret::new(CANARY));
        }
        let faults = Faults::in_sim(clock.clone());
        faults.draw(plan.seed ^ 0x5eed, plan.odds);
        for (call, fault) in &plan.faults {
            faults.plan(*call, *fault);
        }
        if let Some((port, method, fault)) = plan.always {
            faults.plan_always(port, method, fault);
        }
        let state = State {
            workers: Vec::new(),
            asked: BTreeMap::new(),
            chance: Chance::new(plan.seed ^ 0xb10b),
            started: 0,
        };
        Self {
            plan,
            world,
            store,
            journal,
            clock,
            faults,
            root,
            state: Mutex::new(state),
            healed: AtomicBool::new(false),
            at_rest: AtomicBool::new(false),
            done: AtomicBool::new(false),
        }
    }

    fn begin(self: &Arc<Self>) {
        let journal = self.journal.clone();
        let users = Mutex::new(Chance::new(self.plan.seed ^ 0x0005_e125));
        self.faults.watch(move |issued| {
            if issued.caller != CLIENT {
                journal.issued(issued);
            }
            if users.lock().unwrap_or_else(PoisonError::into_inner).is(1, 4) {
                journal.users_write();
            }
        });
        for number in 0..self.plan.workers {
            self.start_worker(number);
        }
        let client = self.root.sibling("client");
        let engine = self.engine(CLIENT, client.executor());
        let cluster = self.clone();
        let script_engine = engine.clone();
        client.spawn(async move {
            script::run(cluster.clone(), script_engine).await;
            cluster.done_after_a_while().await;
        });
        if let Some((act, poll)) = self.plan.cancel {
            let (cluster, moment) = (self.clone(), client.poll_reached(poll));
            client.spawn(async move {
                moment.await;
                script::cancel(&cluster, &engine, act).await;
            });
        }
        self.root.spawn(supervise(self.clone()));
    }

    /// The script is over when what it asked for has had time to happen.
    async fn done_after_a_while(&self) {
        for _ in 0..240 {
            self.clock.sleep(Duration::from_millis(500)).await;
            let record = now(self.store.environment(self.journal.environment()));
            if record.is_some_and(|it| it.attention.is_some() || it.active.is_none() && it.queued == 0) {
                break;
            }
        }
        self.done.store(true, Ordering::Relaxed);
    }

    /// Nothing fails any more; a person looks after what needs attention.
    fn heal(self: &Arc<Self>) {
        self.faults.stop();
        self.healed.store(true, Ordering::Relaxed);
        let count = self.lock().workers.len();
        for number in 0..count {
            self.lock().workers[number].process.thaw();
            self.restart_if_ended(number);
        }
        let healer = self.root.sibling("healer");
        let engine = self.engine(CLIENT, healer.executor());
        healer.spawn(script::heal(self.clone(), engine));
    }

    /// After the end, one more recovery finds nothing to do (I20).
    fn check_that_recovery_changes_nothing(self: &Arc<Self>, sim: &Sim) {
        let before = self.journal.lock().entries;
        self.start_worker(0);
        sim.run_until(sim.now() + timing().lease * 2, || false);
        self.end_workers();
        let after = self.journal.lock().entries;
        if after != before {
            self.journal.lock().blame(format!("I20: {} writes after the end", after - before));
        }
        verdict::check(&self.journal, &self.store, false);
    }

    fn engine(&self, caller: usize, executor: Arc<SimExecutor>) -> Engine {
        let (faults, world) = (&self.faults, &self.world);
        let store = Watched { store: self.store.clone(), journal: self.journal.clone(), caller };
        Engine::builder()
            .store(faults.wrap_for(caller, store))
            .source(faults.wrap_for(caller, world.source()))
            .builder(faults.wrap_for(caller, world.builder()))
            .snapshotter(faults.wrap_for(caller, world.snapshotter()))
            .runtime(faults.wrap_for(caller, world.runtime()))
            .probe(faults.wrap_for(caller, world.probe()))
            .executor(executor)
            .workers(2)
            .timing(timing())
            .build()
            .expect("nothing is missing")
    }

    fn start_worker(self: &Arc<Self>, number: usize) {
        let mut state = self.lock();
        state.started += 1;
        let process = self.root.sibling(&format!("worker {number}.{}", state.started));
        self.plan_blows(&mut state, &process, number);
        drop(state);
        // Clocks on walls are wrong, and nothing may depend on them.
        let skew = [TimeDelta::zero(), TimeDelta::days(1), TimeDelta::hours(-5)][number % 3];
        let engine = self.engine(number, process.executor_with_skew(skew));
        let (shutdown, ended) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
        process.spawn({
            let (journal, shutdown, ended) = (self.journal.clone(), shutdown.clone(), ended.clone());
            async move {
                if let Err(error) = engine.run_until(shutdown.cancelled()).await {
                    journal.lock().blame(format!("a worker gave up: {error}"));
                }
                ended.store(true, Ordering::Relaxed);
            }
        });
        let worker = Worker { process, shutdown, ended };
        let mut state = self.lock();
        if number < state.workers.len() {
            state.workers[number] = worker;
        } else {
            state.workers.push(worker);
        }
    }

    fn plan_blows(&self, state: &mut State, process: &Process, number: usize) {
        if self.healed.load(Ordering::Relaxed) {
            return;
        }
        let first = state.workers.len() <= number;
        if first {
            for (_, poll, blow) in self.plan.blows.iter().filter(|(worker, ..)| *worker == number) {
                strike_at(process, *poll, *blow);
            }
        } else if state.chance.is(self.plan.further_blows, 100) {
            let poll = state.chance.below(400);
            strike_at(process, poll, random_blow(&mut state.chance));
        }
    }

    fn restart_if_ended(self: &Arc<Self>, number: usize) {
        let ended = {
            let state = self.lock();
            let worker = &state.workers[number];
            worker.process.is_dead() || worker.ended.load(Ordering::Relaxed)
        };
        if ended {
            self.start_worker(number);
        }
    }

    fn end_workers(&self) {
        let processes: Vec<_> = self.lock().workers.iter().map(|worker| worker.process.clone()).collect();
        for process in processes {
            process.kill();
        }
    }

    fn worker_polls(&self) -> Vec<u64> {
        self.lock().workers.iter().map(|worker| worker.process.polls()).collect()
    }

    pub(crate) fn shut_down(&self, worker: usize) {
        if let Some(worker) = self.lock().workers.get(worker) {
            worker.shutdown.cancel();
        }
    }

    pub(crate) fn asked(&self, act: usize, id: DeploymentId) {
        self.lock().asked.insert(act, id);
    }

    pub(crate) fn id_of(&self, act: usize) -> Option<DeploymentId> {
        self.lock().asked.get(&act).copied()
    }

    pub(crate) fn rest(&self) {
        self.at_rest.store(true, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts workers again that have died or were shut down.
async fn supervise(cluster: Arc<Cluster>) {
    while !cluster.at_rest.load(Ordering::Relaxed) {
        cluster.clock.sleep(SUPERVISE).await;
        for number in 0..cluster.plan.workers {
            cluster.restart_if_ended(number);
        }
    }
}

fn strike_at(process: &Process, poll: u64, blow: Blow) {
    match blow {
        Blow::Kill => process.kill_at(poll),
        Blow::Freeze(duration) => process.freeze_at(poll, duration),
    }
}

/// The default timing, but for idle workers that look less often: they are told what happens.
fn timing() -> Timing {
    let mut timing = Timing::default();
    timing.poll = Duration::from_secs(15);
    timing.cancel_grace = Duration::from_secs(5);
    timing.drain = Duration::from_secs(2);
    timing.interrupt = Duration::from_secs(4);
    timing
}

fn environment(plan: &Plan) -> Environment {
    let mut spec = EnvironmentSpec::new(ENVIRONMENT, REPOSITORY).branch("main");
    for number in 0..plan.instances {
        let port = 8000 + u16::try_from(number).unwrap_or(0);
        spec = spec.instance(InstanceSpec::new(format!("web-{number}")).port(port));
    }
    let spec = spec.policy(|policy| {
        if plan.after_stop {
            policy.snapshot = SnapshotWhen::AfterStop;
        }
        let long = Duration::from_secs(20);
        let deadlines = &mut policy.deadlines;
        for deadline in [
            &mut deadlines.fetch,
            &mut deadlines.build,
            &mut deadlines.snapshot,
            &mut deadlines.stop,
            &mut deadlines.restore,
            &mut deadlines.update,
            &mut deadlines.start,
        ] {
            *deadline = long;
        }
        policy.retry.attempts_max = 3;
        policy.retry.delay_max = Duration::from_secs(2);
        policy.undo_retry.attempts_max = 4;
        policy.undo_retry.delay_max = Duration::from_secs(4);
        policy.health.deadline = Duration::from_secs(30);
        policy.health.interval_max = Duration::from_secs(2);
        policy.health.check_timeout = Duration::from_secs(4);
        // Sometimes only what is needed is kept.
        if plan.seed % 5 == 3 {
            policy.retention.snapshots_last = 1;
            policy.retention.snapshots_age = Duration::ZERO;
            policy.retention.images_last = 1;
        }
    });
    Environment::try_from(spec).expect("the environment is valid")
}
