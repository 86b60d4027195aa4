//! A cluster: workers, a client, a supervisor and users, over one store and one world.

use std::{
    cell::RefCell,
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
    journal::{Journal, Journals},
    plan::{Blow, Plan, random_blow},
    script,
    verdict::{self, CANARY, now},
    watched::Watched,
};

pub(crate) const ENVIRONMENT: &str = "shop";
pub(crate) const ELSEWHERE: &str = "blog";
const NAMES: [&str; 2] = [ENVIRONMENT, ELSEWHERE];
pub(crate) const REPOSITORY: &str = "https://git.example.org/shop.git";

/// Everything that is asked for is asked for within this time, whatever fails.
const SCRIPT_MAX: Duration = Duration::from_secs(30 * 60);

/// Once nothing fails any more, everything comes to rest within this time (L1).
const HEAL_MAX: Duration = Duration::from_secs(30 * 60);

/// A dead worker is started again about so often.
const SUPERVISE: Duration = Duration::from_secs(12);

/// How long what is left over is cleaned up after a deployment.
const CLEAN_UP: Duration = Duration::from_millis(300);

/// The caller number of the client.
const CLIENT: usize = 1000;

/// What came of a schedule.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Outcome {
    /// What was wrong. Nothing, if all is well.
    pub violations: Vec<String>,
    /// The calls that were made before everything was healed: those that can fail.
    pub calls: Vec<Call>,
    /// How many calls were made in all.
    pub calls_in_all: u64,
    /// How often each call failed in each way.
    pub hits: BTreeMap<(Call, Fault), u64>,
    /// How often the first incarnation of each worker was polled before everything was healed.
    pub worker_polls: Vec<u64>,
    /// How often all tasks were polled until the script was done.
    pub polls: u64,
    /// At which poll each act's deployment was accepted.
    pub accepted_at: BTreeMap<usize, u64>,
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
    pub(crate) journals: Arc<Journals>,
    pub(crate) clock: Arc<SimExecutor>,
    faults: Faults,
    root: Process,
    client: Process,
    state: Mutex<State>,
    healed: AtomicBool,
    at_rest: AtomicBool,
    done: AtomicBool,
}

struct State {
    workers: Vec<Worker>,
    /// The first process of each worker.
    first: Vec<Process>,
    /// What was asked for, and at which poll it was accepted.
    asked: BTreeMap<usize, (DeploymentId, u64)>,
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
    let client = cluster.begin();
    let ended = sim.run_until(SCRIPT_MAX, || cluster.done.load(Ordering::Relaxed));
    let polls = sim.polls();
    let (calls, worker_polls) = (cluster.faults.calls(), cluster.worker_polls());
    if ended == Ended::OutOfPolls {
        cluster.journal().lock().blame("I10: a livelock".to_owned());
    }
    cluster.heal(client.clone());
    let limit = sim.now() + HEAL_MAX;
    let ended = sim.run_until(limit, || cluster.at_rest.load(Ordering::Relaxed));
    if ended != Ended::Done {
        cluster.journal().lock().blame(format!("L1: not at rest {HEAL_MAX:?} after healing: {ended:?}"));
    }
    // What the last deployment has left over is cleaned up.
    sim.run_until(sim.now() + CLEAN_UP, || false);
    cluster.end_workers();
    let hits = cluster.faults.hits();
    if hits.keys().any(|(_, fault)| fault.is_late()) {
        sim.run_until(sim.now() + LATE_MAX, || false);
    }
    cluster.check(plan.is_thorough());
    // A slow call may still be cleaning up.
    if plan.odds.slow == 0 {
        verdict::check_leftovers(&cluster.journals, &cluster.store, cluster.broken_off(&hits));
    }
    if plan.is_thorough() {
        cluster.check_that_recovery_changes_nothing(&sim);
    }
    if plan.odds.slow == 0 {
        cluster.check_that_leftovers_go(&sim, client);
    }
    Outcome {
        violations: cluster.journals.all().flat_map(|it| it.lock().violations.clone()).collect(),
        calls,
        calls_in_all: cluster.faults.call_count(),
        hits,
        worker_polls,
        polls,
        accepted_at: cluster.lock().asked.iter().map(|(act, (_, poll))| (*act, *poll)).collect(),
        polls_in_all: sim.polls(),
        virtual_time: sim.now(),
        marks: cluster.marks(),
        trace: sim.trace(),
    }
}

