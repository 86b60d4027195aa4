//! Errors of adapters, classified where they are made.

use std::{borrow::Cow, error, fmt};

use crate::failure::FailureClass;

/// The result of a port's method.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of error it is: what the engine does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No effect; may work when it is tried again. Retried with backoff.
    Transient,
    /// Will not work, however often it is tried. The deployment fails or is undone.
    Permanent,
    /// The call ended without an answer: it may have had an effect, or may still have one. The engine takes a
    /// new fence, then tries again.
    Unanswered,
    /// The context was cancelled, and the work has really stopped.
    Cancelled,
}

/// An error of an adapter: its kind, what was being done, and the cause.
///
/// There is no `From` for other errors: an error that nobody has classified does not compile.
///
/// ```
/// use ocore_core::port::{Classify, Error, ErrorKind};
/// fn read(path: &str) -> Result<String, Error> {
///     std::fs::read_to_string(path).permanent("read the manifest")
/// }
/// let error = read("/no/such/file").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Permanent);
/// assert!(error.to_string().starts_with("read the manifest: "));
/// ```
pub struct Error {
    kind: ErrorKind,
    doing: Cow<'static, str>,
    detail: Vec<String>,
    source: Option<Box<dyn error::Error + Send + Sync>>,
}

impl Error {
    fn new(kind: ErrorKind, doing: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, doing: doing.into(), detail: Vec::new(), source: None }
    }

    /// An error without another cause that may pass when the call is made again, and that had no effect.
    pub fn transient(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Transient, what)
    }

    /// An error without another cause that will not pass. Says what is wrong and what to do.
    pub fn permanent(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Permanent, what)
    }

    /// A call that changes something ended without an answer.
    pub fn unanswered(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Unanswered, what)
    }

    /// The context was cancelled, and the work has stopped.
    #[must_use]
    pub fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "cancelled")
    }

    /// The call came with a lower fence than one that was served before: its worker has lost the lane.
    #[must_use]
    pub fn fenced() -> Self {
        Self::permanent(
            "refused: another worker has taken over (the call's fence is older than one seen before)",
        )
    }

    /// The same error with lines of evidence: the tail of a log, the last answer.
    #[must_use]
    pub fn with_detail(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.detail.extend(lines);
        self
    }

    /// What kind of error it is.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Lines of evidence.
    #[must_use]
    pub fn detail(&self) -> &[String] {
        &self.detail
    }

    pub(crate) const fn class(&self) -> FailureClass {
        match self.kind {
            ErrorKind::Transient | ErrorKind::Cancelled => FailureClass::Transient,
            ErrorKind::Permanent => FailureClass::Permanent,
            ErrorKind::Unanswered => FailureClass::Unanswered,
        }
    }
}

impl fmt::Display for Error {
    /// What was being done, then the chain of causes, each said once.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)?;
        let mut said = self.doing.to_string();
        let mut cause = self.source.as_deref().map(|source| source as &dyn error::Error);
        while let Some(error) = cause {
            let text = error.to_string();
            if !said.contains(&text) {
                write!(f, ": {text}")?;
            }
            said = text;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

/// The causes are part of [`Display`](fmt::Display) already, so that they are never printed twice.
impl error::Error for Error {}

/// Classifies a foreign error: says what was being done, lower case, no full stop.
pub trait Classify<T> {
    /// It had no effect and may work when it is tried again.
    ///
    /// # Errors
    /// The error, classified.
    fn transient(self, doing: impl Into<Cow<'static, str>>) -> Result<T>;
    /// It will not work, however often it is tried.
    ///
    /// # Errors
    /// The error, classified.
    fn permanent(self, doing: impl Into<Cow<'static, str>>) -> Result<T>;
    /// A call that changes something ended without an answer.
    ///
    /// # Errors
    /// The error, classified.
    fn unanswered(self, doing: impl Into<Cow<'static, str>>) -> Result<T>;
}

impl<T, E: Into<Box<dyn error::Error + Send + Sync>>> Classify<T> for std::result::Result<T, E> {
    fn transient(self, doing: impl Into<Cow<'static, str>>) -> Result<T> {
        self.map_err(|error| Error { source: Some(error.into()), ..Error::transient(doing) })
    }
    fn permanent(self, doing: impl Into<Cow<'static, str>>) -> Result<T> {
        self.map_err(|error| Error { source: Some(error.into()), ..Error::permanent(doing) })
    }
    fn unanswered(self, doing: impl Into<Cow<'static, str>>) -> Result<T> {
        self.map_err(|error| Error { source: Some(error.into()), ..Error::unanswered(doing) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer: {0}")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_cause_is_said_once() {
        let io = || std::io::Error::other("disk full");
        let error = Err::<(), _>(Outer(io())).transient("write the file").unwrap_err();
        assert_eq!(error.to_string(), "write the file: outer: disk full");
        assert_eq!(format!("{error:?}"), "Transient: write the file: outer: disk full");
    }
}
