//! What the example programs share: the application that they deploy, and how they show what goes on.
//!
//! Nothing here is needed to embed ocore. `examples/quickstart.rs` shows that in about sixty lines.

pub mod history;
pub mod http;
pub mod progress;
pub mod sample_app;
pub mod sample_repository;
pub mod shop;
pub mod teardown;
pub mod work;

/// The result of an example program: whatever went wrong is printed.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}
