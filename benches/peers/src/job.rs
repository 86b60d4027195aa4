//! The job that every peer runs, and the record of what has run.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// One job. The numbers of a lane rise in the order in which they were asked for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) number: u64,
    pub(crate) lane: u32,
    /// Runs until [`Record::release`], or until it is cancelled.
    pub(crate) hold: bool,
}

/// When a job has begun, in the order of the beginnings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    pub(crate) job: Job,
    pub(crate) at: Instant,
}

pub(crate) static RECORD: Record = Record {
    begun: Mutex::new(Vec::new()),
    changed: Notify::const_new(),
    release: Notify::const_new(),
    cancelled: Notify::const_new(),
};

pub(crate) struct Record {
    begun: Mutex<Vec<Begun>>,
    changed: Notify,
    release: Notify,
    cancelled: Notify,
}

/// What a job does: nothing, unless it is to wait.
pub(crate) async fn run(job: Job) {
    RECORD.begin(job);
    if job.hold {
        RECORD.release.notified().await;
    }
}

impl Record {
    pub(crate) fn begin(&self, job: Job) {
        lock(&self.begun).push(Begun { job, at: Instant::now() });
        self.changed.notify_one();
    }

    /// Waits until so many jobs have begun since the record was last cleared.
    pub(crate) async fn wait(&self, jobs: usize, patience: Duration) -> Result<Vec<Begun>, String> {
        let all = async {
            while lock(&self.begun).len() < jobs {
                self.changed.notified().await;
            }
        };
        let in_time = tokio::time::timeout(patience, all).await;
        let begun = self.begun();
        match in_time {
            Ok(()) => Ok(begun),
            Err(_) => Err(format!("only {} of {jobs} jobs have begun in {patience:?}", begun.len())),
        }
    }

    /// The running job has seen that it is cancelled.
    pub(crate) fn cancel(&self) {
        self.cancelled.notify_one();
    }

    /// Waits until the running job has seen that it is cancelled.
    pub(crate) async fn cancelled(&self, patience: Duration) -> Result<(), String> {
        let seen = tokio::time::timeout(patience, self.cancelled.notified()).await;
        seen.map_err(|_| format!("the running job has not seen that it is cancelled in {patience:?}"))
    }

    /// Forgets what has begun.
    pub(crate) fn clear(&self) {
        lock(&self.begun).clear();
    }

    /// What has begun since the record was last cleared.
    pub(crate) fn begun(&self) -> Vec<Begun> {
        lock(&self.begun).clone()
    }

    /// Lets the job that holds go on to its end.
    pub(crate) fn release(&self) {
        self.release.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
