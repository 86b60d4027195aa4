//! Which snapshots and images are kept. Pure.

use std::{collections::BTreeSet, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    deployment::between,
    id::DeploymentId,
    port::{SnapshotRecord, SnapshotState},
};

/// Which snapshots and images are kept. A snapshot is kept if **any** rule wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Retention {
    /// The snapshots of this many newest deployments are kept. 10 by default.
    pub snapshots_last: usize,
    /// Snapshots younger than this are kept. 14 days by default. A wall clock that is set forward while a process runs
    /// makes none older for it, and one that is set back makes none older than those before it; a clock that is
    /// wrong when a process begins is believed.
    pub snapshots_age: Duration,
    /// The images of this many newest deployments that ended Running are kept. 10 by default.
    pub images_last: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self { snapshots_last: 10, snapshots_age: Duration::from_secs(14 * 24 * 3600), images_last: 10 }
    }
}

impl Retention {
    /// The references of the snapshots that no rule wants, oldest first. Never one of the live deployment, nor of
    /// one in `needed` (a rollback in progress, a stranded deployment). Retired ones are listed again, so that a
    /// removal that was interrupted is finished.
    #[must_use]
    pub fn unwanted(
        &self,
        snapshots: &[SnapshotRecord],
        live: Option<DeploymentId>,
        needed: &BTreeSet<DeploymentId>,
        now: DateTime<Utc>,
    ) -> Vec<String> {
        let mut newest: Vec<DeploymentId> = Vec::new();
        for snapshot in snapshots.iter().rev() {
            if !newest.contains(&snapshot.deployment) {
                newest.push(snapshot.deployment);
            }
        }
        newest.truncate(self.snapshots_last);
        // No snapshot is older than one that was taken before it: its clock may have been set back.
        let mut taken_at = DateTime::<Utc>::MIN_UTC;
        let unwanted = |record: &&SnapshotRecord| {
            taken_at = taken_at.max(record.snapshot.taken_at);
            let wanted = newest.contains(&record.deployment)
                || live == Some(record.deployment)
                || needed.contains(&record.deployment)
                || between(taken_at, now) < self.snapshots_age;
            record.state == SnapshotState::Retired || !wanted
        };
        snapshots.iter().filter(unwanted).map(|record| record.snapshot.reference.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        name::{EnvironmentName, InstanceName},
        release::Snapshot,
    };

    const NOW: DateTime<Utc> = DateTime::UNIX_EPOCH;

    /// Ten deployments, one a day, the tenth today; each with a snapshot of two instances.
    fn snapshots() -> Vec<SnapshotRecord> {
        let one = |day: u8, instance: &str| {
            let taken_at = NOW - chrono::Duration::days(10 - i64::from(day));
            let snapshot = Snapshot::new(format!("{day}-{instance}"), taken_at, 1);
            let (environment, instance) =
                (EnvironmentName::new("e").unwrap(), InstanceName::new(instance).unwrap());
            SnapshotRecord::new(environment, id(day), instance, snapshot, None)
        };
        (1..=10).flat_map(|day| [one(day, "a"), one(day, "b")]).collect()
    }

    fn id(day: u8) -> DeploymentId {
        DeploymentId::from_u128(day.into())
    }

    #[track_caller]
    fn check(last: usize, days: u64, live: u8, needed: &[u8], expected: &[u8]) {
        let snapshots_age = Duration::from_secs(days * 24 * 3600);
        let retention = Retention { snapshots_last: last, snapshots_age, images_last: 1 };
        let needed = needed.iter().map(|day| id(*day)).collect();
        let unwanted = retention.unwanted(&snapshots(), Some(id(live)), &needed, NOW);
        let expected: Vec<_> =
            expected.iter().flat_map(|day| [format!("{day}-a"), format!("{day}-b")]).collect();
        assert_eq!(unwanted, expected);
    }

    #[test]
    fn a_snapshot_is_kept_if_any_rule_wants_it() {
        check(10, 0, 10, &[], &[]);
        check(7, 0, 10, &[], &[1, 2, 3]);
        check(0, 8, 10, &[], &[1, 2]);
        check(7, 9, 10, &[], &[1]);
        check(7, 0, 2, &[3], &[1]);
        check(0, 0, 10, &[], &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_nothing_old() {
        let mut snapshots = snapshots();
        for record in &mut snapshots[16..] {
            record.snapshot.taken_at -= chrono::Duration::days(365);
        }
        let retention = Retention {
            snapshots_last: 0,
            snapshots_age: Duration::from_secs(5 * 24 * 3600),
            images_last: 1,
        };
        let unwanted = retention.unwanted(&snapshots, None, &BTreeSet::new(), NOW);
        assert!(unwanted.iter().all(|reference| !reference.starts_with(['8', '9'])), "{unwanted:?}");
        assert_eq!(unwanted.len(), 10, "{unwanted:?}");
    }

    #[test]
    fn a_removal_that_was_interrupted_is_listed_again() {
        let mut snapshots = snapshots();
        snapshots[19].state = SnapshotState::Retired;
        let unwanted = Retention::default().unwanted(&snapshots, None, &BTreeSet::new(), NOW);
        assert_eq!(unwanted, ["10-b"]);
    }
}
