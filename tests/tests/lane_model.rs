//! A model of the lane: two or three workers, leases that run out under a worker that still works, crashes, calls that
//! end without an answer and take effect later. With all fences on, no order of events breaks a property; with any
//! one of them off, the checker finds an order that does.
#![expect(clippy::unwrap_used, reason = "a test's own means fail loudly")]

use stateright::{Checker, HasDiscoveries, Model, Property};

/// Which guards are on.
#[derive(Debug, Clone, Copy)]
struct Guards {
    /// The store refuses a commit with an older fence than the lane's.
    store: bool,
    /// The managed resource refuses a call with an older fence than one that it has served.
    resource: bool,
    /// After a call without an answer the lane takes a new fence.
    fresh: bool,
}

const ALL: Guards = Guards { store: true, resource: true, fresh: true };

/// The bounds of the model.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    workers: usize,
    deployments: usize,
    /// Crashes, leases that run out under a living worker, calls without an answer: so many in one run.
    faults: u8,
}

struct LaneModel {
    guards: Guards,
    bounds: Bounds,
}

/// The step of a deployment that waits to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Step {
    /// Migrate the data: must not happen twice.
    Update,
    /// Run the new version.
    Start,
    /// Withdraw the new version and put the data back, to try again.
    Redo,
    /// Withdraw the new version, put the data back and revive the old one.
    Undo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum End {
    Running,
    RolledBack,
}

/// A call to the resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Call {
    deployment: usize,
    step: Step,
    fence: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Worker {
    Idle,
    /// It is about to make the call.
    Ready(Call),
    /// It has made the call and waits for the answer.
    Waiting(Call),
    /// The call is done, and is to be committed.
    Done(Call),
}

impl Worker {
    const fn call(self) -> Option<Call> {
        match self {
            Self::Idle => None,
            Self::Ready(call) | Self::Waiting(call) | Self::Done(call) => Some(call),
        }
    }
}

/// What is served, and what the data has been through.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Resource {
    fence: u8,
    serves: Option<usize>,
    migrations: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    // What the store keeps.
    fence: u8,
    holder: Option<usize>,
    lease_over: bool,
    step: Step,
    begun: bool,
    ends: Vec<Option<End>>,
    // What else there is.
    workers: Vec<Worker>,
    /// Calls on their way, sorted: equal ones count.
    calls: Vec<Call>,
    resource: Resource,
    faults: u8,
    // What must never come true.
    finished_twice: bool,
    holder_refused: bool,
    // What must be possible, or else the model shows nothing.
    late_call_refused: bool,
    taken_over: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Event {
    Claim(usize),
    Send(usize),
    /// The call takes effect, or is refused; the answer arrives, unless it is lost.
    Land {
        call: Call,
        answered: bool,
    },
    /// The worker waits no longer; the call may still land.
    GiveUpWaiting(usize),
    /// The step fails for good.
    Fail(usize),
    Commit(usize),
    Crash(usize),
    LeaseRunsOut,
}

impl World {
    /// The deployment that is first in the lane.
    fn current(&self) -> Option<usize> {
        self.ends.iter().position(Option::is_none)
    }

    /// The data as it was before a deployment: what its snapshot holds.
    fn before(&self, deployment: usize) -> Vec<usize> {
        (0..deployment).filter(|earlier| self.ends[*earlier] == Some(End::Running)).collect()
    }

    fn can_claim(&self) -> bool {
        self.current().is_some() && (self.holder.is_none() || self.lease_over)
    }

    fn holder_works(&self) -> bool {
        let holds = |worker: &Worker| worker.call().is_some_and(|call| call.fence == self.fence);
        self.holder.is_some_and(|holder| holds(&self.workers[holder]))
    }

    fn claim(&mut self, worker: usize) {
        self.taken_over |= self.begun;
        if self.begun {
            self.step = after_loss(self.step);
        }
        self.fence += 1;
        (self.holder, self.lease_over, self.begun) = (Some(worker), false, true);
        let deployment = self.current().unwrap();
        self.workers[worker] = Worker::Ready(Call { deployment, step: self.step, fence: self.fence });
    }

