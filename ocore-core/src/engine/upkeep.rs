//! Removes what retention does not want any more. Best effort: what is left over is removed after the next
//! deployment, and no deployment waits for it.

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
    machine::{Job, Status},
    name::EnvironmentName,
    port::{EnvironmentRecord, Filter, SnapshotRecord, StoreResult},
    release::Image,
};

/// How many deployments beyond those whose image is kept are looked at: what one clean-up missed, a later one
/// finds.
const LOOK_BACK: usize = 50;

/// How many deployments beyond those whose image is kept are read at a time: enough for all that end between two
/// clean-ups, as a rule.
const PAGE: usize = 4;

/// Removes unwanted snapshots and images of an environment.
pub(super) async fn clean_up(shared: &Arc<Shared>, name: &EnvironmentName) {
    let Ok(Some(record)) = shared.in_time(shared.store.environment(name)).await else { return };
    let upkeep = Upkeep { shared: shared.clone(), record };
    let results = [upkeep.snapshots().await, upkeep.images().await];
    for failure in results.into_iter().filter_map(Result::err) {
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
    fn caller(&self, id: DeploymentId) -> (Caller, Job) {
        Caller::outside_of_steps(self.shared.clone(), &self.record, id)
    }

    async fn read<T>(&self, call: impl Future<Output = StoreResult<T>>) -> Result<T, String> {
        self.shared.in_time(call).await.map_err(|error| error.to_string())
    }

    async fn snapshots(&self) -> Result<(), String> {
        let store = &self.shared.store;
        let name = self.record.environment.name();
        let snapshots = self.read(store.snapshots(name)).await?;
        let policy = self.record.environment.policy();
        let live = self.record.live.as_ref().map(|live| live.deployment);
        let needed: BTreeSet<_> = self.record.active.into_iter().chain(self.record.attention).collect();
        let unwanted = policy.retention.unwanted(&snapshots, live, &needed, self.shared.clock.at_most());
        if unwanted.is_empty() {
            return Ok(());
        }
        // The store has the last word: it knows of a rollback that was asked for meanwhile.
        let retired = self.read(store.retire_snapshots(name, &unwanted)).await?;
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
        let (caller, job) = self.caller(record.deployment);
        let context = caller.context(&job).for_instance(&record.instance);
        let deadline = self.record.environment.policy().deadlines.start;
        let remove = self.shared.snapshotter.remove(&context, &record.snapshot);
        caller.answer(&context, deadline, remove).await.map_err(|failure| failure.to_string())
    }

    async fn images(&self) -> Result<(), String> {
        let name = self.record.environment.name();
        let kept_last = self.record.environment.policy().retention.images_last;
        let cleaned = self.shared.cleaned.to(name);
        let deployments = self.newest(kept_last, cleaned).await?;
        let needed = needed_images(&self.record, &deployments, kept_last);
        let (mut left, mut outcome) = (Vec::new(), Ok(()));
        for (deployment, image) in unwanted_images(&deployments, &needed, cleaned) {
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
        let (caller, job) = self.caller(id);
        let context = caller.context(&job);
        let deadline = self.record.environment.policy().deadlines.start;
        let remove = self.shared.builder.remove(&context, image);
        caller.answer(&context, deadline, remove).await.map_err(|failure| failure.to_string())
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

    /// The newest deployments, newest first: all from `cleaned` on, if that is known, within the limit.
    async fn newest(&self, kept_last: usize, cleaned: Seq) -> Result<Vec<Deployment>, String> {
        let filter = Filter::environment(self.record.environment.name().clone());
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
