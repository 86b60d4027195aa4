//! The environments and what they serve.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{State, lanes::Lane};
use crate::{
    environment::Environment,
    event::{EventKind, NewEvent},
    id::DeploymentId,
    name::EnvironmentName,
    port::{Acknowledged, EnvironmentRecord, LaneQueue, Occupied, Saved},
};

impl State {
    pub(super) fn save_environment(&mut self, environment: &Environment) -> Saved {
        if let Some(refusal) = self.lanes.all().find_map(|lane| self.occupied(lane).refuse(environment)) {
            return refusal;
        }
        let environment = Arc::new(environment.clone());
        let settings = environment.clone();
        match self.lanes.change(environment.name(), |lane| lane.environment = settings) {
            Some(()) => Saved::Updated,
            None => {
                self.lanes.create(environment);
                Saved::Created
            }
        }
    }

    fn occupied(&self, lane: &Lane) -> Occupied {
        let (settings, queue) = (&lane.environment, &lane.queue);
        let active = queue.active.and_then(|id| self.records.get(&id)).map(|record| &record.deployment);
        let deployed = lane.live.is_some() || queue.active.is_some() || queue.attention.is_some();
        let (name, pool) = (settings.name().clone(), settings.pool().clone());
        Occupied::new(name, pool, deployed, Some(settings), lane.live.as_deref(), active)
    }

    pub(super) fn environment(&self, name: &EnvironmentName) -> Option<EnvironmentRecord> {
        self.lanes.find(name).map(record)
    }

    pub(super) fn environments(&self) -> Vec<EnvironmentRecord> {
        self.lanes.all().map(record).collect()
    }

    pub(super) fn set_paused(&mut self, name: &EnvironmentName, by: Option<String>) -> bool {
        let pause = |lane: &mut Lane| {
            lane.queue.paused = by.is_some();
            lane.paused_by = by;
        };
        self.lanes.change(name, pause).is_some()
    }

    pub(super) fn acknowledge(
        &mut self,
        name: &EnvironmentName,
        stranded: DeploymentId,
        actor: &str,
        at: DateTime<Utc>,
    ) -> Acknowledged {
        match self.lanes.find(name) {
            Some(lane) if waits_for(&lane.queue, stranded) => {
                self.lanes.change(name, |lane| {
                    lane.queue.attention = None;
                    lane.acknowledged.push(stranded);
                });
                let told = EventKind::Acknowledged { actor: actor.to_owned() };
                self.record(stranded).log.push(NewEvent::new(at, told));
                Acknowledged::Done
            }
            _ => Acknowledged::NotWaiting,
        }
    }
}

/// Whether the lane needs a person for this deployment, and its recovery neither waits nor is under way.
pub(super) fn waits_for(queue: &LaneQueue, stranded: DeploymentId) -> bool {
    let recovered = queue.waiting.iter().any(|(_, recovers)| *recovers == Some(stranded));
    queue.attention == Some(stranded) && queue.active.is_none() && !recovered
}

fn record(lane: &Lane) -> EnvironmentRecord {
    EnvironmentRecord {
        paused: lane.queue.paused,
        paused_by: lane.paused_by.clone(),
        attention: lane.queue.attention,
        acknowledged: lane.acknowledged.clone(),
        live: lane.live.clone(),
        active: lane.queue.active,
        queued: lane.queue.waiting.len() as u64,
        fence: lane.fence,
        ..EnvironmentRecord::new(lane.environment.clone())
    }
}
