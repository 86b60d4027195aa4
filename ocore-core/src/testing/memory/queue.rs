//! The queue: what happens to a lane.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};

use super::{Answered, Receipt, Record, State, environments::waits_for, lanes::Hold, log::Log};
use crate::{
    deployment::Deployment,
    event::{EventKind, NewEvent},
    failure::Cause,
    id::{DeploymentId, WorkerId},
    name::EnvironmentName,
    port::{Beat, CancelAnswer, Claim, Claimed, Commit, Committed, Enqueued, Finish, Held, Next, Worker},
    queue,
    request::{NewDeployment, Trigger},
};

impl State {
    pub(super) fn record(&mut self, id: DeploymentId) -> &mut Record {
        self.records.get_mut(&id).expect("the deployments of a lane are stored")
    }

    pub(super) fn enqueue(&mut self, new: NewDeployment, at: DateTime<Utc>) -> Enqueued {
        if let Some(record) = self.records.get(&new.id) {
            return Enqueued::Existing(Box::new(record.deployment.clone()));
        }
        let Some(lane) = self.lanes.find(&new.environment) else { return Enqueued::NoSuchEnvironment };
        let key = new.request.key.as_ref().filter(|_| !planted!(KeyForgotten));
        let known = key.and_then(|key| lane.keys.get(key));
        if let Some(record) = known.and_then(|id| self.records.get(id)) {
            return Enqueued::Existing(Box::new(record.deployment.clone()));
        }
        let recovers = match new.request.trigger {
            Trigger::Recovery { of } if !waits_for(&lane.queue, of) => return Enqueued::NotWaiting,
            Trigger::Recovery { of } => Some(of),
            _ => None,
        };
        let policy = lane.environment.policy();
        let superseded = self.superseded(&new);
        // A recovery always finds a place: without it, a full queue could never go on.
        let length_max = policy.queue_length_max;
        if recovers.is_none() && lane.queue.waiting.len() - superseded.len() >= length_max {
            return Enqueued::Full { length_max };
        }
        let mut deployment = Deployment::accepted(new, lane.seq_next(), at);
        deployment.superseded.clone_from(&superseded);
        for id in &superseded {
            self.end_in_queue(*id, Cause::Superseded { by: deployment.id }, at);
        }
        let (id, key) = (deployment.id, deployment.request.key.clone());
        // One change, so that the lane keeps its place in the line.
        self.lanes.change(&deployment.environment, |lane| {
            lane.queue.waiting.retain(|(waiting, _)| !superseded.contains(waiting));
            lane.history.push(id);
            lane.queue.waiting.push((id, recovers));
            lane.keys.extend(key.map(|key| (key, id)));
        });
        let mut log = Log::default();
        log.push(NewEvent::new(at, EventKind::Queued));
        let record =
            Record { deployment: deployment.clone(), place: self.accepted.len(), receipt: None, log };
        self.records.insert(id, record);
        self.accepted.push(id);
        Enqueued::Accepted { deployment: Box::new(deployment), superseded }
    }

    fn superseded(&self, new: &NewDeployment) -> Vec<DeploymentId> {
        let lane = self.lanes.of(&new.environment);
        let policy = lane.environment.policy().supersede;
        if !policy || new.request.trigger != Trigger::Push {
            return Vec::new();
        }
        let waiting = lane.queue.waiting.iter().filter_map(|(id, _)| self.records.get(id));
        let taken = waiting.filter(|it| queue::supersedes(&new.request.trigger, policy, &it.deployment));
        taken.map(|record| record.deployment.id).collect()
    }

    /// Ends the record of a queued deployment, which is to be taken out of its lane.
    fn end_in_queue(&mut self, id: DeploymentId, cause: Cause, at: DateTime<Utc>) {
        let record = self.record(id);
        let (ended, event) = queue::end_in_queue(record.deployment.clone(), cause, at);
        record.deployment = ended;
        record.log.push(event);
    }

