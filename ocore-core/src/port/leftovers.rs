use std::collections::BTreeSet;

use crate::id::DeploymentId;

/// What is left of deployments that are over: all that an adapter has made for them but what is recorded. A worker that
/// was killed when it had made something, and before it could record it, leaves it behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leftovers {
    /// Deployments that are over: nothing more is recorded for them.
    pub ended: BTreeSet<DeploymentId>,
    /// The references of everything that the store knows of, whoever made it.
    pub recorded: BTreeSet<String>,
}

impl Leftovers {
    /// What is left of `ended`, beside what is recorded.
    #[must_use]
    pub const fn new(ended: BTreeSet<DeploymentId>, recorded: BTreeSet<String>) -> Self {
        Self { ended, recorded }
    }

    /// Whether something belongs to it that was made for this deployment and has this reference.
    #[must_use]
    pub fn include(&self, deployment: DeploymentId, reference: &str) -> bool {
        self.ended.contains(&deployment) && !self.recorded.contains(reference)
    }
}
