//! The Source of ocore over git2.
//!
//! [`GitSource`] keeps a mirror of each repository, fetches into it incrementally, and writes checkouts of exactly
//! one commit. What it may do is its [`SourcePolicy`]; what it shows to hosts are [`Credentials`].
//!
//! * The network: libgit2 never connects by itself. It talks to a port of this machine that leads to the one host,
//!   at the addresses that were looked up and checked once, with this crate's own TLS and credentials. Time limits,
//!   size limits and cancellation act there, so they act while libgit2 waits. Redirects are not followed. A proxy
//!   from the host's environment (`https_proxy`) is not used.
//! * ssh: libgit2 reads `~/.ssh/known_hosts`, from which it takes at most which type of key to ask the host for. Which
//!   key is right is decided by what was given in [`Credentials::ssh_key`] only.
//! * Repositories: nothing that they bring is run or obeyed. Trees are written by this crate's own code, which
//!   refuses what leaves the tree and what some file system takes for `.git`.
//! * Memory: libgit2 unpacks an object into memory when it arrives. What arrives is limited
//!   ([`Limits::received_bytes_max`]), what one object of it unpacks to ([`Limits::object_bytes_max`], over https),
//!   and what is written ([`Limits::file_bytes_max`], [`Limits::checkout_bytes_max`]).
//! * Repositories whose ids are SHA-256 are not supported.

mod address;
mod credentials;
mod download;
mod failure;
mod gate;
mod gitmodules;
mod leftovers;
mod location;
mod mirror;
mod names;
mod policy;
mod resolve;
mod source;
mod stop;
mod tls;
mod tree;
mod update;

pub use self::{
    credentials::{Credentials, HostKey},
    policy::{Addresses, CaseCollisions, Limits, LocalPaths, Protocol, SourcePolicy, Submodules},
    source::GitSource,
};
