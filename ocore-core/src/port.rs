//! The ports: what the engine asks of the world. Adapters implement them.
//!
//! Every method gets a [`Context`]; every error is classified where it is made ([`Classify`]). Retrying happens in
//! the engine only: no adapter sleeps or loops. Dropping a call's future must leave nothing running.
//!
//! **Fences.** [`Context::fence`] only grows within an environment. Where the resource allows it, an adapter
//! remembers the highest fence that it has served for an instance and refuses a call with a lower one (a
//! permanent error): it comes from a worker that has lost its lane. Elsewhere the fence goes into the names of what is made.

mod builder;
mod context;
mod error;
mod leftovers;
mod probe;
mod runtime;
mod snapshotter;
mod source;
mod store;

pub use self::{
    builder::Builder,
    context::{Context, Sink},
    error::{Classify, Error, ErrorKind, Result},
    leftovers::Leftovers,
    probe::{Check, HealthProbe},
    runtime::{Observation, Runtime},
    snapshotter::Snapshotter,
    source::{Checkout, Source},
    store::{
        Acknowledged, Beat, CancelAnswer, Claim, Claimed, Commit, Committed, Enqueued, EnvironmentRecord,
        EnvironmentStore, Filter, Finish, Held, HistoryStore, LaneQueue, LogLimit, LogStore, Next, Occupied,
        Page, QueueStore, Saved, SnapshotPin, SnapshotRecord, SnapshotState, SnapshotStore, Store,
        StoreError, StoreErrorKind, StoreResult, Worker,
    },
};
