//! The plans of a deployment as data: what happens at which step, and the path that follows.

pub(crate) mod drive;
mod world;

use std::{collections::VecDeque, sync::Arc};

use self::drive::{Attempt, ID, Plan, PlannedAim, attempt};
use super::{Outcome, State, Status, Step, begin};
use crate::{
    environment::{Environment, EnvironmentSpec, InstanceSpec},
    failure::{Cause, FailureClass},
    request::{Goal, RollbackMode},
};

const CANCELLED: Attempt = Attempt::Cancelled { begun: true };
const CANCELLED_WAITING: Attempt = Attempt::Cancelled { begun: false };

/// Drives a deployment to its end. Each attempt is made when its step comes up; all others succeed. Returns the
/// steps, and the status and what serves at the end.
fn path_from(mut state: State, plan: Plan, script: &[(Step, Attempt)]) -> (String, State) {
    let mut script: VecDeque<_> = script.iter().cloned().collect();
    let mut path = Vec::new();
    while let Some(step) = state.step() {
        assert!(path.len() < 100, "no end: {path:?}");
        path.push(step.as_str().to_owned());
        let scripted = script.pop_front_if(|(at, _)| *at == step);
        state = attempt(plan, state, &scripted.map_or(Attempt::Done, |(_, attempt)| attempt));
    }
    assert!(script.is_empty(), "never came up: {script:?} in {path:?}");
    let outcome = state.outcome().expect("a deployment without a step is over");
    path.push(format!("{} {:?}", state.status(true), outcome.serving()));
    (path.join(" "), state)
}

#[track_caller]
fn check(plan: Plan, script: &[(Step, Attempt)], expected: &str) {
    let (path, _) = path_from(plan.begin(), plan, script);
    assert_eq!(path, expected, "after {script:?}");
}

#[test]
fn every_plan_reaches_its_end() {
    check(Plan::DEPLOY, &[], "fetch build snapshot stop start probe Running New");
    check(Plan::UPDATE, &[], "fetch build snapshot stop update start probe Running New");
    check(Plan::FIRST, &[], "fetch build snapshot update start probe Running New");
    check(Plan::UPDATE.after_stop(), &[], "fetch build stop snapshot update start probe Running New");
    check(Plan::FIRST.after_stop(), &[], "fetch build snapshot update start probe Running New");
    let rollback =
        |mode, image_present| Plan { aim: PlannedAim::Rollback { mode, image_present }, ..Plan::UPDATE };
    let (both, code) = (RollbackMode::CodeAndData, RollbackMode::CodeOnly);
    check(rollback(both, true), &[], "locate snapshot stop restore start probe Running New");
    check(rollback(both, false), &[], "locate fetch build snapshot stop restore start probe Running New");
    check(rollback(code, true), &[], "locate snapshot stop start probe Running New");
    check(rollback(code, false), &[], "locate fetch build snapshot stop start probe Running New");
    let after_stop = rollback(both, true).after_stop();
    check(after_stop, &[], "locate stop snapshot restore start probe Running New");
}

#[test]
fn what_cannot_work_is_given_up_and_undone() {
    let give_up = |plan, step, expected: &str| check(plan, &[(step, Attempt::PERMANENT)], expected);
    let deploy = Plan::UPDATE;
    give_up(deploy, Step::Fetch, "fetch Failed Unchanged");
    give_up(deploy, Step::Build, "fetch build Failed Unchanged");
    give_up(deploy, Step::Snapshot, "fetch build snapshot Failed Unchanged");
    give_up(deploy, Step::Stop, "fetch build snapshot stop revive RolledBack Previous");
    give_up(
        deploy,
        Step::Update,
        "fetch build snapshot stop update withdraw restore revive RolledBack Previous",
    );
    give_up(
        deploy,
        Step::Start,
        "fetch build snapshot stop update start withdraw restore revive RolledBack Previous",
    );
    give_up(
        deploy,
        Step::Probe,
        "fetch build snapshot stop update start probe withdraw restore revive RolledBack Previous",
    );
    let after_stop = deploy.after_stop();
    give_up(after_stop, Step::Stop, "fetch build stop revive RolledBack Previous");
    give_up(after_stop, Step::Snapshot, "fetch build stop snapshot revive RolledBack Previous");
    give_up(Plan::FIRST, Step::Snapshot, "fetch build snapshot Failed Unchanged");
    give_up(Plan::FIRST, Step::Update, "fetch build snapshot update withdraw restore Failed Down");
    give_up(Plan::FIRST, Step::Probe, "fetch build snapshot update start probe withdraw restore Failed Down");
    give_up(Plan::ROLLBACK, Step::Locate, "locate Failed Unchanged");
    give_up(
        Plan::ROLLBACK,
        Step::Restore,
        "locate snapshot stop restore withdraw restore revive RolledBack Previous",
    );
    give_up(
        Plan::ROLLBACK,
        Step::Start,
        "locate snapshot stop restore start withdraw restore revive RolledBack Previous",
    );
}

