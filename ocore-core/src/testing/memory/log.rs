//! The events of one deployment, within a limit.

use std::collections::VecDeque;

use super::State;
use crate::{
    event::{Event, NewEvent},
    id::{DeploymentId, EventSeq, Fence},
    name::EnvironmentName,
    port::LogLimit,
};

#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    events: Vec<Event>,
    last: EventSeq,
    head_bytes: u64,
    pub(super) head_full: bool,
    /// The lines after the head, which may be cut: number and size.
    tail: VecDeque<(EventSeq, u64)>,
    tail_bytes: u64,
}

impl Log {
    pub(super) fn push(&mut self, event: NewEvent) {
        self.last = self.last.next();
        self.events.push(Event::new(self.last, event));
    }

    pub(super) fn append(&mut self, events: impl IntoIterator<Item = NewEvent>, limit: LogLimit) {
        for event in events {
            let bytes = event.kind.log_bytes();
            self.push(event);
            if bytes > 0 {
                self.count(bytes, limit);
            }
        }
        if self.tail_bytes > limit.tail_bytes_max() {
            self.cut(limit.tail_bytes);
        }
    }

    fn count(&mut self, bytes: u64, limit: LogLimit) {
        self.head_full |= self.head_bytes + bytes > limit.head_bytes;
        if self.head_full {
            self.tail.push_back((self.last, bytes));
            self.tail_bytes += bytes;
        } else {
            self.head_bytes += bytes;
        }
    }

    fn cut(&mut self, tail_bytes: u64) {
        let mut cut = Vec::new();
        while self.tail_bytes > tail_bytes {
            let Some((seq, bytes)) = self.tail.pop_front() else { break };
            self.tail_bytes -= bytes;
            cut.push(seq);
        }
        self.events.retain(|event| cut.binary_search(&event.seq).is_err());
    }
}

impl State {
    pub(super) fn append(
        &mut self,
        environment: &EnvironmentName,
        deployment: DeploymentId,
        fence: Fence,
        events: Vec<NewEvent>,
        limit: LogLimit,
    ) -> bool {
        let lane = self.lanes.find(environment);
        if lane.is_none_or(|lane| lane.queue.active != Some(deployment) || lane.fence != fence) {
            return false;
        }
        self.record(deployment).log.append(events, limit);
        true
    }

    pub(super) fn events(&self, deployment: DeploymentId, after: EventSeq, limit: usize) -> Vec<Event> {
        let Some(record) = self.records.get(&deployment) else { return Vec::new() };
        let events = &record.log.events;
        let from = events.partition_point(|event| event.seq <= after);
        events[from..].iter().take(limit).cloned().collect()
    }
}
