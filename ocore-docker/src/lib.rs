//! Docker for [ocore](https://docs.rs/ocore-core).
//!
//! So far: what a repository of Odoo modules holds, and why it could not be built. [`odoo::Addons::find`] reads it,
//! [`odoo::Addons::check`] says everything that is wrong at once, before anything is stopped for it. And
//! [`odoo::Configuration`] renders `odoo.conf`. [`BuildContext`] is the archive
//! that an engine builds from.

mod context;
pub mod odoo;

pub use context::BuildContext;
