use async_trait::async_trait;

use super::{Context, Result};
use crate::{environment::Instance, release::Started};

/// Asks an instance whether it is well.
///
/// *Laws*: `probe_laws!` in the `testing` feature.
#[async_trait]
pub trait HealthProbe: Send + Sync + 'static {
    /// Asks once. The engine decides how often, and what the answers mean together.
    ///
    /// *Errors*: only if the question cannot be asked at all, now or ever: permanent. An instance that does not
    /// answer is a [`Check::Failed`].
    async fn check(&self, context: &Context, instance: &Instance, started: &Started) -> Result<Check>;
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Check {
    /// It is well.
    Passed,
    /// It is not, or does not answer.
    Failed {
        /// What came back, in one line: the status, the error of the connection.
        reason: String,
        /// The head of the answer's body.
        body: Option<String>,
    },
}
