use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::{Either, select};

use super::{FakeBuilder, FakeProbe, FakeRuntime, FakeSnapshotter, FakeSource};
use crate::{
    executor::{Executor, TokioExecutor},
    id::{DeploymentId, Fence},
    name::{EnvironmentName, InstanceName},
    port::{Context, Error, Result},
    release::Commit,
    secret::Secret,
    testing::sim::yield_now,
};

/// What a commit does when it is deployed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Behaviour {
    pub(super) builds: bool,
    pub(super) update: Update,
    pub(super) health: Health,
    pub(super) takes: Duration,
    pub(super) stumbles: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Update {
    None,
    Works,
    Fails,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// Passes after so many failed checks.
    GoodAfter(u32),
    Bad,
    /// Passes so many checks, then exits.
    ExitsAfter(u32),
}

impl Behaviour {
    /// Builds, starts, is healthy at once; has no update.
    #[must_use]
    pub const fn good() -> Self {
        Self {
            builds: true,
            update: Update::None,
            health: Health::GoodAfter(0),
            takes: Duration::ZERO,
            stumbles: false,
        }
    }

    /// The same, but it does not build.
    #[must_use]
    pub const fn unbuildable(mut self) -> Self {
        self.builds = false;
        self
    }

    /// The same, with an update that works.
    #[must_use]
    pub const fn updates(mut self) -> Self {
        self.update = Update::Works;
        self
    }

    /// The same, with an update that leaves the data half written and fails.
    #[must_use]
    pub const fn update_fails(mut self) -> Self {
        self.update = Update::Fails;
        self
    }

    /// The same, but it never passes a check.
    #[must_use]
    pub const fn unhealthy(mut self) -> Self {
        self.health = Health::Bad;
        self
    }

    /// The same, but it passes only after `checks` failed checks.
    #[must_use]
    pub const fn healthy_after(mut self, checks: u32) -> Self {
        self.health = Health::GoodAfter(checks);
        self
    }

    /// The same, but it exits after it has passed `checks` checks.
    #[must_use]
    pub const fn exits_after(mut self, checks: u32) -> Self {
        self.health = Health::ExitsAfter(checks);
        self
    }

    /// The same, but when it is revived it exits at once, the first time.
    #[must_use]
    pub const fn stumbles(mut self) -> Self {
        self.stumbles = true;
        self
    }

    /// The same, but building it and updating to it take this long.
    #[must_use]
    pub const fn takes(mut self, duration: Duration) -> Self {
        self.takes = duration;
        self
    }
}

/// An instance's data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Data {
    /// What has been done to its schema, oldest first.
    pub schema: Vec<Schema>,
    /// The users' writes that it holds.
    pub writes: Vec<u64>,
    /// Whether an update was interrupted, or failed, in the middle.
    pub half_written: bool,
}

/// A mark that a release leaves on the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Schema {
    /// The deployment's update ran to its end.
    Updated(DeploymentId),
    /// The deployment's release was started for the first time (applications migrate when they start).
    Started(DeploymentId),
}

/// A process that the fake runtime keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Running {
    /// The runtime's name for it.
    pub reference: String,
    /// The deployment that started it.
    pub deployment: DeploymentId,
    /// Under which fence.
    pub fence: Fence,
    /// The commit that it runs.
    pub sha: String,
    /// Why it does not run, if it does not; then it is kept to be revived, or to be asked why.
    pub down: Option<String>,
    /// How often it passed a check.
    pub passed: u32,
    pub(super) checks: u32,
    /// Whether it has opened its data.
    pub(super) opened: bool,
    /// Whether it has been revived and has exited at once.
    pub(super) stumbled: bool,
    /// The name under which it was stopped, if it was revived.
    pub(super) revived_from: Option<String>,
}

