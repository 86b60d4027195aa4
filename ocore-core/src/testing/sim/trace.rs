use std::{fmt, time::Duration};

use super::chance::mix;

/// What happened in a simulation: a hash of every poll, every jump of the clock and every note; and the notes as
/// lines, if they are kept. Two runs of one seed give equal traces.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Trace {
    /// The hash.
    pub hash: u64,
    /// The lines, if they are kept.
    pub lines: Vec<String>,
}

impl Trace {
    pub(super) const fn fold(&mut self, bits: u64) {
        self.hash = mix(self.hash ^ bits.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }

    pub(super) fn line(&mut self, now: Duration, text: &str) {
        self.lines.push(format!("{:>12.6} {text}", now.as_secs_f64()));
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        write!(f, "trace {:016x}", self.hash)
    }
}
