//! The engine as its users see it, over the fakes and the in-memory store.
#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod cancel;
mod deploy;
mod recovery;
mod rollback;
mod runtime;
mod snapshots;
mod stage;
mod upkeep;
mod words;
mod workers;
