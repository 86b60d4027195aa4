//! Sets of plans, run in threads.

use std::{
    collections::BTreeMap,
    num::NonZero,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ocore_core::testing::faults::{Call, Fault};

use crate::{
    cluster::{self, Outcome},
    plan::{Blow, Plan},
};

/// What came of a set of plans.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Summary {
    /// How many were run.
    pub schedules: u64,
    /// How long that took.
    pub elapsed: Duration,
    /// How often all tasks were polled.
    pub polls: u64,
    /// How many calls were made.
    pub calls: u64,
    /// How much virtual time passed.
    pub virtual_time: Duration,
    /// Those that went wrong, the first ones only: the plan and its violations.
    pub failures: Vec<(Plan, Vec<String>)>,
    /// What happened, and how often, in all of them.
    pub marks: BTreeMap<&'static str, u64>,
    /// How often each call failed in each way, in all of them.
    pub hits: BTreeMap<(Call, Fault), u64>,
}

impl Summary {
    /// How many schedules were run in a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.schedules as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn add(&mut self, plan: &Plan, outcome: Outcome) {
        self.schedules += 1;
        self.polls += outcome.polls_in_all;
        self.calls += outcome.calls.len() as u64;
        self.virtual_time += outcome.virtual_time;
        for (mark, count) in outcome.marks {
            *self.marks.entry(mark).or_default() += count;
        }
        for (hit, count) in outcome.hits {
            *self.hits.entry(hit).or_default() += count;
        }
        if !outcome.violations.is_empty() {
            self.failures.push((plan.clone(), outcome.violations));
        }
    }

    fn merge(&mut self, other: Self) {
        self.schedules += other.schedules;
        self.polls += other.polls;
        self.calls += other.calls;
        self.virtual_time += other.virtual_time;
        self.failures.extend(other.failures);
        for (mark, count) in other.marks {
            *self.marks.entry(mark).or_default() += count;
        }
        for (hit, count) in other.hits {
            *self.hits.entry(hit).or_default() += count;
        }
    }
}

/// Runs `count` plans in as many threads as there are processors, or fewer: until a thread has found `failures_max`
/// that went wrong. `done` is told after each.
///
/// # Panics
/// If a schedule panics.
pub fn run(
    count: u64,
    failures_max: usize,
    plan: impl Fn(u64) -> Plan + Sync,
    done: impl Fn() + Sync,
) -> Summary {
    let began = Instant::now();
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let total = Mutex::new(Summary::default());
    let work = || {
        let mut summary = Summary::default();
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                break;
            }
            let plan = plan(number);
            summary.add(&plan, cluster::run(&plan));
            done();
            if summary.failures.len() >= failures_max {
                stop.store(true, Ordering::Relaxed);
            }
        }
        total.lock().unwrap_or_else(PoisonError::into_inner).merge(summary);
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut summary = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.elapsed = began.elapsed();
    summary
}

/// A freeze that outlives the lease.
const LONG: Duration = Duration::from_secs(25);

/// Every single disturbance of a scenario: every call failing in every way, every poll of a worker as the moment of
/// a kill and of a long freeze, and every moment as that of a cancel of the last deployment.
#[must_use]
pub fn singles(scenario: &Plan) -> Vec<Plan> {
    let base = cluster::run(scenario);
    let mut plans = vec![scenario.clone()];
    for call in 0..base.calls.len() as u64 {
        plans.extend(Fault::ALL.map(|fault| scenario.clone().fault(call, fault)));
    }
    for (worker, polls) in base.worker_polls.iter().enumerate() {
        for poll in 0..*polls {
            plans.push(scenario.clone().blow(worker, poll, Blow::Kill));
            plans.push(scenario.clone().blow(worker, poll, Blow::Freeze(LONG)));
        }
    }
    let asked = scenario.script.iter().rposition(|act| {
        use crate::plan::Act::{Deploy, Push, RollBack};
        matches!(act, Deploy(_) | Push(_) | RollBack { .. })
    });
    for poll in 0..base.polls {
        plans.extend(asked.map(|act| Plan { cancel: Some((act, poll)), ..scenario.clone() }));
    }
    plans
}

/// Every pair of calls failing in every pair of ways; the second call is counted in the run that the first fault
/// leads to. There are tens of millions, so that each is made when its number is asked for.
#[derive(Debug)]
pub struct Pairs {
    scenarios: Vec<Plan>,
    /// Each first fault, with the number of its first pair.
    firsts: Vec<First>,
    count: u64,
}

#[derive(Debug)]
struct First {
    number: u64,
    scenario: usize,
    call: u64,
    fault: Fault,
}

impl Pairs {
    /// The pairs of these scenarios. Runs each single fault once, to count the calls that follow it.
    #[must_use]
    pub fn new(scenarios: Vec<Plan>) -> Self {
        let (mut firsts, mut count) = (Vec::new(), 0);
        for (scenario, plan) in scenarios.iter().enumerate() {
            for call in 0..cluster::run(plan).calls.len() as u64 {
                for fault in Fault::ALL {
                    firsts.push(First { number: count, scenario, call, fault });
                    let calls = cluster::run(&plan.clone().fault(call, fault)).calls.len() as u64;
                    count += calls.saturating_sub(call + 1) * Fault::ALL.len() as u64;
                }
            }
        }
        Self { scenarios, firsts, count }
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The pair with this number, counted from zero.
    ///
    /// # Panics
    /// If there are not so many.
    #[must_use]
    pub fn plan(&self, number: u64) -> Plan {
        assert!(number < self.count, "there are {} pairs", self.count);
        let at = self.firsts.partition_point(|first| first.number <= number) - 1;
        let First { number: base, scenario, call, fault } = &self.firsts[at];
        let (calls, ways) = (number - base, Fault::ALL.len() as u64);
        let way = usize::try_from(calls % ways).expect("there are few faults");
        let plan = self.scenarios[*scenario].clone();
        plan.fault(*call, *fault).fault(call + 1 + calls / ways, Fault::ALL[way])
    }
}