impl Running {
    /// What was started under that name, and has not been checked yet.
    #[must_use]
    pub const fn new(reference: String, deployment: DeploymentId, fence: Fence, sha: String) -> Self {
        Self {
            reference,
            deployment,
            fence,
            sha,
            down: None,
            passed: 0,
            checks: 0,
            opened: false,
            stumbled: false,
            revived_from: None,
        }
    }

    /// Whether this is what was started under that name, or what was revived in its place.
    pub(super) fn is_of(&self, reference: &str) -> bool {
        self.reference == reference || self.revived_from.as_deref() == Some(reference)
    }
}

/// What one instance consists of.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    /// The highest fence that was served.
    pub(super) fence: Fence,
    pub(super) data: Option<Data>,
    pub(super) processes: Vec<Running>,
    /// The update that is under way: ended by a withdrawal and by a restore.
    pub(super) update: Option<u64>,
}

impl Place {
    /// Refuses a call of a worker that has lost the lane.
    pub(super) fn admit(&mut self, context: &Context) -> Result<()> {
        if context.fence() < self.fence {
            return Err(Error::fenced());
        }
        self.fence = context.fence();
        Ok(())
    }

    pub(super) fn up(&self) -> impl Iterator<Item = &Running> {
        self.processes.iter().filter(|process| process.down.is_none())
    }
}

#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) key: Key,
    pub(super) deployment: DeploymentId,
    pub(super) data: Option<Data>,
    pub(super) finished: bool,
    pub(super) corrupt: bool,
}

pub(super) type Key = (EnvironmentName, InstanceName);

#[derive(Default)]
pub(super) struct Inner {
    pub(super) commits: BTreeMap<String, (Commit, Behaviour)>,
    pub(super) branches: BTreeMap<String, String>,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) checkouts: BTreeSet<PathBuf>,
    /// Image references, and whether the image is complete.
    pub(super) images: BTreeMap<String, bool>,
    pub(super) snapshots: BTreeMap<String, Stored>,
    pub(super) places: BTreeMap<EnvironmentName, BTreeMap<InstanceName, Place>>,
    pub(super) secret: Option<Secret>,
    pub(super) count: u64,
    pub(super) broken: Vec<String>,
}

impl Inner {
    pub(super) const fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    pub(super) fn behaviour(&self, sha: &str) -> Behaviour {
        self.commits.get(sha).map_or_else(Behaviour::good, |(_, behaviour)| behaviour.clone())
    }

    pub(super) fn place(&mut self, context: &Context, instance: &InstanceName) -> &mut Place {
        self.at(context.environment().name(), instance)
    }

    fn find(&self, environment: &EnvironmentName, instance: &InstanceName) -> Option<&Place> {
        self.places.get(environment)?.get(instance)
    }

    fn find_mut(&mut self, environment: &EnvironmentName, instance: &InstanceName) -> Option<&mut Place> {
        self.places.get_mut(environment)?.get_mut(instance)
    }

    /// The place, made if it is asked for the first time.
    fn at(&mut self, environment: &EnvironmentName, instance: &InstanceName) -> &mut Place {
        if self.find(environment, instance).is_none() {
            let places = self.places.entry(environment.clone()).or_default();
            places.insert(instance.clone(), Place::default());
        }
        self.find_mut(environment, instance).expect("it was made if it was not there")
    }

    /// Something was done that no engine may ever do.
    pub(super) fn blame(&mut self, context: &Context, what: &str) {
        self.broken.push(format!("deployment {} (fence {}): {what}", context.deployment(), context.fence()));
    }
}

/// Everything outside of the engine, in memory: one repository, images, snapshots, and per instance its data and
/// processes. Clones are one world.
#[derive(Clone)]
pub struct World {
    inner: Arc<Mutex<Inner>>,
    executor: Arc<dyn Executor>,
}

impl World {
    /// An empty world on tokio's clock.
    #[must_use]
    pub fn new() -> Self {
        Self::on(Arc::new(TokioExecutor::new()))
    }

    /// An empty world on this clock.
    #[must_use]
    pub fn on(executor: Arc<dyn Executor>) -> Self {
        Self { inner: Arc::default(), executor }
    }