#[test]
fn a_step_is_tried_again_and_a_migration_only_on_restored_data() {
    let retry = |plan, step, attempt: Attempt, expected: &str| check(plan, &[(step, attempt)], expected);
    let plan = Plan::UPDATE;
    for attempt in [Attempt::TRANSIENT, Attempt::UNANSWERED, Attempt::Lost] {
        let same = |step, expected| retry(plan, step, attempt.clone(), expected);
        same(Step::Fetch, "fetch fetch build snapshot stop update start probe Running New");
        same(Step::Build, "fetch build build snapshot stop update start probe Running New");
        same(Step::Snapshot, "fetch build snapshot snapshot stop update start probe Running New");
        same(Step::Stop, "fetch build snapshot stop stop update start probe Running New");
        same(
            Step::Update,
            "fetch build snapshot stop update withdraw restore update start probe Running New",
        );
        same(Step::Probe, "fetch build snapshot stop update start probe probe Running New");
        retry(
            Plan::ROLLBACK,
            Step::Locate,
            attempt.clone(),
            "locate locate snapshot stop restore start probe Running New",
        );
        retry(
            Plan::ROLLBACK,
            Step::Restore,
            attempt.clone(),
            "locate snapshot stop restore restore start probe Running New",
        );
    }
    let redone = "fetch build snapshot stop update start withdraw restore update start probe Running New";
    retry(
        plan,
        Step::Start,
        Attempt::TRANSIENT,
        "fetch build snapshot stop update start start probe Running New",
    );
    retry(plan, Step::Start, Attempt::UNANSWERED, redone);
    retry(plan, Step::Start, Attempt::Lost, redone);
    retry(
        Plan::ROLLBACK,
        Step::Start,
        Attempt::UNANSWERED,
        "locate snapshot stop restore start withdraw restore start probe Running New",
    );
}

#[test]
fn the_last_attempt_is_followed_by_the_undo() {
    let failures: Vec<_> = (0..5).map(|_| (Step::Stop, Attempt::TRANSIENT)).collect();
    check(
        Plan::DEPLOY,
        &failures,
        "fetch build snapshot stop stop stop stop stop revive RolledBack Previous",
    );
    // Update and Start share one tally: a loop through both is as short as a loop through one.
    let updates = (0..3).map(|_| (Step::Update, Attempt::TRANSIENT));
    let starts = (0..2).map(|_| (Step::Start, Attempt::UNANSWERED));
    let (path, _) = path_from(Plan::UPDATE.begin(), Plan::UPDATE, &updates.chain(starts).collect::<Vec<_>>());
    assert!(path.ends_with("withdraw restore revive RolledBack Previous"), "{path}");
}

#[test]
fn a_step_that_loses_its_worker_twice_is_given_up() {
    let lost = |step, expected: &str| {
        check(Plan::UPDATE, &[(step, Attempt::Lost), (step, Attempt::Lost)], expected);
    };
    lost(Step::Fetch, "fetch fetch Failed Unchanged");
    lost(Step::Build, "fetch build build Failed Unchanged");
    lost(Step::Snapshot, "fetch build snapshot snapshot Failed Unchanged");
    lost(Step::Stop, "fetch build snapshot stop stop revive RolledBack Previous");
    let before = "fetch build snapshot stop update";
    let undone = "withdraw restore revive RolledBack Previous";
    lost(Step::Update, &format!("{before} withdraw restore update {undone}"));
    lost(Step::Start, &format!("{before} start withdraw restore update start {undone}"));
    lost(Step::Probe, &format!("{before} start probe probe {undone}"));
}

#[test]
fn an_undo_outlives_as_many_workers_as_it_may_make_attempts() {
    for step in [Step::Withdraw, Step::Restore, Step::Revive] {
        let mut script = vec![(Step::Probe, Attempt::PERMANENT)];
        script.extend((0..11).map(|_| (step, Attempt::Lost)));
        let (path, _) = path_from(Plan::DEPLOY.begin(), Plan::DEPLOY, &script);
        assert!(path.ends_with("RolledBack Previous"), "{path}");
        script.push((step, Attempt::Lost));
        let (path, _) = path_from(Plan::DEPLOY.begin(), Plan::DEPLOY, &script);
        assert!(path.ends_with("Failed Down"), "{path}");
    }
}

