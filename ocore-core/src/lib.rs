//! The core of ocore: takes a commit and makes it the running version of an environment, or puts everything
//! back exactly as it was, whatever fails on the way.
//!
//! * **Decides**: [`machine`], [`queue`], [`retry`], [`health`] and [`retention`] are pure: no I/O, no clock, no
//!   chance. Time and chance arrive as arguments.
//! * **Acts**: [`engine`] is the only place where decisions meet the world.
//! * **Obeys**: adapters implement the traits in [`port`].
//!
//! A host builds an [`Engine`](engine::Engine) from six adapters, saves environments, asks for deployments and
//! runs workers. See the repository's `README.md` for a whole program.

/// Whether a bug is planted here (`testing::mutants`). Constantly `false` without the `testing` feature.
macro_rules! planted {
    ($mutant:ident) => {{
        #[cfg(feature = "testing")]
        let planted = $crate::testing::mutants::active($crate::testing::mutants::Mutant::$mutant);
        #[cfg(not(feature = "testing"))]
        let planted = false;
        planted
    }};
}

pub mod deployment;
pub mod engine;
pub mod environment;
pub mod event;
pub mod executor;
pub mod failure;
pub mod health;
pub mod http_probe;
pub mod id;
pub mod link;
pub mod machine;
pub mod name;
pub mod port;
#[cfg(target_os = "linux")]
pub mod program;
pub mod queue;
pub mod release;
pub mod request;
pub mod retention;
pub mod retry;
pub mod secret;
pub mod stored;
#[cfg(feature = "testing")]
pub mod testing;
