//! Tables, one per rule, in the words that users read; and what holds for all of them.

mod properties;

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};

use super::{Calendar, Protected, Retention, Verdict, plan};
use crate::{
    id::DeploymentId,
    name::{EnvironmentName, InstanceName},
    port::{SnapshotPin, SnapshotRecord, SnapshotState},
    release::Snapshot,
};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn id(number: usize) -> DeploymentId {
    DeploymentId::from_u128(number as u128)
}

fn instance(name: &str) -> InstanceName {
    InstanceName::new(name).unwrap()
}

/// The time in UTC.
fn at(text: &str) -> DateTime<Utc> {
    NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M").unwrap().and_utc()
}

/// A snapshot of ten bytes.
fn snapshot(number: usize, name: &str, taken_at: DateTime<Utc>) -> SnapshotRecord {
    let snapshot = Snapshot::new(format!("{number}-{name}"), taken_at, 10);
    let environment = EnvironmentName::new("shop").unwrap();
    SnapshotRecord::new(environment, id(number), instance(name), snapshot, None)
}

/// One deployment at each time, numbered from 1 on, each with a snapshot of the instances `a` and `b`.
fn taken(times: &[&str]) -> Vec<SnapshotRecord> {
    let numbered = (1..).zip(times);
    numbered.flat_map(|(number, time)| ["a", "b"].map(|name| snapshot(number, name, at(time)))).collect()
}

/// One a day at noon, the tenth on the 10th of March.
fn ten_days() -> Vec<SnapshotRecord> {
    let times: Vec<String> = (1..=10).map(|day| format!("2026-03-{day:02} 12:00")).collect();
    taken(&times.iter().map(String::as_str).collect::<Vec<_>>())
}

const TEN_DAYS_END: &str = "2026-03-10 13:00";

/// Nothing but what each table adds.
fn nothing() -> Retention {
    Retention { snapshots_last: 0, snapshots_age: Duration::ZERO, ..Retention::default() }
}

/// What is decided, in words, one line for each deployment: `a` and `b` share their fate.
fn words(snapshots: &[SnapshotRecord], policy: &Retention, protected: &Protected, now: &str) -> Vec<String> {
    let verdicts = plan(snapshots, policy, protected, at(now)).into_iter().map(|(reference, verdict)| {
        let (number, _) = reference.split_once('-').unwrap();
        match verdict {
            Verdict::Keep { reasons } => {
                let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
                format!("{number} stays: {}", reasons.join("; "))
            }
            Verdict::Remove { why } => format!("{number} goes: {why}"),
        }
    });
    let mut words: Vec<String> = verdicts.collect();
    words.dedup();
    words
}

#[track_caller]
fn check(snapshots: &[SnapshotRecord], policy: &Retention, protected: &Protected, now: &str, table: &str) {
    let expected: Vec<&str> = table.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(words(snapshots, policy, protected, now), expected);
}

/// The deployments whose snapshots stay.
fn kept(snapshots: &[SnapshotRecord], policy: &Retention, protected: &Protected, now: &str) -> Vec<usize> {
    let words = words(snapshots, policy, protected, now);
    let kept = words.iter().filter_map(|line| line.split_once(" stays: "));
    kept.map(|(number, _)| number.parse().unwrap()).collect()
}

