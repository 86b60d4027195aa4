//! Odoo's versions.

use std::{fmt, str::FromStr};

/// A series of Odoo that is released every year, such as `17.0`: modules are made for one.
///
/// ```
/// let series: ocore_docker::odoo::Series = "17.0".parse()?;
/// assert_eq!(series.to_string(), "17.0");
/// # Ok::<(), ocore_docker::odoo::SeriesError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Series(u16);

/// A text that names no series.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no series of Odoo: write it like 17.0, from 10.0 on")]
pub struct SeriesError(String);

impl Series {
    /// The first whose manifests are called `__manifest__.py`.
    const FIRST: u16 = 10;

    /// The number before the point.
    #[must_use]
    pub const fn major(self) -> u16 {
        self.0
    }

    /// The series that a module's version begins with, if it is written with one: it has five parts then, or four, of
    /// which the first two are a series. `1.0`, `17.0` and `17.0.1` are versions of a module's own.
    pub(super) fn of_version(version: &str) -> Option<Self> {
        let parts: Vec<_> = version.split('.').collect();
        let ([major, "0", _, _] | [major, "0", _, _, _]) = parts.as_slice() else { return None };
        major.parse().ok().filter(|major| *major >= Self::FIRST).map(Self)
    }
}

impl FromStr for Series {
    type Err = SeriesError;

    fn from_str(text: &str) -> Result<Self, SeriesError> {
        let refused = || SeriesError(text.to_owned());
        let major = text.strip_suffix(".0").unwrap_or(text);
        let is_number = !major.starts_with('0') && major.bytes().all(|byte| byte.is_ascii_digit());
        let major: u16 = major.parse().map_err(|_| refused())?;
        if is_number && major >= Self::FIRST { Ok(Self(major)) } else { Err(refused()) }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.0", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_read_with_and_without_its_zero() {
        let check = |text: &str, expected: Option<u16>| {
            assert_eq!(text.parse().ok(), expected.map(Series), "{text}");
        };
        check("17.0", Some(17));
        check("17", Some(17));
        check("10.0", Some(10));
        check("9.0", None);
        check("017.0", None);
        check("+17.0", None);
        check("17.1", None);
        check("saas~17.1", None);
        check("", None);
        check("70000.0", None);
    }

    #[test]
    fn only_a_full_version_names_a_series() {
        let check = |text: &str, expected: Option<u16>| {
            assert_eq!(Series::of_version(text), expected.map(Series), "{text}");
        };
        check("16.0.1.0.0", Some(16));
        check("16.0.1.0", Some(16));
        check("16.0", None);
        check("16.0.1", None);
        check("1.0.1.0.0", None);
        check("16.1.1.0.0", None);
        check("16.0.1.0.0.0", None);
    }
}
