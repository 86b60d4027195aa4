//! Removes what retention does not want any more, and what workers that were killed have left. Best effort: what is
//! missed is removed after the next deployment, and no deployment waits for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};

use super::{Shared, call::Caller};
use crate::{
    deployment::Deployment,
    executor::Executor,
    id::{DeploymentId, Seq},
    machine::Status,
    name::EnvironmentName,
    port::{
        Context, EnvironmentRecord, Filter, Leftovers, Result as PortResult, SnapshotRecord, StoreResult,
    },
    release::Image,
    retention::{Protected, Verdict, plan},
};

/// How many deployments beyond those whose image is kept are looked at: what one clean-up missed, a later one
/// finds.
const LOOK_BACK: usize = 50;

/// How many deployments beyond those whose image is kept are read at a time: enough for all that end between two
/// clean-ups, as a rule.
const PAGE: usize = 4;

/// Removes unwanted snapshots and images of an environment, and what is left of deployments that are over.
pub(super) async fn clean_up(shared: &Arc<Shared>, name: &EnvironmentName) {
    let Ok(Some(record)) = shared.in_time(shared.store.environment(name)).await else { return };
    let upkeep = Upkeep { shared: shared.clone(), record };
    if let Err(failure) = upkeep.run().await {
        tracing::warn!(environment = %name, %failure, "clean-up is not complete; the next one goes on with it");
    }
}

/// The wall clock, as far as it can be believed.
pub(super) struct Clock {
    executor: Arc<dyn Executor>,
    began: (Duration, DateTime<Utc>),
}

impl Clock {
    pub(super) fn new(executor: Arc<dyn Executor>) -> Self {
        let began = (executor.now(), executor.utc());
        Self { executor, began }
    }

    /// The time that it is at most: no more has passed since this process began than its monotonic clock says. A wall
    /// clock that is set forward makes nothing old, so that nothing is removed; one that is set back makes
    /// everything young.
    pub(super) fn at_most(&self) -> DateTime<Utc> {
        let (now, utc) = self.began;
        let passed = TimeDelta::from_std(self.executor.now().saturating_sub(now)).unwrap_or(TimeDelta::MAX);
        self.executor.utc().min(utc.checked_add_signed(passed).unwrap_or(DateTime::<Utc>::MAX_UTC))
    }
}

/// What becomes of each snapshot, at a time that [`Clock::at_most`] gives.
///
/// This time is behind the wall clock where that was set forward, and after a sleep of the machine. A snapshot that is
/// dated in between is as young as can be, and nobody's mistake: only beyond the wall clock is the future.
pub(super) fn decide(
    shared: &Shared,
    record: &EnvironmentRecord,
    protected: &Protected,
    snapshots: &[SnapshotRecord],
    now: DateTime<Utc>,
) -> Vec<(String, Verdict)> {
    let mut snapshots = snapshots.to_vec();
    let utc = shared.executor.utc();
    for snapshot in snapshots.iter_mut().map(|it| &mut it.snapshot).filter(|it| it.taken_at <= utc) {
        snapshot.taken_at = snapshot.taken_at.min(now);
    }
    plan(&snapshots, &record.environment.policy().retention, protected, now)
}

/// From which deployment on an environment may have images that nobody needs. A process that has just started does
/// not know, and looks back.
#[derive(Default)]
pub(super) struct Cleaned(Mutex<BTreeMap<EnvironmentName, Seq>>);

impl Cleaned {
    fn to(&self, name: &EnvironmentName) -> Seq {
        self.lock().get(name).copied().unwrap_or_default()
    }

