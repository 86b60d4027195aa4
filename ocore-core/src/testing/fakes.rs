//! In-memory fakes of every port but the store, over one shared [`World`]: full citizens that keep what the ports
//! promise, fences included, and do what each commit's [`Behaviour`] says.
//!
//! For tests of a service that embeds the engine, and for the simulation.
//!
//! ```
//! use ocore_core::testing::fakes::{Behaviour, FakeSource, World};
//!
//! let world = World::new();
//! world.push("main", "first", Behaviour::good());
//! world.push("main", "second, which fails its health check", Behaviour::good().unhealthy());
//! let (source, builder) = (world.source(), world.builder());
//! let (snapshotter, runtime, probe) = (world.snapshotter(), world.runtime(), world.probe());
//! let alone = FakeSource::with_commits(["one", "two"]); // a source without a world to look at
//! ```

mod builder;
mod probe;
mod runtime;
mod snapshotter;
mod source;
mod world;

pub use self::{
    builder::FakeBuilder,
    probe::FakeProbe,
    runtime::FakeRuntime,
    snapshotter::FakeSnapshotter,
    source::FakeSource,
    world::{Behaviour, Data, Running, Schema, World},
};

#[cfg(test)]
mod tests;
