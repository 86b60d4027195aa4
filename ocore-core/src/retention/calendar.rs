use std::fmt;

use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Serialize};

/// For how many hours, days, weeks, months and years one snapshot each is kept: of every one the newest.
///
/// Hours and days without a snapshot do not count: `daily: 7` keeps those of the seven newest days that have one. While
/// there are fewer than so many, the oldest snapshot of all is kept too, so that it grows into its place: otherwise
/// no month would ever have an old one, where there is one a day and days are kept for a week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Calendar {
    /// For how many hours. 0 to 10,000, as the others; 0 by default.
    pub hourly: usize,
    /// For how many days.
    pub daily: usize,
    /// For how many weeks, which begin on Monday.
    pub weekly: usize,
    /// For how many months.
    pub monthly: usize,
    /// For how many years.
    pub yearly: usize,
    /// How far the calendar's clock is ahead of UTC, in minutes, summer and winter: -840 to 840; 0 by default. A day
    /// begins at its midnight. It does not follow daylight saving, so that every day has 24 hours.
    pub utc_offset_minutes: i32,
}

impl Calendar {
    /// Each kind of period with how many of it are wanted.
    pub(super) const fn wanted(&self) -> [(Period, usize); 5] {
        [
            (Period::Hour, self.hourly),
            (Period::Day, self.daily),
            (Period::Week, self.weekly),
            (Period::Month, self.monthly),
            (Period::Year, self.yearly),
        ]
    }

    /// Which hour, day, week, month or year it is: a number that grows with time.
    pub(super) fn number(&self, period: Period, time: DateTime<Utc>) -> i64 {
        const DAY: i64 = 24 * 3600;
        let seconds = time.timestamp() + i64::from(self.utc_offset_minutes) * 60;
        // At the end of what chrono can say there is no time ahead of UTC.
        let local = DateTime::from_timestamp(seconds, 0).unwrap_or(time);
        match period {
            Period::Hour => seconds.div_euclid(3600),
            Period::Day => seconds.div_euclid(DAY),
            // The first day of 1970 was a Thursday.
            Period::Week => (seconds.div_euclid(DAY) + 3).div_euclid(7),
            Period::Month => i64::from(local.year()) * 12 + i64::from(local.month0()),
            Period::Year => i64::from(local.year()),
        }
    }
}

/// A period of the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Period {
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A week, from Monday on.
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Year => "year",
        })
    }
}
