//! How often a step is tried again, and how long to wait in between. Pure.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{id::DeploymentId, machine::Step};

/// How often a step is tried, how long to wait in between, and when to give up.
///
/// The wait before attempt *n* + 1 is drawn uniformly from zero to `delay_min` · 2ⁿ⁻¹, at most `delay_max`:
/// exponential backoff with full jitter ("Exponential Backoff And Jitter", Marc Brooker, AWS Architecture Blog,
/// 2015, found full jitter to need the fewest calls). The draw comes from the deployment's id, so that it is
/// the same in every process and in every test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Attempts in all, the first one included. At least 1.
    pub attempts_max: u32,
    /// The upper bound of the first wait.
    pub delay_min: Duration,
    /// The upper bound of every wait.
    pub delay_max: Duration,
    /// No attempt begins later than this after the first one began, waits included.
    pub elapsed_max: Duration,
}

impl RetryPolicy {
    /// The default for steps on the way forward: 5 attempts within 30 minutes, waits of at most 1, 2, 4, 8 s.
    pub const FORWARD: Self = Self {
        attempts_max: 5,
        delay_min: Duration::from_secs(1),
        delay_max: Duration::from_secs(60),
        elapsed_max: Duration::from_secs(30 * 60),
    };

    /// The default for steps of an undo: 12 attempts within an hour. Giving one up needs a person.
    pub const UNDO: Self = Self {
        attempts_max: 12,
        delay_min: Duration::from_secs(1),
        delay_max: Duration::from_secs(5 * 60),
        elapsed_max: Duration::from_secs(60 * 60),
    };

    /// Never a second attempt.
    pub const ONCE: Self = Self { attempts_max: 1, ..Self::FORWARD };

    /// The wait before the next attempt, or `None` when `tally` has used up the attempts or the time.
    #[must_use]
    pub fn next_delay(&self, tally: Tally, deployment: DeploymentId, step: Step) -> Option<Duration> {
        let delay = self.jittered(tally.failures, deployment, step);
        let in_time = tally.spent.saturating_add(delay) <= self.elapsed_max;
        (tally.failures < self.attempts_max && in_time || planted!(RetryWithoutLimit)).then_some(delay)
    }

    fn jittered(&self, failures: u32, deployment: DeploymentId, step: Step) -> Duration {
        let exponent = failures.saturating_sub(1).min(20);
        let bound = self.delay_min.saturating_mul(1 << exponent).min(self.delay_max);
        bound.mul_f64(fraction(&(deployment.as_u128(), step as u8, failures)))
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::FORWARD
    }
}

/// A number in [0, 1) that depends on `seed` alone.
fn fraction(seed: &impl Hash) -> f64 {
    // `DefaultHasher::new` has fixed keys: the same seed gives the same number in every process of one build,
    // which is all that is asked of it.
    let mut hasher = DefaultHasher::new();
    seed.hash(&mut hasher);
    let bits = u32::try_from(hasher.finish() >> 32).expect("the upper half of 64 bits fits in 32");
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}

/// What the attempts of one step have used up so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Tally {
    /// Attempts that ended in an error.
    pub failures: u32,
    /// Attempts that never reported back: their worker died or lost its lease.
    pub lost: u32,
    /// Time used by attempts and by the waits between them.
    pub spent: Duration,
}

impl Tally {
    pub(crate) const fn failed(mut self, took: Duration) -> Self {
        self.failures += 1;
        self.spent = self.spent.saturating_add(took);
        self
    }

    pub(crate) const fn lost(mut self) -> Self {
        self.lost += 1;
        self
    }

    pub(crate) const fn waited(mut self, delay: Duration) -> Self {
        self.spent = self.spent.saturating_add(delay);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: DeploymentId = DeploymentId::from_u128(7);

    fn failures(failures: u32) -> Tally {
        Tally { failures, ..Tally::default() }
    }

    #[test]
    fn waits_stay_below_a_bound_that_doubles_up_to_its_maximum() {
        let policy = RetryPolicy { attempts_max: 100, ..RetryPolicy::FORWARD };
        for n in 1..60 {
            let bound = policy.delay_min.saturating_mul(1 << (n - 1).min(20)).min(policy.delay_max);
            let delay = policy.next_delay(failures(n), ID, Step::Build).unwrap();
            assert!(delay <= bound, "attempt {n}: {delay:?} > {bound:?}");
        }
    }

    #[test]
    fn jitter_is_spread_over_the_whole_range_and_is_the_same_each_time() {
        let policy = RetryPolicy::FORWARD;
        let delay = |id| policy.next_delay(failures(1), DeploymentId::from_u128(id), Step::Build).unwrap();
        let delays: Vec<_> = (0..1000).map(delay).collect();
        let below_half = delays.iter().filter(|delay| **delay < policy.delay_min / 2).count();
        assert!((400..600).contains(&below_half), "{below_half} of 1000 are in the lower half");
        assert_eq!(delays, (0..1000).map(delay).collect::<Vec<_>>());
    }

    #[test]
    fn the_last_attempt_is_the_last() {
        let policy = RetryPolicy { attempts_max: 3, ..RetryPolicy::FORWARD };
        assert!(policy.next_delay(failures(2), ID, Step::Fetch).is_some());
        assert_eq!(policy.next_delay(failures(3), ID, Step::Fetch), None);
        assert_eq!(RetryPolicy::ONCE.next_delay(failures(1), ID, Step::Fetch), None);
    }

    #[test]
    fn no_attempt_begins_after_the_elapsed_limit() {
        let policy = RetryPolicy::FORWARD;
        let tally = |spent| Tally { failures: 1, spent, ..Tally::default() };
        assert!(policy.next_delay(tally(policy.elapsed_max / 2), ID, Step::Fetch).is_some());
        assert_eq!(policy.next_delay(tally(policy.elapsed_max * 2), ID, Step::Fetch), None);
    }
}