#[test]
fn without_other_rules_ten_and_two_weeks_are_kept() {
    let policy = |last, days: u32| Retention {
        snapshots_last: last,
        snapshots_age: DAY * days,
        ..Retention::default()
    };
    let protected = |live, needed: &[usize]| Protected {
        live: Some(id(live)),
        needed: needed.iter().copied().map(id).collect(),
        ..Protected::default()
    };
    let check = |last, days, live, needed: &[usize], expected: &[usize]| {
        let kept = kept(&ten_days(), &policy(last, days), &protected(live, needed), "2026-03-10 12:00");
        assert_eq!(kept, expected, "{last} last, {days} days, live {live}, needed {needed:?}");
    };
    check(10, 0, 10, &[], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    check(7, 0, 10, &[], &[4, 5, 6, 7, 8, 9, 10]);
    check(0, 8, 10, &[], &[3, 4, 5, 6, 7, 8, 9, 10]);
    check(7, 9, 10, &[], &[2, 3, 4, 5, 6, 7, 8, 9, 10]);
    check(7, 0, 2, &[3], &[2, 3, 4, 5, 6, 7, 8, 9, 10]);
    check(0, 0, 10, &[], &[10]);
    let Retention { snapshots_last, snapshots_age, images_last, .. } = Retention::default();
    assert_eq!((snapshots_last, snapshots_age, images_last), (10, DAY * 14, 10));
}

#[test]
fn the_newest_are_kept() {
    let policy = Retention { snapshots_last: 2, ..nothing() };
    check(
        &taken(&["2026-03-01 12:00", "2026-03-01 12:01", "2026-03-01 12:02"]),
        &policy,
        &Protected::default(),
        "2026-03-02 00:00",
        "1 goes: no rule wants it
         2 stays: it is within the last 2
         3 stays: it is the newest; it is within the last 2",
    );
}

#[test]
fn the_young_are_kept_until_they_are_as_old_as_that() {
    let snapshots = taken(&["2026-03-01 12:00", "2026-03-01 12:01", "2026-03-05 12:00"]);
    let policy = Retention { snapshots_age: HOUR * 48, ..nothing() };
    check(
        &snapshots,
        &policy,
        &Protected::default(),
        "2026-03-03 12:00",
        "1 goes: no rule wants it
         2 stays: it is younger than 2 days
         3 stays: it is the newest; it is dated 2026-03-05T12:00:00Z, in the future: a clock is wrong",
    );
    let policy = Retention { snapshots_age: HOUR * 25, ..nothing() };
    let words = words(&snapshots, &policy, &Protected::default(), "2026-03-02 12:00");
    assert_eq!(words[0], "1 stays: it is younger than 25 hours");
}

#[test]
fn a_clock_that_was_set_back_makes_nothing_old() {
    let mut snapshots = ten_days();
    for record in &mut snapshots[16..] {
        record.snapshot.taken_at -= TimeDelta::days(365);
    }
    let policy = Retention { snapshots_age: DAY * 5, ..nothing() };
    let kept = kept(&snapshots, &policy, &Protected::default(), TEN_DAYS_END);
    assert_eq!(kept, [6, 7, 8, 9, 10], "the last two are as old as the one before them");
}

#[test]
fn one_that_is_dated_in_the_future_makes_no_other_young() {
    let mut snapshots = ten_days();
    for record in &mut snapshots[8..10] {
        record.snapshot.taken_at += TimeDelta::days(3650);
    }
    let policy = Retention { snapshots_age: DAY * 2, ..nothing() };
    assert_eq!(kept(&snapshots, &policy, &Protected::default(), TEN_DAYS_END), [5, 9, 10]);
}

#[test]
fn of_each_hour_day_week_month_and_year_the_newest_is_kept() {
    let one = |change: fn(&mut Calendar)| {
        let mut policy = nothing();
        change(&mut policy.snapshots_calendar);
        policy
    };
    let none = Protected::default();
    let hours = ["2026-03-01 09:59", "2026-03-01 10:00", "2026-03-01 10:59", "2026-03-01 11:00"];
    check(
        &taken(&hours),
        &one(|it| it.hourly = 2),
        &none,
        "2026-03-01 12:00",
        "1 goes: no rule wants it
         2 goes: no rule wants it
         3 stays: it is the newest of its hour
         4 stays: it is the newest; it is the newest of its hour",
    );
    let days = ["2026-02-27 12:00", "2026-02-28 00:00", "2026-02-28 23:59", "2026-03-02 08:00"];
    check(
        &taken(&days),
        &one(|it| it.daily = 2),
        &none,
        "2026-03-09 12:00",
        "1 goes: no rule wants it
         2 goes: no rule wants it
         3 stays: it is the newest of its day
         4 stays: it is the newest; it is the newest of its day",
    );
    // The 1st of March 2026 is a Sunday, the 29th of December 2025 a Monday.
    let weeks =
        ["2025-12-28 23:59", "2025-12-29 00:00", "2026-01-04 23:59", "2026-03-01 23:59", "2026-03-02 00:00"];
    check(
        &taken(&weeks),
        &one(|it| it.weekly = 3),
        &none,
        "2026-03-09 12:00",
        "1 goes: no rule wants it
         2 goes: no rule wants it
         3 stays: it is the newest of its week
         4 stays: it is the newest of its week
         5 stays: it is the newest; it is the newest of its week",
    );
    let months = ["2025-11-30 12:00", "2025-12-01 00:00", "2025-12-31 23:59", "2026-01-01 00:00"];
    check(
        &taken(&months),
        &one(|it| it.monthly = 2),
        &none,
        "2026-03-09 12:00",
        "1 goes: no rule wants it
         2 goes: no rule wants it
         3 stays: it is the newest of its month
         4 stays: it is the newest; it is the newest of its month",
    );
    check(
        &taken(&months),
        &one(|it| it.yearly = 1),
        &none,
        "2026-03-09 12:00",
        "1 goes: no rule wants it
         2 goes: no rule wants it
         3 goes: no rule wants it
         4 stays: it is the newest; it is the newest of its year",
    );
}

#[test]
fn while_there_are_fewer_than_wanted_the_oldest_is_kept_too() {
    let mut policy = nothing();
    policy.snapshots_calendar.monthly = 3;
    let times = ["2026-01-01 12:00", "2026-01-15 12:00", "2026-01-31 12:00", "2026-02-01 12:00"];
    let none = Protected::default();
    check(
        &taken(&times),
        &policy,
        &none,
        "2026-02-02 12:00",
        "1 stays: it is the oldest, and fewer months have one than are wanted
         2 goes: no rule wants it
         3 stays: it is the newest of its month
         4 stays: it is the newest; it is the newest of its month",
    );
    // Day by day, with what remained of the day before: the first one grows into its place.
    let mut there: Vec<SnapshotRecord> = Vec::new();
    policy.snapshots_calendar.daily = 3;
    for day in 0..400 {
        let now = at("2026-01-01 12:00") + TimeDelta::days(day);
        there.push(snapshot(usize::try_from(day).unwrap() + 1, "a", now));
        let gone = plan(&there, &policy, &none, now);
        there = there
            .into_iter()
            .zip(gone)
            .filter(|it| matches!(it.1.1, Verdict::Keep { .. }))
            .map(|it| it.0)
            .collect();
    }
    let dates: Vec<String> =
        there.iter().map(|it| it.snapshot.taken_at.format("%m-%d").to_string()).collect();
    assert_eq!(dates, ["12-31", "01-31", "02-02", "02-03", "02-04"]);
}

#[test]
fn a_day_begins_at_midnight_of_the_stated_offset() {
    let times = ["2026-03-01 21:59", "2026-03-01 22:00", "2026-03-02 21:59", "2026-03-02 22:00"];
    let days = |utc_offset_minutes| {
        let snapshots_calendar = Calendar { daily: 2, utc_offset_minutes, ..Calendar::default() };
        let policy = Retention { snapshots_calendar, ..nothing() };
        kept(&taken(&times), &policy, &Protected::default(), "2026-03-03 12:00")
    };
    assert_eq!(days(120), [3, 4]);
    assert_eq!(days(0), [2, 4]);
    assert_eq!(days(119), [2, 4]);
    assert_eq!(days(-840), [2, 4]);
}

#[test]
fn the_oldest_go_when_all_take_up_too_much() {
    let mut snapshots = ten_days();
    snapshots[0].pin = Some(SnapshotPin::new("ada", "", at(TEN_DAYS_END)));
    let mut policy = Retention { snapshots_last: 6, snapshots_bytes_max: Some(79), ..nothing() };
    let protected = Protected { live: Some(id(6)), ..Protected::default() };
    check(
        &snapshots,
        &policy,
        &protected,
        TEN_DAYS_END,
        "1 stays: pinned by ada
         2 goes: no rule wants it
         3 goes: no rule wants it
         4 goes: no rule wants it
         5 goes: all together take up more than 79 bytes, and it is the oldest that may go
         6 stays: it was taken by the deployment that is live; it is within the last 6
         7 goes: all together take up more than 79 bytes, and it is the oldest that may go
         8 goes: all together take up more than 79 bytes, and it is the oldest that may go
         9 goes: all together take up more than 79 bytes, and it is the oldest that may go
         10 stays: it is the newest; it is within the last 6",
    );
    policy.snapshots_bytes_max = Some(80);
    assert_eq!(kept(&snapshots, &policy, &protected, TEN_DAYS_END), [1, 6, 9, 10]);
    policy.snapshots_min = 3;
    policy.snapshots_bytes_max = Some(1);
    assert_eq!(kept(&snapshots, &policy, &protected, TEN_DAYS_END), [1, 6, 8, 9, 10]);
}

#[test]
fn so_many_are_kept_whatever_they_take_up() {
    let policy = Retention { snapshots_min: 2, snapshots_bytes_max: Some(1), ..nothing() };
    check(
        &taken(&["2026-03-01 12:00", "2026-03-02 12:00", "2026-03-03 12:00"]),
        &policy,
        &Protected::default(),
        "2026-03-04 00:00",
        "1 goes: no rule wants it
         2 stays: it is within the last 2, which stay whatever they take up
         3 stays: it is the newest",
    );
}

#[test]
fn a_clean_up_removes_no_more_than_it_may() {
    let policy = Retention { snapshots_last: 1, snapshots_removals_max: 2, ..nothing() };
    let mut snapshots = taken(&["2026-03-01 12:00"; 5]);
    check(
        &snapshots,
        &policy,
        &Protected::default(),
        "2026-03-02 00:00",
        "1 goes: no rule wants it
         2 goes: no rule wants it
         3 stays: 2 others go first; the next clean-up goes on
         4 stays: 2 others go first; the next clean-up goes on
         5 stays: it is the newest; it is within the last 1",
    );
    snapshots[6].state = SnapshotState::Retired;
    snapshots[7].state = SnapshotState::Retired;
    check(
        &snapshots,
        &policy,
        &Protected::default(),
        "2026-03-02 00:00",
        "1 goes: no rule wants it
         2 stays: 2 others go first; the next clean-up goes on
         3 stays: 2 others go first; the next clean-up goes on
         4 goes: its removal has begun
         5 stays: it is the newest; it is within the last 1",
    );
}

#[test]
fn a_pin_keeps_until_it_ends() {
    let mut snapshots = ten_days();
    let pins = [
        SnapshotPin::new("ada", "the books are closed", at("2026-03-01 12:00")),
        SnapshotPin::new("ada", "", at("2026-03-02 12:00")).until(at("2026-03-10 13:01")),
        SnapshotPin::new("ada", "ended", at("2026-03-03 12:00")).until(at(TEN_DAYS_END)),
        SnapshotPin::new("ada", "moved", at("2026-03-04 12:00")).unpinned("bob", at("2026-03-09 13:01")),
        SnapshotPin::new("", "over", at("2026-03-05 12:00")).unpinned("bob", at("2026-03-09 13:00")),
    ];
    for (pin, records) in pins.into_iter().zip(snapshots.chunks_mut(2)) {
        records.iter_mut().for_each(|it| it.pin = Some(pin.clone()));
    }
    check(
        &snapshots,
        &Retention { snapshots_last: 1, ..nothing() },
        &Protected::default(),
        TEN_DAYS_END,
        "1 stays: pinned by ada: the books are closed
         2 stays: pinned by ada, kept until 2026-03-10T13:01:00Z
         3 goes: no rule wants it
         4 stays: pinned by ada, unpinned by bob, kept until 2026-03-10T13:01:00Z: moved
         5 goes: no rule wants it
         6 goes: no rule wants it
         7 goes: no rule wants it
         8 goes: no rule wants it
         9 goes: no rule wants it
         10 stays: it is the newest; it is within the last 1",
    );
}

#[test]
fn an_unpin_gives_a_day_and_never_more_than_there_was() {
    let pin = SnapshotPin::new("ada", "", at("2026-03-01 12:00"));
    let unpinned = pin.clone().unpinned("bob", at("2026-03-05 12:00"));
    assert_eq!(unpinned.until, Some(at("2026-03-06 12:00")));
    let sooner = pin.until(at("2026-03-05 13:00")).unpinned("bob", at("2026-03-05 12:00"));
    assert_eq!(sooner.until, Some(at("2026-03-05 13:00")));
    assert!(sooner.holds(at("2026-03-05 12:59")) && !sooner.holds(at("2026-03-05 13:00")));
}

#[test]
fn what_may_be_needed_is_kept() {
    let mut snapshots = ten_days();
    // The two newest failed before they had a snapshot of b.
    snapshots.remove(19);
    snapshots.remove(17);
    let mut protected = Protected { live: Some(id(4)), ..Protected::default() };
    protected.needed.insert(id(2));
    protected.instances.extend(["a", "b"].map(instance));
    let table = "1 goes: no rule wants it
         2 stays: a deployment that is not settled may restore it
         3 goes: no rule wants it
         4 stays: it was taken by the deployment that is live
         5 goes: no rule wants it
         6 goes: no rule wants it
         7 goes: no rule wants it
         8 stays: it is the newest
         9 goes: no rule wants it
         10 stays: it is the newest";
    check(&snapshots, &nothing(), &protected, TEN_DAYS_END, table);
    protected.held = true;
    let held = words(&snapshots, &nothing(), &protected, TEN_DAYS_END);
    assert!(
        held.iter().all(|it| it.contains(" stays: a rollback, a recovery or a person may need it")),
        "{held:?}"
    );
    protected.instances.insert(instance("c"));
    protected.held = false;
    assert_eq!(kept(&snapshots, &nothing(), &protected, TEN_DAYS_END), [2, 4, 10], "an instance is new");
}

#[test]
fn the_snapshots_of_a_deployment_share_their_fate() {
    let mut snapshots = ten_days();
    snapshots[1].snapshot.taken_at = at("2026-03-08 12:00");
    snapshots.truncate(4);
    snapshots[2].snapshot.taken_at = at("2026-03-08 12:00");
    let policy = Retention { snapshots_age: DAY * 3, ..nothing() };
    assert_eq!(kept(&snapshots, &policy, &Protected::default(), TEN_DAYS_END), [1, 2]);
    snapshots[0].pin = Some(SnapshotPin::new("ada", "", at(TEN_DAYS_END)));
    let kept = kept(&snapshots, &nothing(), &Protected::default(), TEN_DAYS_END);
    assert_eq!(kept, [1, 2]);
}

/// One cannot go back to a part of them: the rest follows, and what is newest is the one before.
#[test]
fn a_removal_that_was_interrupted_is_listed_again() {
    let mut snapshots = ten_days();
    snapshots[19].state = SnapshotState::Retired;
    let verdicts = |protected: &Protected| {
        let verdicts = plan(&snapshots, &Retention::default(), protected, at(TEN_DAYS_END));
        let gone = verdicts.into_iter().filter(|it| matches!(it.1, Verdict::Remove { .. }));
        gone.map(|(reference, _)| reference).collect::<Vec<_>>()
    };
    assert_eq!(verdicts(&Protected::default()), ["10-a", "10-b"]);
    let needed = Protected { live: Some(id(10)), ..Protected::default() };
    assert_eq!(verdicts(&needed), ["10-b"]);
    let held = Protected { held: true, ..Protected::default() };
    assert_eq!(verdicts(&held), Vec::<String>::new());
    let last = Retention { snapshots_last: 1, ..nothing() };
    assert_eq!(kept(&snapshots, &last, &Protected::default(), TEN_DAYS_END), [9]);
}

#[test]
fn rules_are_added_to_each_other() {
    let snapshots_calendar = Calendar { daily: 3, weekly: 2, ..Calendar::default() };
    let policy = Retention { snapshots_last: 1, snapshots_age: DAY, snapshots_calendar, ..nothing() };
    check(
        &ten_days()[2..],
        &policy,
        &Protected::default(),
        TEN_DAYS_END,
        "2 goes: no rule wants it
         3 goes: no rule wants it
         4 goes: no rule wants it
         5 goes: no rule wants it
         6 goes: no rule wants it
         7 goes: no rule wants it
         8 stays: it is the newest of its day; it is the newest of its week
         9 stays: it is the newest of its day
         10 stays: it is the newest; it is within the last 1; it is younger than 24 hours; it is the newest of its \
         day; it is the newest of its week",
    );
}

#[test]
fn settings_without_the_newer_rules_look_as_they_did() {
    let old = r#"{"snapshots_last":3,"snapshots_age":{"secs":7,"nanos":0},"images_last":2}"#;
    let read: Retention = serde_json::from_str(old).unwrap();
    let expected = Retention {
        snapshots_last: 3,
        snapshots_age: Duration::from_secs(7),
        images_last: 2,
        ..Retention::default()
    };
    assert_eq!(read, expected);
    assert_eq!(serde_json::to_string(&read).unwrap(), old);
}
