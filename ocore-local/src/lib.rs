//! The embedded default of ocore: SQLite, directories, local processes.

mod store;

pub use self::store::{Durability, SqliteStore};
