//! The laws of the runtime. To come.
