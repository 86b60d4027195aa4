//! Random calls by several clients: the file and the in-memory model must answer the same.

use ocore_core::testing::{laws, model};
use proptest::prelude::*;

use super::InFile;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 32, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn the_file_answers_as_the_model(calls in prop::collection::vec(any::<[u16; 6]>(), 20..90)) {
        laws::run(async { model::agree(InFile::new(), &calls, 1).await });
    }
}
