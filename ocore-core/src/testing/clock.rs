//! A clock that is moved by hand.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::oneshot;

use crate::executor::Executor;

/// An [`Executor`] whose time stands still until [`advance`](Self::advance) moves it, and whose chance is a seed.
///
/// Monotonic time begins at zero; the wall clock begins on the first day of 2026 and goes along with it, unless
/// [`jump`](Self::jump) sets it. A sleep of no length is over at once. Tasks run on the tokio runtime that
/// spawns them. Clones share the clock.
///
/// ```
/// use std::time::Duration;
/// use ocore_core::{executor::Executor, testing::clock::ManualClock};
/// let clock = ManualClock::new(1);
/// let mut sleep = clock.sleep(Duration::from_secs(2));
/// clock.advance(Duration::from_secs(1));
/// assert!(futures::FutureExt::now_or_never(&mut sleep).is_none());
/// clock.advance(Duration::from_secs(1));
/// assert!(futures::FutureExt::now_or_never(sleep).is_some());
/// ```
#[derive(Clone)]
pub struct ManualClock {
    state: Arc<Mutex<State>>,
}

struct State {
    now: Duration,
    wall_ahead: TimeDelta,
    sleepers: BTreeMap<(Duration, u64), oneshot::Sender<()>>,
    sleepers_made: u64,
    seed: u64,
}

impl ManualClock {
    /// A clock at zero. The same seed gives the same random numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            now: Duration::ZERO,
            wall_ahead: TimeDelta::zero(),
            sleepers: BTreeMap::new(),
            sleepers_made: 0,
            seed,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Moves time forward. The sleeps that end on the way end in the order of their ends.
    pub fn advance(&self, duration: Duration) {
        let mut state = self.state();
        let now = state.now.saturating_add(duration);
        state.now = now;
        let later = state.sleepers.split_off(&(now, u64::MAX));
        let over = std::mem::replace(&mut state.sleepers, later);
        drop(state);
        for sleeper in over.into_values() {
            // Whoever slept may have given up since.
            sleeper.send(()).ok();
        }
    }

    /// Sets the wall clock ahead, or back, by this much. Monotonic time does not notice.
    pub fn jump(&self, by: TimeDelta) {
        self.state().wall_ahead += by;
    }

    /// When the next sleep ends, if anybody sleeps: in this much monotonic time.
    #[must_use]
    pub fn next_wake(&self) -> Option<Duration> {
        let mut state = self.state();
        state.sleepers.retain(|_, sleeper| !sleeper.is_closed());
        let first = state.sleepers.keys().next();
        first.map(|(end, _)| end.saturating_sub(state.now))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManualClock").field("now", &self.now()).finish_non_exhaustive()
    }
}

impl Executor for ManualClock {
    fn now(&self) -> Duration {
        self.state().now
    }

    fn utc(&self) -> DateTime<Utc> {
        const BEGIN: DateTime<Utc> = DateTime::from_timestamp(1_767_225_600, 0).expect("a date in 2026");
        let state = self.state();
        BEGIN + TimeDelta::from_std(state.now).unwrap_or(TimeDelta::MAX) + state.wall_ahead
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        if duration.is_zero() {
            return futures::future::ready(()).boxed();
        }
        let mut state = self.state();
        let (sender, receiver) = oneshot::channel();
        state.sleepers_made += 1;
        let key = (state.now.saturating_add(duration), state.sleepers_made);
        state.sleepers.insert(key, sender);
        // A clock that is gone wakes its sleepers: nothing else ever will.
        receiver.map(drop).boxed()
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        drop(tokio::spawn(task));
    }

    /// The next number of `SplitMix64`.
    fn random(&self) -> u64 {
        let mut state = self.state();
        state.seed = state.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state.seed ^ (state.seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_wall_clock_jumps_alone() {
        let clock = ManualClock::new(0);
        let (now, utc) = (clock.now(), clock.utc());
        clock.jump(TimeDelta::days(-1));
        assert_eq!((clock.now(), clock.utc()), (now, utc - TimeDelta::days(1)));
        clock.advance(SECOND);
        assert_eq!(
            (clock.now(), clock.utc()),
            (now + SECOND, utc - TimeDelta::days(1) + TimeDelta::seconds(1))
        );
    }

    #[test]
    fn only_sleeps_that_are_over_end() {
        let clock = ManualClock::new(0);
        let mut short = clock.sleep(SECOND);
        let mut long = clock.sleep(2 * SECOND);
        assert_eq!(clock.next_wake(), Some(SECOND));
        clock.advance(SECOND);
        assert!((&mut short).now_or_never().is_some());
        assert!((&mut long).now_or_never().is_none());
        drop(long);
        assert_eq!(clock.next_wake(), None);
    }

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let numbers = |seed| {
            let clock = ManualClock::new(seed);
            [clock.random(), clock.random()]
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
    }
}
