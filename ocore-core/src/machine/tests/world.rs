//! Random attempts against a small model of the world: whatever fails, nothing is migrated twice, nothing is
//! snapshotted after it was written to, and at the end everything is new or everything is as it was.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::drive::{Attempt, Plan, PlannedAim, attempt, instances};
use crate::{
    environment::SnapshotWhen,
    failure::FailureClass,
    machine::{Cancel, Outcome, State, Status, Step},
    name::InstanceName,
    request::RollbackMode,
};

/// One instance: what runs, and what its data has been through.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Site {
    old_up: bool,
    new_up: bool,
    data: Vec<&'static str>,
}

struct World(BTreeMap<InstanceName, Site>);

impl World {
    fn new(plan: Plan) -> Self {
        let site = Site { old_up: plan.previous, new_up: false, data: Vec::new() };
        Self(instances().into_iter().map(|name| (name, site.clone())).collect())
    }

    /// What the step does to one instance.
    fn take_effect(&mut self, state: &State, name: &InstanceName) {
        let site = self.0.get_mut(name).expect("every instance is in the world");
        match state {
            State::Snapshot(_) => {
                assert!(site.data.is_empty() && !site.new_up, "snapshot of changed data: {site:?}");
            }
            State::Stop(_) => site.old_up = false,
            State::Restore(state) => {
                assert!(!site.old_up && !site.new_up, "restore under a running application: {site:?}");
                let loads = state.data()[name].reference.starts_with("load");
                site.data = if loads { vec!["load"] } else { Vec::new() };
            }
            State::Update(_) => {
                assert!(!site.old_up && !site.new_up, "update under a running application: {site:?}");
                assert!(site.data.is_empty(), "update of data that is not the snapshot's: {site:?}");
                site.data.push("update");
            }
            State::Start(_) => {
                assert!(!site.old_up, "two versions at once: {site:?}");
                if !site.new_up {
                    site.new_up = true;
                    site.data.push("start");
                }
            }
            State::Withdraw(_) => site.new_up = false,
            State::Revive(_) => {
                assert!(!site.new_up && site.data.is_empty(), "revived on changed data: {site:?}");
                site.old_up = true;
            }
            _ => {}
        }
    }

    /// An attempt's effects: all of a success, what is kept of a failure, and what `also` says of whatever else
    /// may have had an effect without an answer.
    fn suffer(&mut self, state: &State, attempt: &Attempt, also: &BTreeSet<InstanceName>) {
        let done = done_already(state);
        let affected = match attempt {
            Attempt::Done => instances(),
            Attempt::Failed(FailureClass::Transient, kept) if state.step() != Some(Step::Update) => {
                kept.clone()
            }
            Attempt::Failed(_, kept) => kept | also,
            Attempt::Lost | Attempt::Interrupted | Attempt::Cancelled { begun: true } => also.clone(),
            Attempt::ClaimedLate | Attempt::Cancelled { begun: false } => BTreeSet::new(),
        };
        for name in affected.difference(&done) {
            self.take_effect(state, name);
        }
    }

    fn check_end(&self, plan: Plan, end: &Outcome) {
        let loads = matches!(plan.aim, PlannedAim::Rollback { mode: RollbackMode::CodeAndData, .. });
        let migrates = plan.update && matches!(plan.aim, PlannedAim::Deploy);
        let marks = [loads.then_some("load"), migrates.then_some("update"), Some("start")];
        let new = Site { old_up: false, new_up: true, data: marks.into_iter().flatten().collect() };
        let old = Site { old_up: plan.previous, new_up: false, data: Vec::new() };
        let expected = match end {
            Outcome::Running(_) => new,
            Outcome::Untouched(_) | Outcome::Undone { .. } => old,
            Outcome::Stranded { .. } => return,
        };
        for (name, site) in &self.0 {
            assert_eq!(*site, expected, "{name} at the end: {end:?}");
        }
    }
}

/// The instances that the engine passes over, because an earlier attempt did them.
fn done_already(state: &State) -> BTreeSet<InstanceName> {
    match state {
        State::Snapshot(state) => state.taken().keys().cloned().collect(),
        State::Stop(state) => state.stopped().clone(),
        State::Restore(state) => state.restored().clone(),
        State::Start(state) => state.started().keys().cloned().collect(),
        State::Withdraw(state) => state.withdrawn().clone(),
        _ => BTreeSet::new(),
    }
}

/// What comes of an attempt, and the instances where something happened without an answer, drawn from one number:
/// numbers are generated and shrunk much faster than trees of strategies.
#[derive(Debug, Clone, Copy)]
struct Draw(u32);

