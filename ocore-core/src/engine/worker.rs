//! A worker process: claims lanes, keeps its lease alive, drains on shutdown.
//!
//! One incarnation of a worker has one id and one lease. When the lease may have run out, the incarnation stops
//! everything it does and the next one begins under a new id.

mod claiming;

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{
    FutureExt as _,
    future::{AbortHandle, BoxFuture, Fuse, abortable, poll_fn},
    pin_mut, select_biased,
};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Engine, EngineError, Shared,
    drive::{Left, drive},
};
use crate::{
    executor::Executor,
    id::{DeploymentId, Fence, WorkerId},
    name::EnvironmentName,
    port::{Beat, Claim, StoreErrorKind, StoreResult, Worker},
};

/// Hints are followed this often at most.
const HINT_INTERVAL: Duration = Duration::from_millis(20);

/// How long a lane waits that the store cannot write: doubled each time.
const STUCK_WAIT_MIN: Duration = Duration::from_secs(5);

/// The longest such wait.
const STUCK_WAIT_MAX: Duration = Duration::from_secs(5 * 60);

impl Engine {
    /// Works until `shutdown` completes, then drains: deployments go on for [`Timing::drain`](super::Timing::drain),
    /// are then handed over at their next step boundary, and interrupted after [`Timing::interrupt`](super::Timing::interrupt).
    /// Whatever is handed over is in the store, for the next worker.
    ///
    /// Dropping the future stops the worker as a crash would: the store lends its lanes to others once the lease has
    /// run out.
    ///
    /// # Errors
    /// [`EngineError::Store`] if the store cannot work at all. Outages are waited for.
    pub async fn run_until(&self, shutdown: impl Future<Output = ()> + Send) -> Result<(), EngineError> {
        let shutdown = shutdown.fuse();
        pin_mut!(shutdown);
        loop {
            let crew = Arc::new(Crew::new(self.shared.clone()));
            match crew.work(shutdown.as_mut()).await? {
                Ended::Drained => return Ok(()),
                Ended::LeaseLost => {
                    tracing::warn!(worker = %crew.worker.id, "the lease was lost; beginning anew")
                }
            }
        }
    }
}

struct StopDrivers<'a>(&'a Crew);

impl Drop for StopDrivers<'_> {
    fn drop(&mut self) {
        self.0.drivers.abort();
    }
}

enum Ended {
    Drained,
    LeaseLost,
}

/// How far a shutdown has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// There is none.
    Working,
    /// Nothing new is claimed.
    Draining,
    /// Deployments are handed over at the next step boundary.
    HandingOver,
    /// Steps are interrupted.
    Interrupting,
}

/// One incarnation of a worker process, and the lanes that it works on.
pub(super) struct Crew {
    pub(super) shared: Arc<Shared>,
    pub(super) worker: Worker,
    pub(super) lease: Lease,
    phase: watch::Sender<Phase>,
    lanes: Mutex<BTreeMap<EnvironmentName, Lane>>,
    /// The lanes that the store could not write, and how long each waited last.
    stuck: Mutex<BTreeMap<EnvironmentName, Duration>>,
    slots: Arc<Semaphore>,
    /// A slot or a lane may have become free.
    freed: Notify,
    drivers: TaskSet,
}

struct Lane {
    deployment: DeploymentId,
    fence: Fence,
    cancel: CancellationToken,
    /// When the last commit was sent whose answer told whether a cancel is wanted.
    heard: Duration,
}

/// A lane that a driver works on, noted in the crew for as long as this lives.
pub(super) struct Adopted {
    crew: Arc<Crew>,
    environment: EnvironmentName,
    fence: Fence,
    /// Cancelled when a cancel of the deployment is wanted.
    pub(super) cancel: CancellationToken,
}

impl Drop for Adopted {
    fn drop(&mut self) {
        let mut lanes = self.crew.lanes();
        // The lane may have been given back and claimed anew before this driver came to its end.
        if lanes.get(&self.environment).is_some_and(|lane| lane.fence == self.fence) {
            lanes.remove(&self.environment);
        }
    }
}

