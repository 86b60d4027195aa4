//! Sets of plans, run in threads.

use std::{
    collections::BTreeMap,
    num::NonZero,
    panic::{self, AssertUnwindSafe},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ocore_core::testing::faults::{Call, Fault};

use crate::{
    cluster::{self, Outcome},
    journal::LANDED_AFTER_A_FENCE,
    plan::{Act, Blow, Plan},
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

    /// Adds what happened and hands back what went wrong.
    fn add(&mut self, outcome: Outcome) -> Vec<String> {
        self.schedules += 1;
        self.polls += outcome.polls_in_all;
        self.calls += outcome.calls_in_all;
        self.virtual_time += outcome.virtual_time;
        for (mark, count) in outcome.marks {
            *self.marks.entry(mark).or_default() += count;
        }
        for (hit, count) in outcome.hits {
            *self.hits.entry(hit).or_default() += count;
        }
        outcome.violations
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
/// that went wrong. `done` is told after each, with what went wrong in it. A schedule that panics has gone wrong; one
/// that takes longer than [`SLOW`] is named while it runs.
pub fn run(
    count: u64,
    failures_max: usize,
    plan: impl Fn(u64) -> Plan + Sync,
    done: impl Fn(&Plan, &[String]) + Sync,
) -> Summary {
    let began = Instant::now();
    let stop = AtomicBool::new(false);
    let total = Mutex::new(Summary::default());
    each(count, &stop, |numbers, watch| {
        let mut summary = Summary::default();
        for number in numbers {
            let plan = plan(number);
            watch.begin(&plan);
            let violations = match outcome(&plan) {
                Ok(outcome) => summary.add(outcome),
                Err(panic) => {
                    summary.schedules += 1;
                    vec![format!("it panicked: {panic}")]
                }
            };
            done(&plan, &violations);
            if !violations.is_empty() {
                summary.failures.push((plan, violations));
            }
            if summary.failures.len() >= failures_max {
                stop.store(true, Ordering::Relaxed);
            }
        }
        total.lock().unwrap_or_else(PoisonError::into_inner).merge(summary);
    });
    let mut summary = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.elapsed = began.elapsed();
    summary
}

/// A schedule that takes so long is not getting on.
pub const SLOW: Duration = Duration::from_secs(10);

/// What came of a schedule, or the text of its panic.
fn outcome(plan: &Plan) -> Result<Outcome, String> {
    panic::catch_unwind(AssertUnwindSafe(|| cluster::run(plan))).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
    })
}

/// Shares the numbers below `count` out to as many threads as there are processors.
fn each(count: u64, stop: &AtomicBool, work: impl Fn(&mut dyn Iterator<Item = u64>, &Watch) + Sync) {
    let next = AtomicU64::new(0);
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let watches: Vec<Watch> = (0..threads).map(|_| Watch::default()).collect();
    let working = AtomicUsize::new(threads);
    thread::scope(|scope| {
        for watch in &watches {
            let (next, work, working) = (&next, &work, &working);
            scope.spawn(move || {
                let mut numbers = std::iter::from_fn(|| {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    (number < count && !stop.load(Ordering::Relaxed)).then_some(number)
                });
                work(&mut numbers, watch);
                watch.end();
                working.fetch_sub(1, Ordering::Relaxed);
            });
        }
        while working.load(Ordering::Relaxed) > 0 {
            thread::park_timeout(Duration::from_millis(20));
            watches.iter().for_each(Watch::look);
        }
    });
}

/// What a thread is running, and since when.
#[derive(Default)]
struct Watch(Mutex<Option<(Instant, Plan)>>);

impl Watch {
    fn begin(&self, plan: &Plan) {
        *self.lock() = Some((Instant::now(), plan.clone()));
    }

    fn end(&self) {
        *self.lock() = None;
    }

    /// Names a schedule that takes long, once.
    fn look(&self) {
        if let Some((_, plan)) = self.lock().take_if(|(since, _)| since.elapsed() > SLOW) {
            eprintln!("running for {SLOW:?}: {plan}\n  replay: {}", plan.command());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Instant, Plan)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A freeze that outlives the lease, and one that outlives only the worker's trust in it.
const FREEZES: [Duration; 2] = [Duration::from_secs(25), Duration::from_millis(8_500)];

/// Every single disturbance of a scenario: every call failing in every way, every poll of a worker as the moment of a
/// kill and of freezes, every moment as that of a cancel of the last deployment, and hints that are lost or idle.
#[must_use]
pub fn singles(scenario: &Plan) -> Vec<Plan> {
    let base = cluster::run(scenario);
    let mut plans = vec![scenario.clone()];
    plans.extend([Fault::Hang, Fault::Refused].map(|hints| Plan { hints: Some(hints), ..scenario.clone() }));
    for call in 0..base.calls.len() as u64 {
        plans.extend(Fault::ALL.map(|fault| scenario.clone().fault(call, fault)));
    }
    for (worker, polls) in base.worker_polls.iter().enumerate() {
        for poll in 0..*polls {
            let blows = FREEZES.map(Blow::Freeze).into_iter().chain([Blow::Kill]);
            plans.extend(blows.map(|blow| scenario.clone().blow(worker, poll, blow)));
        }
    }
    let last = scenario.script.iter().rposition(Act::is_request);
    let last = last.and_then(|act| Some((act, *base.accepted_at.get(&act)?)));
    if let Some((act, accepted)) = last {
        let moments = 0..base.polls.saturating_sub(accepted);
        plans.extend(moments.map(|poll| Plan { cancel: Some((act, poll)), ..scenario.clone() }));
    }
    plans
}

/// What must have happened in a whole sweep, or the sweep shows less than it seems to.
const MARKS: &[&str] = &[
    "Running",
    "Undone",
    "Untouched",
    "Stranded",
    "recovered",
    "acknowledged",
    "pinned",
    "paused",
    "takeover",
    "a worker gave up",
    "superseded",
    "successor",
    "accepted before",
    "applied already",
    "fenced",
    "cancel requested",
    "cancel before the verdict",
    "cancelled in the queue",
    LANDED_AFTER_A_FENCE,
];

/// The calls that the engine makes in the scenarios.
const CALLS: &[(&str, &[&str])] = &[
    ("source", &["fetch", "checkout", "discard"]),
    ("builder", &["build", "locate", "remove", "sweep"]),
    ("snapshotter", &["take", "restore", "changed_since", "remove", "sweep"]),
    ("runtime", &["stop", "update", "start", "withdraw", "revive", "tail", "inspect"]),
    ("probe", &["check"]),
    (
        "store",
        &[
            "enqueue",
            "heartbeat",
            "claim",
            "commit",
            "request_cancel",
            "retire",
            "environment",
            "environments",
            "set_paused",
            "acknowledge",
            "deployment",
            "history",
            "append",
            "snapshots",
            "retire_snapshots",
            "forget_snapshots",
            "pin_snapshots",
        ],
    ),
];

/// The marks that a sweep has not seen.
#[must_use]
pub fn missing_marks(summary: &Summary) -> Vec<String> {
    let missing = MARKS.iter().filter(|mark| !summary.marks.contains_key(*mark));
    missing.map(|mark| (*mark).to_owned()).collect()
}

/// The ways of failing that no call has met in a sweep.
#[must_use]
pub fn missing_faults(summary: &Summary) -> Vec<String> {
    let calls = CALLS.iter().flat_map(|(port, methods)| methods.iter().map(move |method| (*port, *method)));
    let met = |port, method, fault| {
        summary.hits.keys().any(|(call, by)| (call.port, call.method, *by) == (port, method, fault))
    };
    let ways = calls.flat_map(|(port, method)| Fault::ALL.map(|fault| (port, method, fault)));
    let missing = ways.filter(|(port, method, fault)| !met(*port, *method, *fault));
    missing.map(|(port, method, fault)| format!("{port}.{method}: {fault:?}")).collect()
}

/// Every pair of calls failing in every pair of ways; the second call is counted in the run that the first fault
/// leads to. There are millions, so that each is made when its number is asked for.
///
/// Left out is only what cannot differ: faults that nobody could tell apart ([`Call::faults`]), and calls that are
/// made when nothing fails any more.
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
    /// In which ways each of the calls that follow can fail.
    seconds: Vec<&'static [Fault]>,
}

impl Pairs {
    /// The pairs of these scenarios. Runs each single fault once, to see the calls that follow it; `done` is told after
    /// each, with the number of all.
    #[must_use]
    pub fn new(scenarios: Vec<Plan>, done: impl Fn(u64) + Sync) -> Self {
        let mut singles = Vec::new();
        for (scenario, plan) in scenarios.iter().enumerate() {
            for (number, call) in (0..).zip(cluster::run(plan).calls) {
                singles.extend(call.faults().iter().map(|fault| (scenario, number, *fault)));
            }
        }
        let firsts = Mutex::new(Vec::new());
        each(singles.len() as u64, &AtomicBool::new(false), |numbers, watch| {
            for number in numbers {
                let (scenario, call, fault) = singles[index(number)];
                let plan = scenarios[scenario].clone().fault(call, fault);
                watch.begin(&plan);
                // One that panics fails as a single fault does, and has no pairs.
                let calls = outcome(&plan).map(|outcome| outcome.calls).unwrap_or_default();
                let seconds = calls.iter().skip(index(call) + 1).map(Call::faults).collect();
                let first = First { number, scenario, call, fault, seconds };
                firsts.lock().unwrap_or_else(PoisonError::into_inner).push(first);
                done(singles.len() as u64);
            }
        });
        let mut firsts = firsts.into_inner().unwrap_or_else(PoisonError::into_inner);
        firsts.sort_unstable_by_key(|first| first.number);
        let mut count = 0;
        for first in &mut firsts {
            first.number = count;
            count += first.seconds.iter().map(|faults| faults.len() as u64).sum::<u64>();
        }
        firsts.retain(|first| !first.seconds.is_empty());
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
        let First { number: base, scenario, call, fault, seconds } = &self.firsts[at];
        let mut left = index(number - base);
        let mut second = *call;
        for faults in seconds {
            second += 1;
            if let Some(way) = faults.get(left) {
                return self.scenarios[*scenario].clone().fault(*call, *fault).fault(second, *way);
            }
            left -= faults.len();
        }
        unreachable!("the next first fault has a number that is greater by the number of its pairs")
    }

    /// The number of the `nth` pair in an order that mixes them: every number comes once, and the first ones are
    /// spread over all scenarios and calls.
    #[must_use]
    pub fn mixed(&self, nth: u64) -> u64 {
        let golden = u128::from(self.count) * 1_000_003 / 1_618_037;
        let stride = (golden.max(1)..).find(|stride| coprime(*stride, self.count.into())).unwrap_or(1);
        u64::try_from(u128::from(nth) * stride % u128::from(self.count.max(1))).unwrap_or(0)
    }
}

const fn coprime(mut a: u128, mut b: u128) -> bool {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("it numbers what is in memory")
}
