use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake},
};

use super::core::{Core, TaskId};

/// Puts its task into the list of the woken ones, once per poll.
pub(super) struct TaskWaker {
    id: TaskId,
    queued: AtomicBool,
    woken: Arc<Mutex<Vec<TaskId>>>,
}

impl TaskWaker {
    /// The waker of a task that is ready from the beginning.
    pub(super) const fn new(id: TaskId, woken: Arc<Mutex<Vec<TaskId>>>) -> Self {
        Self { id, queued: AtomicBool::new(true), woken }
    }

    /// The task is about to be polled: from now on a wake-up counts again.
    pub(super) fn begin(&self) {
        self.queued.store(false, Ordering::Relaxed);
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.woken.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
        }
    }
}

/// Lets others go first: a point at which a simulated process can be killed, frozen or overtaken.
pub fn yield_now() -> impl Future<Output = ()> + Send + 'static {
    YieldNow { yielded: false }
}

struct YieldNow {
    yielded: bool,
}

impl Future for YieldNow {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.yielded {
            return Poll::Ready(());
        }
        self.yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Completes at a poll of the whole simulation.
pub(super) struct PollReached {
    core: Arc<Core>,
    polls: u64,
}

impl PollReached {
    pub(super) const fn new(core: Arc<Core>, polls: u64) -> Self {
        Self { core, polls }
    }
}

impl Future for PollReached {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.core.polls() >= self.polls {
            return Poll::Ready(());
        }
        self.core.wait_for_polls(self.polls, context.waker().clone());
        Poll::Pending
    }
}