impl Crew {
    fn new(shared: Arc<Shared>) -> Self {
        let id = WorkerId::fresh(&*shared.executor);
        let worker = Worker::new(id, shared.pools.clone(), shared.timing.lease);
        Self {
            lease: Lease::new(shared.executor.clone()),
            worker,
            phase: watch::Sender::new(Phase::Working),
            lanes: Mutex::default(),
            stuck: Mutex::default(),
            slots: Arc::new(Semaphore::new(shared.workers)),
            freed: Notify::new(),
            drivers: TaskSet::new(shared.executor.clone()),
            shared,
        }
    }

    async fn work<S: Future<Output = ()>>(
        self: &Arc<Self>,
        mut shutdown: Pin<&mut Fuse<S>>,
    ) -> Result<Ended, EngineError> {
        let registered = self.register().fuse();
        pin_mut!(registered);
        select_biased! {
            () = shutdown => return Ok(Ended::Drained),
            result = registered => result?,
        }
        // However this ends, dropped in the middle too, nothing goes on without it.
        let _drivers = StopDrivers(self);
        let helpers = TaskSet::new(self.shared.executor.clone());
        helpers.spawn(self.clone().keep_lease());
        helpers.spawn(self.clone().follow_hints());
        helpers.spawn(self.clone().claim_lanes());
        let lost = self.lease.lost().fuse();
        pin_mut!(lost);
        let ended = select_biased! {
            () = lost => Ended::LeaseLost,
            () = shutdown => {
                let drained = self.drain().fuse();
                pin_mut!(drained);
                select_biased! {
                    () = lost => {}
                    () = drained => {}
                }
                Ended::Drained
            }
        };
        self.drivers.abort();
        drop(helpers);
        if matches!(ended, Ended::Drained) {
            // Not needed for correctness: without it the others wait for the lease to run out.
            let _best_effort = self.shared.in_time(self.shared.store.retire(self.worker.id)).await;
        }
        Ok(ended)
    }

    /// The first heartbeat: waits for a store that is away, and fails if it cannot work at all.
    async fn register(&self) -> Result<(), EngineError> {
        loop {
            match self.beat().await {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == StoreErrorKind::Broken => return Err(error.into()),
                Err(error) => tracing::warn!(%error, "the store does not answer; trying again"),
            }
            self.shared.executor.sleep(self.shared.timing.poll).await;
        }
    }

    /// One heartbeat. Its effect on the worker's own trust counts from the moment of sending.
    async fn beat(&self) -> StoreResult<()> {
        let sent = self.shared.executor.now();
        match self.shared.in_time(self.shared.store.heartbeat(&self.worker)).await? {
            Beat::Alive(held) => {
                self.lease.extend(sent + self.shared.timing.watchdog);
                for lane in held.iter().filter(|lane| lane.cancel) {
                    self.tell_cancel(lane.deployment);
                }
            }
            Beat::Expired => self.lease.end(),
        }
        Ok(())
    }

    async fn keep_lease(self: Arc<Self>) {
        let heartbeat = self.shared.timing.heartbeat;
        loop {
            self.shared.executor.sleep(heartbeat).await;
            while let Err(error) = self.beat().await {
                tracing::warn!(%error, "a heartbeat failed");
                self.shared.executor.sleep(heartbeat / 4).await;
            }
        }
    }

    /// Looks soon for cancels when something may have changed: the heartbeats would tell too, but later. The answer of
    /// a commit tells as well, so that most changes, this worker's own, need no look.
    async fn follow_hints(self: Arc<Self>) {
        let mut hint = Box::pin(self.hint_of_cancel());
        loop {
            hint.await;
            // Made before the reads: what happens while they are under way is not missed.
            hint = Box::pin(self.hint_of_cancel());
            let since = self.shared.executor.now();
            self.shared.executor.sleep(HINT_INTERVAL).await;
            for deployment in self.unheard_since(since) {
                let found = self.shared.in_time(self.shared.store.deployment(deployment)).await;
                if found.ok().flatten().is_some_and(|found| found.kept_by_store.cancel.is_some()) {
                    self.tell_cancel(deployment);
                }
            }
        }
    }

