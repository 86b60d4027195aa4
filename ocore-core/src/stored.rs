//! The stored form: what a store writes down of a deployment, versioned, and readable for ever.
//!
//! A golden file per version and variant is kept in `ocore-core/golden/`. A change that cannot read one of them,
//! or writes another form under the same version, fails a test. A new form gets a new version, and the types of
//! the old one stay as they were, in a module of their own.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The version that is written.
pub const VERSION: u32 = 1;

/// Why a stored text cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unreadable {
    /// It was written by a newer version of ocore: leave it to a worker that knows it.
    #[error("written in form {found} by a newer ocore; this one knows {VERSION}: update this process")]
    Newer {
        /// Its version.
        found: u32,
    },
    /// It holds what this version does not know: it was written by a newer one.
    #[error("{0}, which this ocore does not know: a newer one wrote it; update this process")]
    Unknown(String),
    /// It is damaged.
    #[error("the stored form is damaged: {0}")]
    Damaged(String),
}

/// What can be stored: sealed, because every stored type has golden files.
pub trait Stored: Serialize + DeserializeOwned + sealed::Sealed {}

mod sealed {
    use crate::{deployment::Deployment, environment::Environment, event::EventKind, release::Live};

    #[expect(unnameable_types, reason = "nobody else may implement it, so nobody else may name it")]
    pub trait Sealed {}
    impl Sealed for Deployment {}
    impl Sealed for Environment {}
    impl Sealed for EventKind {}
    impl Sealed for Live {}
}

impl<T: Serialize + DeserializeOwned + sealed::Sealed> Stored for T {}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    v: u32,
    is: T,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

/// The stored form of a value: one line of JSON.
///
/// # Panics
/// Never: every [`Stored`] type has a JSON form.
#[must_use]
pub fn encode(value: &impl Stored) -> String {
    serde_json::to_string(&Envelope { v: VERSION, is: value }).expect("stored types have a JSON form")
}

/// Reads a stored form.
///
/// # Errors
/// [`Unreadable`]: nothing is guessed at.
pub fn decode<T: Stored>(text: &str) -> Result<T, Unreadable> {
    let damaged = |error: serde_json::Error| {
        let text = error.to_string();
        // serde's words for a field or a variant that is not among those of the type.
        if text.starts_with("unknown ") { Unreadable::Unknown(text) } else { Unreadable::Damaged(text) }
    };
    let version: Version = serde_json::from_str(text).map_err(damaged)?;
    match version.v {
        1 => serde_json::from_str::<Envelope<T>>(text).map(|envelope| envelope.is).map_err(damaged),
        found if found > VERSION => Err(Unreadable::Newer { found }),
        found => Err(Unreadable::Damaged(format!("there is no form {found}"))),
    }
}

#[cfg(test)]
mod tests;
