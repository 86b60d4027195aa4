//! What holds whatever the snapshots, the rules and the time are.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// Snapshots of up to 24 deployments, the time, and what is protected.
#[derive(Debug, Clone)]
struct Case {
    snapshots: Vec<SnapshotRecord>,
    protected: Protected,
    now: DateTime<Utc>,
}

fn begin() -> DateTime<Utc> {
    at("2025-12-20 00:00")
}

/// Of one deployment: hours since the one before, whether it took both instances, a size, a pin.
type Taken = (i64, bool, u64, Option<Option<i64>>);

fn case(clock: std::ops::Range<i64>) -> impl Strategy<Value = Case> {
    let pin = prop::option::weighted(0.1, prop::option::of(0..2000i64));
    let taken = prop::collection::vec((clock, prop::bool::weighted(0.8), 0..4u64, pin), 0..24);
    let protected = (prop::option::of(1..24usize), prop::collection::vec(1..24usize, 0..2), any::<bool>());
    (taken, protected, -50..1000i64).prop_map(|(taken, (live, needed, instances), later)| {
        let names = if instances { vec![instance("a"), instance("b")] } else { Vec::new() };
        let mut now = begin();
        let snapshots = (1..).zip(taken).flat_map(|(number, taken)| one(number, taken, &mut now)).collect();
        let protected = Protected {
            live: live.map(id),
            needed: needed.into_iter().map(id).collect(),
            instances: names.into_iter().collect(),
            held: false,
        };
        Case { snapshots, protected, now: now + TimeDelta::hours(later) }
    })
}

fn one(number: usize, (hours, both, size, pin): Taken, now: &mut DateTime<Utc>) -> Vec<SnapshotRecord> {
    *now += TimeDelta::hours(hours);
    let names = if both { &["a", "b"][..] } else { &["b"] };
    let of = |name: &&str| {
        let mut record = snapshot(number, name, *now);
        record.snapshot.size_bytes = size;
        record.pin = pin.map(|until| {
            let pin = SnapshotPin::new("ada", "", begin());
            SnapshotPin { until: until.map(|hours| begin() + TimeDelta::hours(hours)), ..pin }
        });
        record
    };
    names.iter().map(of).collect()
}

/// In order, as long as the clock is right.
fn in_order() -> impl Strategy<Value = Case> {
    case(0..200)
}

fn policy() -> impl Strategy<Value = Retention> {
    let calendar = (0..4usize, 0..4usize, 0..4usize, 0..4usize, 0..3usize, -840..=840i32).prop_map(
        |(hourly, daily, weekly, monthly, yearly, utc_offset_minutes)| Calendar {
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
            utc_offset_minutes,
        },
    );
    let sizes = (1..4usize, prop::option::of(1..40u64), 1..6usize);
    (0..4usize, 0..300u32, calendar, sizes).prop_map(
        |(last, hours, snapshots_calendar, (min, bytes, removals))| Retention {
            snapshots_last: last,
            snapshots_age: HOUR * hours,
            snapshots_calendar,
            snapshots_min: min,
            snapshots_bytes_max: bytes,
            snapshots_removals_max: removals,
            images_last: 1,
        },
    )
}

/// The same policy, whose clean-ups are never cut short.
fn at_once(policy: Retention) -> Retention {
    Retention { snapshots_removals_max: 10_000, ..policy }
}

/// The same policy, with no limit of bytes either.
fn unlimited(policy: Retention) -> Retention {
    Retention { snapshots_bytes_max: None, ..at_once(policy) }
}

impl Case {
    fn verdicts(&self, policy: &Retention) -> Vec<(SnapshotRecord, Verdict)> {
        let verdicts = plan(&self.snapshots, policy, &self.protected, self.now);
        let references: Vec<_> = verdicts.iter().map(|it| it.0.clone()).collect();
        let expected: Vec<_> = self.snapshots.iter().map(|it| it.snapshot.reference.clone()).collect();
        assert_eq!(references, expected, "each is decided about once, in its order");
        self.snapshots.iter().cloned().zip(verdicts.into_iter().map(|it| it.1)).collect()
    }

    fn kept(&self, policy: &Retention) -> BTreeSet<String> {
        let kept = self.verdicts(policy).into_iter().filter(|it| matches!(it.1, Verdict::Keep { .. }));
        kept.map(|it| it.0.snapshot.reference).collect()
    }

    /// What is there after the removals.
    fn after(&self, policy: &Retention) -> Self {
        let kept = self.kept(policy);
        let mut after = self.clone();
        after.snapshots.retain(|it| kept.contains(&it.snapshot.reference));
        after
    }

    /// Those of which the removal of some has begun.
    fn going(&self) -> BTreeSet<DeploymentId> {
        let retired = self.snapshots.iter().filter(|it| it.state == SnapshotState::Retired);
        retired.map(|it| it.deployment).collect()
    }