    fn hint_of_cancel(&self) -> impl Future<Output = ()> {
        let (here, elsewhere) = (self.shared.work.notified().fuse(), self.shared.store.changed().fuse());
        async move {
            pin_mut!(here, elsewhere);
            select_biased! {
                () = here => {}
                () = elsewhere => {}
            }
        }
    }

    fn start(self: &Arc<Self>, mut claim: Claim, slot: tokio::sync::OwnedSemaphorePermit) {
        let crew = self.clone();
        let environment = claim.environment.name().clone();
        // The store cannot know that the step was begun: its claim is the last that it has written.
        claim.lost_worker |= self.stuck().contains_key(&environment);
        let mut adopted = self.adopt(&claim);
        self.drivers.spawn(async move {
            let left = drive(crew.clone(), claim, &mut adopted).await;
            drop(slot);
            if left == Left::Stuck {
                crew.wait_stuck(&environment).await;
            } else {
                crew.stuck().remove(&environment);
            }
            drop(adopted);
            crew.freed.notify_one();
            if left == (Left::Lane { ended: true }) {
                select_biased! {
                    () = crew.lease.lost().fuse() => {}
                    () = super::upkeep::clean_up(&crew.shared, &environment).fuse() => {}
                }
            }
        });
    }

    /// Keeps a lane that cannot be written from being claimed again for a while: longer each time.
    async fn wait_stuck(&self, environment: &EnvironmentName) {
        let wait = {
            let mut stuck = self.stuck();
            let wait = stuck.get(environment).map_or(STUCK_WAIT_MIN, |wait| (*wait * 2).min(STUCK_WAIT_MAX));
            stuck.insert(environment.clone(), wait);
            wait
        };
        tracing::error!(%environment, ?wait, "the store cannot write what comes next; trying again later");
        let draining = self.reached(Phase::Draining).fuse();
        pin_mut!(draining);
        select_biased! {
            () = draining => {}
            () = self.shared.executor.sleep(wait).fuse() => {}
        }
    }

    /// Notes that this process works on the claim's lane.
    pub(super) fn adopt(self: &Arc<Self>, claim: &Claim) -> Adopted {
        let (environment, fence) = (claim.environment.name().clone(), claim.fence);
        let cancel = CancellationToken::new();
        let heard = self.shared.executor.now();
        let lane = Lane { deployment: claim.deployment.id, fence, cancel: cancel.clone(), heard };
        self.lanes().insert(environment.clone(), lane);
        Adopted { crew: self.clone(), environment, fence, cancel }
    }

    fn tell_cancel(&self, deployment: DeploymentId) {
        let lanes = self.lanes();
        if let Some(lane) = lanes.values().find(|lane| lane.deployment == deployment) {
            lane.cancel.cancel();
        }
    }

    /// Notes that a commit which was sent then has told whether a cancel is wanted.
    pub(super) fn heard(&self, environment: &EnvironmentName, sent: Duration) {
        if let Some(lane) = self.lanes().get_mut(environment) {
            lane.heard = sent;
        }
    }

    /// The deployments of which no commit has been sent since then.
    fn unheard_since(&self, since: Duration) -> Vec<DeploymentId> {
        let lanes = self.lanes();
        lanes.values().filter(|lane| lane.heard <= since).map(|lane| lane.deployment).collect()
    }

    fn stuck(&self) -> MutexGuard<'_, BTreeMap<EnvironmentName, Duration>> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lanes(&self) -> MutexGuard<'_, BTreeMap<EnvironmentName, Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Completes when the shutdown has come so far.
    pub(super) async fn reached(&self, phase: Phase) {
        let mut phases = self.phase.subscribe();
        // The sender lives in `self`, so the wait ends by the phase alone.
        let _reached = phases.wait_for(|now| *now >= phase).await;
    }

