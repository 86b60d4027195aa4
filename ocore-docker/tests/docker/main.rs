//! What a user of the crate sees.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod addons;
mod configuration;
mod context;
mod literals;
mod program;
