//! Odoo: its series, the modules of a repository, and `odoo.conf`.

mod addons;
mod check;
mod configuration;
mod manifest;
mod series;

pub use addons::{Addons, AddonsError, Module};
pub use check::{Faults, Wanted};
pub use configuration::{Configuration, Database, InvalidConfiguration};
pub use manifest::{AutoInstall, Manifest, ManifestError, Position};
pub use series::{Series, SeriesError};
