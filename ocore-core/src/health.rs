//! When an instance counts as healthy. Pure: observations and time come as arguments.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When an instance counts as healthy, and for how long to wait for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct HealthPolicy {
    /// What the probe asks for: for HTTP the path and query, beginning with `/`.
    pub path: String,
    /// The `Host` header to send, where the application selects by it.
    pub host: Option<String>,
    /// One deadline for everything: from the start of the step to the verdict on all instances. It begins anew when
    /// another worker takes the step over.
    pub deadline: Duration,
    /// The wait after the first failed check; doubles with each further one.
    pub interval_min: Duration,
    /// The longest wait between two checks.
    pub interval_max: Duration,
    /// The deadline of a single check.
    pub check_timeout: Duration,
    /// Consecutive passes that are needed. At least 1.
    pub passes: u32,
    /// How long the instance must have kept passing before it counts as healthy.
    pub healthy_time_min: Duration,
}

impl Default for HealthPolicy {
    /// Five minutes at most, checks after 100, 200, 400 ms, … up to 5 s, two passes in a row.
    fn default() -> Self {
        Self {
            path: "/".to_owned(),
            host: None,
            deadline: Duration::from_secs(300),
            interval_min: Duration::from_millis(100),
            interval_max: Duration::from_secs(5),
            check_timeout: Duration::from_secs(10),
            passes: 2,
            healthy_time_min: Duration::ZERO,
        }
    }
}

/// What to do after an observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Check again after this long.
    Wait(Duration),
    /// Enough passes in a row, for long enough.
    Healthy,
    /// The deadline has come.
    TimedOut,
}

/// The observations of one instance so far.
#[derive(Debug, Clone, Default)]
pub struct HealthWatch {
    failures: u32,
    passes: u32,
    passing_since: Duration,
}

impl HealthWatch {
    /// Folds one check's result in. `now` is the time since the step began.
    pub fn observe(&mut self, passed: bool, now: Duration, policy: &HealthPolicy) -> Verdict {
        let wait = if passed { self.passed(now, policy) } else { Some(self.failed(policy)) };
        match wait {
            None if now <= policy.deadline => Verdict::Healthy,
            Some(wait) if now < policy.deadline => Verdict::Wait(wait.min(policy.deadline - now)),
            _ => Verdict::TimedOut,
        }
    }

    fn passed(&mut self, now: Duration, policy: &HealthPolicy) -> Option<Duration> {
        if self.passes == 0 {
            self.passing_since = now;
        }
        self.passes += 1;
        let healthy_for = now.saturating_sub(self.passing_since);
        let missing = policy.healthy_time_min.saturating_sub(healthy_for);
        let enough = self.passes >= policy.passes && missing.is_zero();
        (!enough).then(|| policy.interval_min.min(policy.interval_max).max(Duration::from_millis(1)))
    }

    fn failed(&mut self, policy: &HealthPolicy) -> Duration {
        let wait = policy.interval_min.saturating_mul(1 << self.failures.min(20));
        self.failures += 1;
        self.passes = 0;
        wait.min(policy.interval_max).max(Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds checks that take no time; returns the verdict and when it fell, in milliseconds.
    fn run(policy: &HealthPolicy, mut passes: impl FnMut(u32) -> bool) -> (Verdict, u128) {
        let mut watch = HealthWatch::default();
        let mut now = Duration::ZERO;
        for n in 0.. {
            match watch.observe(passes(n), now, policy) {
                Verdict::Wait(wait) => now += wait,
                verdict => return (verdict, now.as_millis()),
            }
        }
        unreachable!("the deadline ends every watch")
    }

    #[test]
    fn two_passes_in_a_row_are_healthy() {
        assert_eq!(run(&HealthPolicy::default(), |_| true), (Verdict::Healthy, 100));
    }

    #[test]
    fn a_flapping_instance_times_out_at_the_deadline() {
        assert_eq!(run(&HealthPolicy::default(), |n| n % 2 == 0), (Verdict::TimedOut, 300_000));
    }

    #[test]
    fn failures_back_off_exponentially() {
        assert_eq!(
            run(&HealthPolicy::default(), |n| n >= 4),
            (Verdict::Healthy, 100 + 200 + 400 + 800 + 100)
        );
    }

    #[test]
    fn a_minimum_healthy_time_is_waited_for() {
        let policy =
            HealthPolicy { healthy_time_min: Duration::from_secs(3), passes: 1, ..HealthPolicy::default() };
        assert_eq!(run(&policy, |_| true), (Verdict::Healthy, 3_000));
        assert_eq!(run(&policy, |n| n != 5).0, Verdict::Healthy);
    }

    #[test]
    fn a_pass_after_the_deadline_is_too_late() {
        let policy = HealthPolicy { passes: 1, ..HealthPolicy::default() };
        let verdict = HealthWatch::default().observe(true, Duration::from_secs(301), &policy);
        assert_eq!(verdict, Verdict::TimedOut);
    }
}
