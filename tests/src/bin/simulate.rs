//! Runs the simulated world: `cargo xtask simulate --seeds 100000`.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use ocore_core::testing::{faults::Fault, mutants::Mutant};
use ocore_tests::{
    cluster,
    plan::{Blow, Plan},
    sweep::{self, Pairs, Summary},
};

/// Simulations allocate a lot and for a short time: with this allocator they take a third less time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Within so many random schedules each planted bug is found: as many as the tests run.
const MUTANT_BUDGET: u64 = 100_000;

/// Without a terminal a line is printed after so many schedules, or a tenth of all.
const LINE_EVERY: u64 = 100_000;

/// After so many failures in one thread a run ends.
const FAILURES_MAX: usize = 5;

/// Runs the whole engine over a simulated world, with every fault that calls and workers can meet.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many random schedules to run.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Every pair of failing calls of each scenario, or of the one that is named; with --seeds so many of them, spread
    /// over all, of which --first are left out.
    #[arg(long)]
    pairs: bool,
    /// Only this scenario: every single disturbance of it, or exactly the one that is given.
    #[arg(long)]
    scenario: Option<String>,
    /// Plants a bug.
    #[arg(long)]
    mutant: Option<Mutant>,
    /// Plants each bug in turn: each must be found within --seeds schedules, 100,000 unless said otherwise.
    #[arg(long)]
    mutants: bool,
    /// Prints what happens, for a single schedule.
    #[arg(long)]
    trace: bool,
    /// A call that fails, as `CALL:FAULT`.
    #[arg(long, value_parser = parse_fault)]
    fault: Vec<(u64, Fault)>,
    /// A worker that is killed, as `WORKER:POLL`.
    #[arg(long, value_parser = parse_kill)]
    kill: Vec<(usize, u64, Blow)>,
    /// A worker that is frozen, as `WORKER:POLL:MILLISECONDS`.
    #[arg(long, value_parser = parse_freeze)]
    freeze: Vec<(usize, u64, Blow)>,
    /// A cancel, as `ACT:POLLS`: so many polls after the act's deployment was accepted.
    #[arg(long, value_parser = parse_cancel)]
    cancel: Option<(usize, u64)>,
    /// What becomes of hints that something has changed: `Refused`, `NoAnswer` or `Hang`.
    #[arg(long, value_parser = parse_fault_name)]
    hints: Option<Fault>,
    /// Prints how often each call failed in each way.
    #[arg(long)]
    coverage: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.mutants {
        return find_mutants(arguments.first, arguments.seeds.unwrap_or(MUTANT_BUDGET));
    }
    let plans = match plans(&arguments) {
        Ok(plans) => plans,
        Err(message) => {
            say(&message);
            return ExitCode::from(2);
        }
    };
    if arguments.trace && plans.count == 1 {
        return trace(&Plan { keep_trace: true, ..(plans.make)(0) });
    }
    let progress = Progress::new(plans.count);
    let summary = sweep::run(plans.count, FAILURES_MAX, plans.make, |plan, violations| {
        progress.one();
        if !violations.is_empty() {
            progress.aside(|| fail(plan, violations));
        }
    });
    progress.finish();
    let missing = missing(&arguments, &summary);
    let passed = report(&summary, arguments.coverage);
    for what in &missing {
        say(&format!("it never happened: {what}"));
    }
    if missing.is_empty() { passed } else { ExitCode::FAILURE }
}

/// What a whole sweep must have met, and has not.
fn missing(arguments: &Arguments, summary: &Summary) -> Vec<String> {
    let whole = arguments.scenario.is_none() && arguments.mutant.is_none() && !arguments.pairs;
    match arguments.seeds {
        _ if !whole => Vec::new(),
        None => [sweep::missing_marks(summary), sweep::missing_faults(summary)].concat(),
        Some(seeds) if seeds >= 10_000 => sweep::missing_marks(summary),
        Some(_) => Vec::new(),
    }
}