    async fn drain(&self) {
        let timing = &self.shared.timing;
        let steps = [
            (Phase::Draining, timing.drain),
            (Phase::HandingOver, timing.interrupt.saturating_sub(timing.drain)),
            (Phase::Interrupting, timing.cancel_grace * 2),
        ];
        for (phase, time) in steps {
            self.phase.send_replace(phase);
            select_biased! {
                () = self.drivers.idle().fuse() => return,
                () = self.shared.executor.sleep(time).fuse() => {}
            }
        }
        tracing::warn!(
            "some steps did not stop in time; another worker will take over when the lease has run out"
        );
    }
}

/// What the worker may believe of its lease: earlier over than the store's own deadline.
pub(super) struct Lease {
    executor: Arc<dyn Executor>,
    until_nanos: AtomicU64,
    ended: CancellationToken,
}

impl Lease {
    fn new(executor: Arc<dyn Executor>) -> Self {
        Self { executor, until_nanos: AtomicU64::new(0), ended: CancellationToken::new() }
    }

    fn extend(&self, until: Duration) {
        let nanos = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        self.until_nanos.store(nanos, Ordering::Relaxed);
    }

    fn end(&self) {
        self.ended.cancel();
    }

    fn until(&self) -> Duration {
        Duration::from_nanos(self.until_nanos.load(Ordering::Relaxed))
    }

    /// Whether the worker may still act.
    pub(super) fn holds(&self) -> bool {
        !self.ended.is_cancelled() && (self.executor.now() < self.until() || planted!(WatchdogIgnored))
    }

    /// Completes when the worker must not act any more. Looks at the clock whenever it is polled: a process that
    /// was frozen for a while learns of it before it does anything else.
    pub(super) async fn lost(&self) {
        if planted!(WatchdogIgnored) {
            return self.ended.cancelled().await;
        }
        let ended = self.ended.cancelled();
        pin_mut!(ended);
        let mut sleep: BoxFuture<'static, ()> = self.executor.sleep(self.remaining());
        poll_fn(|context| {
            loop {
                if !self.holds() || ended.as_mut().poll(context).is_ready() {
                    return std::task::Poll::Ready(());
                }
                if sleep.as_mut().poll(context).is_pending() {
                    return std::task::Poll::Pending;
                }
                sleep = self.executor.sleep(self.remaining());
            }
        })
        .await;
    }

    fn remaining(&self) -> Duration {
        self.until().saturating_sub(self.executor.now())
    }
}

/// Tasks that end with their owner.
struct TaskSet {
    executor: Arc<dyn Executor>,
    running: Arc<Running>,
}

#[derive(Default)]
struct Running {
    tasks: Mutex<(u64, BTreeMap<u64, AbortHandle>)>,
    ended: Notify,
}

impl TaskSet {
    fn new(executor: Arc<dyn Executor>) -> Self {
        Self { executor, running: Arc::default() }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let (task, handle) = abortable(task);
        let id = {
            let (next, handles) = &mut *self.running.lock();
            *next += 1;
            handles.insert(*next, handle);
            *next
        };
        let running = self.running.clone();
        self.executor.spawn(Box::pin(async move {
            // Ends the entry however the task ends: done, aborted, panicked or dropped with its runtime.
            let _entry = Entry { running, id };
            let _aborted = task.await;
        }));
    }

    fn abort(&self) {
        for handle in self.running.lock().1.values() {
            handle.abort();
        }
    }

    async fn idle(&self) {
        loop {
            let ended = self.running.ended.notified();
            pin_mut!(ended);
            ended.as_mut().enable();
            if self.running.lock().1.is_empty() {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for TaskSet {
    fn drop(&mut self) {
        self.abort();
    }
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, AbortHandle>)> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Entry {
    running: Arc<Running>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.running.lock().1.remove(&self.id);
        self.running.ended.notify_waiters();
    }
}
