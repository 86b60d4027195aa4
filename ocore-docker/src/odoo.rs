//! Odoo: its series, and the modules of a repository.

mod addons;
mod check;
mod manifest;
mod series;

pub use addons::{Addons, AddonsError, Module};
pub use check::{Faults, Wanted};
pub use manifest::{AutoInstall, Manifest, ManifestError, Position};
pub use series::{Series, SeriesError};
