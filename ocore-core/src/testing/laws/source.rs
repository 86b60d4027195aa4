//! The laws of the source. To come.