    pub(super) fn heartbeat(&mut self, worker: &Worker, now: Duration) -> Beat {
        if !self.lanes.extend(worker, now) {
            return Beat::Expired;
        }
        let held = self.lanes.held(worker.id).filter_map(|name| {
            let lane = self.lanes.find(name)?;
            let record = self.records.get(&lane.queue.active?)?;
            let cancel = record.deployment.kept_by_store.cancel.is_some();
            Some(Held::new(name.clone(), record.deployment.id, lane.fence, cancel))
        });
        Beat::Alive(held.collect())
    }

    pub(super) fn claim(&mut self, worker: &Worker, busy: &[EnvironmentName], now: Duration) -> Claimed {
        if !self.lanes.is_alive(worker.id, now) {
            return Claimed::Expired;
        }
        match self.lanes.choose(worker, busy, now) {
            Some(name) => Claimed::Work(Box::new(self.take(&name, worker.id))),
            None => Claimed::Idle { next: self.lanes.next(worker, now) },
        }
    }

    /// Takes the lane: its active deployment, or else the next one.
    fn take(&mut self, name: &EnvironmentName, worker: WorkerId) -> Claim {
        let lane = self.lanes.of(name);
        let active = lane.queue.active;
        let id = active.or_else(|| lane.queue.runnable()).expect("a chosen lane has something to do");
        let hold = lane.hold;
        let kept = &mut self.record(id).deployment.kept_by_store;
        kept.begun = true;
        let lost = match hold.holder {
            None => false,
            Some(holder) if holder == worker => hold.lost_if_forgotten,
            Some(_) => true,
        };
        self.lanes.change(name, |lane| {
            lane.fence = lane.fence.next();
            lane.hold = Hold { holder: Some(worker), not_before: Duration::ZERO, lost_if_forgotten: lost };
            if active.is_none() {
                lane.queue.active = Some(id);
                lane.queue.waiting.retain(|(waiting, _)| *waiting != id);
            }
        });
        self.claimed(name, id, lost)
    }

    fn claimed(&self, name: &EnvironmentName, id: DeploymentId, lost_worker: bool) -> Claim {
        let lane = self.lanes.of(name);
        let deployment = self.records.get(&id).map(|record| record.deployment.clone());
        let deployment = deployment.expect("the active deployment of a lane is stored");
        let (environment, live) = (lane.environment.clone(), lane.live.clone());
        let acknowledged = lane.acknowledged.clone();
        Claim { acknowledged, ..Claim::new(deployment, environment, live, lane.fence, lost_worker) }
    }

    pub(super) fn commit(&mut self, commit: &Commit, now: Duration) -> Committed {
        let id = commit.deployment.id;
        let Some(record) = self.records.get(&id) else { return Committed::Fenced };
        let kept = &record.deployment.kept_by_store;
        let version = commit.deployment.kept_by_store.version;
        if let Some(receipt) = &record.receipt
            && (version, commit.worker, commit.fence) == (kept.version, receipt.worker, receipt.fence)
        {
            return self.answer_again(&record.deployment, receipt);
        }
        let name = record.deployment.environment.clone();
        let lane = self.lanes.of(&name);
        let in_order = lane.is_worked_on(id, commit.worker, commit.fence) && version == kept.version + 1;
        if !in_order && !planted!(NoFence) {
            return Committed::Fenced;
        }
        let cancel = kept.cancel.is_some();
        let verdict = matches!(commit.next, Next::Finish(Finish { verdict: true, .. }));
        if cancel && verdict && !planted!(VerdictIgnoresCancel) {
            return Committed::CancelPending;
        }
        let record = self.record(id);
        record.deployment = commit.record(&record.deployment.kept_by_store);
        record.log.append(commit.events.iter().cloned(), commit.log_limit);
        self.lanes.change(&name, |lane| {
            for snapshot in &commit.snapshots {
                lane.snapshots.insert(snapshot.snapshot.reference.clone(), snapshot.clone());
            }
        });
        let answer = self.move_on(&name, commit, cancel, now);
        let (worker, fence) = (commit.worker, commit.fence);
        let receipt = self.record(id).receipt.insert(Receipt { worker, fence, answer });
        match receipt.answer {
            Answered::Continued { fence } => Committed::Continued { fence, cancel },
            Answered::Released => Committed::Released,
            Answered::Finished { successor } => {
                let successor = successor.map(|(id, _)| Box::new(self.claimed(&name, id, false)));
                Committed::Finished { successor }
            }
        }
    }

