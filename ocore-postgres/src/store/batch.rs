//! Commits that come at the same time are written together: one transaction, one wait for the disk.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use ocore_core::{
    name::EnvironmentName,
    port::{Commit, StoreError, StoreErrorKind, StoreResult},
};
use tokio::{sync::oneshot, time::timeout};

use super::{
    commit::{Answer, write},
    database::Database,
};

/// So many commits at the same time are written each by itself: none waits for another's end. More are written together.
const ALONE_MAX: usize = 4;

/// So many that wait are worth a second transaction, made while the first one waits for the disk.
const SECOND_MIN: usize = 16;

/// How many commits are in one transaction at most.
const BATCH_MAX: usize = 64;

/// How long the next commits wait for the end of those that are written alone.
const PATIENCE: Duration = Duration::from_millis(100);

/// The commits that wait to be written. One that comes alone is written at once.
#[derive(Default)]
pub(super) struct Batches(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    under_way: usize,
    writers: usize,
}

impl Queue {
    /// Whether there is work for so many writers.
    fn wants(&self, writers: usize) -> bool {
        let few = self.under_way + self.waiting.len() <= ALONE_MAX;
        match writers {
            ..=1 => true,
            2 => few || self.waiting.len() >= SECOND_MIN,
            _ => few && writers <= ALONE_MAX,
        }
    }

    /// The oldest commits of different lanes.
    fn take(&mut self) -> Vec<Waiting> {
        let mut lanes: BTreeSet<EnvironmentName> = BTreeSet::new();
        let mut is_new = |it: &Waiting| lanes.insert(it.commit.deployment.environment.clone());
        let (mut batch, mut later) = (Vec::new(), Vec::new());
        for waiting in std::mem::take(&mut self.waiting) {
            if batch.len() < BATCH_MAX && is_new(&waiting) {
                batch.push(waiting)
            } else {
                later.push(waiting)
            }
        }
        self.waiting = later;
        batch
    }
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
            let (batches, database) = (self.clone(), database.clone());
            let writer = Writer { batches, database, under_way: 0, is_counted: true };
            tokio::spawn(async move { writer.run().await });
        }
        answered.await.unwrap_or_else(|_| {
            Err(StoreError::new(StoreErrorKind::Unknown, "the writer of the commit was stopped"))
        })
    }

    /// Whether another writer is to begin; it is counted.
    fn join(&self, waiting: Waiting) -> bool {
        let mut queue = self.lock();
        queue.waiting.push(waiting);
        let is_wanted = queue.wants(queue.writers + 1);
        queue.writers += usize::from(is_wanted);
        is_wanted
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Writer {
    batches: Arc<Batches>,
    database: Arc<Database>,
    under_way: usize,
    is_counted: bool,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end(&mut self.batches.clone().lock());
    }
}

impl Writer {
    async fn run(mut self) {
        while let Some(batch) = self.next() {
            let left = match batch.as_slice() {
                [_] => batch,
                _ => self.together(batch).await,
            };
            let left = left.into_iter().map(|waiting| tokio::spawn(alone(self.database.clone(), waiting)));
            // They go on by themselves; whoever has locked their lanes is not waited for.
            drop(timeout(PATIENCE, join_all(left)).await);
        }
    }

    /// The next commits, of different lanes. Without any, this writer is not counted any more: whatever comes from then on
    /// begins another one.
    fn next(&mut self) -> Option<Vec<Waiting>> {
        let batches = self.batches.clone();
        let mut queue = batches.lock();
        queue.under_way -= std::mem::take(&mut self.under_way);
        let batch = if queue.wants(queue.writers) { queue.take() } else { Vec::new() };
        if batch.is_empty() {
            self.end(&mut queue);
            return None;
        }
        self.under_way = batch.len();
        queue.under_way += batch.len();
        Some(batch)
    }

    fn end(&mut self, queue: &mut Queue) {
        queue.under_way -= std::mem::take(&mut self.under_way);
        queue.writers -= usize::from(std::mem::take(&mut self.is_counted));
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
}

async fn alone(database: Arc<Database>, waiting: Waiting) {
    let commits: Arc<[_]> = [waiting.commit].into();
    let written = database
        .call("commit the deployment's next state", move |db, sql| Box::pin(write(db, sql, commits.clone())));
    let answer = written.await.and_then(|answers| {
        let none = || StoreError::new(StoreErrorKind::Broken, "a commit was not answered");
        answers.into_iter().next().ok_or_else(none)
    });
    drop(waiting.answer.send(answer));
}
