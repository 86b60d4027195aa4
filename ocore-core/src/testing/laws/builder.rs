//! The laws of the builder. To come.
