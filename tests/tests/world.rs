//! Samples of the simulated world, small enough for a build without optimisation. Everything is run by
//! `cargo xtask simulate`: every single fault, random schedules (`--seeds`) and all planted bugs (`--mutants`).

use std::collections::BTreeSet;

use ocore_core::testing::{faults::Fault, mutants::Mutant};
use ocore_tests::{
    cluster,
    plan::{Act, Kind, Plan},
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
    let summary = sweep::run(plans.len() as u64, 1, plan, |_, _| ());
    check(&summary);
    for mark in ["Running", "Undone", "Untouched", "Stranded", "recovered", "takeover", "superseded"] {
        assert!(summary.marks.contains_key(mark), "it never happened: {mark} ({:?})", summary.marks);
    }
}

#[test]
fn random_schedules_end_well() {
    check(&sweep::run(200, 1, Plan::random, |_, _| ()));
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
        let summary = sweep::run(150, 1, plan, |_, _| ());
        assert!(!summary.failures.is_empty(), "{mutant:?} was not found");
    }
}

#[test]
fn what_was_revived_and_cannot_be_looked_at_is_not_taken_for_what_serves() {
    // What served before exits when it is revived for the first time.
    let script = vec![Act::Deploy(Kind::Slow), Act::Settle, Act::Deploy(Kind::Unhealthy)];
    let always = Some(("runtime", "inspect", Fault::Refused));
    let plan = Plan { script, always, ..Plan::scenario("first").expect("there is such a scenario") };
    let summary = sweep::run(1, 1, |_| plan.clone(), |_, _| ());
    check(&summary);
    assert!(summary.marks.contains_key("Undone"), "{:?}", summary.marks);
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
    let pairs = sweep::Pairs::new(vec![scenario], |_| ());
    let faults = |number| pairs.plan(number).faults;
    assert!(pairs.count() > 10_000, "{}", pairs.count());
    let all: BTreeSet<_> = (0..pairs.count()).map(faults).collect();
    assert_eq!(all.len() as u64, pairs.count(), "each has a number of its own");
    assert!(all.iter().all(|pair| pair[0].0 < pair[1].0));
    let mixed: BTreeSet<_> = (0..pairs.count()).map(|nth| pairs.mixed(nth)).collect();
    assert_eq!(mixed.len() as u64, pairs.count(), "and comes once when they are mixed");
    check(&sweep::run(97, 1, |nth| pairs.plan(pairs.mixed(nth)), |_, _| ()));
}

#[test]
fn a_schedule_that_panics_has_gone_wrong_and_says_how_to_run_it_again() {
    let plan = Plan { instances: 0, ..Plan::scenario("first").expect("there is such a scenario") };
    let summary = sweep::run(1, 1, |_| plan.clone(), |_, _| ());
    let (plan, violations) = &summary.failures[0];
    assert!(violations[0].starts_with("it panicked: the environment is valid"), "{violations:?}");
    assert_eq!(plan.command(), "cargo xtask simulate --scenario first --trace");
}
