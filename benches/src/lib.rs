//! Benches of ocore.