#[test]
fn a_cancel_undoes_what_may_have_been_touched() {
    let check = |plan, step, expected: [&str; 2]| {
        check(plan, &[(step, CANCELLED_WAITING)], expected[0]);
        check(plan, &[(step, CANCELLED)], expected[1]);
    };
    let same = |plan, step, expected| check(plan, step, [expected, expected]);
    let plan = Plan::UPDATE;
    same(plan, Step::Fetch, "fetch Cancelled Unchanged");
    same(plan, Step::Build, "fetch build Cancelled Unchanged");
    same(plan, Step::Snapshot, "fetch build snapshot Cancelled Unchanged");
    same(plan, Step::Stop, "fetch build snapshot stop revive Cancelled Previous");
    check(
        plan,
        Step::Update,
        [
            "fetch build snapshot stop update revive Cancelled Previous",
            "fetch build snapshot stop update withdraw restore revive Cancelled Previous",
        ],
    );
    same(
        plan,
        Step::Start,
        "fetch build snapshot stop update start withdraw restore revive Cancelled Previous",
    );
    check(
        Plan::DEPLOY,
        Step::Start,
        [
            "fetch build snapshot stop start revive Cancelled Previous",
            "fetch build snapshot stop start withdraw restore revive Cancelled Previous",
        ],
    );
    same(
        plan,
        Step::Probe,
        "fetch build snapshot stop update start probe withdraw restore revive Cancelled Previous",
    );
    same(plan.after_stop(), Step::Snapshot, "fetch build stop snapshot revive Cancelled Previous");
    same(Plan::ROLLBACK, Step::Locate, "locate Cancelled Unchanged");
    check(
        Plan::ROLLBACK,
        Step::Restore,
        [
            "locate snapshot stop restore revive Cancelled Previous",
            "locate snapshot stop restore withdraw restore revive Cancelled Previous",
        ],
    );
    check(
        Plan::FIRST,
        Step::Update,
        [
            "fetch build snapshot update Cancelled Down",
            "fetch build snapshot update withdraw restore Cancelled Down",
        ],
    );
}

#[test]
fn a_cancel_between_two_attempts_undoes_what_the_first_one_did() {
    let partly = || Attempt::partly(FailureClass::Transient);
    check(
        Plan::DEPLOY,
        &[(Step::Start, partly()), (Step::Start, CANCELLED_WAITING)],
        "fetch build snapshot stop start start withdraw restore revive Cancelled Previous",
    );
    for first in [partly(), Attempt::UNANSWERED, Attempt::Lost, Attempt::Interrupted] {
        check(
            Plan::ROLLBACK,
            &[(Step::Restore, first), (Step::Restore, CANCELLED_WAITING)],
            "locate snapshot stop restore restore withdraw restore revive Cancelled Previous",
        );
    }
    check(
        Plan::UPDATE,
        &[(Step::Update, Attempt::TRANSIENT), (Step::Withdraw, CANCELLED_WAITING)],
        "fetch build snapshot stop update withdraw withdraw restore revive Cancelled Previous",
    );
    check(
        Plan::UPDATE,
        &[(Step::Update, Attempt::TRANSIENT), (Step::Restore, CANCELLED_WAITING)],
        "fetch build snapshot stop update withdraw restore withdraw restore revive Cancelled Previous",
    );
}

#[test]
fn an_undo_is_not_cancelled() {
    let undone = "fetch build snapshot stop start probe withdraw restore revive RolledBack Previous";
    for step in [Step::Withdraw, Step::Restore, Step::Revive] {
        let repeated = undone.replace(step.as_str(), &format!("{step} {step}"));
        check(Plan::DEPLOY, &[(Step::Probe, Attempt::PERMANENT), (step, CANCELLED)], &repeated);
    }
}

#[test]
fn an_interrupted_step_is_begun_anew_and_uses_up_nothing() {
    for step in [Step::Fetch, Step::Build, Step::Snapshot, Step::Stop, Step::Probe] {
        let script: Vec<_> = (0..20).map(|_| (step, Attempt::Interrupted)).collect();
        let (path, _) = path_from(Plan::UPDATE.begin(), Plan::UPDATE, &script);
        assert_eq!(path.matches(step.as_str()).count(), 21, "{path}");
        assert!(path.ends_with("Running New"), "{path}");
    }
    for (step, expected) in [
        (Step::Update, "fetch build snapshot stop update withdraw restore update start probe Running New"),
        (
            Step::Start,
            "fetch build snapshot stop update start withdraw restore update start probe Running New",
        ),
    ] {
        check(Plan::UPDATE, &[(step, Attempt::Interrupted)], expected);
    }
}

