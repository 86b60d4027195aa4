//! The laws of the probe. To come.
