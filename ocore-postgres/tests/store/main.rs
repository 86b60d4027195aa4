//! The store on a real server, as its users have it.

mod batches;
mod connections;
mod crowd;
mod dropped;
mod place;
mod proxy;
mod requests;
mod scene;
mod schema;
mod stepped;
mod wire;
