//! How a snapshotter is made.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use super::{
    Fingerprint, PostgresSnapshotter, Shared, Strategy, TEMPLATE, Verification, server::Server, shelf::Shelf,
};

/// How many jobs a restore has at most, unless said otherwise.
const RESTORE_JOBS_MAX: usize = 4;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The settings of a [`PostgresSnapshotter`]. Each has a default that we run ourselves.
#[derive(Debug)]
pub struct PostgresSnapshotterBuilder {
    shared: Shared,
}

impl PostgresSnapshotterBuilder {
    pub(super) fn new(server: Server, shelf: Shelf) -> Self {
        let shared = Shared {
            server,
            shelf,
            strategy: Strategy::default(),
            verification: Verification::default(),
            fingerprint: Fingerprint::default(),
            tools: None,
            template: TEMPLATE.to_owned(),
            server_files: None,
            keep_replaced: DAY,
            keep_clones: DAY,
            shut_out: false,
            restore_jobs: thread::available_parallelism().map_or(1, |it| it.get().min(RESTORE_JOBS_MAX)),
            rehearsed: Mutex::default(),
        };
        Self { shared }
    }

    /// How snapshots are taken when the application is stopped; [`Strategy::Auto`] unless said otherwise.
    #[must_use]
    pub const fn strategy(mut self, strategy: Strategy) -> Self {
        self.shared.strategy = strategy;
        self
    }

    /// How thoroughly dumps are read again; [`Verification::ReadThrough`] unless said otherwise.
    #[must_use]
    pub const fn verification(mut self, verification: Verification) -> Self {
        self.shared.verification = verification;
        self
    }

    /// What a restore is compared with; [`Fingerprint::Counts`] unless said otherwise.
    #[must_use]
    pub const fn fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.shared.fingerprint = fingerprint;
        self
    }

    /// The directory of `pg_dump` and `pg_restore`. Otherwise they are looked for in Debian's and Red Hat's places of the
    /// server's version, where `pg_config` says, and on the path.
    #[must_use]
    pub fn tools(mut self, directory: impl Into<PathBuf>) -> Self {
        self.shared.tools = Some(directory.into());
        self
    }

    /// The database that a dump is restored into a copy of; `template0` unless said otherwise. For extensions that only a
    /// superuser can make, or whose functions only a superuser can alter: in this one they are there already.
    #[must_use]
    pub fn template(mut self, database: impl Into<String>) -> Self {
        self.shared.template = database.into();
        self
    }

    /// A directory on the file system of the server's data, where that is on this machine: then a clone is refused that has
    /// no room.
    #[must_use]
    pub fn server_files(mut self, directory: impl Into<PathBuf>) -> Self {
        self.shared.server_files = Some(directory.into());
        self
    }

    /// How long a database is kept that was replaced by a restore, at least until its deployment is over; a day unless said
    /// otherwise. Zero: not at all.
    #[must_use]
    pub const fn keep_replaced(mut self, duration: Duration) -> Self {
        self.shared.keep_replaced = duration;
        self
    }

    /// How long a clone is kept that has a dump; a day unless said otherwise.
    #[must_use]
    pub const fn keep_clones(mut self, duration: Duration) -> Self {
        self.shared.keep_clones = duration;
        self
    }

    /// How many sessions restore a dump of 64 MiB or more at once, before compression; as many as this machine has
    /// processors unless said otherwise, four at most. More than one need the unpacked dump in a file beside the snapshot: where
    /// there is no room for it, one does it all.
    #[must_use]
    pub const fn restore_jobs(mut self, jobs: NonZeroUsize) -> Self {
        self.shared.restore_jobs = jobs.get();
        self
    }

    /// Whether every login of [`Logins`](super::Logins) is shut out of a database before it is restored, and before its
    /// snapshot is taken when the application is stopped. For platforms whose applications come in by those; not otherwise.
    #[must_use]
    pub const fn shut_out_logins(mut self, shut_out: bool) -> Self {
        self.shared.shut_out = shut_out;
        self
    }

    /// How long a dump waits for a table that somebody else has locked, in whole milliseconds; half a minute unless said
    /// otherwise.
    #[must_use]
    pub const fn lock_wait(mut self, duration: Duration) -> Self {
        self.shared.server.lock_wait = duration;
        self
    }

    /// More of libpq's variables for the programs, such as `PGSSLROOTCERT`.
    #[must_use]
    pub fn variables(mut self, variables: BTreeMap<String, String>) -> Self {
        self.shared.server.variables = variables;
        self
    }

    /// The snapshotter.
    #[must_use]
    pub fn build(self) -> PostgresSnapshotter {
        PostgresSnapshotter { shared: Arc::new(self.shared), background: Arc::default() }
    }
}
