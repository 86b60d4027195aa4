//! The snapshots that exist.

use super::State;
use crate::{
    name::EnvironmentName,
    port::{SnapshotRecord, SnapshotState},
    queue,
};

impl State {
    pub(super) fn snapshots(&self, environment: &EnvironmentName) -> Vec<SnapshotRecord> {
        let Some(lane) = self.lanes.find(environment) else { return Vec::new() };
        let mut snapshots: Vec<SnapshotRecord> = lane.snapshots.values().cloned().collect();
        snapshots.sort_by_key(|snapshot| {
            let record = self.records.get(&snapshot.deployment);
            record.map(|record| record.deployment.kept_by_store.seq)
        });
        snapshots
    }

    pub(super) fn retire_snapshots(
        &mut self,
        environment: &EnvironmentName,
        references: &[String],
    ) -> Vec<String> {
        let Some(lane) = self.lanes.find(environment) else { return Vec::new() };
        let unfinished = lane.queue.waiting.iter().map(|(id, _)| id).chain(&lane.queue.active);
        let mut records = unfinished.filter_map(|id| self.records.get(id));
        let needed = lane.queue.attention.is_some() || !lane.acknowledged.is_empty();
        if needed || records.any(|record| queue::pins_snapshots(&record.deployment)) {
            return Vec::new();
        }
        let active = lane.queue.active;
        let retire = |lane: &mut super::lanes::Lane| {
            let mut retired = Vec::new();
            for reference in references {
                if let Some(snapshot) = lane.snapshots.get_mut(reference)
                    && active != Some(snapshot.deployment)
                {
                    snapshot.state = SnapshotState::Retired;
                    retired.push(reference.clone());
                }
            }
            retired
        };
        self.lanes.change(environment, retire).unwrap_or_default()
    }

    pub(super) fn forget_snapshots(&mut self, environment: &EnvironmentName, references: &[String]) {
        self.lanes.change(environment, |lane| {
            for reference in references {
                if lane.snapshots.get(reference).is_some_and(|it| it.state == SnapshotState::Retired) {
                    lane.snapshots.remove(reference);
                }
            }
        });
    }
}