impl Cluster {
    fn new(sim: &Sim, plan: Plan) -> Self {
        let root = sim.process("world");
        let clock = root.executor();
        let (world, store) = (World::on(clock.clone()), MemoryStore::new(clock.clone()));
        let environments: Vec<_> =
            NAMES.into_iter().take(plan.environments).map(|it| environment(&plan, it)).collect();
        let client = root.sibling("client");
        for environment in &environments {
            let _saved = now(store.save_environment(environment));
        }
        let journals = Journals::new(&world, &clock, &environments, plan.is_thorough(), timing());
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
        if let Some(fault) = plan.hints {
            faults.plan_always("store", "changed", fault);
        }
        let state = State {
            workers: Vec::new(),
            first: Vec::new(),
            asked: BTreeMap::new(),
            chance: Chance::new(plan.seed ^ 0xb10b),
            started: 0,
        };
        Self {
            plan,
            world,
            store,
            journals: Arc::new(journals),
            clock,
            faults,
            root,
            client,
            state: Mutex::new(state),
            healed: AtomicBool::new(false),
            at_rest: AtomicBool::new(false),
            done: AtomicBool::new(false),
        }
    }

    fn begin(self: &Arc<Self>) -> Engine {
        let journals = self.journals.clone();
        let users = Mutex::new(Chance::new(self.plan.seed ^ 0x0005_e125));
        self.faults.watch(move |issued| {
            if issued.caller != CLIENT {
                journals.all().for_each(|journal| journal.issued(issued));
            }
            if users.lock().unwrap_or_else(PoisonError::into_inner).is(1, 4) {
                journals.all().for_each(Journal::users_write);
            }
        });
        for number in 0..self.plan.workers {
            self.start_worker(number);
        }
        let engine = self.engine(CLIENT, self.client.executor());
        let cluster = self.clone();
        self.client.spawn({
            let engine = engine.clone();
            async move {
                script::run(cluster.clone(), engine).await;
                script::settle(&cluster).await;
                // What is cleaned up afterwards can fail too.
                cluster.clock.sleep(CLEAN_UP).await;
                cluster.done.store(true, Ordering::Relaxed);
            }
        });
        self.root.spawn(supervise(self.clone()));
        engine
    }

    /// Nothing fails any more; a person looks after what needs attention.
    fn heal(self: &Arc<Self>, client: Engine) {
        self.faults.stop();
        self.healed.store(true, Ordering::Relaxed);
        let count = self.lock().workers.len();
        for number in 0..count {
            self.lock().workers[number].process.thaw();
            self.restart_if_ended(number);
        }
        self.client.spawn(script::heal(self.clone(), client));
    }

    /// After the end, one more recovery finds nothing to do (I20).
    fn check_that_recovery_changes_nothing(self: &Arc<Self>, sim: &Sim) {
        let entries = || self.journals.all().map(|journal| journal.lock().entries).sum::<u64>();
        let before = entries();
        self.start_worker(0);
        sim.run_until(sim.now() + timing().lease * 2, || false);
        self.end_workers();
        let after = entries();
        if after != before {
            self.journal().lock().blame(format!("I20: {} writes after the end", after - before));
        }
        self.check(false);
    }

    /// What was left after the last clean-up is found by that of the next deployment (I18).
    fn check_that_leftovers_go(self: &Arc<Self>, sim: &Sim, client: Engine) {
        if verdict::orphans(&self.journals, &self.store).is_empty() {
            return;
        }
        self.at_rest.store(false, Ordering::Relaxed);
        self.start_worker(0);
        self.client.spawn(script::deploy_once_more(self.clone(), client));
        sim.run_until(sim.now() + HEAL_MAX, || self.at_rest.load(Ordering::Relaxed));
        sim.run_until(sim.now() + CLEAN_UP, || false);
        self.end_workers();
        let orphans = verdict::orphans(&self.journals, &self.store);
        if !orphans.is_empty() {
            self.journal().lock().blame(format!("I18: no record names {orphans:?}, and yet they are there"));
        }
        self.check(false);
    }

