//! Samples of the simulated world, small enough for a build without optimisation. Everything is run by
//! `cargo xtask simulate`: every single fault, random schedules (`--seeds`) and all planted bugs (`--mutants`).

use ocore_core::testing::{faults::Fault, mutants::Mutant};
use ocore_tests::{
    cluster,
    plan::Plan,
    sweep::{self, Summary},
};

#[track_caller]
fn check(summary: &Summary) {
    for (plan, violations) in &summary.failures {
        eprintln!("FAILED {plan}\n  {}\n  replay: {}", violations.join("\n  "), plan.command());
    }
    assert!(summary.failures.is_empty(), "{} schedules went wrong", summary.failures.len());
}

#[test]
fn every_scenario_and_some_of_its_disturbances_end_well() {
    let mut plans = Vec::new();
    for scenario in Plan::scenarios() {
        plans.extend(sweep::singles(&scenario).into_iter().step_by(149));
    }
    let plan = |number| plans[usize::try_from(number).expect("a plan's number is an index")].clone();
    let summary = sweep::run(plans.len() as u64, 1, plan, || ());
    check(&summary);
    for mark in [
        "Running",
        "Undone",
        "Untouched",
        "Stranded",
        "recovered",
        "takeover",
        "superseded",
        "cancel requested",
    ] {
        assert!(summary.marks.contains_key(mark), "it never happened: {mark} ({:?})", summary.marks);
    }
}

#[test]
fn random_schedules_end_well() {
    check(&sweep::run(200, 1, Plan::random, || ()));
}

#[test]
fn the_same_seed_gives_the_same_trace_byte_for_byte() {
    let traced = |seed| cluster::run(&Plan { keep_trace: true, ..Plan::random(seed) }).trace;
    for seed in 0..25 {
        let (once, again) = (traced(seed), traced(seed));
        assert!(once.lines.len() > 20, "seed {seed} did nothing");
        assert_eq!(once.lines, again.lines, "seed {seed}");
        assert_eq!(once.hash, again.hash, "seed {seed}: the same calls, but not the same polls");
    }
    assert_ne!(traced(1).hash, traced(2).hash);
}

#[test]
fn bugs_that_are_easy_to_find_are_found_soon() {
    use Mutant::{LastInFirstOut, RestoreSkippedOnUndo, ReviveSkipped, RunningBeforeObserved, StopSkipped};
    for mutant in [RunningBeforeObserved, RestoreSkippedOnUndo, ReviveSkipped, StopSkipped, LastInFirstOut] {
        let plan = |seed| Plan { mutant: Some(mutant), ..Plan::random(seed) };
        let summary = sweep::run(150, 1, plan, || ());
        assert!(!summary.failures.is_empty(), "{mutant:?} was not found");
    }
}

#[test]
fn a_plan_says_how_to_run_it_again() {
    assert_eq!(Plan::random(7).command(), "cargo xtask simulate --first 7 --seeds 1 --trace");
    let plan = Plan::scenario("update").expect("there is such a scenario");
    let plan = plan.fault(12, Fault::Late);
    assert_eq!(plan.command(), "cargo xtask simulate --scenario update --trace --fault 12:Late");
}

#[test]
fn every_pair_of_faults_has_a_number() {
    let scenario = Plan::scenario("first").expect("there is such a scenario");
    let pairs = sweep::Pairs::new(vec![scenario]);
    let faults = |number| pairs.plan(number).faults;
    assert!(pairs.count() > 10_000, "{}", pairs.count());
    let ways = Fault::ALL;
    assert_eq!(faults(0), [(0, ways[0]), (1, ways[0])]);
    assert_eq!(faults(1), [(0, ways[0]), (1, ways[1])]);
    assert_eq!(faults(ways.len() as u64), [(0, ways[0]), (2, ways[0])]);
    let last = faults(pairs.count() - 1);
    assert_eq!((last[0].1, last[1].1), (ways[ways.len() - 1], ways[ways.len() - 1]));
    let stride = usize::try_from(pairs.count() / 97).expect("it is small");
    let numbers: Vec<u64> = (0..pairs.count()).step_by(stride).collect();
    let plan = |number| pairs.plan(numbers[usize::try_from(number).expect("a plan's number is an index")]);
    check(&sweep::run(numbers.len() as u64, 1, plan, || ()));
}
