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
    /// Snapshots younger than this are kept. 14 days by default.
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
        let wanted = |record: &&SnapshotRecord| {
            newest.contains(&record.deployment)
                || live == Some(record.deployment)
                || needed.contains(&record.deployment)
                || between(record.snapshot.taken_at, now) < self.snapshots_age
        };
        let unwanted = |record: &&SnapshotRecord| record.state == SnapshotState::Retired || !wanted(record);
        snapshots.iter().filter(unwanted).map(|record| record.snapshot.reference.clone()).collect()
    }
}