struct Plans<'a> {
    count: u64,
    make: Box<dyn Fn(u64) -> Plan + Sync + 'a>,
}

fn plans(arguments: &Arguments) -> Result<Plans<'_>, String> {
    let mutant = arguments.mutant;
    let scenarios = match &arguments.scenario {
        None => Plan::scenarios(),
        Some(name) => vec![Plan::scenario(name).ok_or_else(|| unknown(name))?],
    };
    let Arguments { fault, kill, freeze, cancel, .. } = arguments;
    let exact = !fault.is_empty() || !kill.is_empty() || !freeze.is_empty() || cancel.is_some();
    if arguments.scenario.is_some() && (exact || arguments.trace) {
        let (faults, blows) = (fault.clone(), [kill.clone(), freeze.clone()].concat());
        let hints = arguments.hints;
        let plan = Plan { faults, blows, hints, cancel: *cancel, mutant, ..scenarios[0].clone() };
        return Ok(Plans { count: 1, make: Box::new(move |_| plan.clone()) });
    }
    if let (Some(seeds), None, false) = (arguments.seeds, &arguments.scenario, arguments.pairs) {
        let first = arguments.first;
        let make = move |number| Plan { mutant, ..Plan::random(first + number) };
        return Ok(Plans { count: seeds, make: Box::new(make) });
    }
    if arguments.pairs {
        return Ok(pairs(arguments, scenarios));
    }
    let all: Vec<Plan> =
        scenarios.iter().flat_map(sweep::singles).map(|plan| Plan { mutant, ..plan }).collect();
    let count = all.len() as u64;
    let make = move |number| all[usize::try_from(number).expect("a plan's number is an index")].clone();
    Ok(Plans { count, make: Box::new(make) })
}

/// All pairs in their order, or some of them spread over all.
fn pairs(arguments: &Arguments, scenarios: Vec<Plan>) -> Plans<'_> {
    let progress = OnceLock::new();
    let pairs = Pairs::new(scenarios, |total| progress.get_or_init(|| Progress::new(total)).one());
    if let Some(progress) = progress.get() {
        progress.finish();
    }
    say(&format!("there are {} pairs", pairs.count()));
    let (first, mutant, some) = (arguments.first, arguments.mutant, arguments.seeds);
    let rest = pairs.count().saturating_sub(first);
    let make = move |number| {
        let number = first + number;
        let number = if some.is_some() { pairs.mixed(number) } else { number };
        Plan { mutant, ..pairs.plan(number) }
    };
    Plans { count: some.map_or(rest, |count| count.min(rest)), make: Box::new(make) }
}

fn unknown(name: &str) -> String {
    let names: Vec<_> = Plan::scenarios().iter().map(|plan| plan.scenario).collect();
    format!("there is no scenario {name:?}; there are {}", names.join(", "))
}