    fn set(&self, name: &EnvironmentName, seq: Seq) {
        self.lock().insert(name.clone(), seq);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<EnvironmentName, Seq>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Upkeep {
    shared: Arc<Shared>,
    record: EnvironmentRecord,
}

impl Upkeep {
    /// In whose name something is removed: that of the deployment that made it.
    fn caller(&self, id: DeploymentId) -> (Caller, Context) {
        let (caller, job) = Caller::outside_of_steps(self.shared.clone(), &self.record, id);
        let context = caller.context(&job);
        (caller, context)
    }

    fn kept_last(&self) -> usize {
        self.record.environment.policy().retention.images_last
    }

    async fn removed(
        &self,
        caller: &Caller,
        context: &Context,
        call: impl Future<Output = PortResult<()>>,
    ) -> Result<(), String> {
        let deadline = self.record.environment.policy().deadlines.start;
        caller.answer(context, deadline, call).await.map_err(|failure| failure.to_string())
    }

    async fn run(&self) -> Result<(), String> {
        let deployments = self.newest().await?;
        // Read after the deployments: of those that are over then, nothing more is recorded.
        let snapshots = self.read(self.shared.store.snapshots(self.record.environment.name())).await?;
        // What one of them cannot remove keeps no other from its work.
        self.snapshots(&snapshots)
            .await
            .and(self.images(&deployments).await)
            .and(self.leftovers(&deployments, &snapshots).await)
    }

    async fn read<T>(&self, call: impl Future<Output = StoreResult<T>>) -> Result<T, String> {
        self.shared.in_time(call).await.map_err(|error| error.to_string())
    }

    async fn snapshots(&self, snapshots: &[SnapshotRecord]) -> Result<(), String> {
        let store = &self.shared.store;
        let name = self.record.environment.name();
        let now = self.shared.clock.at_most();
        let verdicts = decide(&self.shared, &self.record, &Protected::by(&self.record), snapshots, now);
        let unwanted = verdicts.into_iter().filter(|(_, verdict)| matches!(verdict, Verdict::Remove { .. }));
        let unwanted: Vec<String> = unwanted.map(|(reference, _)| reference).collect();
        if unwanted.is_empty() {
            return Ok(());
        }
        // The store has the last word: it knows of a rollback that was asked for meanwhile.
        let retired = self.read(store.retire_snapshots(name, &unwanted, now)).await?;
        let (mut removed, mut outcome) = (Vec::new(), Ok(()));
        for snapshot in snapshots.iter().filter(|it| retired.contains(&it.snapshot.reference)) {
            match self.remove_snapshot(snapshot).await {
                Ok(()) => removed.push(snapshot.snapshot.reference.clone()),
                // One that cannot be removed keeps no other from being removed.
                failed => outcome = outcome.and(failed),
            }
        }
        self.read(store.forget_snapshots(name, &removed)).await.and(outcome)
    }

    async fn remove_snapshot(&self, record: &SnapshotRecord) -> Result<(), String> {
        let (caller, context) = self.caller(record.deployment);
        let context = context.for_instance(&record.instance);
        let remove = self.shared.snapshotter.remove(&context, &record.snapshot);
        self.removed(&caller, &context, remove).await
    }

    async fn images(&self, deployments: &[Deployment]) -> Result<(), String> {
        let name = self.record.environment.name();
        let cleaned = self.shared.cleaned.to(name);
        let needed = needed_images(&self.record, deployments, self.kept_last());
        let (mut left, mut outcome) = (Vec::new(), Ok(()));
        for (deployment, image) in unwanted_images(deployments, &needed, cleaned) {
            if self.is_rolled_back().await? {
                // It may be about to start from one of these. The clean-up after it goes on.
                return outcome;
            }
            if let Err(failure) = self.remove_image(deployment.id, image).await {
                left.push(deployment.kept_by_store.seq);
                outcome = outcome.and(Err(failure));
            }
        }
        let oldest = deployments.iter().filter(|it| it.outcome().is_none() || has_one_of(it, &needed));
        if let Some(oldest) = oldest.map(|it| it.kept_by_store.seq).chain(left).min() {
            self.shared.cleaned.set(name, oldest);
        }
        outcome
    }

    async fn remove_image(&self, id: DeploymentId, image: &Image) -> Result<(), String> {
        let (caller, context) = self.caller(id);
        self.removed(&caller, &context, self.shared.builder.remove(&context, image)).await
    }

    /// Whether a rollback is under way now: it may have found an image present that was unwanted when the list was
    /// read. Looked at before each removal; between the two there is still a moment, which costs the rollback
    /// its attempt and no more.
    async fn is_rolled_back(&self) -> Result<bool, String> {
        let lane = self.read(self.shared.store.lane(self.record.environment.name())).await?;
        let Some(active) = lane.and_then(|lane| lane.active) else { return Ok(false) };
        let active = self.read(self.shared.store.deployment(active)).await?;
        Ok(active.is_some_and(|active| active.rolls_back_to().is_some()))
    }

    /// What deployments that are over have left, and nobody knows of. Looked for again and again as long as they are
    /// among the newest: a call that nobody waits for any more may end late.
    async fn leftovers(
        &self,
        deployments: &[Deployment],
        snapshots: &[SnapshotRecord],
    ) -> Result<(), String> {
        let over = deployments.iter().filter(|it| it.outcome().is_some());
        let ended: BTreeSet<_> = over.map(|it| it.id).collect();
        let Some(newest) = ended.last().copied().filter(|_| !planted!(LeftoversStay)) else { return Ok(()) };
        let snapshots = snapshots.iter().filter(|_| !planted!(RecordedIsSwept));
        let snapshots = snapshots.map(|it| it.snapshot.reference.clone()).collect();
        let live = self.record.live.iter().map(|live| &live.release.image);
        let images = deployments.iter().filter_map(|it| it.image.as_ref()).chain(live);
        let images = images.map(|image| image.reference.clone()).collect();
        let snapshots = Leftovers::new(ended.clone(), snapshots);
        let images = Leftovers::new(ended, images);
        let (caller, context) = self.caller(newest);
        let swept = self.shared.snapshotter.sweep(&context, &snapshots);
        let swept = self.removed(&caller, &context, swept).await;
        let (caller, context) = self.caller(newest);
        swept.and(self.removed(&caller, &context, self.shared.builder.sweep(&context, &images)).await)
    }

    /// The newest deployments, newest first: all from `cleaned` on, if that is known, within the limit.
    async fn newest(&self) -> Result<Vec<Deployment>, String> {
        let name = self.record.environment.name();
        let (kept_last, cleaned) = (self.kept_last(), self.shared.cleaned.to(name));
        let filter = Filter::environment(name.clone());
        let most = kept_last.saturating_mul(2).saturating_add(LOOK_BACK);
        let (mut deployments, mut before) = (Vec::new(), None);
        loop {
            let page =
                self.read(self.shared.store.history(&filter, before, kept_last.saturating_add(PAGE))).await?;
            deployments.extend(page.deployments);
            before = page.next;
            let reached = deployments.last().is_none_or(|it| it.kept_by_store.seq <= cleaned);
            if before.is_none() || reached || deployments.len() >= most {
                return Ok(deployments);
            }
        }
    }
}

fn has_one_of(deployment: &Deployment, needed: &BTreeSet<&str>) -> bool {
    deployment.image.as_ref().is_some_and(|image| needed.contains(image.reference.as_str()))
}

/// Which images of `deployments` (newest first) are needed: the live one's, those of the newest `kept_last` that
/// ended Running, and those of deployments that are not over or could not be undone.
fn needed_images<'a>(
    record: &'a EnvironmentRecord,
    deployments: &'a [Deployment],
    kept_last: usize,
) -> BTreeSet<&'a str> {
    let running = deployments.iter().filter(|it| it.status() == Status::Running).take(kept_last);
    let open = deployments.iter().filter(|it| it.outcome().is_none() || Some(it.id) == record.attention);
    let images = running.chain(open).filter_map(|it| it.image.as_ref());
    let live = record.live.iter().map(|live| &live.release.image);
    images.chain(live).map(|image| image.reference.as_str()).collect()
}

/// The images that are not needed of those deployments, from `cleaned` on, that are over.
fn unwanted_images<'a>(
    deployments: &'a [Deployment],
    needed: &BTreeSet<&str>,
    cleaned: Seq,
) -> Vec<(&'a Deployment, &'a Image)> {
    let over = deployments.iter().filter(|it| it.outcome().is_some() && it.kept_by_store.seq >= cleaned);
    let unwanted = over.filter(|it| !has_one_of(it, needed));
    let images = unwanted.filter_map(|it| it.image.as_ref().map(|image| (it, image)));
    let by_reference: BTreeMap<_, _> = images.map(|it| (it.1.reference.as_str(), it)).collect();
    by_reference.into_values().collect()
}
