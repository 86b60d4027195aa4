//! Example programs of ocore.
