//! Stores that break one law each: every law has been seen to fail.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{MemoryStore, State, lanes::Lane};
use crate::{
    deployment::Deployment,
    environment::{Environment, EnvironmentSpec},
    event::{Event, NewEvent},
    id::{DeploymentId, EventSeq, Fence, WorkerId},
    name::{EnvironmentName, PoolName},
    port::{
        Acknowledged, Beat, CancelAnswer, Claim, Claimed, Commit, Committed, Enqueued, EnvironmentRecord,
        EnvironmentStore, Filter, HistoryStore, LaneQueue, LogLimit, LogStore, Next, Page, QueueStore, Saved,
        SnapshotRecord, SnapshotStore, Store, StoreResult, Worker,
    },
    request::{NewDeployment, Trigger},
    testing::{
        clock::ManualClock,
        laws::{self, store::Fixture},
    },
};

/// What a store does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    LastComesFirst,
    SecondIsActive,
    ClaimedTwice,
    FenceStays,
    LanesByName,
    AnyPool,
    EnqueuedAgain,
    KeyForgotten,
    NothingSuperseded,
    EverythingSuperseded,
    QueueEndless,
    RecoveryCounted,
    EnvironmentMadeUp,
    PauseIgnored,
    AttentionIgnored,
    AttentionStays,
    AcknowledgedAnyway,
    FreshFenceIgnored,
    FenceUnchecked,
    VersionUnchecked,
    HolderUnchecked,
    ReceiptsLost,
    SuccessorForgotten,
    SuccessorAlways,
    NoSuccessor,
    KeptByWorker,
    LiveForgotten,
    WaitForgotten,
    NeverRescued,
    HeartbeatIgnored,
    ExpiredReturns,
    ExpiredFenced,
    ExpiredSucceeds,
    RetireIgnored,
    LostClaimKept,
    LostWorkerUntold,
    IdleForever,
    CancelWaits,
    CancelUntold,
    VerdictWins,
    WaitGoesOn,
    AlwaysRequested,
    SettingsStay,
    ConflictIgnored,
    LiveUnchecked,
    ActiveUnchecked,
    EventsReversed,
    AppendUnchecked,
    LogEndless,
    HeadMoves,
    HistoryUnpaged,
    StatusIgnored,
    ForgottenAtOnce,
    ActiveRetired,
    NeededRetired,
}

#[derive(Clone)]
struct Mutant {
    store: MemoryStore,
    clock: ManualClock,
    wrong: Wrong,
    memory: Arc<Mutex<Memory>>,
}

#[derive(Default)]
struct Memory {
    claim: Option<Claim>,
    answers: HashMap<(DeploymentId, u64), Committed>,
    drawn: u128,
}

impl Mutant {
    fn new(wrong: Wrong) -> Self {
        let clock = ManualClock::new(1);
        let store = MemoryStore::new(Arc::new(clock.clone()));
        Self { store, clock, wrong, memory: Arc::default() }
    }

    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == wrong
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap()
    }

    /// Does something to every lane.
    fn each(&self, change: impl Fn(&mut Lane)) {
        let mut state = self.store.state();
        let names: Vec<_> = state.lanes.all().map(|lane| lane.environment.name().clone()).collect();
        for name in names {
            state.lanes.change(&name, &change);
        }
    }

    fn change(&self, name: &EnvironmentName, change: impl FnOnce(&mut Lane)) {
        self.store.state().lanes.change(name, change);
    }

    fn look<T>(&self, name: &EnvironmentName, look: impl FnOnce(&Lane) -> T) -> Option<T> {
        self.store.state().lanes.find(name).map(look)
    }

    fn kept(&self, id: DeploymentId, change: impl FnOnce(&mut Deployment)) {
        let mut state: std::sync::MutexGuard<'_, State> = self.store.state();
        if let Some(record) = state.records.get_mut(&id) {
            change(&mut record.deployment);
        }
    }
}

#[async_trait]
impl Fixture for Mutant {
    async fn client(&self) -> Arc<dyn Store> {
        Arc::new(self.clone())
    }

    async fn pass(&self, duration: Duration) {
        self.clock.advance(duration);
    }

    fn unit(&self) -> Duration {
        Duration::from_secs(1)
    }
}

