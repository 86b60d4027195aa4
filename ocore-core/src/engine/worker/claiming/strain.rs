//! A store that does not answer is asked more rarely, until it does.

use std::time::Duration;

use crate::port::StoreError;

/// A worker waits at most so many times longer than it would otherwise. More would only make the recovery later.
const FACTOR_MAX: u32 = 4;

/// How many claims in a row the store has not answered.
#[derive(Debug, Default)]
pub(super) struct Strain {
    failures: u32,
}

impl Strain {
    /// The store has answered.
    pub(super) fn answered(&mut self) {
        if self.failures > 0 {
            tracing::info!(failures = self.failures, "the store answers again");
            self.failures = 0;
        }
    }

    /// It has not: how long to leave it alone, where `poll` is what passes between two looks otherwise.
    pub(super) fn failed(&mut self, error: &StoreError, poll: Duration) -> Duration {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(FACTOR_MAX).min(FACTOR_MAX);
        self.failures = self.failures.saturating_add(1);
        let wait = poll * factor;
        tracing::warn!(%error, failures = self.failures, ?wait, "a claim failed; the store is left alone for a while");
        wait
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, PoisonError};

    use super::*;
    use crate::port::StoreErrorKind;

    /// Where a test's log goes.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn it_is_said_that_the_store_does_not_answer_and_that_it_does_again() {
        let (log, mut strain) = (Log::default(), Strain::default());
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            strain.answered();
            strain.failed(
                &StoreError::new(StoreErrorKind::NotSent, "the server is full"),
                Duration::from_secs(1),
            );
            strain.answered();
            strain.answered();
        });
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].contains("WARN") && lines[0].contains("the server is full"), "{text}");
        assert!(lines[1].contains("INFO") && lines[1].contains("the store answers again"), "{text}");
    }

    #[test]
    fn a_store_that_does_not_answer_is_left_alone_longer_and_longer_but_not_for_ever() {
        let (mut strain, poll) = (Strain::default(), Duration::from_secs(1));
        let error = StoreError::new(StoreErrorKind::NotSent, "claim a lane");
        let mut waits =
            |times: usize| (0..times).map(|_| strain.failed(&error, poll).as_secs()).collect::<Vec<_>>();
        assert_eq!(waits(5), [1, 2, 4, 4, 4]);
        assert!(waits(40).iter().all(|wait| *wait == 4));
        strain.answered();
        assert_eq!(strain.failed(&error, poll), poll);
    }
}
