//! The peers, each in a file of its own.

pub(crate) mod apalis;
pub(crate) mod awa;
pub(crate) mod fang;
pub(crate) mod graphile;
pub(crate) mod sqlxmq;
pub(crate) mod underway;
