//! How a worker looks for work, and how often.

mod strain;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, pin_mut, select_biased};

use self::strain::Strain;
use super::{Crew, HINT_INTERVAL, Phase};
use crate::port::{Claimed, StoreResult};

/// After so many looks in vain a worker counts as idle, and looks so many times more rarely.
const IDLE_POLLS: u32 = 30;
const IDLE_FACTOR: u32 = 3;

impl Crew {
    /// Claims lanes as long as there are slots for them, and until the worker is to stop.
    pub(super) async fn claim_lanes(self: Arc<Self>) {
        // Looks in vain, one after the other, that nothing but time had asked for.
        let mut idle: u32 = 0;
        let mut strain = Strain::default();
        loop {
            let slots = self.slots.clone();
            let Ok(slot) = slots.acquire_owned().await else { return };
            if self.phase() > Phase::Working {
                return;
            }
            // Made before the claim: what happens while it is under way is not missed.
            let work = self.shared.work.notified().fuse();
            let hint = self.hint().fuse();
            pin_mut!(work, hint);
            let claimed = self.claim().await;
            if claimed.is_ok() {
                strain.answered();
            }
            let wait = match claimed {
                Ok(Claimed::Work(claim)) => {
                    idle = 0;
                    self.start(*claim, slot);
                    continue;
                }
                Ok(Claimed::Idle { next }) => {
                    let poll = self.jittered_poll();
                    let poll = if idle < IDLE_POLLS { poll } else { poll * IDLE_FACTOR };
                    next.unwrap_or(Duration::MAX).min(poll)
                }
                Ok(Claimed::Expired) => return self.lease.end(),
                Err(error) => {
                    drop(slot);
                    // Whatever else has happened: the store is to have rest.
                    self.shared.executor.sleep(strain.failed(&error, self.jittered_poll())).await;
                    continue;
                }
            };
            drop(slot);
            idle = idle.saturating_add(1);
            select_biased! {
                () = work => idle = 0,
                () = hint => idle = 0,
                () = self.freed.notified().fuse() => idle = 0,
                () = self.shared.executor.sleep(wait).fuse() => {}
            }
        }
    }

    /// Completes when the store has changed, but not sooner than [`HINT_INTERVAL`] from now: most changes, the
    /// steps of this process's own deployments among them, leave nothing to claim.
    fn hint(&self) -> impl Future<Output = ()> {
        let (changed, made) = (self.shared.store.changed(), self.shared.executor.now());
        async move {
            changed.await;
            let since = self.shared.executor.now().saturating_sub(made);
            self.shared.executor.sleep(HINT_INTERVAL.saturating_sub(since)).await;
        }
    }

    async fn claim(&self) -> StoreResult<Claimed> {
        let busy: Vec<_> = self.lanes().keys().cloned().collect();
        self.shared.in_time(self.shared.store.claim(&self.worker, &busy)).await
    }

    /// Workers do not poll in step.
    fn jittered_poll(&self) -> Duration {
        let quarter = self.shared.timing.poll / 4;
        let draw = self.shared.executor.random() % 1024;
        self.shared.timing.poll - quarter / 2 + quarter.mul_f64(draw as f64 / 1024.0)
    }
}