    /// How often something was broken off that may have left something over.
    fn broken_off(&self, hits: &BTreeMap<(Call, Fault), u64>) -> u64 {
        let started_again = self.lock().started - self.plan.workers;
        let accepted = self.marks();
        let marks = ["takeover", "fenced", "cancel requested"].map(|mark| accepted.get(mark));
        let struck = self.plan.blows.len() + started_again;
        hits.values().chain(marks.into_iter().flatten()).sum::<u64>() + struck as u64
    }

    fn check(&self, thorough: bool) {
        self.journals.all().for_each(|journal| verdict::check(journal, &self.store, thorough));
    }

    fn marks(&self) -> BTreeMap<&'static str, u64> {
        let mut marks = BTreeMap::new();
        for journal in self.journals.all() {
            for (mark, count) in &journal.lock().marks {
                *marks.entry(*mark).or_default() += count;
            }
        }
        marks
    }

    /// The journal of the environment that nearly everything is about.
    pub(crate) fn journal(&self) -> &Journal {
        self.journals.first()
    }

    fn engine(&self, caller: usize, executor: Arc<SimExecutor>) -> Engine {
        let (faults, world) = (&self.faults, &self.world);
        let store = Watched { store: self.store.clone(), journals: self.journals.clone(), caller };
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
            let (journals, shutdown, ended) = (self.journals.clone(), shutdown.clone(), ended.clone());
            async move {
                if let Err(error) = engine.run_until(shutdown.cancelled()).await {
                    journals.first().worker_gave_up(&error);
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
            state.first.push(process.clone());
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
        self.lock().first.iter().map(Process::polls).collect()
    }

    pub(crate) fn shut_down(&self, worker: usize) {
        if let Some(worker) = self.lock().workers.get(worker) {
            worker.shutdown.cancel();
        }
    }

    /// What always failed works again.
    pub(crate) fn end_outage(&self) {
        if let Some((port, method, _)) = self.plan.always {
            self.faults.end_always(port, method);
        }
    }

    /// What an act asked for was accepted: it may be cancelled from now on.
    pub(crate) fn asked(self: &Arc<Self>, client: &Engine, act: usize, id: DeploymentId) {
        let poll = self.client.polls_of_all();
        self.lock().asked.insert(act, (id, poll));
        if let Some((_, after)) = self.plan.cancel.filter(|(of, _)| *of == act) {
            let (cluster, client) = (self.clone(), client.clone());
            let moment = self.client.poll_reached(poll + after);
            self.client.spawn(async move {
                moment.await;
                script::cancel(&cluster, &client, act).await;
            });
        }
    }

    pub(crate) fn id_of(&self, act: usize) -> Option<DeploymentId> {
        Some(self.lock().asked.get(&act)?.0)
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

thread_local! {
    /// To check an environment takes longer than to copy it.
    static ENVIRONMENTS: RefCell<BTreeMap<(&'static str, [usize; 3]), Environment>> = const { RefCell::new(BTreeMap::new()) };
}

fn environment(plan: &Plan, name: &'static str) -> Environment {
    let key = (name, [plan.instances, plan.after_stop.into(), plan.small_retention.into()]);
    ENVIRONMENTS
        .with_borrow_mut(|known| known.entry(key).or_insert_with(|| new_environment(plan, name)).clone())
}

/// The second environment follows a branch of its own.
fn new_environment(plan: &Plan, name: &str) -> Environment {
    let (branch, ports) = if name == ENVIRONMENT { ("main", 8000) } else { (name, 9000) };
    let mut spec = EnvironmentSpec::new(name, REPOSITORY).branch(branch);
    for number in 0..plan.instances {
        let port = ports + u16::try_from(number).unwrap_or(0);
        spec = spec.instance(InstanceSpec::new(format!("web-{number}")).port(port));
    }
    let spec = spec.policy(|policy| {
        if plan.after_stop {
            policy.snapshot = SnapshotWhen::AfterStop;
        }
        // Longer than a lease: a call that hangs may outlive its worker's.
        let long = Duration::from_secs(12);
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
        policy.health.deadline = Duration::from_secs(15);
        policy.health.interval_max = Duration::from_secs(2);
        policy.health.check_timeout = Duration::from_secs(4);
        if plan.small_retention {
            policy.retention.snapshots_last = 1;
            policy.retention.snapshots_age = Duration::ZERO;
            policy.retention.images_last = 1;
        }
    });
    Environment::try_from(spec).expect("the environment is valid")
}
