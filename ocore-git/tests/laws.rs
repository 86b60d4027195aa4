//! The laws of the source, over local paths.

mod support;

use ocore_core::source_laws;
use support::Bench;

source_laws!(Bench::new());
