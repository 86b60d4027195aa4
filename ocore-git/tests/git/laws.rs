//! The laws of the source, over local paths.

use crate::support::Bench;
use ocore_core::source_laws;

source_laws!(Bench::new());
