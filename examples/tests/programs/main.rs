//! The example programs, run as a user runs them.
#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod bad_input;
mod deploy;
mod full_disk;
mod program;
mod quickstart;
