//! The store on a real server, as its users have it.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

mod batches;
mod connections;
mod crowd;
mod dropped;
mod place;
mod pooler;
mod proxy;
mod queries;
mod requests;
mod scene;
mod schema;
#[path = "../common/statements.rs"]
mod statements;
mod stepped;
mod wire;
