//! Samples of the simulated world, small enough for a build without optimisation. Everything is run by
//! `cargo xtask simulate`: every single fault, 100,000 random schedules and all planted bugs (`--mutants`).

use ocore_core::testing::mutants::Mutant;
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
    for mark in ["Running", "Undone", "Untouched", "takeover", "superseded", "cancel requested"] {
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
    let plan = plan.fault(12, ocore_core::testing::faults::Fault::Late);
    assert_eq!(plan.command(), "cargo xtask simulate --scenario update --trace --fault 12:Late");
}