impl Draw {
    fn failed(self) -> Attempt {
        let class = match self.0 % 8 {
            0..4 => FailureClass::Transient,
            4..7 => FailureClass::Unanswered,
            _ => FailureClass::Permanent,
        };
        // An attempt with all instances done is none that failed.
        let kept = self.0 >> 8 & 0b11;
        if self.0 >> 3 & 0b111 == 0 {
            Attempt::Lost
        } else {
            Attempt::Failed(class, some_instances(kept % 3))
        }
    }

    fn any(self) -> Attempt {
        match self.0 >> 16 & 0b1111 {
            0..5 => Attempt::Done,
            5 => Attempt::ClaimedLate,
            6..13 => self.failed(),
            13 => Attempt::Interrupted,
            14 => Attempt::Cancelled { begun: true },
            _ => Attempt::Cancelled { begun: false },
        }
    }

    fn also(self) -> BTreeSet<InstanceName> {
        some_instances(self.0 >> 10 & 0b11)
    }
}

/// The instances whose bits are set.
fn some_instances(bits: u32) -> BTreeSet<InstanceName> {
    instances().into_iter().enumerate().filter(|(n, _)| bits >> n & 1 == 1).map(|(_, name)| name).collect()
}

fn draws(count: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<Draw>> {
    proptest::collection::vec(any::<u32>().prop_map(Draw), count)
}

fn any_plan() -> impl Strategy<Value = Plan> {
    let aim = prop_oneof![
        Just(PlannedAim::Deploy),
        (any::<bool>(), any::<bool>()).prop_map(|(code_only, image_present)| PlannedAim::Rollback {
            mode: if code_only { RollbackMode::CodeOnly } else { RollbackMode::CodeAndData },
            image_present,
        }),
    ];
    (any::<bool>(), any::<bool>(), any::<bool>(), aim).prop_map(|(previous, update, after_stop, aim)| Plan {
        previous,
        update,
        when: if after_stop { SnapshotWhen::AfterStop } else { SnapshotWhen::BeforeStop },
        aim,
    })
}

/// Runs the attempts, then successes, to the end; returns how many attempts it took.
fn run(plan: Plan, mut attempts: impl Iterator<Item = (Attempt, BTreeSet<InstanceName>)>) -> usize {
    let mut world = World::new(plan);
    let mut state = plan.begin();
    let mut count = 0;
    while state.step().is_some() {
        let status = state.status(true);
        assert!(!status.is_final(), "{status} before the end: {state:?}");
        let (next, also) = attempts.next().unwrap_or((Attempt::Done, BTreeSet::new()));
        world.suffer(&state, &next, &also);
        state = attempt(plan, state, &next);
        count += 1;
    }
    let outcome = state.outcome().expect("a deployment without a step is over");
    world.check_end(plan, outcome);
    check_status(outcome, state.status(true));
    assert_eq!(state.clone().lost_worker(), state, "an end has no successor");
    assert_eq!(state.clone().interrupted(), state, "an end has no successor");
    assert_eq!(state.clone().cancel(true), Cancel::TooLate(state));
    count
}

fn check_status(outcome: &Outcome, status: Status) {
    let cancelled = outcome.cause().is_some_and(|cause| cause.failure().is_none());
    let expected = match outcome {
        Outcome::Running(_) => Status::Running,
        Outcome::Stranded { .. } => Status::Failed,
        _ if cancelled => Status::Cancelled,
        Outcome::Undone { live: Some(_), .. } => Status::RolledBack,
        Outcome::Undone { .. } | Outcome::Untouched(_) => Status::Failed,
    };
    assert_eq!(status, expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn everything_is_new_or_everything_is_as_it_was(
        plan in any_plan(),
        draws in draws(0..60),
    ) {
        run(plan, draws.into_iter().map(|draw| (draw.any(), draw.also())));
    }

    #[test]
    fn attempts_that_only_fail_come_to_an_end(
        plan in any_plan(),
        head in 0_usize..12,
        failures in draws(300),
    ) {
        let done = std::iter::repeat_n((Attempt::Done, BTreeSet::new()), head);
        // Seven steps forward, at most six rounds through Withdraw, Restore, Update and Start, then three steps
        // of an undo, with at most 6 and 23 attempts each.
        let failures = failures.into_iter().map(|draw| (draw.failed(), draw.also()));
        let count = run(plan, done.chain(failures));
        prop_assert!(count < 300, "{count} attempts");
    }
}
