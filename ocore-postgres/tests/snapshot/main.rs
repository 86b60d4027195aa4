//! Snapshots of databases, against a real server: the laws, every hazard that was found, and real dumps.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

mod clones;
mod disk;
mod exchange;
mod faults;
mod jobs;
mod kill;
mod laws;
mod logins;
mod preflight;
mod queries;
mod round_trip;
mod site;
#[path = "../common/statements.rs"]
mod statements;