    fn land(&mut self, call: Call, answered: bool, guards: Guards) {
        let at = self.calls.iter().position(|on_its_way| *on_its_way == call).unwrap();
        self.calls.remove(at);
        let waiting = self.workers.iter().position(|worker| *worker == Worker::Waiting(call));
        if guards.resource && call.fence < self.resource.fence {
            self.late_call_refused = true;
            self.holder_refused |= call.fence == self.fence;
            waiting.into_iter().for_each(|worker| self.workers[worker] = Worker::Idle);
            return;
        }
        self.resource.fence = self.resource.fence.max(call.fence);
        self.take_effect(call);
        if let Some(worker) = waiting.filter(|_| answered) {
            self.workers[worker] = Worker::Done(call);
        }
    }

    fn take_effect(&mut self, call: Call) {
        let before = self.before(call.deployment);
        let resource = &mut self.resource;
        match call.step {
            Step::Update => {
                resource.serves = None;
                resource.migrations.push(call.deployment);
            }
            Step::Start => resource.serves = Some(call.deployment),
            Step::Redo => (resource.serves, resource.migrations) = (None, before),
            Step::Undo => (resource.serves, resource.migrations) = (before.last().copied(), before),
        }
    }

    /// The store's answer to a commit: whether it was written.
    fn commit(&mut self, worker: usize, next: Result<Step, End>, fresh: bool, guards: Guards) {
        let call = self.workers[worker].call().unwrap();
        self.workers[worker] = Worker::Idle;
        if guards.store && call.fence != self.fence {
            return;
        }
        if self.ends[call.deployment].is_some() {
            self.finished_twice = true;
            return;
        }
        match next {
            Ok(step) => {
                self.step = step;
                self.fence += u8::from(fresh);
                self.workers[worker] = Worker::Ready(Call { step, fence: self.fence, ..call });
            }
            Err(end) => {
                self.ends[call.deployment] = Some(end);
                (self.step, self.begun, self.holder, self.lease_over) = (Step::Update, false, None, false);
            }
        }
    }

    /// Whether everything is new, or everything is as it was, whenever no deployment is under way.
    fn is_whole(&self) -> bool {
        let whole = self.before(self.current().unwrap_or(self.ends.len()));
        self.begun || (self.resource.serves == whole.last().copied() && self.resource.migrations == whole)
    }
}

/// What a step that may have had an effect is followed by.
const fn after_loss(step: Step) -> Step {
    match step {
        Step::Update | Step::Start | Step::Redo => Step::Redo,
        Step::Undo => Step::Undo,
    }
}

