//! What tests of ocore, of its adapters and of the services that link it need: the in-memory store, fakes of the
//! other ports, faults, clocks, laws, mocks, and the simulated world.

pub mod clock;
pub mod fakes;
pub mod faults;
pub mod laws;
pub mod memory;
pub mod mocks;
pub mod model;
pub mod mutants;
pub mod sim;
