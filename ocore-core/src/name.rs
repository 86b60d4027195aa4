//! Validated names: what is allowed into container names, database names, labels and paths.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest name in characters. Container engines and PostgreSQL allow 63; prefixes and suffixes need room.
pub const NAME_LENGTH_MAX: usize = 40;

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} {text:?} {reason}; use 1 to {NAME_LENGTH_MAX} of a-z, 0-9 and -, beginning with a letter or digit"
)]
pub struct InvalidName {
    what: &'static str,
    text: String,
    reason: &'static str,
}

fn check(what: &'static str, text: &str) -> Result<(), InvalidName> {
    let reason = if text.is_empty() {
        "is empty"
    } else if text.chars().count() > NAME_LENGTH_MAX {
        "is too long"
    } else if text.starts_with('-') || text.ends_with('-') {
        "begins or ends with a hyphen"
    } else if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        "has a character that is not allowed"
    } else {
        return Ok(());
    };
    // An error message is no place for ten thousand characters of somebody's input.
    Err(InvalidName { what, text: text.chars().take(NAME_LENGTH_MAX).collect(), reason })
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Parses a name: 1 to 40 characters of `a-z`, `0-9` and `-`, with no hyphen at either end.
            ///
            /// # Errors
            /// [`InvalidName`] says which rule is broken.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
                check($what, text.as_ref())?;
                Ok(Self(text.as_ref().into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name! {
    /// The name of an environment, unique in a store: `production`, `staging`.
    EnvironmentName, "the environment name"
}
name! {
    /// The name of an instance, unique in its environment.
    InstanceName, "the instance name"
}
name! {
    /// The name of a pool: the workers (a server, a region) that an environment belongs to.
    PoolName, "the pool name"
}

impl Default for PoolName {
    fn default() -> Self {
        Self("default".into())
    }
}

#[cfg(test)]
mod tests {
    use super::EnvironmentName;

    fn check(text: &str, expected: Option<&str>) {
        let found = EnvironmentName::new(text).err().map(|error| error.to_string());
        match (found, expected) {
            (None, None) => {}
            (Some(found), Some(expected)) => assert!(found.contains(expected), "{found}"),
            (found, expected) => panic!("{text:?}: {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_name_is_a_slug_of_at_most_forty_characters() {
        check("production", None);
        check("a", None);
        check(&"x".repeat(40), None);
        check(&"x".repeat(41), Some("too long"));
        check("", Some("is empty"));
        check("a/b", Some("not allowed"));
        check("a\nb", Some("not allowed"));
        check("Production", Some("not allowed"));
        check("-a", Some("hyphen"));
        check("a-", Some("hyphen"));
        check("ä", Some("not allowed"));
    }

    #[test]
    fn the_error_quotes_no_more_than_a_name_could_hold() {
        let error = EnvironmentName::new("x".repeat(10_000)).unwrap_err().to_string();
        assert!(error.len() < 300, "{error}");
    }

    #[test]
    fn serde_refuses_what_new_refuses() {
        assert!(serde_json::from_str::<EnvironmentName>("\"a/b\"").is_err());
        assert_eq!(serde_json::from_str::<EnvironmentName>("\"a\"").unwrap().as_str(), "a");
    }
}
