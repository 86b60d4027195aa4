//! What the wrong stores do wrong in the queue.

use std::{pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{Mutant, Wrong};
use crate::{
    environment::{Environment, EnvironmentSpec},
    executor::Executor,
    id::{DeploymentId, Fence, WorkerId},
    name::{EnvironmentName, PoolName},
    port::{
        Beat, CancelAnswer, Claimed, Commit, Committed, Enqueued, EnvironmentStore, HistoryStore, LaneQueue,
        LogLimit, Next, QueueStore, StoreResult, Worker,
    },
    request::{NewDeployment, Trigger},
    testing::laws,
};

impl Mutant {
    /// What is done wrong before a claim.
    fn before_claim(&self, worker: &mut Worker, busy: &mut Vec<EnvironmentName>) {
        match self.wrong {
            Wrong::LastComesFirst => self.each(|lane| lane.queue.waiting.reverse()),
            Wrong::SecondIsActive => self.each(|lane| {
                if lane.hold.holder.is_some() && !lane.queue.waiting.is_empty() {
                    (lane.queue.active, lane.hold) = (None, Default::default());
                }
            }),
            Wrong::LanesByName => {
                let mut free = true;
                let mut state = self.store.state();
                let names: Vec<_> = state.lanes.all().map(|lane| lane.environment.name().clone()).collect();
                for name in names {
                    let runnable = state.lanes.of(&name).queue.runnable().is_some();
                    state.lanes.change(&name, |lane| lane.queue.paused = runnable && !free);
                    free &= !runnable;
                }
            }
            Wrong::AnyPool => worker.pools = ["default", "far"].map(|it| PoolName::new(it).unwrap()).to_vec(),
            Wrong::NeverRescued => {
                self.store.state().lanes.workers.values_mut().for_each(|end| *end = Duration::MAX);
            }
            Wrong::LostClaimKept => {
                let state = self.store.state();
                busy.extend(state.lanes.held(worker.id).cloned());
            }
            Wrong::ExpiredReturns => self.revive(worker),
            _ => {}
        }
    }

    fn revive(&self, worker: &Worker) {
        let now = self.clock.now();
        let mut state = self.store.state();
        if state.lanes.workers.contains_key(&worker.id) && !state.lanes.is_alive(worker.id, now) {
            state.lanes.workers.insert(worker.id, Duration::MAX);
        }
    }

    fn after_claim(&self, claimed: Claimed, held: &[EnvironmentName]) -> Claimed {
        if self.is(Wrong::LanesByName) {
            self.each(|lane| lane.queue.paused = false);
        }
        match claimed {
            Claimed::Work(mut claim) => {
                let name = claim.deployment.environment.clone();
                if self.is(Wrong::FenceStays) {
                    claim.fence = Fence::new(claim.fence.get() - 1);
                    self.change(&name, |lane| lane.fence = claim.fence);
                }
                if self.is(Wrong::LostWorkerUntold) && held.contains(&name) {
                    claim.lost_worker = false;
                }
                self.memory().claim = Some(*claim.clone());
                Claimed::Work(claim)
            }
            Claimed::Idle { .. } if self.is(Wrong::IdleForever) => Claimed::Idle { next: None },
            Claimed::Idle { next } if self.is(Wrong::ClaimedTwice) => match self.memory().claim.take() {
                Some(claim) => Claimed::Work(Box::new(claim)),
                None => Claimed::Idle { next },
            },
            claimed => claimed,
        }
    }

    /// What is done wrong before a commit; the answer, if it is wrong itself.
    fn before_commit(&self, commit: &mut Commit) -> Option<Committed> {
        let name = commit.deployment.environment.clone();
        let (id, version) = (commit.deployment.id, commit.deployment.kept_by_store.version);
        let holder = self.look(&name, |lane| (lane.hold.holder, lane.fence)).unwrap();
        let stored = self.store.state().records.get(&id).map(|it| it.deployment.kept_by_store.version);
        let repeated = stored == Some(version);
        match (self.wrong, &mut commit.next) {
            (Wrong::AttentionIgnored, Next::Finish(finish)) => finish.attention = None,
            (Wrong::FreshFenceIgnored, Next::Continue { fresh_fence }) => *fresh_fence = false,
            (Wrong::FenceUnchecked, _) => {
                if let (Some(worker), fence) = holder {
                    (commit.worker, commit.fence) = (worker, fence);
                }
            }
            (Wrong::VersionUnchecked, _) => {
                commit.deployment.kept_by_store.version = stored.unwrap() + 1;
            }
            (Wrong::HolderUnchecked, _) => self.change(&name, |lane| {
                lane.hold.holder = lane.queue.active.and(Some(commit.worker));
            }),
            (Wrong::ReceiptsLost, _) => {
                self.store.state().records.values_mut().for_each(|record| record.receipt = None);
            }
            (Wrong::SuccessorForgotten, _) if repeated => {
                return Some(Committed::Finished { successor: None });
            }
            (Wrong::SuccessorAlways, _) if repeated => {
                return self.memory().answers.get(&(id, version)).cloned();
            }
            (Wrong::NoSuccessor, Next::Finish(finish)) => finish.claim_next = false,
            (Wrong::LiveForgotten, Next::Finish(finish)) => finish.live = None,
            (Wrong::WaitForgotten, Next::Release { after }) => *after = Duration::ZERO,
            (Wrong::ExpiredFenced, _) => {
                let now = self.clock.now();
                if !self.store.state().lanes.is_alive(commit.worker, now) {
                    return Some(Committed::Fenced);
                }
            }
            (Wrong::ExpiredSucceeds, _) => {
                self.store.state().lanes.workers.insert(commit.worker, Duration::MAX);
            }
            (Wrong::VerdictWins, Next::Finish(finish)) => finish.verdict = false,
            (Wrong::LogEndless, _) => commit.log_limit = LogLimit::DEFAULT,
            _ => {}
        }
        None
    }
}

#[async_trait]
impl QueueStore for Mutant {
    async fn enqueue(&self, mut new: NewDeployment, at: DateTime<Utc>) -> StoreResult<Enqueued> {
        let name = new.environment.clone();
        let waiting = self.look(&name, |lane| lane.queue.waiting.clone()).unwrap_or_default();
        match (self.wrong, &new.request.trigger) {
            (Wrong::EnqueuedAgain, _) if self.store.deployment(new.id).await?.is_some() => {
                let mut memory = self.memory();
                memory.drawn += 1;
                new.id = DeploymentId::from_u128(u128::MAX - memory.drawn);
            }
            (Wrong::KeyForgotten, _) => new.request.key = None,
            (Wrong::NothingSuperseded, Trigger::Push) => new.request.trigger = Trigger::Manual,
            (Wrong::EverythingSuperseded, Trigger::Push) => {
                for (id, _) in waiting {
                    self.kept(id, |deployment| deployment.request.trigger = Trigger::Push);
                }
            }
            (Wrong::QueueEndless, _) => self.change(&name, |lane| {
                let spec = EnvironmentSpec::from(lane.environment.as_ref().clone());
                let spec = spec.policy(|policy| policy.queue_length_max = 10_000);
                lane.environment = Arc::new(Environment::try_from(spec).unwrap());
            }),
            (Wrong::RecoveryCounted, Trigger::Recovery { .. }) if !waiting.is_empty() => {
                return Ok(Enqueued::Full { length_max: waiting.len() });
            }
            (Wrong::EnvironmentMadeUp, _) if self.look(&name, |_| ()).is_none() => {
                let environment = laws::store::lab::environment(name.as_str(), |spec| spec);
                self.store.save_environment(&environment).await?;
            }
            _ => {}
        }
        self.store.enqueue(new, at).await
    }

    async fn heartbeat(&self, worker: &Worker) -> StoreResult<Beat> {
        if self.is(Wrong::ExpiredReturns) {
            self.revive(worker);
        }
        let end = self.store.state().lanes.workers.get(&worker.id).copied();
        let beat = self.store.heartbeat(worker).await;
        if let (Wrong::HeartbeatIgnored, Some(end)) = (self.wrong, end) {
            self.store.state().lanes.workers.insert(worker.id, end);
        }
        beat
    }

    async fn claim(&self, worker: &Worker, busy: &[EnvironmentName]) -> StoreResult<Claimed> {
        let (mut worker, mut busy) = (worker.clone(), busy.to_vec());
        let held: Vec<_> = self.store.state().lanes.held(worker.id).cloned().collect();
        self.before_claim(&mut worker, &mut busy);
        let claimed = self.store.claim(&worker, &busy).await?;
        Ok(self.after_claim(claimed, &held))
    }

    async fn commit(&self, commit: &Commit) -> StoreResult<Committed> {
        let mut commit = commit.clone();
        if let Some(wrong) = self.before_commit(&mut commit) {
            return Ok(wrong);
        }
        let name = &commit.deployment.environment;
        let attention = self.look(name, |lane| lane.queue.attention).flatten();
        let committed = self.store.commit(&commit).await?;
        match self.wrong {
            Wrong::AttentionStays if attention.is_some() => {
                self.change(name, |lane| lane.queue.attention = attention);
            }
            Wrong::KeptByWorker => {
                let kept = commit.deployment.kept_by_store.clone();
                self.kept(commit.deployment.id, |deployment| deployment.kept_by_store = kept);
            }
            _ => {}
        }
        let version = (commit.deployment.id, commit.deployment.kept_by_store.version);
        self.memory().answers.insert(version, committed.clone());
        Ok(committed)
    }

    async fn request_cancel(
        &self,
        id: DeploymentId,
        actor: &str,
        at: DateTime<Utc>,
    ) -> StoreResult<CancelAnswer> {
        let name = self.store.deployment(id).await?.map(|deployment| deployment.environment);
        let hold = name.as_ref().and_then(|name| self.look(name, |lane| lane.hold));
        if self.is(Wrong::CancelWaits) {
            self.kept(id, |deployment| deployment.kept_by_store.cancel = Some(actor.to_owned()));
            return Ok(CancelAnswer::Cancelled);
        }
        let answer = self.store.request_cancel(id, actor, at).await?;
        match (self.wrong, name, hold) {
            (Wrong::CancelUntold, ..) => self.kept(id, |deployment| deployment.kept_by_store.cancel = None),
            (Wrong::WaitGoesOn, Some(name), Some(hold)) => self.change(&name, |lane| lane.hold = hold),
            (Wrong::AlwaysRequested, ..) => return Ok(CancelAnswer::Requested),
            _ => {}
        }
        Ok(answer)
    }

    async fn retire(&self, worker: WorkerId) -> StoreResult<()> {
        if self.is(Wrong::RetireIgnored) { Ok(()) } else { self.store.retire(worker).await }
    }

    async fn lane(&self, environment: &EnvironmentName) -> StoreResult<Option<LaneQueue>> {
        self.store.lane(environment).await
    }

    fn changed<'life0, 'async_trait>(&'life0 self) -> Pin<Box<dyn Future<Output = ()> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        self.store.changed()
    }
}
