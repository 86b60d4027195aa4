use std::{borrow::Cow, error, fmt};

/// The result of a store's method.
pub type StoreResult<T> = Result<T, StoreError>;

/// What is known about a store call that did not answer as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// Nothing happened; the call can be made again.
    NotSent,
    /// It may have happened. Made again with the same arguments, it answers as the first would have.
    Unknown,
    /// It cannot work: a schema that is newer, a record that cannot be read.
    Broken,
}

/// An error of a store.
#[must_use]
pub struct StoreError {
    kind: StoreErrorKind,
    doing: Cow<'static, str>,
    source: Option<Box<dyn error::Error + Send + Sync>>,
}

impl StoreError {
    /// An error without another cause.
    pub fn new(kind: StoreErrorKind, what: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, doing: what.into(), source: None }
    }

    /// The same error with its cause.
    pub fn because(mut self, cause: impl Into<Box<dyn error::Error + Send + Sync>>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// What is known.
    #[must_use]
    pub const fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)?;
        self.source.as_ref().map_or(Ok(()), |source| write!(f, ": {source}"))
    }
}

impl fmt::Debug for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl error::Error for StoreError {}
