//! Why something did not work, in the form that is stored and shown.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{id::DeploymentId, machine::Step, name::InstanceName};

/// What kind of failure it was: decides whether the step is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureClass {
    /// It had no effect, and may work when it is tried again.
    Transient,
    /// It ended without an answer: it may have had an effect, or may still have one.
    Unanswered,
    /// It will not work, however often it is tried.
    Permanent,
}

/// Why a step failed. All texts have passed the redactor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Failure {
    /// The step that failed.
    pub step: Step,
    /// The instance it failed for, where the step is one of an instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceName>,
    /// What kind of failure it was.
    pub class: FailureClass,
    /// What was being done, and the chain of causes.
    pub message: String,
    /// Evidence: the last answer of a probe, the exit code, the last lines of the instance's own log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub detail: Vec<String>,
}

impl Failure {
    /// A failure without instance and detail.
    #[must_use]
    pub fn new(step: Step, class: FailureClass, message: impl Into<String>) -> Self {
        Self { step, instance: None, class, message: message.into(), detail: Vec::new() }
    }

    /// The failure, attributed to an instance.
    #[must_use]
    pub fn of(mut self, instance: &InstanceName) -> Self {
        self.instance = Some(instance.clone());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.step)?;
        if let Some(instance) = &self.instance {
            write!(f, " of {instance}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Why a deployment is undone, or ended before it touched anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// A step failed for good.
    Failed(Failure),
    /// Somebody asked for it.
    Cancelled,
    /// A newer push took its place in the queue.
    Superseded {
        /// The newer push's deployment.
        by: DeploymentId,
    },
}

impl Cause {
    /// The failure, if there was one.
    #[must_use]
    pub const fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) => Some(failure),
            Self::Cancelled | Self::Superseded { .. } => None,
        }
    }
}