    /// The world's repository.
    #[must_use]
    pub fn source(&self) -> FakeSource {
        FakeSource::of(self.clone())
    }

    /// What builds in this world.
    #[must_use]
    pub fn builder(&self) -> FakeBuilder {
        FakeBuilder::of(self.clone())
    }

    /// What copies this world's data.
    #[must_use]
    pub fn snapshotter(&self) -> FakeSnapshotter {
        FakeSnapshotter::of(self.clone())
    }

    /// What runs instances in this world.
    #[must_use]
    pub fn runtime(&self) -> FakeRuntime {
        FakeRuntime::of(self.clone())
    }

    /// What asks this world's instances whether they are well.
    #[must_use]
    pub fn probe(&self) -> FakeProbe {
        FakeProbe::of(self.clone())
    }

    /// Adds a commit to a branch; returns its object id.
    pub fn push(&self, branch: &str, message: &str, behaviour: Behaviour) -> String {
        let time = self.executor.utc();
        let mut inner = self.lock();
        let count = inner.commits.len() as u64 + 1;
        // Spread over all digits, so that abbreviations tell commits apart; and the same in every run.
        let mut chance = super::super::sim::Chance::new(count);
        let sha = format!("{:016x}{:016x}{count:08x}", chance.bits(), chance.bits());
        inner.commits.insert(sha.clone(), (Commit::new(&sha, message, "A. Fake", time), behaviour));
        inner.branches.insert(branch.to_owned(), sha.clone());
        sha
    }

    /// Names a commit.
    pub fn tag(&self, tag: &str, sha: &str) {
        self.lock().tags.insert(tag.to_owned(), sha.to_owned());
    }

    /// From now on everything that prints something uses this secret, makes it known, and then prints it.
    pub fn leak(&self, secret: Secret) {
        self.lock().secret = Some(secret);
    }

    /// A user writes to whatever serves the instance. If the write was acknowledged, its number, and which deployment
    /// had started what acknowledged it.
    #[must_use]
    pub fn write(
        &self,
        environment: &EnvironmentName,
        instance: &InstanceName,
    ) -> Option<(u64, DeploymentId)> {
        let mut inner = self.lock();
        let number = inner.next();
        let place = inner.find_mut(environment, instance)?;
        let by = place.up().next()?.deployment;
        place.data.as_mut()?.writes.push(number);
        Some((number, by))
    }

    /// The instance's data; `None` where it has none yet.
    #[must_use]
    pub fn data(&self, environment: &EnvironmentName, instance: &InstanceName) -> Option<Data> {
        self.with_data(environment, instance, |data| data.cloned())
    }

    /// Looks at the instance's data, which is not copied.
    pub fn with_data<R>(
        &self,
        environment: &EnvironmentName,
        instance: &InstanceName,
        look: impl FnOnce(Option<&Data>) -> R,
    ) -> R {
        let inner = self.lock();
        look(inner.find(environment, instance).and_then(|place| place.data.as_ref()))
    }

    /// The processes that run in the instance.
    #[must_use]
    pub fn running(&self, environment: &EnvironmentName, instance: &InstanceName) -> Vec<Running> {
        self.with_running(environment, instance, |up| up.cloned().collect())
    }

    /// Looks at the processes that run in the instance, which are not copied.
    pub fn with_running<R>(
        &self,
        environment: &EnvironmentName,
        instance: &InstanceName,
        look: impl FnOnce(&mut dyn Iterator<Item = &Running>) -> R,
    ) -> R {
        let inner = self.lock();
        look(&mut inner.find(environment, instance).into_iter().flat_map(Place::up))
    }

    /// Whether the process of that name runs in the instance.
    #[must_use]
    pub fn serves(&self, environment: &EnvironmentName, instance: &InstanceName, reference: &str) -> bool {
        self.with_running(environment, instance, |mut up| {
            Iterator::any(&mut up, |process| process.reference == reference)
        })
    }

