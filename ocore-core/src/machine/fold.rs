//! The one place where a step's result becomes the next state: it alone retries, and it alone gives up.

use std::time::Duration;

use super::{Job, State, Step};
use crate::{
    failure::{Cause, Failure, FailureClass},
    retry::{RetryPolicy, Tally},
};

/// How many workers a step on the way forward may lose before it is given up: one that kills its worker twice
/// will do so again.
pub(super) const LOST_MAX: u32 = 2;

/// What came of one attempt at a step.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Report<Evidence, Kept = ()> {
    /// It is done, for all instances.
    Done(Evidence),
    /// It failed, for at least one instance.
    Failed {
        /// What was done all the same, and need not be done again.
        kept: Kept,
        /// At least one failure.
        failures: Vec<Failure>,
    },
}

/// What happens next.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decision {
    /// The next state.
    pub state: State,
    /// `Some` if it is to be begun only after this long: a retry.
    pub after: Option<Duration>,
    /// Whether a call ended without an answer: before anything else is tried, the lane takes a new fence.
    pub fresh_fence: bool,
    /// What went wrong, if anything did.
    pub failure: Option<Failure>,
}

/// A step that waits to run, as the fold sees it.
pub trait Fold: Sized + Into<State> {
    /// Which step it is.
    const STEP: Step;
    /// What doing it yields.
    type Evidence;
    /// What is kept of a failed attempt.
    type Kept;

    /// What it works for.
    fn job(&self) -> &Job;
    /// What the attempts have used up so far.
    fn tally(&mut self) -> &mut Tally;
    /// The state after it is done.
    fn succeed(self, evidence: Self::Evidence) -> State;
    /// Remembers what a failed attempt did all the same.
    fn keep(&mut self, kept: Self::Kept);
    /// The state that tries it again. `dirty`: the last attempt may have had an effect.
    fn again(self, dirty: bool) -> State;
    /// The state after it has failed for good.
    fn give_up(self, cause: Cause) -> State;

    /// How often it is tried.
    fn policy(&self) -> RetryPolicy {
        self.job().environment.policy().retry
    }

    /// How many workers it may lose.
    fn lost_max(&self) -> u32 {
        LOST_MAX
    }

    /// Folds what came of an attempt, which took `took`, into the next state.
    fn fold(mut self, report: Report<Self::Evidence, Self::Kept>, took: Duration) -> Decision {
        let (kept, failures) = match report {
            Report::Done(evidence) => return Decision::go_on(self.succeed(evidence)),
            Report::Failed { kept, failures } => (kept, failures),
        };
        self.keep(kept);
        let unanswered = failures.iter().any(|failure| failure.class == FailureClass::Unanswered);
        let failure = worst(failures, Self::STEP);
        let tally = self.tally().failed(took);
        *self.tally() = tally;
        let id = self.job().id;
        let delay = match failure.class {
            FailureClass::Permanent => None,
            _ => self.policy().next_delay(tally, id, Self::STEP),
        };
        let state = match delay {
            Some(delay) => {
                *self.tally() = tally.waited(delay);
                self.again(unanswered)
            }
            None => self.give_up(Cause::Failed(failure.clone())),
        };
        Decision { state, after: delay, fresh_fence: unanswered, failure: Some(failure) }
    }

    /// The worker died, or lost its lease, while the step was under way.
    fn lose(mut self) -> State {
        let tally = self.tally().lost();
        *self.tally() = tally;
        if tally.lost < self.lost_max() {
            return self.again(true);
        }
        let message = format!("lost its worker {} times; the step is not tried again", tally.lost);
        self.give_up(Cause::Failed(Failure::new(Self::STEP, FailureClass::Unanswered, message)))
    }
}

/// The failure that decides, and that is shown: permanent before unanswered before transient.
fn worst(failures: Vec<Failure>, step: Step) -> Failure {
    let without = || Failure::new(step, FailureClass::Permanent, "failed without a reason");
    failures.into_iter().rev().max_by_key(|failure| failure.class).unwrap_or_else(without)
}

impl Decision {
    pub(crate) const fn go_on(state: State) -> Self {
        Self { state, after: None, fresh_fence: false, failure: None }
    }
}
