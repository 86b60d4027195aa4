//! The lanes, the workers, and the indexes that a claim looks into.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use crate::{
    environment::Environment,
    id::{DeploymentId, Fence, Seq, WorkerId},
    name::{EnvironmentName, PoolName},
    port::{LaneQueue, SnapshotPin, SnapshotRecord, Worker},
    release::Live,
};

#[derive(Debug, Clone, Default)]
pub(super) struct Lanes {
    by_name: BTreeMap<EnvironmentName, Lane>,
    /// When each worker's lease runs out. Never forgotten: an expired worker is refused for ever.
    pub(super) workers: HashMap<WorkerId, Duration>,
    /// The lanes of the workers that hold any.
    held: BTreeMap<WorkerId, BTreeSet<EnvironmentName>>,
    /// Lanes with a deployment that nobody holds, by the end of their wait.
    waiting: BTreeMap<PoolName, BTreeMap<(Duration, u64), EnvironmentName>>,
    /// Lanes whose next deployment can be started, in the order in which that became so.
    free: BTreeMap<PoolName, BTreeMap<u64, EnvironmentName>>,
    tickets: u64,
}

/// An environment and its queue.
#[derive(Debug, Clone)]
pub(super) struct Lane {
    pub(super) environment: Arc<Environment>,
    pub(super) live: Option<Arc<Live>>,
    pub(super) queue: LaneQueue,
    pub(super) paused_by: Option<String>,
    pub(super) acknowledged: Vec<DeploymentId>,
    pub(super) fence: Fence,
    pub(super) hold: Hold,
    /// Every deployment: the one with the number n is at n - 1.
    pub(super) history: Vec<DeploymentId>,
    pub(super) keys: HashMap<String, DeploymentId>,
    pub(super) snapshots: BTreeMap<String, SnapshotRecord>,
    pub(super) pins: BTreeMap<DeploymentId, SnapshotPin>,
    place: Place,
}

/// Who works on the lane's active deployment, or from when on somebody may.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Hold {
    pub(super) holder: Option<WorkerId>,
    pub(super) not_before: Duration,
    /// What a claim by the holder itself would say: see the module's documentation.
    pub(super) lost_if_forgotten: bool,
}

/// Where the indexes have the lane.
#[derive(Debug, Clone, PartialEq)]
enum Place {
    Nowhere,
    Waiting(PoolName, Duration, u64),
    Free(PoolName, u64),
}

impl Lane {
    pub(super) const fn seq_next(&self) -> Seq {
        Seq::new(self.history.len() as u64 + 1)
    }

    /// Whether this worker, with this fence, works on this deployment.
    pub(super) fn is_worked_on(&self, deployment: DeploymentId, worker: WorkerId, fence: Fence) -> bool {
        self.queue.active == Some(deployment) && self.hold.holder == Some(worker) && self.fence == fence
    }
}

