//! Stores that break one law each: every law has been seen to fail.

mod queue;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{MemoryStore, State, lanes::Lane};
use crate::{
    deployment::Deployment,
    environment::Environment,
    event::{Event, NewEvent},
    id::{DeploymentId, EventSeq, Fence},
    name::EnvironmentName,
    port::{
        Acknowledged, Claim, Committed, EnvironmentRecord, EnvironmentStore, Filter, HistoryStore, LogLimit,
        LogStore, Page, Saved, SnapshotPin, SnapshotRecord, SnapshotStore, Store, StoreResult,
    },
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
    AcknowledgedForgotten,
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
    PoolLeft,
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
    PinOfOneSnapshot,
    PinnedRetired,
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
        if self.is(Wrong::PoolLeft) && matches!(saved, Ok(Saved::Deployed { .. })) {
            self.change(environment.name(), |lane| lane.environment = Arc::new(environment.clone()));
            return Ok(Saved::Updated);
        }
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

    async fn set_paused(&self, name: &EnvironmentName, by: Option<String>) -> StoreResult<bool> {
        self.store.set_paused(name, by.filter(|_| !self.is(Wrong::PauseIgnored))).await
    }

    async fn acknowledge(
        &self,
        name: &EnvironmentName,
        stranded: DeploymentId,
        actor: &str,
        at: DateTime<Utc>,
    ) -> StoreResult<Acknowledged> {
        if self.is(Wrong::AcknowledgedAnyway) {
            self.change(name, |lane| lane.queue.attention = None);
            return Ok(Acknowledged::Done);
        }
        let answer = self.store.acknowledge(name, stranded, actor, at).await;
        if self.is(Wrong::AcknowledgedForgotten) {
            self.change(name, |lane| lane.acknowledged.clear());
        }
        answer
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
        let mut snapshots = self.store.snapshots(environment).await?;
        if self.is(Wrong::PinOfOneSnapshot) {
            snapshots.iter_mut().skip(1).for_each(|it| it.pin = None);
        }
        Ok(snapshots)
    }

    async fn retire_snapshots(
        &self,
        environment: &EnvironmentName,
        references: &[String],
        at: DateTime<Utc>,
    ) -> StoreResult<Vec<String>> {
        if self.is(Wrong::NeededRetired) {
            return Ok(references.to_vec());
        }
        let active = self.look(environment, |lane| lane.queue.active).flatten();
        if self.is(Wrong::ActiveRetired) {
            self.change(environment, |lane| lane.queue.active = None);
        }
        if self.is(Wrong::PinnedRetired) {
            self.change(environment, |lane| lane.pins.clear());
        }
        let retired = self.store.retire_snapshots(environment, references, at).await;
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

    async fn pin_snapshots(
        &self,
        environment: &EnvironmentName,
        deployment: DeploymentId,
        pin: &SnapshotPin,
    ) -> StoreResult<bool> {
        self.store.pin_snapshots(environment, deployment, pin).await
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
    what_was_acknowledged_is_remembered_until_something_runs: AcknowledgedForgotten,
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
    no_data_directory_lies_in_another: ConflictIgnored,
    what_is_deployed_stays_in_its_pool: PoolLeft,
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
    a_pin_is_the_deployments: PinOfOneSnapshot,
    what_is_pinned_is_not_retired: PinnedRetired,
}

#[test]
fn no_law_is_forgotten() {
    let source = include_str!("../laws/store.rs");
    let (_, list) = source.split_once("store_laws, store, [").expect("the list of the laws");
    let (list, _) = list.split_once(']').expect("the end of the list");
    let declared: Vec<&str> = list.split(',').map(str::trim).filter(|law| !law.is_empty()).collect();
    assert_eq!(declared, SEEN);
}
