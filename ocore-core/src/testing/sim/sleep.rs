use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use super::{core::Core, timers::TimerKey};

/// A sleep of virtual time. Dropped, it leaves no timer behind, so that the clock never jumps to a deadline that
/// nobody waits for.
pub(super) struct Sleep {
    core: Arc<Core>,
    deadline: Duration,
    timer: Option<(TimerKey, Waker)>,
}

impl Sleep {
    pub(super) fn new(core: Arc<Core>, duration: Duration) -> Self {
        let deadline = core.now().saturating_add(duration);
        Self { core, deadline, timer: None }
    }

    fn clear(&mut self) {
        if let Some((key, _)) = self.timer.take() {
            self.core.clear_timer(key);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.core.now() >= self.deadline {
            self.clear();
            return Poll::Ready(());
        }
        // Most polls of a task are not for the sake of its sleeps.
        if self.timer.as_ref().is_none_or(|(_, waker)| !waker.will_wake(context.waker())) {
            self.clear();
            let waker = context.waker().clone();
            self.timer = Some((self.core.set_timer(self.deadline, waker.clone()), waker));
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.clear();
    }
}