#[async_trait]
impl EnvironmentStore for Mutant {
    async fn save_environment(&self, environment: &Environment) -> StoreResult<Saved> {
        let name = environment.name();
        if self.is(Wrong::SettingsStay) && self.look(name, |_| ()).is_some() {
            return Ok(Saved::Updated);
        }
        let mut put_back: Vec<Box<dyn FnOnce(&Self) + Send>> = Vec::new();
        for record in self.store.environments().await? {
            let name = record.environment.name().clone();
            if self.is(Wrong::LiveUnchecked) {
                self.change(&name, |lane| lane.live = None);
                put_back.push(Box::new(move |it| it.change(&name, |lane| lane.live = record.live)));
            } else if self.is(Wrong::ActiveUnchecked) {
                self.change(&name, |lane| lane.queue.active = None);
                put_back.push(Box::new(move |it| it.change(&name, |lane| lane.queue.active = record.active)));
            }
        }
        let saved = self.store.save_environment(environment).await;
        put_back.into_iter().for_each(|put_back| put_back(self));
        if self.is(Wrong::ConflictIgnored) && matches!(saved, Ok(Saved::Conflict { .. })) {
            self.store.state().lanes.create(Arc::new(environment.clone()));
            return Ok(Saved::Created);
        }
        saved
    }

    async fn environment(&self, name: &EnvironmentName) -> StoreResult<Option<EnvironmentRecord>> {
        self.store.environment(name).await
    }

    async fn environments(&self) -> StoreResult<Vec<EnvironmentRecord>> {
        self.store.environments().await
    }

    async fn set_paused(&self, name: &EnvironmentName, paused: bool) -> StoreResult<bool> {
        self.store.set_paused(name, paused && !self.is(Wrong::PauseIgnored)).await
    }

    async fn acknowledge(&self, name: &EnvironmentName, stranded: DeploymentId) -> StoreResult<Acknowledged> {
        if self.is(Wrong::AcknowledgedAnyway) {
            self.change(name, |lane| lane.queue.attention = None);
            return Ok(Acknowledged::Done);
        }
        self.store.acknowledge(name, stranded).await
    }
}

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
        let now = crate::executor::Executor::now(&self.clock);
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
                let now = crate::executor::Executor::now(&self.clock);
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

#[async_trait]
impl HistoryStore for Mutant {
    async fn deployment(&self, id: DeploymentId) -> StoreResult<Option<Deployment>> {
        self.store.deployment(id).await
    }

    async fn history(
        &self,
        filter: &Filter,
        before: Option<DeploymentId>,
        limit: usize,
    ) -> StoreResult<Page> {
        let mut filter = filter.clone();
        if self.is(Wrong::StatusIgnored) {
            filter.statuses.clear();
        }
        let mut page = self.store.history(&filter, before, limit).await?;
        if self.is(Wrong::HistoryUnpaged) {
            page.next = None;
        }
        Ok(page)
    }
}

#[async_trait]
impl LogStore for Mutant {
    async fn append(
        &self,
        environment: &EnvironmentName,
        deployment: DeploymentId,
        mut fence: Fence,
        events: Vec<NewEvent>,
        mut limit: LogLimit,
    ) -> StoreResult<bool> {
        match self.wrong {
            Wrong::AppendUnchecked => fence = self.look(environment, |lane| lane.fence).unwrap_or(fence),
            Wrong::LogEndless => limit = LogLimit::DEFAULT,
            Wrong::HeadMoves => self.store.state().record(deployment).log.head_full = false,
            _ => {}
        }
        self.store.append(environment, deployment, fence, events, limit).await
    }

    async fn events(
        &self,
        deployment: DeploymentId,
        after: EventSeq,
        limit: usize,
    ) -> StoreResult<Vec<Event>> {
        let mut events = self.store.events(deployment, after, limit).await?;
        if self.is(Wrong::EventsReversed) {
            events.reverse();
        }
        Ok(events)
    }
}

#[async_trait]
impl SnapshotStore for Mutant {
    async fn snapshots(&self, environment: &EnvironmentName) -> StoreResult<Vec<SnapshotRecord>> {
        self.store.snapshots(environment).await
    }

    async fn retire_snapshots(
        &self,
        environment: &EnvironmentName,
        references: &[String],
    ) -> StoreResult<Vec<String>> {
        if self.is(Wrong::NeededRetired) {
            return Ok(references.to_vec());
        }
        let active = self.look(environment, |lane| lane.queue.active).flatten();
        if self.is(Wrong::ActiveRetired) {
            self.change(environment, |lane| lane.queue.active = None);
        }
        let retired = self.store.retire_snapshots(environment, references).await;
        self.change(environment, |lane| lane.queue.active = active);
        retired
    }

    async fn forget_snapshots(
        &self,
        environment: &EnvironmentName,
        references: &[String],
    ) -> StoreResult<()> {
        if self.is(Wrong::ForgottenAtOnce) {
            self.change(environment, |lane| lane.snapshots.retain(|it, _| !references.contains(it)));
        }
        self.store.forget_snapshots(environment, references).await
    }
}

/// The law fails against the store that breaks it.
fn seen_to_fail<F: Future<Output = ()>>(law: impl FnOnce(Mutant) -> F, wrong: Wrong) {
    let law = law(Mutant::new(wrong));
    let law = std::panic::AssertUnwindSafe(law);
    let kept = std::panic::catch_unwind(|| laws::run(law)).is_ok();
    assert!(!kept, "the law is kept by a store that is wrong: {wrong:?}");
}

