//! What a job queue must be able to do in order to be measured.

use crate::{Refusal, job::Job};

/// Which jobs may not overtake each other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// Each may run at any time.
    None,
    /// Those of one lane run one after the other; there are so many lanes.
    Lanes(u32),
}

pub(crate) trait Peer: Sized {
    /// Makes its tables. `tuned` is what its own documentation advises for many small jobs; otherwise it is as it comes.
    async fn set_up(url: &str, tuned: bool, order: Order) -> Result<Self, Refusal>;

    /// Asks for jobs, in this order.
    async fn ask(&self, jobs: &[Job]) -> Result<(), Refusal>;

    /// Begins to work, beside what follows, until the process ends. Each job calls [`crate::job::run`].
    async fn work(&self) -> Result<(), Refusal>;

    /// Cancels a running job.
    async fn cancel(&self, job: Job) -> Result<(), Refusal> {
        let _ = job;
        Err(Refusal::Unsupported("a running job cannot be cancelled"))
    }
}
