//! The Source over real repositories and real hosts on loopback.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod hostile;
mod laws;
mod mirror;
mod remote;
mod ssh;
mod support;
