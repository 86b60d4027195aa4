//! The scheduler. One thread; the mutexes are there because handles cross into `Send` futures, and are never waited for.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::future::BoxFuture;

use super::{
    Ended, Order, POLLS_MAX, SimOptions,
    chance::Chance,
    task::TaskWaker,
    timers::{TimerKey, Timers},
    trace::Trace,
};

pub(super) type TaskId = usize;
pub(super) type ProcessId = usize;

/// What the scheduler does next.
enum Step {
    Poll(Runnable),
    /// Something else has happened: the clock has moved, or a process was struck.
    Again,
    Idle,
    OutOfTime,
}

/// What befalls a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blow {
    Kill,
    Freeze(Duration),
}

pub(super) struct Core {
    state: Mutex<State>,
    /// Tasks that were woken. Its own mutex: wakers are called while the state is locked.
    woken: Arc<Mutex<Vec<TaskId>>>,
    /// The clock, for those who only look at it.
    now_nanos: Arc<AtomicU64>,
}

struct State {
    now: Duration,
    now_nanos: Arc<AtomicU64>,
    polls: u64,
    order: Order,
    chance: Chance,
    trace: Trace,
    keep_trace: bool,
    tasks: Vec<Task>,
    ready: Vec<TaskId>,
    timers: Timers<Timer>,
    processes: Vec<ProcessState>,
    poll_waits: Vec<(u64, Waker)>,
}

struct Task {
    process: ProcessId,
    /// Absent while it is polled, and once it has ended.
    runnable: Option<Runnable>,
}

/// A task with its waker, which is made once and not for every poll.
struct Runnable {
    id: TaskId,
    process: ProcessId,
    future: BoxFuture<'static, ()>,
    wake: Arc<TaskWaker>,
    waker: Waker,
}

enum Timer {
    Wake(Waker),
    Thaw(ProcessId),
}

struct ProcessState {
    name: String,
    dead: bool,
    frozen_until: Option<Duration>,
    /// Woken while frozen.
    parked: Vec<TaskId>,
    polls: u64,
    blows: Vec<(u64, Blow)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    pub(super) fn new(options: SimOptions) -> Self {
        let now_nanos = Arc::<AtomicU64>::default();
        let state = State {
            now: Duration::ZERO,
            now_nanos: now_nanos.clone(),
            polls: 0,
            order: options.order,
            chance: Chance::new(options.seed),
            trace: Trace::default(),
            keep_trace: options.keep_trace,
            tasks: Vec::new(),
            ready: Vec::new(),
            timers: Timers::new(),
            processes: Vec::new(),
            poll_waits: Vec::new(),
        };
        Self { state: Mutex::new(state), woken: Arc::default(), now_nanos }
    }

    /// Drops every task.
    pub(super) fn shut_down(&self) {
        let mut state = lock(&self.state);
        for process in &mut state.processes {
            process.dead = true;
        }
        let futures: Vec<_> = state.tasks.iter_mut().filter_map(|task| task.runnable.take()).collect();
        let timers = std::mem::replace(&mut state.timers, Timers::new());
        let waits = std::mem::take(&mut state.poll_waits);
        drop(state);
        drop((futures, timers, waits));
    }

    pub(super) fn now(&self) -> Duration {
        Duration::from_nanos(self.now_nanos.load(Ordering::Relaxed))
    }

    pub(super) fn polls(&self) -> u64 {
        lock(&self.state).polls
    }

    pub(super) fn process_polls(&self, process: ProcessId) -> u64 {
        lock(&self.state).processes[process].polls
    }

    pub(super) fn random(&self) -> u64 {
        lock(&self.state).chance.bits()
    }

    pub(super) fn trace(&self) -> Trace {
        lock(&self.state).trace.clone()
    }

    pub(super) fn note(&self, code: u64, text: impl FnOnce() -> String) {
        lock(&self.state).note(code, text);
    }

    pub(super) fn add_process(&self, name: &str) -> ProcessId {
        let mut state = lock(&self.state);
        state.processes.push(ProcessState {
            name: name.to_owned(),
            dead: false,
            frozen_until: None,
            parked: Vec::new(),
            polls: 0,
            blows: Vec::new(),
        });
        state.processes.len() - 1
    }