#[test]
fn snapshots_of_data_that_was_served_meanwhile_are_taken_again() {
    let late = |plan, step, expected: &str| check(plan, &[(step, Attempt::ClaimedLate)], expected);
    let plan = Plan::UPDATE;
    late(plan, Step::Stop, "fetch build snapshot stop snapshot stop update start probe Running New");
    late(plan, Step::Snapshot, "fetch build snapshot snapshot stop update start probe Running New");
    late(plan, Step::Update, "fetch build snapshot stop update update start probe Running New");
    late(plan.after_stop(), Step::Stop, "fetch build stop stop snapshot update start probe Running New");
    late(
        plan.after_stop(),
        Step::Snapshot,
        "fetch build stop snapshot snapshot update start probe Running New",
    );
    check(
        Plan::ROLLBACK,
        &[(Step::Stop, Attempt::ClaimedLate)],
        "locate snapshot stop snapshot stop restore start probe Running New",
    );

    // What was taken in part before is not kept, unless nothing served that could have written.
    for (plan, kept) in [(plan, 0), (plan.after_stop(), 1), (Plan::FIRST, 1)] {
        let mut state = plan.begin();
        while state.step() != Some(Step::Snapshot) {
            state = attempt(plan, state, &Attempt::Done);
        }
        state = attempt(plan, state, &Attempt::partly(FailureClass::Transient));
        let State::Snapshot(state) = attempt(plan, state, &Attempt::ClaimedLate) else { panic!("{plan:?}") };
        assert_eq!(state.taken().len(), kept, "{plan:?}");
    }

    // Where something may have been stopped, they are taken after the stop, and Stop has no more attempts than before.
    for first in [Attempt::TRANSIENT, Attempt::Lost, Attempt::Interrupted] {
        check(
            plan,
            &[(Step::Stop, first), (Step::Stop, Attempt::ClaimedLate), (Step::Snapshot, Attempt::PERMANENT)],
            "fetch build snapshot stop stop stop snapshot revive RolledBack Previous",
        );
    }
    let again = [(Step::Stop, Attempt::TRANSIENT), (Step::Stop, Attempt::ClaimedLate)];
    let script: Vec<_> = again.into_iter().cycle().take(9).collect();
    let (path, _) = path_from(plan.begin(), plan, &script);
    assert!(path.ends_with("stop revive RolledBack Previous"), "{path}");
}

#[test]
fn what_still_runs_of_an_acknowledged_deployment_is_stopped() {
    for (plan, expected) in [
        (Plan::DEPLOY, "fetch build snapshot stop start probe Running New"),
        (Plan::FIRST, "fetch build snapshot stop update start probe Running New"),
        (Plan::FIRST.after_stop(), "fetch build stop snapshot update start probe Running New"),
    ] {
        let state = plan.begin_after(vec![drive::EARLIER]);
        assert_eq!(path_from(state.clone(), plan, &[]).0, expected);
        if !plan.previous {
            let (path, _) = path_from(state, plan, &[(Step::Stop, Attempt::PERMANENT)]);
            assert!(path.ends_with("stop Failed Down"), "{path}");
        }
    }
}

#[test]
fn a_hopeless_undo_is_stranded_and_can_be_resumed() {
    for (step, resumed) in [
        (Step::Withdraw, "withdraw restore revive RolledBack Previous"),
        (Step::Restore, "restore revive RolledBack Previous"),
        (Step::Revive, "revive RolledBack Previous"),
    ] {
        let script = [(Step::Probe, Attempt::PERMANENT), (step, Attempt::PERMANENT)];
        let (path, end) = path_from(Plan::DEPLOY.begin(), Plan::DEPLOY, &script);
        assert!(path.ends_with("Failed Down"), "{path}");
        let Some(Outcome::Stranded { cause, failure, undo }) = end.outcome().cloned() else {
            panic!("{step} is not stranded: {end:?}");
        };
        assert_eq!(cause.failure().map(|failure| failure.step), Some(Step::Probe));
        assert_eq!(failure.step, step);
        assert_eq!(undo.job().id, ID);
        let environment = undo.job().environment.clone();
        let recovery = begin(drive::EARLIER, &Goal::Recover(undo), environment, None, Vec::new());
        assert_eq!(
            recovery.job().map(|job| job.id),
            Some(ID),
            "the stranded deployment names what is undone"
        );
        assert_eq!(path_from(recovery, Plan::DEPLOY, &[]).0, resumed);
    }
}