    /// The data that a snapshot holds, if there is such a snapshot and it is finished.
    #[must_use]
    pub fn snapshot(&self, reference: &str) -> Option<Option<Data>> {
        self.with_snapshot(reference, |data| data.cloned())
    }

    /// Looks at the data that a snapshot holds, which is not copied, if there is such a snapshot and it is finished.
    pub fn with_snapshot<R>(&self, reference: &str, look: impl FnOnce(Option<&Data>) -> R) -> Option<R> {
        let inner = self.lock();
        let stored = inner.snapshots.get(reference).filter(|stored| stored.finished)?;
        Some(look(stored.data.as_ref()))
    }

    /// Puts a snapshot's data back by hand, or removes the data if there is no such snapshot.
    pub fn load(&self, environment: &EnvironmentName, instance: &InstanceName, reference: &str) {
        let data = self.snapshot(reference).flatten();
        if let Some(place) = self.lock().find_mut(environment, instance) {
            place.data = data;
        }
    }

    /// Lets exactly this process run in the instance, by hand, and keeps away what older fences may still do there.
    pub fn run_only(
        &self,
        environment: &EnvironmentName,
        instance: &InstanceName,
        fence: Fence,
        process: Option<Running>,
    ) {
        let mut inner = self.lock();
        let place = inner.at(environment, instance);
        place.fence = place.fence.max(fence);
        place.update = None;
        place.processes = process.into_iter().collect();
    }

    /// Damages a snapshot: it can never be restored again.
    pub fn corrupt_snapshot(&self, reference: &str) {
        if let Some(stored) = self.lock().snapshots.get_mut(reference) {
            stored.corrupt = true;
        }
    }

    /// Removes every image, as somebody who needed the space would.
    pub fn lose_images(&self) {
        self.lock().images.clear();
    }

    /// Ends whatever runs in the instance, as a crash would.
    pub fn crash(&self, environment: &EnvironmentName, instance: &InstanceName) {
        if let Some(place) = self.lock().find_mut(environment, instance) {
            for process in &mut place.processes {
                process.down.get_or_insert_with(|| "crashed".to_owned());
            }
        }
    }

    /// How many checkouts, images and snapshots there are, unfinished ones included.
    #[must_use]
    pub fn counts(&self) -> [usize; 3] {
        let inner = self.lock();
        [inner.checkouts.len(), inner.images.len(), inner.snapshots.len()]
    }

    /// The references of all images and snapshots, unfinished ones included.
    #[must_use]
    pub fn made(&self) -> BTreeSet<String> {
        let inner = self.lock();
        inner.images.keys().chain(inner.snapshots.keys()).cloned().collect()
    }

    /// What was done in this world that no engine may ever do: a migration of data that is being served, or of
    /// data that a migration has left half written; a restore under a running application; and the like.
    #[must_use]
    pub fn broken_rules(&self) -> Vec<String> {
        self.lock().broken.clone()
    }

    /// What is printed by mistake: a secret, made known before.
    pub(super) fn leaked(&self, context: &Context) -> Option<String> {
        let secret = self.lock().secret.clone()?;
        context.hide(&secret);
        Some(format!("the secret is {}", secret.expose()))
    }

    pub(super) fn executor(&self) -> &dyn Executor {
        &*self.executor
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Work that takes this long, and in the middle of which the caller may die. Ends early when it is cancelled.
    pub(super) async fn work(&self, context: &Context, takes: Duration) -> Result<()> {
        yield_now().await;
        if !takes.is_zero() {
            let cancelled = std::pin::pin!(context.cancelled());
            if let Either::Right(_) = select(self.executor.sleep(takes), cancelled).await {
                return Err(Error::cancelled());
            }
        }
        if context.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

/// Declares a fake that is a view of the world.
macro_rules! fake {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name {
            world: World,
        }

        impl $name {
            pub(super) const fn of(world: World) -> Self {
                Self { world }
            }
        }
    };
}
pub(super) use fake;