    /// The deployments whose snapshots must stay, by the words of the documentation.
    fn untouchable(&self) -> BTreeSet<DeploymentId> {
        let going = self.going();
        let mut names = BTreeMap::<DeploymentId, BTreeSet<InstanceName>>::new();
        for it in &self.snapshots {
            names.entry(it.deployment).or_default().insert(it.instance.clone());
        }
        let usable = |of_all: bool| {
            let mut usable = self.snapshots.iter().map(|it| it.deployment).filter(|id| !going.contains(id));
            usable.rfind(|id| !of_all || names[id].is_superset(&self.protected.instances))
        };
        let pinned =
            self.snapshots.iter().filter(|it| it.pin.as_ref().is_some_and(|pin| pin.holds(self.now)));
        let future = self.snapshots.iter().filter(|it| it.snapshot.taken_at > self.now);
        let future = future.map(|it| it.deployment).filter(|id| !going.contains(id));
        let newest = [usable(false), usable(true)].into_iter().flatten();
        let protected = self.protected.needed.iter().copied().chain(self.protected.live);
        newest.chain(protected).chain(pinned.map(|it| it.deployment)).chain(future).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Clocks that go back and removals that have begun included.
    #[test]
    fn what_is_protected_is_never_removed(
        mut case in case(-300..400),
        policy in policy(),
        begun in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        held in prop::bool::weighted(0.1),
    ) {
        case.protected.held = held;
        for index in begun {
            if !case.snapshots.is_empty() {
                let place = index.index(case.snapshots.len());
                case.snapshots[place].state = SnapshotState::Retired;
            }
        }
        let (going, untouchable) = (case.going(), case.untouchable());
        let mut fates = BTreeMap::new();
        let mut removed = BTreeSet::new();
        for (record, verdict) in case.verdicts(&policy) {
            let stays = matches!(&verdict, Verdict::Keep { reasons } if !reasons.is_empty());
            if record.state == SnapshotState::Retired {
                prop_assert_eq!(stays, held, "what has begun is ended");
                continue;
            }
            prop_assert!(stays || !held, "nothing is removed now");
            prop_assert!(stays || !untouchable.contains(&record.deployment), "{record:?} {verdict:?}");
            let fate = fates.entry(record.deployment).or_insert(stays);
            prop_assert_eq!(*fate, stays, "a deployment's snapshots share their fate");
            if !stays && !going.contains(&record.deployment) {
                removed.insert(record.deployment);
            }
        }
        prop_assert!(removed.len() <= policy.snapshots_removals_max);
    }

    #[test]
    fn planned_again_after_the_removals_it_removes_nothing_more(case in in_order(), policy in policy()) {
        let policy = at_once(policy);
        let after = case.after(&policy);
        prop_assert_eq!(after.kept(&policy), case.kept(&policy));
    }

    #[test]
    fn one_clean_up_after_the_other_ends_where_one_without_a_limit_does(case in in_order(), policy in policy()) {
        let policy = Retention { snapshots_bytes_max: None, ..policy };
        let mut there = case.clone();
        for _clean_up in 0..24 {
            there = there.after(&policy);
        }
        prop_assert_eq!(there.kept(&policy), case.kept(&unlimited(policy)));
    }

    #[test]
    fn a_rule_that_wants_more_keeps_none_less(case in case(-300..400), policy in policy(), more in policy()) {
        let (less, other) = (unlimited(policy), more);
        let calendar = less.snapshots_calendar;
        let more = Retention {
            snapshots_last: less.snapshots_last + other.snapshots_last,
            snapshots_age: less.snapshots_age + other.snapshots_age,
            snapshots_min: less.snapshots_min + other.snapshots_min,
            snapshots_calendar: Calendar {
                hourly: calendar.hourly + other.snapshots_calendar.hourly,
                daily: calendar.daily + other.snapshots_calendar.daily,
                weekly: calendar.weekly + other.snapshots_calendar.weekly,
                monthly: calendar.monthly + other.snapshots_calendar.monthly,
                yearly: calendar.yearly + other.snapshots_calendar.yearly,
                ..calendar
            },
            ..less
        };
        prop_assert!(case.kept(&more).is_superset(&case.kept(&less)));
    }

    #[test]
    fn a_larger_limit_keeps_none_less(case in case(-300..400), policy in policy(), more in 1..40u64) {
        let policy = at_once(policy);
        let more = Retention { snapshots_bytes_max: policy.snapshots_bytes_max.map(|bytes| bytes + more), ..policy };
        prop_assert!(case.kept(&more).is_superset(&case.kept(&policy)));
        prop_assert!(case.kept(&unlimited(policy)).is_superset(&case.kept(&more)));
    }

    #[test]
    fn what_is_too_much_is_what_must_stay(case in case(-300..400), policy in policy()) {
        let policy = at_once(policy);
        let after = case.after(&policy);
        let bytes: u64 = after.snapshots.iter().map(|it| it.snapshot.size_bytes).sum();
        let too_much = policy.snapshots_bytes_max.is_some_and(|bytes_max| bytes > bytes_max);
        let may_go = after.verdicts(&policy).into_iter().any(|(record, verdict)| {
            let Verdict::Keep { reasons } = verdict else { return false };
            record.snapshot.size_bytes > 0 && !reasons.iter().any(super::super::Reason::outweighs_size)
        });
        prop_assert!(!(too_much && may_go), "{bytes} bytes are left");
    }
}
