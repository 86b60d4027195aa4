//! The Store: everything that outlives a worker. Grouped by who calls it.
//!
//! Every method is one transaction. **Dropping a call's future must not break it in two**: the call happens wholly
//! or not at all, and leaves no connection in a transaction. A store's own clock decides about leases and waits;
//! durations are handed over, moments are not. (When a pin ends is a person's word, in the time of the wall clock: it is
//! compared with the moment that the caller hands over.)
//!
//! *Laws*: `store_laws!` in the `testing` feature.

mod environments;
mod error;
mod history;
mod log;
mod queue;
mod snapshots;

pub use self::{
    environments::{Acknowledged, EnvironmentRecord, EnvironmentStore, Occupied, Saved},
    error::{StoreError, StoreErrorKind, StoreResult},
    history::{Filter, HistoryStore, Page},
    log::{LogLimit, LogStore},
    queue::{
        Beat, CancelAnswer, Claim, Claimed, Commit, Committed, Enqueued, Finish, Held, LaneQueue, Next,
        QueueStore, Worker,
    },
    snapshots::{SnapshotPin, SnapshotRecord, SnapshotState, SnapshotStore},
};

/// A whole store: all of its groups.
pub trait Store: EnvironmentStore + QueueStore + HistoryStore + LogStore + SnapshotStore {}

impl<T: EnvironmentStore + QueueStore + HistoryStore + LogStore + SnapshotStore> Store for T {}
