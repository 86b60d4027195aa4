//! The embedded default of ocore, for a machine with neither Docker nor a database server.
//!
//! * [`LocalBuilder`] makes a release directory of a checkout; the repository's `Procfile` says what to run.
//! * [`LocalRuntime`] runs releases as processes that outlive the worker.
//! * [`LocalSnapshotter`] copies an instance's data directory and puts it back atomically.
//! * [`SqliteStore`] keeps everything else in one file, which several processes may share.
//!
//! The first three take the same root directory, which belongs to ocore alone:
//!
//! ```text
//! ROOT/releases/DEPLOYMENT-FENCE/            a release: tree/ and manifest
//! ROOT/instances/ENVIRONMENT/INSTANCE/       fence, lock, one record and one log per started process
//! ROOT/snapshots/DEPLOYMENT-INSTANCE-FENCE/  a snapshot: data/ and manifest
//! ROOT/data/DIGEST/                          fence and lock of one data directory
//! ```
//!
//! Linux only: processes are found through `/proc`. The root must be on a local file system.

mod blocking;
mod builder;
mod durable;
mod fenced;
mod process;
mod procfile;
mod runtime;
mod shelf;
mod snapshotter;
mod store;
mod tree;

pub use self::{
    builder::LocalBuilder,
    runtime::LocalRuntime,
    snapshotter::LocalSnapshotter,
    store::{Durability, SqliteStore},
};

/// The root directory as it is found from anywhere.
fn absolute(root: std::path::PathBuf) -> std::path::PathBuf {
    std::path::absolute(&root).unwrap_or(root)
}
