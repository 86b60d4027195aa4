//! The laws of the snapshotter. To come.
