//! The engine as its users see it, over the fakes and the in-memory store.

mod cancel;
mod deploy;
mod rollback;
mod stage;
mod workers;
