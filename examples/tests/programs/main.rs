//! The example programs, run as a user runs them.

mod bad_input;
mod deploy;
mod program;
mod quickstart;
