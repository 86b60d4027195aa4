//! Identities and counters.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::executor::Executor;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A fresh id (UUID version 7): milliseconds of the wall clock, then 74 random bits.
            #[must_use]
            pub fn fresh(executor: &dyn Executor) -> Self {
                let millis = u64::try_from(executor.utc().timestamp_millis()).unwrap_or(0);
                let (a, b) = (executor.random().to_le_bytes(), executor.random().to_le_bytes());
                let mut random = [0; 10];
                random[..8].copy_from_slice(&a);
                random[8..].copy_from_slice(&b[..2]);
                Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
            }

            /// The id with these 128 bits, for stores that keep ids as binary and for tests.
            #[must_use]
            pub const fn from_u128(bits: u128) -> Self {
                Self(Uuid::from_u128(bits))
            }

            /// The id's 128 bits.
            #[must_use]
            pub const fn as_u128(self) -> u128 {
                self.0.as_u128()
            }

            /// The last eight hexadecimal digits: enough to tell ids of one list apart.
            #[must_use]
            pub fn short(self) -> String {
                let text = self.0.simple().to_string();
                text[text.len() - 8..].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::parse_str(text).map(Self).map_err(|_| InvalidId)
            }
        }
    };
}

/// A text that is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id: expected 32 hexadecimal digits with hyphens, as `history` prints them")]
#[non_exhaustive]
pub struct InvalidId;

uuid_id! {
    /// Names one deployment, everywhere and for ever. Later deployments have greater ids, as far as clocks agree;
    /// the order that counts is [`Seq`].
    DeploymentId
}
uuid_id! {
    /// Names one incarnation of a worker process: fresh at every start, and after every loss of the lease.
    WorkerId
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The counter with this value.
            #[must_use]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The value.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The next value.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter! {
    /// A deployment's place in its lane, handed out by the store: 1, 2, 3, … in the order of acceptance.
    Seq
}
counter! {
    /// The fencing token of a lane. It only grows: at every claim, hand-over and rescue, and after every call
    /// that ended without an answer. Whoever holds a lower one than the lane's has lost the lane.
    Fence
}
counter! {
    /// An event's place in its deployment's log: 1, 2, 3, … Gaps are where the log's middle was cut out.
    EventSeq
}