impl Lanes {
    pub(super) fn find(&self, name: &EnvironmentName) -> Option<&Lane> {
        self.by_name.get(name)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Lane> {
        self.by_name.values()
    }

    /// The lane of a stored deployment.
    pub(super) fn of(&self, name: &EnvironmentName) -> &Lane {
        self.by_name.get(name).expect("a stored deployment's environment is stored")
    }

    /// Changes a lane, and puts it where a claim will look for it. `None` if there is no such lane.
    pub(super) fn change<T>(
        &mut self,
        name: &EnvironmentName,
        change: impl FnOnce(&mut Lane) -> T,
    ) -> Option<T> {
        let lane = self.by_name.get_mut(name)?;
        let holder = lane.hold.holder;
        let changed = change(lane);
        if holder != lane.hold.holder {
            if let Some(worker) = holder
                && let Some(lanes) = self.held.get_mut(&worker)
            {
                lanes.remove(name);
                if lanes.is_empty() {
                    self.held.remove(&worker);
                }
            }
            if let Some(worker) = lane.hold.holder {
                self.held.entry(worker).or_default().insert(name.clone());
            }
        }
        self.place(name);
        Some(changed)
    }

    pub(super) fn create(&mut self, environment: Arc<Environment>) {
        let name = environment.name().clone();
        let lane = Lane {
            environment,
            live: None,
            queue: LaneQueue::default(),
            paused_by: None,
            acknowledged: Vec::new(),
            fence: Fence::default(),
            hold: Hold::default(),
            history: Vec::new(),
            keys: HashMap::new(),
            snapshots: BTreeMap::new(),
            pins: BTreeMap::new(),
            place: Place::Nowhere,
        };
        self.by_name.insert(name, lane);
    }

    fn place(&mut self, name: &EnvironmentName) {
        let lane = self.by_name.get_mut(name).expect("the lane has just been changed");
        let pool = lane.environment.pool();
        let ticket = self.tickets + 1;
        let wanted = match (lane.queue.active, lane.hold.holder, &lane.place) {
            (Some(_), Some(_), _) => Place::Nowhere,
            (Some(_), None, Place::Waiting(_, _, ticket)) => {
                Place::Waiting(pool.clone(), lane.hold.not_before, *ticket)
            }
            (Some(_), None, _) => Place::Waiting(pool.clone(), lane.hold.not_before, ticket),
            (None, ..) if lane.queue.runnable().is_none() => Place::Nowhere,
            (None, _, Place::Free(_, ticket)) => Place::Free(pool.clone(), *ticket),
            (None, ..) => Place::Free(pool.clone(), ticket),
        };
        if wanted == lane.place {
            return;
        }
        self.tickets = ticket;
        match std::mem::replace(&mut lane.place, wanted.clone()) {
            Place::Nowhere => {}
            Place::Waiting(pool, until, ticket) => {
                self.waiting.get_mut(&pool).and_then(|lanes| lanes.remove(&(until, ticket)));
            }
            Place::Free(pool, ticket) => {
                self.free.get_mut(&pool).and_then(|lanes| lanes.remove(&ticket));
            }
        }
        match wanted {
            Place::Nowhere => {}
            Place::Waiting(pool, until, ticket) => {
                self.waiting.entry(pool).or_default().insert((until, ticket), name.clone());
            }
            Place::Free(pool, ticket) => {
                self.free.entry(pool).or_default().insert(ticket, name.clone());
            }
        }
    }

    /// Registers the worker or extends its lease. `false` if the lease has run out.
    pub(super) fn extend(&mut self, worker: &Worker, now: Duration) -> bool {
        let end = self.workers.entry(worker.id).or_insert(Duration::MAX);
        if *end <= now {
            return false;
        }
        *end = now.saturating_add(worker.lease);
        true
    }

    pub(super) fn retire(&mut self, worker: WorkerId, now: Duration) {
        if let Some(end) = self.workers.get_mut(&worker) {
            *end = now.min(*end);
        }
    }

    pub(super) fn is_alive(&self, worker: WorkerId, now: Duration) -> bool {
        self.workers.get(&worker).is_some_and(|end| *end > now)
    }

    pub(super) fn held(&self, worker: WorkerId) -> impl Iterator<Item = &EnvironmentName> {
        self.held.get(&worker).into_iter().flatten()
    }

    /// The lane that the worker should take now.
    pub(super) fn choose(
        &self,
        worker: &Worker,
        busy: &[EnvironmentName],
        now: Duration,
    ) -> Option<EnvironmentName> {
        let forgotten = || {
            let mut held = self.held(worker.id).filter(|_| !planted!(LostClaimIgnored));
            held.find(|name| !busy.contains(name))
        };
        let abandoned = || {
            let (end, name) = self.next_expiry(worker)?;
            (end <= now).then_some(name)
        };
        let waited = || {
            let ((until, _), name) = self.next_wait(worker)?;
            (*until <= now).then_some(name)
        };
        let free = || {
            let lanes = worker.pools.iter().filter_map(|pool| self.free.get(pool)?.first_key_value());
            lanes.min_by_key(|(ticket, _)| **ticket).map(|(_, name)| name)
        };
        forgotten().or_else(abandoned).or_else(waited).or_else(free).cloned()
    }

    /// How long until there is something to choose, if only time passes.
    pub(super) fn next(&self, worker: &Worker, now: Duration) -> Option<Duration> {
        let wait = self.next_wait(worker).map(|((until, _), _)| *until);
        let expiry = self.next_expiry(worker).map(|(end, _)| end);
        wait.into_iter().chain(expiry).min().map(|moment| moment.saturating_sub(now))
    }

    fn next_wait(&self, worker: &Worker) -> Option<(&(Duration, u64), &EnvironmentName)> {
        let lanes = worker.pools.iter().filter_map(|pool| self.waiting.get(pool)?.first_key_value());
        lanes.min_by_key(|(key, _)| **key)
    }

    /// The lane of these pools whose holder's lease runs out, or has run out, first.
    fn next_expiry(&self, worker: &Worker) -> Option<(Duration, &EnvironmentName)> {
        let others = self.held.iter().filter(|(holder, _)| **holder != worker.id);
        let lanes = others.flat_map(|(holder, lanes)| {
            let end = self.workers.get(holder).copied().unwrap_or_default();
            lanes.iter().map(move |name| (end, name))
        });
        let served = |name: &EnvironmentName| worker.pools.contains(self.of(name).environment.pool());
        lanes.filter(|(_, name)| served(name)).min()
    }
}
