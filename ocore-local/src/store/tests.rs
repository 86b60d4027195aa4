//! The store with a clock that is moved by hand; what a user sees is tested in `tests/store.rs`.

mod file;
mod model;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use ocore_core::{
    port::Store,
    testing::{clock::ManualClock, laws::store::Fixture},
};

use super::{Durability, SqliteStore, open::Clock};

/// A file in a directory of its own.
pub(super) struct InFile {
    directory: tempfile::TempDir,
    clock: ManualClock,
    durability: Durability,
}

impl InFile {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory, clock: ManualClock::new(1), durability: Durability::Relaxed }
    }

    /// One that is as durable as those of users are.
    pub(super) fn durable() -> Self {
        Self { durability: Durability::Full, ..Self::new() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("store.sqlite")
    }

    pub(super) async fn open(&self) -> SqliteStore {
        self.open_after("boot 1").await
    }

    /// Opens the file on a machine that was booted under this name.
    async fn open_after(&self, boot: &'static str) -> SqliteStore {
        let clock = Clock::Manual(Arc::new(self.clock.clone()), boot);
        SqliteStore::open_on(&self.path(), self.durability, clock).await.unwrap()
    }
}

#[async_trait]
impl Fixture for InFile {
    async fn client(&self) -> Arc<dyn Store> {
        Arc::new(self.open().await)
    }

    async fn pass(&self, duration: Duration) {
        self.clock.advance(duration);
    }

    fn unit(&self) -> Duration {
        Duration::from_secs(1)
    }
}

mod laws {
    use super::InFile;

    ocore_core::store_laws!(InFile::new());
}

mod laws_when_durable {
    use super::InFile;

    ocore_core::store_laws!(InFile::durable());
}