impl Model for LaneModel {
    type State = World;
    type Action = Event;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            fence: 0,
            holder: None,
            lease_over: false,
            step: Step::Update,
            begun: false,
            ends: vec![None; self.bounds.deployments],
            workers: vec![Worker::Idle; self.bounds.workers],
            calls: Vec::new(),
            resource: Resource { fence: 0, serves: None, migrations: Vec::new() },
            faults: 0,
            finished_twice: false,
            holder_refused: false,
            late_call_refused: false,
            taken_over: false,
        }]
    }

    fn actions(&self, world: &World, events: &mut Vec<Event>) {
        let may_fault = world.faults < self.bounds.faults;
        for (n, worker) in world.workers.iter().enumerate() {
            match worker {
                Worker::Idle if world.can_claim() => events.push(Event::Claim(n)),
                Worker::Idle => {}
                Worker::Ready(call) => {
                    events.push(Event::Send(n));
                    if matches!(call.step, Step::Update | Step::Start) {
                        events.push(Event::Fail(n));
                    }
                }
                Worker::Waiting(_) if may_fault => events.push(Event::GiveUpWaiting(n)),
                // A call that landed while its answer was lost is never answered: only giving up goes on.
                Worker::Waiting(call) if !world.calls.contains(call) => events.push(Event::GiveUpWaiting(n)),
                Worker::Waiting(_) => {}
                Worker::Done(_) => events.push(Event::Commit(n)),
            }
            if may_fault && *worker != Worker::Idle {
                events.push(Event::Crash(n));
            }
        }
        let mut distinct = world.calls.clone();
        distinct.dedup();
        for call in distinct {
            events.push(Event::Land { call, answered: true });
            if may_fault && world.workers.contains(&Worker::Waiting(call)) {
                events.push(Event::Land { call, answered: false });
            }
        }
        // The lease of a holder that is gone always runs out; that of one that works, only as a fault.
        if world.holder.is_some() && !world.lease_over && (may_fault || !world.holder_works()) {
            events.push(Event::LeaseRunsOut);
        }
    }

    fn next_state(&self, last: &World, event: Event) -> Option<World> {
        let mut world = last.clone();
        match event {
            Event::Claim(worker) => world.claim(worker),
            Event::Send(worker) => {
                let call = world.workers[worker].call()?;
                world.calls.push(call);
                world.calls.sort_unstable();
                world.workers[worker] = Worker::Waiting(call);
            }
            Event::Land { call, answered } => {
                world.faults += u8::from(!answered);
                world.land(call, answered, self.guards);
            }
            Event::GiveUpWaiting(worker) => {
                let call = world.workers[worker].call()?;
                world.faults += u8::from(world.calls.contains(&call));
                world.commit(worker, Ok(after_loss(call.step)), self.guards.fresh, self.guards);
            }
            Event::Fail(worker) => world.commit(worker, Ok(Step::Undo), false, self.guards),
            Event::Commit(worker) => {
                let next = match world.workers[worker].call()?.step {
                    Step::Update => Ok(Step::Start),
                    Step::Redo => Ok(Step::Update),
                    Step::Start => Err(End::Running),
                    Step::Undo => Err(End::RolledBack),
                };
                world.commit(worker, next, false, self.guards);
            }
            Event::Crash(worker) => {
                world.faults += 1;
                world.workers[worker] = Worker::Idle;
            }
            Event::LeaseRunsOut => {
                world.faults += u8::from(world.holder_works());
                world.lease_over = true;
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("at most one worker can write", |model: &Self, world: &World| {
                let can = |worker: &&Worker| {
                    worker.call().is_some_and(|call| !model.guards.store || call.fence == world.fence)
                };
                world.workers.iter().filter(can).count() <= 1
            }),
            Property::always("what is over stays over", |_, world: &World| !world.finished_twice),
            Property::always("no data is migrated twice", |_, world: &World| {
                let migrations = &world.resource.migrations;
                migrations.windows(2).all(|pair| pair[0] < pair[1])
            }),
            Property::always("everything is new or as it was", |_, world: &World| world.is_whole()),
            Property::always("the holder is never refused", |_, world: &World| !world.holder_refused),
            Property::eventually("every deployment ends", |_, world: &World| world.current().is_none()),
            Property::sometimes("a lane is taken over", |_, world: &World| world.taken_over),
            Property::sometimes("all are Running", |_, world: &World| {
                world.ends.iter().all(|end| *end == Some(End::Running))
            }),
            Property::sometimes("a rollback follows a success", |_, world: &World| {
                world.ends.ends_with(&[Some(End::Running), Some(End::RolledBack)])
            }),
            Property::sometimes("a late call is refused", |_, world: &World| world.late_call_refused),
        ]
    }
}

#[test]
fn with_all_fences_no_order_of_events_does_harm() {
    for bounds in
        [Bounds { workers: 2, deployments: 2, faults: 3 }, Bounds { workers: 3, deployments: 2, faults: 2 }]
    {
        let checker = LaneModel { guards: ALL, bounds }.checker().threads(2).spawn_bfs().join();
        eprintln!("{bounds:?}: {} states", checker.unique_state_count());
        checker.assert_properties();
    }
}

/// Looks for an order of events that breaks the property, and prints it.
#[track_caller]
fn check_harm(guards: Guards, property: &'static str) {
    let bounds = Bounds { workers: 2, deployments: 2, faults: 2 };
    let checker = LaneModel { guards, bounds }.checker().threads(2);
    let only = [property].into_iter().collect();
    let checker = checker.finish_when(HasDiscoveries::AllOf(only)).spawn_bfs().join();
    let path =
        checker.discovery(property).unwrap_or_else(|| panic!("{guards:?} does no harm to: {property}"));
    let events = path.into_actions();
    eprintln!("{guards:?} breaks {property:?} in {} events:", events.len());
    events.iter().for_each(|event| eprintln!("    {event:?}"));
}

#[test]
fn without_the_stores_fence_two_workers_write() {
    let guards = Guards { store: false, ..ALL };
    check_harm(guards, "at most one worker can write");
    check_harm(guards, "what is over stays over");
}

#[test]
fn without_the_resources_fence_a_late_call_does_harm() {
    let guards = Guards { resource: false, ..ALL };
    check_harm(guards, "no data is migrated twice");
    check_harm(guards, "everything is new or as it was");
}

#[test]
fn without_a_new_fence_after_a_call_without_an_answer_the_late_call_does_harm() {
    check_harm(Guards { fresh: false, ..ALL }, "no data is migrated twice");
}
