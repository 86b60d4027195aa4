//! The in-memory store keeps the laws of the store.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use ocore_core::{
    port::Store,
    testing::{clock::ManualClock, laws::store::Fixture, memory::MemoryStore},
};

struct InMemory {
    clock: ManualClock,
    store: MemoryStore,
}

impl InMemory {
    fn new() -> Self {
        let clock = ManualClock::new(1);
        Self { store: MemoryStore::new(Arc::new(clock.clone())), clock }
    }
}

#[async_trait]
impl Fixture for InMemory {
    async fn client(&self) -> Arc<dyn Store> {
        Arc::new(self.store.clone())
    }

    async fn pass(&self, duration: Duration) {
        self.clock.advance(duration);
    }

    fn unit(&self) -> Duration {
        Duration::from_secs(1)
    }
}

ocore_core::store_laws!(InMemory::new());