    pub(super) fn is_dead(&self, process: ProcessId) -> bool {
        lock(&self.state).processes[process].dead
    }

    /// A dead process starts nothing.
    pub(super) fn spawn(&self, process: ProcessId, future: BoxFuture<'static, ()>) {
        let mut state = lock(&self.state);
        if state.processes[process].dead {
            drop(state);
            drop(future);
            return;
        }
        let id = state.tasks.len();
        let wake = Arc::new(TaskWaker::new(id, self.woken.clone()));
        let waker = Waker::from(wake.clone());
        state.tasks.push(Task { process, runnable: Some(Runnable { id, process, future, wake, waker }) });
        state.ready.push(id);
    }

    pub(super) fn set_timer(&self, deadline: Duration, waker: Waker) -> TimerKey {
        lock(&self.state).timers.set(deadline, Timer::Wake(waker))
    }

    pub(super) fn clear_timer(&self, key: TimerKey) {
        let timer = lock(&self.state).timers.clear(key);
        drop(timer);
    }

    pub(super) fn wait_for_polls(&self, polls: u64, waker: Waker) {
        lock(&self.state).poll_waits.push((polls, waker));
    }

    pub(super) fn plan_blow(&self, process: ProcessId, poll: u64, blow: Blow) {
        lock(&self.state).processes[process].blows.push((poll, blow));
    }

    pub(super) fn strike(&self, process: ProcessId, blow: Blow) {
        match blow {
            Blow::Kill => self.kill(process),
            Blow::Freeze(duration) => lock(&self.state).freeze(process, duration),
        }
    }

    pub(super) fn thaw(&self, process: ProcessId) {
        lock(&self.state).thaw(process);
    }

    fn kill(&self, process: ProcessId) {
        let mut state = lock(&self.state);
        if !state.processes[process].dead {
            let name = state.processes[process].name.clone();
            state.note(1 << 40 | process as u64, || format!("{name} is killed"));
        }
        state.processes[process].dead = true;
        let tasks = state.tasks.iter_mut().filter(|task| task.process == process);
        let futures: Vec<_> = tasks.filter_map(|task| task.runnable.take()).collect();
        drop(state);
        // What the tasks own may ask the simulation for something while it is dropped.
        drop(futures);
    }

    pub(super) fn run_until(&self, limit: Duration, mut done: impl FnMut() -> bool) -> Ended {
        let mut pending = None;
        let mut ended = Ended::OutOfPolls;
        for _ in 0..POLLS_MAX {
            if done() {
                ended = Ended::Done;
                break;
            }
            match self.step(pending.take(), limit) {
                Step::Poll(task) => pending = task.poll(),
                Step::Again => {}
                Step::Idle => return Ended::Idle,
                Step::OutOfTime => return Ended::OutOfTime,
            }
        }
        // Dropped after the lock, if at all.
        let _dead = pending.and_then(|task| lock(&self.state).put_back(task));
        ended
    }

    /// Puts back the task that was polled, and takes out the one that is next; or moves the clock to the next timer.
    fn step(&self, polled: Option<Runnable>, limit: Duration) -> Step {
        let mut state = lock(&self.state);
        if let Some(dead) = polled.and_then(|task| state.put_back(task)) {
            drop(state);
            // What it owns may ask the simulation for something while it is dropped.
            drop(dead);
            return Step::Again;
        }
        state.ready.append(&mut lock(&self.woken));
        let Some(id) = state.next_task() else {
            return state.advance(limit);
        };
        let process = state.tasks[id].process;
        if let Some(blow) = state.blow_due(process) {
            state.ready.push(id);
            drop(state);
            self.strike(process, blow);
            return Step::Again;
        }
        let Some(task) = state.tasks[id].runnable.take() else { return Step::Again };
        state.count_poll(id);
        Step::Poll(task)
    }
}

impl Runnable {
    /// Polls it once. What is left of it, unless it has ended.
    fn poll(mut self) -> Option<Self> {
        self.wake.begin();
        let poll = self.future.as_mut().poll(&mut Context::from_waker(&self.waker));
        (poll == Poll::Pending).then_some(self)
    }
}

