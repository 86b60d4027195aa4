//! The snapshots that exist.

use chrono::{DateTime, Utc};

use super::State;
use crate::{
    id::DeploymentId,
    name::EnvironmentName,
    port::{SnapshotPin, SnapshotRecord, SnapshotState},
    queue,
};

impl State {
    pub(super) fn snapshots(&self, environment: &EnvironmentName) -> Vec<SnapshotRecord> {
        let Some(lane) = self.lanes.find(environment) else { return Vec::new() };
        let pinned = |it: &SnapshotRecord| SnapshotRecord {
            pin: lane.pins.get(&it.deployment).cloned(),
            ..it.clone()
        };
        let mut snapshots: Vec<SnapshotRecord> = lane.snapshots.values().map(pinned).collect();
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
        at: DateTime<Utc>,
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
                    && !lane.pins.get(&snapshot.deployment).is_some_and(|pin| pin.holds(at))
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
            let snapshots = &lane.snapshots;
            lane.pins.retain(|id, _| snapshots.values().any(|it| it.deployment == *id));
        });
    }

    pub(super) fn pin_snapshots(
        &mut self,
        environment: &EnvironmentName,
        deployment: DeploymentId,
        pin: &SnapshotPin,
    ) -> bool {
        let pin = |lane: &mut super::lanes::Lane| {
            let mut states = lane
                .snapshots
                .values()
                .filter(|it| it.deployment == deployment)
                .map(|it| it.state)
                .peekable();
            let can = states.peek().is_some() && states.all(|state| state == SnapshotState::Kept);
            if can {
                lane.pins.insert(deployment, pin.clone());
            }
            can
        };
        self.lanes.change(environment, pin).unwrap_or(false)
    }
}
