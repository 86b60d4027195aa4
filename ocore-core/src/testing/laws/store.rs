//! The laws of the store. To come.
