//! Which snapshots and images are kept, and why. Pure: what there is and what time it is come as arguments.
//!
//! | file | what it holds |
//! |---|---|
//! | `plan` | decides about every snapshot |
//! | `verdict` | what was decided, and the reasons in words |
//! | `calendar` | hours, days, weeks, months and years |

mod calendar;
mod plan;
mod verdict;

#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::{
    calendar::{Calendar, Period},
    plan::{Protected, plan},
    verdict::{Reason, Removal, Verdict},
};

/// Which snapshots and images are kept.
///
/// A deployment's snapshots, one per instance, are kept or removed together. They are kept if **any** rule wants them:
/// `snapshots_last`, `snapshots_age` or the calendar. `snapshots_bytes_max` takes the oldest of these away again.
///
/// Whatever the rules say, four kinds are never removed: those of the deployment that is live, those that a rollback, a
/// recovery or a deployment under way may need, those with a [pin](crate::port::SnapshotPin), and the newest ones.
///
/// ```
/// use ocore_core::environment::{EnvironmentSpec, InstanceSpec};
/// let spec = EnvironmentSpec::new("production", "https://git.example.org/shop.git")
///     .instance(InstanceSpec::new("web"))
///     .policy(|policy| {
///         policy.retention.snapshots_calendar.daily = 7;
///         policy.retention.snapshots_calendar.monthly = 12;
///         policy.retention.snapshots_calendar.utc_offset_minutes = 120;
///         policy.retention.snapshots_bytes_max = Some(500 << 30);
///     });
/// # assert!(ocore_core::environment::Environment::try_from(spec).is_ok());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Retention {
    /// The snapshots of this many newest deployments are kept. 0 to 10,000; 10 by default.
    pub snapshots_last: usize,
    /// Snapshots younger than this are kept. 14 days by default. A wall clock that is set forward while a process runs
    /// makes none older for it, and one that is set back makes none older than those before it; a clock that is
    /// wrong when a process begins is believed.
    pub snapshots_age: Duration,
    /// One snapshot per hour, day, week, month or year is kept, for so many of them. None by default.
    #[serde(skip_serializing_if = "is_default")]
    pub snapshots_calendar: Calendar,
    /// The snapshots of this many newest deployments are kept, whatever `snapshots_bytes_max` says. 1 to 10,000; 1 by
    /// default.
    #[serde(skip_serializing_if = "is_one")]
    pub snapshots_min: usize,
    /// How many bytes the environment's snapshots may take together; at least 1. While it is more, the oldest ones that
    /// may be removed go, though a rule wants them. No limit by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots_bytes_max: Option<u64>,
    /// The snapshots of at most so many deployments are removed by one clean-up, the oldest first; the next one goes on. It
    /// leaves time to notice that a rule was set too strictly. 1 to 10,000; 100 by default.
    #[serde(skip_serializing_if = "is_removals_max")]
    pub snapshots_removals_max: usize,
    /// The images of this many newest deployments that ended Running are kept. 0 to 1,000; 10 by default.
    pub images_last: usize,
}

/// How many deployments lose their snapshots in one clean-up, unless said otherwise.
const REMOVALS_MAX: usize = 100;

impl Default for Retention {
    /// The ten newest and those of the last 14 days; the images of the ten newest that ran.
    fn default() -> Self {
        Self {
            snapshots_last: 10,
            snapshots_age: Duration::from_secs(14 * 24 * 3600),
            snapshots_calendar: Calendar::default(),
            snapshots_min: 1,
            snapshots_bytes_max: None,
            snapshots_removals_max: REMOVALS_MAX,
            images_last: 10,
        }
    }
}

// What has its default is not written: settings look as they did before there was such a rule.

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
const fn is_one(value: &usize) -> bool {
    *value == 1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
const fn is_removals_max(value: &usize) -> bool {
    *value == REMOVALS_MAX
}
