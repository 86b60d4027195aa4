//! Planted bugs: the test of the simulated world.
//!
//! The engine and the in-memory store ask [`active`] at the places where one of these bugs would sit. A bug is
//! planted for the current thread only, so that simulations in other threads run the real thing. Without the
//! `testing` feature none of this is compiled in.

use std::cell::Cell;

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// A bug that can be planted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Mutant {
            $($(#[$doc])* $name),*
        }

        impl Mutant {
            /// Every bug.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The bug's name, as it is written in the source.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }
    };
}

mutants! {
    /// The store accepts a commit with an old fence.
    NoFence,
    /// After a call without an answer the lane keeps its fence.
    SameFenceAfterTimeout,
    /// A failed update is tried again on the data that it left.
    UpdateRetriedWithoutRestore,
    /// Running is committed before the probe has seen anything.
    RunningBeforeObserved,
    /// A deployment ends Running although a cancel came before the verdict.
    VerdictIgnoresCancel,
    /// A call without an answer counts as done.
    SwallowUnanswered,
    /// The way back leaves the data as it is.
    RestoreSkippedOnUndo,
    /// The way back does not start again what served before.
    ReviveSkipped,
    /// The way back takes a step that was begun for one that was not.
    BegunForgotten,
    /// What serves is not stopped before the new release writes.
    StopSkipped,
    /// The worker goes on working after its watchdog has rung.
    WatchdogIgnored,
    /// A step whose worker was lost is tried again as if it had never been begun.
    ForgetBegun,
    /// A push takes the place of queued deployments that were asked for by hand.
    SupersedeManual,
    /// The deployment that was asked for last is started first.
    LastInFirstOut,
    /// The way back leaves the new release running.
    WithdrawSkipped,
    /// Attempts are not counted.
    RetryWithoutLimit,
    /// A claim whose answer was lost is never found again.
    LostClaimIgnored,
    /// A deployment whose undo was given up does not mark its environment.
    StrandedNotMarked,
    /// What was revived is not looked at.
    RevivedUnseen,
    /// What was revived is not recorded as live.
    LiveNotUpdatedAfterRevive,
    /// A fenced commit is taken for a good one.
    FencedIgnored,
    /// A delivery that was seen before makes another deployment.
    KeyForgotten,
    /// A rollback restores the snapshot that its target took: the data before it.
    RollbackOffByOne,
    /// One healthy instance counts for all.
    OneHealthyIsEnough,
    /// Only the first instance's data is put back.
    RestoreFirstOnly,
    /// A secret that an adapter made known is not hidden.
    SecretForgotten,
    /// The window of a snapshot taken before the stop is always recorded as empty.
    WindowAlwaysEmpty,
    /// A cancel that drops a call keeps the fence.
    CancelKeepsFence,
    /// A cancel also ends what is being undone.
    CancelStopsUndo,
    /// A call may take for ever.
    DeadlineIgnored,
    /// What killed workers have left is never looked for.
    LeftoversStay,
    /// What is recorded counts as left by killed workers.
    RecordedIsSwept,
}

thread_local! {
    static PLANTED: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Whether this bug is planted in the current thread.
#[must_use]
pub fn active(mutant: Mutant) -> bool {
    PLANTED.get() == Some(mutant)
}

/// Plants a bug in the current thread until the guard is dropped.
#[must_use = "the bug is planted for as long as the guard lives"]
pub fn plant(mutant: Mutant) -> Planted {
    Planted { before: PLANTED.replace(Some(mutant)) }
}

/// Keeps a bug planted.
#[derive(Debug)]
pub struct Planted {
    before: Option<Mutant>,
}

impl Drop for Planted {
    fn drop(&mut self) {
        PLANTED.set(self.before);
    }
}

impl std::str::FromStr for Mutant {
    type Err = UnknownMutant;

    fn from_str(text: &str) -> Result<Self, UnknownMutant> {
        let found = Self::ALL.iter().find(|mutant| mutant.as_str() == text);
        found.copied().ok_or_else(|| UnknownMutant { text: text.chars().take(40).collect() })
    }
}

/// There is no bug of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no bug is named {text:?}; there are {}", Mutant::ALL.iter().map(|m| m.as_str()).collect::<Vec<_>>().join(", "))]
pub struct UnknownMutant {
    text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bug_is_planted_until_its_guard_is_dropped_and_in_one_thread_only() {
        let planted = plant(Mutant::NoFence);
        assert!(active(Mutant::NoFence) && !active(Mutant::ReviveSkipped));
        assert!(!std::thread::spawn(|| active(Mutant::NoFence)).join().unwrap());
        drop(planted);
        assert!(!active(Mutant::NoFence));
    }

    #[test]
    fn a_bug_is_found_by_its_name() {
        assert_eq!("ForgetBegun".parse(), Ok(Mutant::ForgetBegun));
        assert!("Nothing".parse::<Mutant>().unwrap_err().to_string().contains("ForgetBegun"));
    }
}