macro_rules! each_law_is_seen_to_fail {
    ($($law:ident: $wrong:ident,)*) => {
        const SEEN: &[&str] = &[$(stringify!($law)),*];
        $(
            #[test]
            fn $law() {
                seen_to_fail(laws::store::$law, Wrong::$wrong);
            }
        )*
    };
}

each_law_is_seen_to_fail! {
    a_lane_keeps_the_order_of_acceptance: LastComesFirst,
    one_deployment_of_a_lane_is_active: SecondIsActive,
    two_workers_never_claim_the_same_lane: ClaimedTwice,
    the_fence_grows_with_every_claim: FenceStays,
    lanes_take_turns: LanesByName,
    a_worker_takes_only_from_its_pools: AnyPool,
    a_repeated_enqueue_makes_nothing_new: EnqueuedAgain,
    a_key_is_accepted_once: KeyForgotten,
    a_newer_push_supersedes_queued_pushes: NothingSuperseded,
    nothing_but_a_queued_push_is_superseded: EverythingSuperseded,
    a_full_queue_refuses: QueueEndless,
    a_recovery_fits_into_a_full_queue: RecoveryCounted,
    an_unknown_environment_accepts_nothing: EnvironmentMadeUp,
    a_paused_environment_starts_nothing: PauseIgnored,
    attention_stops_everything_but_the_recovery: AttentionIgnored,
    a_recovery_that_strands_is_waited_for: AttentionStays,
    an_acknowledged_environment_goes_on: AcknowledgedAnyway,
    a_fresh_fence_shuts_out_the_old_one: FreshFenceIgnored,
    an_old_fence_changes_nothing: FenceUnchecked,
    a_version_must_follow: VersionUnchecked,
    a_released_lane_is_not_the_workers_any_more: HolderUnchecked,
    a_repeated_commit_is_answered_as_the_first_was: ReceiptsLost,
    a_repeated_finish_gives_the_successor_again: SuccessorForgotten,
    a_repeated_finish_gives_no_successor_that_moved_on: SuccessorAlways,
    finishing_claims_the_successor: NoSuccessor,
    what_is_committed_is_read_back: KeptByWorker,
    what_serves_is_replaced: LiveForgotten,
    a_wait_keeps_the_lane: WaitForgotten,
    a_lease_that_ran_out_is_rescued: NeverRescued,
    a_heartbeat_extends_the_lease: HeartbeatIgnored,
    an_expired_worker_is_refused_for_ever: ExpiredReturns,
    an_expired_holder_can_commit_until_it_is_rescued: ExpiredFenced,
    an_expired_worker_gets_no_successor: ExpiredSucceeds,
    a_retired_worker_gives_its_lanes_back: RetireIgnored,
    a_lost_claim_is_given_again: LostClaimKept,
    a_lost_claim_tells_of_the_lost_worker_again: LostWorkerUntold,
    a_step_that_may_have_been_begun_has_lost_its_worker: LostWorkerUntold,
    idle_tells_when_to_come_back: IdleForever,
    a_queued_deployment_is_cancelled_at_once: CancelWaits,
    an_active_deployment_is_told_of_a_cancel: CancelUntold,
    a_cancel_comes_before_the_verdict: VerdictWins,
    a_wait_ends_with_a_cancel: WaitGoesOn,
    a_cancel_that_is_too_late_says_so: AlwaysRequested,
    an_environment_is_saved_and_replaced: SettingsStay,
    two_environments_share_nothing: ConflictIgnored,
    what_serves_is_not_shared_either: LiveUnchecked,
    what_is_being_deployed_is_not_shared_either: ActiveUnchecked,
    events_come_in_order: EventsReversed,
    an_append_needs_the_fence_of_the_active_deployment: AppendUnchecked,
    a_long_log_keeps_head_tail_and_milestones: LogEndless,
    the_head_of_a_log_is_its_beginning: HeadMoves,
    the_history_is_newest_first_and_paged: HistoryUnpaged,
    the_history_is_filtered: StatusIgnored,
    snapshots_are_kept_until_they_are_retired: ForgottenAtOnce,
    the_snapshot_of_an_unfinished_deployment_is_not_retired: ActiveRetired,
    no_snapshot_is_retired_while_one_may_be_needed: NeededRetired,
}

#[test]
fn no_law_is_forgotten() {
    let source = include_str!("../laws/store.rs");
    let (_, list) = source.split_once("store_laws, store, [").expect("the list of the laws");
    let (list, _) = list.split_once(']').expect("the end of the list");
    let declared: Vec<&str> = list.split(',').map(str::trim).filter(|law| !law.is_empty()).collect();
    assert_eq!(declared, SEEN);
}