/// Runs one schedule and prints what happened in it.
fn trace(plan: &Plan) -> ExitCode {
    let outcome = cluster::run(plan);
    say(&format!("{plan}"));
    say(&outcome.trace.to_string());
    for violation in &outcome.violations {
        say(&format!("violation: {violation}"));
    }
    if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The test of the test: every planted bug must be found.
fn find_mutants(first: u64, budget: u64) -> ExitCode {
    let (mut schedules, mut seconds, mut survivors) = (0, 0.0, Vec::new());
    let progress = Progress::new(Mutant::ALL.len() as u64);
    for mutant in Mutant::ALL.iter().copied() {
        let plan = |number| Plan { mutant: Some(mutant), ..Plan::random(first + number) };
        let summary = sweep::run(budget, 1, plan, |_, _| ());
        schedules += summary.schedules;
        seconds += summary.elapsed.as_secs_f64();
        let found = summary.failures.first().and_then(|(_, violations)| violations.first());
        let what = found.map_or("NOT FOUND", String::as_str);
        say(&format!("{}: {} schedules: {what}", mutant.as_str(), summary.schedules));
        if found.is_none() {
            survivors.push(mutant.as_str());
        }
        progress.one();
    }
    progress.finish();
    let (all, rate) = (Mutant::ALL.len(), schedules as f64 / seconds);
    let lived = survivors.len();
    say(&format!(
        "{all} planted bugs, {lived} not found {survivors:?}; {schedules} schedules: {rate:.0} schedules/s"
    ));
    if survivors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(summary: &Summary, coverage: bool) -> ExitCode {
    if coverage {
        for ((call, fault), count) in &summary.hits {
            say(&format!("{call} {fault:?}: {count}"));
        }
    }
    for (mark, count) in &summary.marks {
        say(&format!("{mark}: {count}"));
    }
    let hours = summary.virtual_time.as_secs() / 3600;
    say(&format!("{} calls, {} polls, {hours} hours of virtual time", summary.calls, summary.polls));
    let (seconds, rate) = (summary.elapsed.as_secs_f64(), summary.rate());
    let failed = summary.failures.len();
    say(&format!(
        "{} schedules in {seconds:.1} s, {failed} failed: {rate:.0} schedules/s",
        summary.schedules
    ));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Says at once what went wrong: a long run may not come to its end.
fn fail(plan: &Plan, violations: &[String]) {
    say(&format!("FAILED {plan}"));
    for violation in violations {
        say(&format!("  {violation}"));
    }
    say(&format!("  replay: {}", plan.command()));
}

/// A bar on a terminal, plain lines in a pipe.
struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    done: AtomicU64,
}

impl Progress {
    fn new(total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {per_sec} {eta}");
            let bar = ProgressBar::new(total);
            bar.enable_steady_tick(Duration::from_millis(200));
            style.map(|style| bar.clone().with_style(style)).unwrap_or(bar)
        });
        Self { bar, total, done: AtomicU64::new(0) }
    }

    fn one(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        match &self.bar {
            Some(bar) => {
                if done.is_multiple_of(64) || self.total < 64 {
                    bar.set_position(done);
                }
            }
            None => {
                if done.is_multiple_of((self.total / 10).clamp(1, LINE_EVERY)) {
                    say(&format!("{done} of {} schedules", self.total));
                }
            }
        }
    }

    /// Prints something beside the bar.
    fn aside(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn say(line: &str) {
    // A closed pipe is no reason to stop.
    let _written = writeln!(std::io::stdout(), "{line}");
}

fn parse_fault(text: &str) -> Result<(u64, Fault), String> {
    let (call, name) = text.split_once(':').ok_or("expected CALL:FAULT")?;
    Ok((number(call)?, parse_fault_name(name)?))
}

fn parse_fault_name(name: &str) -> Result<Fault, String> {
    let fault = Fault::ALL.into_iter().find(|fault| format!("{fault:?}") == name);
    fault.ok_or_else(|| format!("no fault is named {name}; there are {:?}", Fault::ALL))
}

fn parse_kill(text: &str) -> Result<(usize, u64, Blow), String> {
    let (worker, poll) = text.split_once(':').ok_or("expected WORKER:POLL")?;
    Ok((worker.parse().map_err(|_| "the worker is no number")?, number(poll)?, Blow::Kill))
}

fn parse_freeze(text: &str) -> Result<(usize, u64, Blow), String> {
    let (rest, millis) = text.rsplit_once(':').ok_or("expected WORKER:POLL:MILLISECONDS")?;
    let (worker, poll, _) = parse_kill(rest)?;
    Ok((worker, poll, Blow::Freeze(Duration::from_millis(number(millis)?))))
}

fn parse_cancel(text: &str) -> Result<(usize, u64), String> {
    let (act, poll) = text.split_once(':').ok_or("expected ACT:POLL")?;
    Ok((act.parse().map_err(|_| "the act is no number")?, number(poll)?))
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}
