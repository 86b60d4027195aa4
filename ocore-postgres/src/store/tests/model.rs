//! Random calls by several clients: the server and the in-memory model must answer the same.

use ocore_core::testing::{laws, model};
use proptest::prelude::*;

use super::InSchema;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 16, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn the_server_answers_as_the_model(calls in prop::collection::vec(any::<[u16; 6]>(), 20..90)) {
        laws::run(async { model::agree(InSchema::new().await, &calls, 5).await });
    }
}