#[test]
fn a_resumed_undo_has_all_its_attempts_again() {
    let failures = |step| (0..12).map(move |_| (step, Attempt::TRANSIENT));
    let script: Vec<_> =
        [(Step::Probe, Attempt::PERMANENT)].into_iter().chain(failures(Step::Restore)).collect();
    let (_, end) = path_from(Plan::DEPLOY.begin(), Plan::DEPLOY, &script);
    let Some(Outcome::Stranded { undo, .. }) = end.outcome().cloned() else {
        panic!("not stranded: {end:?}")
    };
    let environment = undo.job().environment.clone();
    let recovery = begin(ID, &Goal::Recover(undo), environment, None, Vec::new());
    let script: Vec<_> = failures(Step::Restore).take(11).collect();
    let (path, _) = path_from(recovery, Plan::DEPLOY, &script);
    assert!(path.ends_with("revive RolledBack Previous"), "{path}");
}

#[test]
fn a_resumed_undo_goes_by_the_rules_of_the_moment() {
    let script = [(Step::Probe, Attempt::PERMANENT), (Step::Restore, Attempt::PERMANENT)];
    let (_, end) = path_from(Plan::DEPLOY.begin(), Plan::DEPLOY, &script);
    let Some(Outcome::Stranded { undo, .. }) = end.outcome().cloned() else {
        panic!("not stranded: {end:?}")
    };
    let mut policy = undo.job().environment.policy().clone();
    policy.deadlines.restore *= 2;
    let one =
        EnvironmentSpec::new("shop", "https://git.example.org/shop.git").instance(InstanceSpec::new("other"));
    let now = Environment::try_from(one).unwrap().under(&policy);
    let recovery = begin(ID, &Goal::Recover(undo.clone()), Arc::new(now), None, Vec::new());
    let environment = &recovery.job().unwrap().environment;
    assert_eq!(environment.policy(), &policy);
    assert_eq!(environment.instances(), undo.job().environment.instances());
}

#[test]
fn what_is_kept_of_a_failed_attempt_is_not_lost() {
    let plan = Plan::DEPLOY;
    let at = |step| {
        let mut state = plan.begin();
        while state.step() != Some(step) {
            let next = if state.step() == Some(Step::Probe) { Attempt::PERMANENT } else { Attempt::Done };
            state = attempt(plan, state, &next);
        }
        attempt(plan, state, &Attempt::partly(FailureClass::Transient))
    };
    for step in [Step::Snapshot, Step::Stop, Step::Start, Step::Withdraw, Step::Restore, Step::Revive] {
        let kept = match at(step) {
            State::Snapshot(state) => state.taken().len(),
            State::Stop(state) => state.stopped().len(),
            State::Start(state) => state.started().len(),
            State::Withdraw(state) => state.withdrawn().len(),
            State::Restore(state) => state.restored().len(),
            State::Revive(state) => state.revived().len(),
            state => panic!("{step} became {state:?}"),
        };
        assert_eq!(kept, 1, "{step}");
    }
}

#[test]
fn a_queued_deployment_is_cancelled_at_once_and_loses_no_worker() {
    assert_eq!(State::Queued.status(false), Status::Queued);
    assert_eq!(State::Queued.status(true), Status::Building);
    assert_eq!(State::Queued.lost_worker(), State::Queued);
    let super::Cancel::Accepted(end) = State::Queued.cancel(false) else { panic!("refused") };
    assert_eq!(end.outcome(), Some(&Outcome::Untouched(Cause::Cancelled)));
    assert_eq!(end.status(false), Status::Cancelled);
}

#[test]
fn a_state_being_undone_says_why() {
    let (_, end) = path_from(Plan::DEPLOY.begin(), Plan::DEPLOY, &[(Step::Probe, Attempt::PERMANENT)]);
    assert_eq!(end.cause().and_then(Cause::failure).map(|failure| failure.step), Some(Step::Probe));
    let mut state = Plan::DEPLOY.begin();
    while state.step() != Some(Step::Probe) {
        assert_eq!(state.cause(), None);
        state = attempt(Plan::DEPLOY, state, &Attempt::Done);
    }
    state = attempt(Plan::DEPLOY, state, &Attempt::PERMANENT);
    while state.step().is_some() {
        assert_eq!(state.cause().and_then(Cause::failure).map(|failure| failure.step), Some(Step::Probe));
        state = attempt(Plan::DEPLOY, state, &Attempt::Done);
    }
}
