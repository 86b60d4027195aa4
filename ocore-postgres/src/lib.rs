//! PostgreSQL for ocore: the [`store`] for many machines, and [snapshots](snapshot) of databases.

pub mod snapshot;
pub mod store;
