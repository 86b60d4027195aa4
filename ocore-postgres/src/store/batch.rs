//! Commits that come at the same time are written together: one transaction, one wait for the disk.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::join_all;
use ocore_core::{
    name::EnvironmentName,
    port::{Commit, StoreError, StoreErrorKind, StoreResult},
};
use tokio::sync::oneshot;

use super::{
    commit::{Answer, write},
    database::Database,
};

/// How many transactions of commits are under way at the same time: while one waits for the disk, the other is made.
const WRITERS_MAX: usize = 2;

/// How many commits are in one transaction at most.
const BATCH_MAX: usize = 64;

/// The commits that wait to be written. One that comes alone is written at once.
#[derive(Default)]
pub(super) struct Batches(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    writers: usize,
}

struct Waiting {
    commit: Arc<Commit>,
    answer: oneshot::Sender<StoreResult<Answer>>,
}

impl Batches {
    /// Writes the commit, also if this future is dropped.
    pub(super) async fn write(
        self: &Arc<Self>,
        database: &Arc<Database>,
        commit: Commit,
    ) -> StoreResult<Answer> {
        let (answer, answered) = oneshot::channel();
        if self.join(Waiting { commit: Arc::new(commit), answer }) {
            let writer = Writer { batches: self.clone(), database: database.clone() };
            tokio::spawn(async move { writer.run().await });
        }
        answered.await.unwrap_or_else(|_| {
            Err(StoreError::new(StoreErrorKind::Unknown, "the writer of the commit was stopped"))
        })
    }

    /// Whether another writer is to begin.
    fn join(&self, waiting: Waiting) -> bool {
        let mut queue = self.lock();
        queue.waiting.push(waiting);
        let is_wanted = queue.writers < WRITERS_MAX;
        queue.writers += usize::from(is_wanted);
        is_wanted
    }

    /// The next commits, of different lanes. Without any, the writer that asks is at its end.
    fn next(&self) -> Option<Vec<Waiting>> {
        let mut queue = self.lock();
        let mut lanes: BTreeSet<EnvironmentName> = BTreeSet::new();
        let (mut batch, mut later) = (Vec::new(), Vec::new());
        for waiting in std::mem::take(&mut queue.waiting) {
            let is_new =
                batch.len() < BATCH_MAX && lanes.insert(waiting.commit.deployment.environment.clone());
            if is_new { batch.push(waiting) } else { later.push(waiting) }
        }
        queue.waiting = later;
        (!batch.is_empty()).then_some(batch)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Writer {
    batches: Arc<Batches>,
    database: Arc<Database>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.batches.lock().writers -= 1;
    }
}

impl Writer {
    async fn run(self) {
        while let Some(batch) = self.batches.next() {
            let alone = match batch.as_slice() {
                [_] => batch,
                _ => self.together(batch).await,
            };
            join_all(alone.into_iter().map(|waiting| self.alone(waiting))).await;
        }
    }

    /// Writes several, and returns those that are to be written alone: their lane is locked by somebody, or all have failed,
    /// perhaps because of one. Made again, a commit is answered as the first time.
    async fn together(&self, batch: Vec<Waiting>) -> Vec<Waiting> {
        let commits: Arc<[_]> = batch.iter().map(|waiting| waiting.commit.clone()).collect();
        let written = self.database.call("commit several deployments' next states", move |db, sql| {
            Box::pin(write(db, sql, commits.clone()))
        });
        let answers = match written.await {
            Ok(answers) => answers,
            Err(error) => {
                tracing::debug!(%error, "the commits are made one by one");
                return batch;
            }
        };
        let mut alone: Vec<_> = batch.into_iter().map(Some).collect();
        for answer in answers {
            let answered = answer.number().and_then(|number| alone.get_mut(number)?.take());
            if let Some(waiting) = answered {
                // Nobody may wait any more.
                drop(waiting.answer.send(Ok(answer)));
            }
        }
        alone.into_iter().flatten().collect()
    }

    async fn alone(&self, waiting: Waiting) {
        let commits: Arc<[_]> = [waiting.commit].into();
        let written = self.database.call("commit the deployment's next state", move |db, sql| {
            Box::pin(write(db, sql, commits.clone()))
        });
        let answer = written.await.and_then(|answers| {
            let none = || StoreError::new(StoreErrorKind::Broken, "a commit was not answered");
            answers.into_iter().next().ok_or_else(none)
        });
        drop(waiting.answer.send(answer));
    }
}
