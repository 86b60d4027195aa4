use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use super::core::Core;

/// A sleep of virtual time. Dropped, it leaves no timer behind, so that the clock never jumps to a deadline that
/// nobody waits for.
pub(super) struct Sleep {
    core: Arc<Core>,
    deadline: Duration,
    timer: Option<(Duration, u64)>,
}

impl Sleep {
    pub(super) fn new(core: Arc<Core>, duration: Duration) -> Self {
        let deadline = core.now().saturating_add(duration);
        Self { core, deadline, timer: None }
    }

    fn clear(&mut self) {
        if let Some(key) = self.timer.take() {
            self.core.clear_timer(key);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.clear();
        if self.core.now() >= self.deadline {
            return Poll::Ready(());
        }
        self.timer = Some(self.core.set_timer(self.deadline, context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.clear();
    }
}
