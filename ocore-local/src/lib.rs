//! The embedded default of ocore: SQLite, directories, local processes.
