use std::{fmt, time::Duration};

use chrono::{DateTime, SecondsFormat, Utc};

use super::Period;
use crate::port::SnapshotPin;

/// What becomes of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It stays.
    Keep {
        /// Every reason, at least one.
        reasons: Vec<Reason>,
    },
    /// It goes.
    Remove {
        /// Why.
        why: Removal,
    },
}

/// Why a snapshot stays.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Nothing of the environment is removed now: see [`Protected::held`](super::Protected::held).
    Held,
    /// It was taken by the deployment that is live.
    Live,
    /// A deployment under way, or one that a person must see to, may restore it.
    Needed,
    /// Somebody pinned it.
    Pinned(SnapshotPin),
    /// Nothing newer could be restored: it is the newest, or the newest of a deployment that took one of every instance.
    Newest,
    /// It is one of the newest that are kept whatever they take up.
    Floor {
        /// Of so many deployments.
        min: usize,
    },
    /// It is dated in the future: some clock is wrong, and its age unknown.
    Future {
        /// When it says it was taken.
        taken_at: DateTime<Utc>,
    },
    /// It is one of the newest.
    Last {
        /// Of so many deployments.
        last: usize,
    },
    /// It is young.
    Young {
        /// Younger than this.
        age_max: Duration,
    },
    /// It is the newest of its hour, day, week, month or year.
    NewestOf(Period),
    /// It is the oldest, and there are fewer hours, days, weeks, months or years than are wanted.
    OldestOf(Period),
    /// It is to be removed, but enough are by this clean-up; the next one goes on.
    Postponed {
        /// So many deployments' snapshots are removed by one.
        removals_max: usize,
    },
}

impl Reason {
    /// Whether it stays for this reason whatever it takes up.
    pub(super) const fn outweighs_size(&self) -> bool {
        match self {
            Self::Held
            | Self::Live
            | Self::Needed
            | Self::Pinned(_)
            | Self::Newest
            | Self::Floor { .. }
            | Self::Future { .. }
            | Self::Postponed { .. } => true,
            Self::Last { .. } | Self::Young { .. } | Self::NewestOf(_) | Self::OldestOf(_) => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held => f.write_str("a rollback, a recovery or a person may need it"),
            Self::Live => f.write_str("it was taken by the deployment that is live"),
            Self::Needed => f.write_str("a deployment that is not settled may restore it"),
            Self::Pinned(pin) => write_pin(pin, f),
            Self::Newest => f.write_str("it is the newest"),
            Self::Floor { min } => {
                write!(f, "it is within the last {min}, which stay whatever they take up")
            }
            Self::Future { taken_at } => {
                write!(f, "it is dated {}, in the future: a clock is wrong", date(*taken_at))
            }
            Self::Last { last } => write!(f, "it is within the last {last}"),
            Self::Young { age_max } => write!(f, "it is younger than {}", Span(*age_max)),
            Self::NewestOf(period) => write!(f, "it is the newest of its {period}"),
            Self::OldestOf(period) => {
                write!(f, "it is the oldest, and fewer {period}s have one than are wanted")
            }
            Self::Postponed { removals_max } => {
                write!(f, "{removals_max} others go first; the next clean-up goes on")
            }
        }
    }
}

fn write_pin(pin: &SnapshotPin, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "pinned by {}", or_nobody(&pin.by))?;
    if let Some(by) = &pin.unpinned_by {
        write!(f, ", unpinned by {}", or_nobody(by))?;
    }
    if let Some(until) = pin.until {
        write!(f, ", kept until {}", date(until))?;
    }
    if pin.why.is_empty() { Ok(()) } else { write!(f, ": {}", pin.why) }
}

const fn or_nobody(name: &str) -> &str {
    if name.is_empty() { "somebody" } else { name }
}

fn date(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A time in the largest unit that says it in whole numbers.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let units = [(24 * 3600, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds")];
        let fits = |(size, _): &&(u64, &str)| seconds.is_multiple_of(*size) && seconds >= 2 * size;
        match units.iter().find(fits) {
            Some((size, unit)) => write!(f, "{} {unit}", seconds / size),
            None => write!(f, "{:?}", self.0),
        }
    }
}

/// Why a snapshot goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Removal {
    /// No rule wants it.
    Unwanted,
    /// A rule wants it, but together they take up too much, and it is the oldest that may go.
    TooLarge {
        /// How much they may take up.
        bytes_max: u64,
    },
    /// Its removal, or that of another instance's snapshot of the same deployment, was begun before.
    Begun,
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unwanted => f.write_str("no rule wants it"),
            Self::TooLarge { bytes_max } => {
                write!(
                    f,
                    "all together take up more than {bytes_max} bytes, and it is the oldest that may go"
                )
            }
            Self::Begun => f.write_str("its removal has begun"),
        }
    }
}