impl State {
    /// Puts back a task that was polled, or returns it, if its process has died meanwhile.
    fn put_back(&mut self, task: Runnable) -> Option<Runnable> {
        if self.processes[task.process].dead {
            return Some(task);
        }
        let id = task.id;
        self.tasks[id].runnable = Some(task);
        None
    }

    fn note(&mut self, code: u64, text: impl FnOnce() -> String) {
        self.trace.fold(code);
        if self.keep_trace {
            self.trace.line(self.now, &text());
        }
    }

    /// Takes one of the ready tasks out. Those of frozen processes are parked, those of dead ones forgotten.
    fn next_task(&mut self) -> Option<TaskId> {
        while !self.ready.is_empty() {
            let index = match self.order {
                Order::Random => self.draw_index(),
                Order::NewestFirst => self.extreme(|id, best| id > best),
                Order::OldestFirst => self.extreme(|id, best| id < best),
            };
            let id = self.ready.swap_remove(index);
            let process = &mut self.processes[self.tasks[id].process];
            if process.dead {
                continue;
            }
            if process.frozen_until.is_some() {
                process.parked.push(id);
                continue;
            }
            return Some(id);
        }
        None
    }

    fn draw_index(&mut self) -> usize {
        usize::try_from(self.chance.below(self.ready.len() as u64)).unwrap_or(0)
    }

    /// Mostly the first of an order; one time in eight any, so that nothing starves for ever.
    fn extreme(&mut self, before: impl Fn(TaskId, TaskId) -> bool) -> usize {
        if self.chance.is(1, 8) {
            return self.draw_index();
        }
        let mut best = 0;
        for index in 1..self.ready.len() {
            if before(self.ready[index], self.ready[best]) {
                best = index;
            }
        }
        best
    }

    fn blow_due(&mut self, process: ProcessId) -> Option<Blow> {
        let process = &mut self.processes[process];
        let polls = process.polls;
        let due = process.blows.iter().position(|(poll, _)| *poll <= polls)?;
        Some(process.blows.swap_remove(due).1)
    }

    fn count_poll(&mut self, id: TaskId) {
        self.polls += 1;
        self.processes[self.tasks[id].process].polls += 1;
        self.trace.fold(id as u64);
        if !self.poll_waits.is_empty() {
            let polls = self.polls;
            for (_, waker) in self.poll_waits.extract_if(.., |(at, _)| *at <= polls) {
                waker.wake();
            }
        }
    }

    /// Moves the clock to the next timer and wakes what waits for that moment.
    fn advance(&mut self, limit: Duration) -> Step {
        let Some(due) = self.timers.next_due() else { return Step::Idle };
        self.now = self.now.max(due.min(limit));
        let nanos = u64::try_from(self.now.as_nanos()).unwrap_or(u64::MAX);
        self.now_nanos.store(nanos, Ordering::Relaxed);
        if due > limit {
            return Step::OutOfTime;
        }
        self.trace.fold(nanos);
        for timer in self.timers.take_due(self.now) {
            match timer {
                Timer::Wake(waker) => waker.wake(),
                Timer::Thaw(process) => {
                    if self.processes[process].frozen_until.is_some_and(|until| until <= self.now) {
                        self.thaw(process);
                    }
                }
            }
        }
        Step::Again
    }

    fn freeze(&mut self, process: ProcessId, duration: Duration) {
        let until = self.now.saturating_add(duration);
        let name = self.processes[process].name.clone();
        self.note(2 << 40 | process as u64, || format!("{name} is frozen for {duration:?}"));
        self.processes[process].frozen_until = Some(until);
        self.timers.set(until, Timer::Thaw(process));
    }

    fn thaw(&mut self, process: ProcessId) {
        let state = &mut self.processes[process];
        if state.frozen_until.take().is_some() {
            let (parked, name) = (std::mem::take(&mut state.parked), state.name.clone());
            self.ready.extend(parked);
            self.note(3 << 40 | process as u64, || format!("{name} goes on"));
        }
    }
}
