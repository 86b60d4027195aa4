//! What is told about a deployment while it goes on.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    failure::Failure,
    id::{DeploymentId, EventSeq},
    machine::{Status, Step},
    name::InstanceName,
};

/// Something that happened to a deployment, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Event {
    /// Its place in the deployment's log.
    pub seq: EventSeq,
    /// When, by the wall clock of whoever told it.
    pub at: DateTime<Utc>,
    /// What.
    pub kind: EventKind,
}

impl Event {
    /// An event with its place: stores make them.
    #[must_use]
    pub fn new(seq: EventSeq, event: NewEvent) -> Self {
        Self { seq, at: event.at, kind: event.kind }
    }
}

/// An event that has no place in the log yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NewEvent {
    /// When.
    pub at: DateTime<Utc>,
    /// What.
    pub kind: EventKind,
}

impl NewEvent {
    /// An event at this time.
    #[must_use]
    pub const fn new(at: DateTime<Utc>, kind: EventKind) -> Self {
        Self { at, kind }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// It was accepted into the queue.
    Queued,
    /// A worker has begun a step.
    Began {
        /// The step.
        step: Step,
    },
    /// A line of output. Long logs keep their head and their tail.
    Log(LogLine),
    /// How far a step has come.
    Progress {
        /// The step.
        step: Step,
        /// The instance, where the step is one of an instance.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instance: Option<InstanceName>,
        /// How far.
        progress: Progress,
    },
    /// An attempt failed; the step is tried again.
    Retrying {
        /// Why it failed.
        failure: Failure,
        /// The wait before the next attempt, in milliseconds.
        after_millis: u64,
    },
    /// It is being undone.
    Undoing {
        /// Why: the failure, or a cancel.
        reason: String,
    },
    /// Somebody asked to cancel it.
    CancelRequested {
        /// Who.
        actor: String,
    },
    /// It could not be undone, and somebody has put things right by hand.
    Acknowledged {
        /// Who.
        actor: String,
    },
    /// It is over.
    Finished {
        /// How it ended.
        status: Status,
        /// Why it did not end Running.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// The newer push that took its place.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        superseded_by: Option<DeploymentId>,
    },
}

impl EventKind {
    /// What the event counts for in the limit on a deployment's log, in bytes: lines and progress count, the
    /// milestones do not and are never cut out.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        match self {
            Self::Log(line) => line.text.len() as u64 + 32,
            Self::Progress { .. } => 64,
            _ => 0,
        }
    }
}

/// A line of output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LogLine {
    /// The step during which it was written.
    pub step: Step,
    /// The instance, where the step is one of an instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceName>,
    /// Where it came from.
    pub stream: Stream,
    /// The text: redacted, printable, without a line end, at most 64 KiB.
    pub text: String,
}

impl LogLine {
    /// A line; `text` must have been made safe already.
    #[must_use]
    pub const fn new(step: Step, instance: Option<InstanceName>, stream: Stream, text: String) -> Self {
        Self { step, instance, stream, text }
    }
}

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stream {
    /// The engine or an adapter.
    Engine,
    /// A program's standard output.
    Stdout,
    /// A program's standard error.
    Stderr,
}

/// How far a step has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Progress {
    /// What is being counted or done: "receiving objects".
    pub what: String,
    /// How many are done.
    pub done: u64,
    /// How many there are, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// What is counted.
    pub unit: Unit,
}

impl Progress {
    /// So many of something.
    #[must_use]
    pub fn new(what: impl Into<String>, done: u64, total: Option<u64>, unit: Unit) -> Self {
        Self { what: what.into(), done, total, unit }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            Unit::Bytes => " bytes",
            Unit::Items => "",
        };
        match self.total {
            Some(total) => write!(f, "{} {}/{total}{unit}", self.what, self.done),
            None => write!(f, "{} {}{unit}", self.what, self.done),
        }
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Files, objects, steps, …
    Items,
}
