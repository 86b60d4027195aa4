//! The simulated world: the whole production engine over fakes, a store in memory and a virtual clock, with every
//! call open to faults and every poll of a worker open to a crash.
//!
//! | file | what it holds |
//! |---|---|
//! | `plan` | what one schedule is, the named scenarios, random plans |
//! | `cluster` | workers, a client, a supervisor and users over one store and one world |
//! | `script` | the requests of a plan, as a client makes them |
//! | `journal` | what the store accepted, checked at that moment |
//! | `watched` | the store that tells the journal |
//! | `verdict` | what must hold when everything has come to rest |
//! | `sweep` | sets of plans, run in threads |

pub mod cluster;
pub mod journal;
pub mod plan;
mod script;
pub mod sweep;
mod verdict;
mod watched;
