//! Removes what retention does not want any more. Best effort: what is left over is removed after the next
//! deployment, and no deployment waits for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
};

use super::{Shared, call::Caller};
use crate::{
    deployment::Deployment,
    id::DeploymentId,
    machine::{Job, Status},
    name::EnvironmentName,
    port::{EnvironmentRecord, Filter, SnapshotRecord, StoreResult},
    release::Image,
};

/// How many deployments beyond those whose image is kept are looked at: what one clean-up missed, a later one
/// finds.
const LOOK_BACK: usize = 50;

/// Removes unwanted snapshots and images of an environment.
pub(super) async fn clean_up(shared: &Arc<Shared>, name: &EnvironmentName) {
    let Ok(Some(record)) = shared.in_time(shared.store.environment(name)).await else { return };
    let upkeep = Upkeep { shared: shared.clone(), record };
    let results = [upkeep.snapshots().await, upkeep.images().await];
    for failure in results.into_iter().filter_map(Result::err) {
        tracing::warn!(environment = %name, %failure, "clean-up is not complete; the next one goes on with it");
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
        let unwanted = policy.retention.unwanted(&snapshots, live, &needed, self.shared.executor.utc());
        if unwanted.is_empty() {
            return Ok(());
        }
        // The store has the last word: it knows of a rollback that was asked for meanwhile.
        let retired = self.read(store.retire_snapshots(name, &unwanted)).await?;
        let mut removed = Vec::new();
        for snapshot in snapshots.iter().filter(|it| retired.contains(&it.snapshot.reference)) {
            self.remove_snapshot(snapshot).await?;
            removed.push(snapshot.snapshot.reference.clone());
        }
        self.read(store.forget_snapshots(name, &removed)).await
    }

    async fn remove_snapshot(&self, record: &SnapshotRecord) -> Result<(), String> {
        let (caller, job) = self.caller(record.deployment);
        let context = caller.context(&job).for_instance(&record.instance);
        let deadline = self.record.environment.policy().deadlines.start;
        let remove = self.shared.snapshotter.remove(&context, &record.snapshot);
        caller.answer(&context, deadline, remove).await.map_err(|failure| failure.to_string())
    }

    async fn images(&self) -> Result<(), String> {
        let kept_last = self.record.environment.policy().retention.images_last;
        let filter = Filter::environment(self.record.environment.name().clone());
        let limit = kept_last.saturating_mul(2).saturating_add(LOOK_BACK);
        let page = self.read(self.shared.store.history(&filter, None, limit)).await?;
        let deadline = self.record.environment.policy().deadlines.start;
        for (id, image) in unwanted_images(&self.record, &page.deployments, kept_last) {
            let (caller, job) = self.caller(id);
            let context = caller.context(&job);
            let remove = self.shared.builder.remove(&context, image);
            caller.answer(&context, deadline, remove).await.map_err(|failure| failure.to_string())?;
        }
        Ok(())
    }
}

/// The images of `deployments` (newest first) that are not needed: all but the live one's, those of the newest
/// `kept_last` that ended Running, and those of deployments that are not over or could not be undone.
fn unwanted_images<'a>(
    record: &EnvironmentRecord,
    deployments: &'a [Deployment],
    kept_last: usize,
) -> Vec<(DeploymentId, &'a Image)> {
    let running = deployments.iter().filter(|it| it.status() == Status::Running).take(kept_last);
    let open = deployments.iter().filter(|it| it.outcome().is_none() || Some(it.id) == record.attention);
    let images = running.chain(open).filter_map(|it| it.image.as_ref());
    let live = record.live.iter().map(|live| &live.release.image);
    let kept: BTreeSet<&str> = images.chain(live).map(|image| image.reference.as_str()).collect();
    let over = deployments.iter().filter(|it| it.outcome().is_some());
    let mut unwanted = BTreeMap::new();
    for (id, image) in over.filter_map(|it| Some((it.id, it.image.as_ref()?))) {
        if !kept.contains(image.reference.as_str()) {
            unwanted.insert(image.reference.as_str(), (id, image));
        }
    }
    unwanted.into_values().collect()
}