    /// What becomes of the lane after a commit.
    fn move_on(&mut self, name: &EnvironmentName, commit: &Commit, cancel: bool, now: Duration) -> Answered {
        let moved = self.lanes.change(name, |lane| match &commit.next {
            Next::Continue { fresh_fence } => {
                if *fresh_fence {
                    lane.fence = lane.fence.next();
                }
                lane.hold.lost_if_forgotten = true;
                Answered::Continued { fence: lane.fence }
            }
            Next::Release { after } => {
                let after = if cancel { Duration::ZERO } else { *after };
                lane.hold = Hold { not_before: now.saturating_add(after), ..Hold::default() };
                Answered::Released
            }
            Next::Finish(finish) => {
                lane.hold = Hold::default();
                lane.queue.active = None;
                if let Some(live) = &finish.live {
                    lane.live = Some(Arc::new(live.clone()));
                }
                if finish.verdict {
                    lane.acknowledged.clear();
                }
                match finish.attention {
                    Some(true) => lane.queue.attention = Some(commit.deployment.id),
                    Some(false) => lane.queue.attention = None,
                    None => {}
                }
                Answered::Finished { successor: None }
            }
        });
        let moved = moved.expect("a stored deployment's environment is stored");
        let claim_next = matches!(commit.next, Next::Finish(Finish { claim_next: true, .. }));
        let runnable = self.lanes.of(name).queue.runnable().is_some();
        if !claim_next || !runnable || !self.lanes.is_alive(commit.worker, now) {
            return moved;
        }
        let claim = self.take(name, commit.worker);
        Answered::Finished { successor: Some((claim.deployment.id, claim.fence)) }
    }

    /// The answer to a commit that was written before.
    fn answer_again(&self, deployment: &Deployment, receipt: &Receipt) -> Committed {
        let name = &deployment.environment;
        let lane = self.lanes.of(name);
        match receipt.answer {
            Answered::Continued { fence } if lane.is_worked_on(deployment.id, receipt.worker, fence) => {
                Committed::Continued { fence, cancel: deployment.kept_by_store.cancel.is_some() }
            }
            Answered::Continued { .. } => Committed::Fenced,
            Answered::Released => Committed::Released,
            Answered::Finished { successor } => {
                let untouched = |id| self.records.get(&id).is_some_and(|record| record.receipt.is_none());
                let held = successor
                    .filter(|(id, fence)| lane.is_worked_on(*id, receipt.worker, *fence) && untouched(*id));
                let successor = held.map(|(id, _)| Box::new(self.claimed(name, id, false)));
                Committed::Finished { successor }
            }
        }
    }

    pub(super) fn request_cancel(
        &mut self,
        id: DeploymentId,
        actor: &str,
        at: DateTime<Utc>,
        now: Duration,
    ) -> CancelAnswer {
        let Some(record) = self.records.get_mut(&id) else { return CancelAnswer::NoSuchDeployment };
        let answer = queue::cancel_answer(&record.deployment);
        let wanted = matches!(answer, CancelAnswer::Cancelled | CancelAnswer::Requested);
        let environment = record.deployment.environment.clone();
        let kept = &mut record.deployment.kept_by_store;
        if !wanted || kept.cancel.is_some() {
            return answer;
        }
        kept.cancel = Some(actor.to_owned());
        record.log.push(NewEvent::new(at, EventKind::CancelRequested { actor: actor.to_owned() }));
        if answer == CancelAnswer::Cancelled {
            self.end_in_queue(id, Cause::Cancelled, at);
        }
        self.lanes.change(&environment, |lane| {
            lane.queue.waiting.retain(|(waiting, _)| *waiting != id);
            lane.hold.not_before = lane.hold.not_before.min(now);
        });
        answer
    }
}
