//! PostgreSQL for ocore: the [`store`] for many machines.

pub mod store;
