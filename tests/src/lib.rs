//! Tests of ocore as a whole.
