use std::{collections::VecDeque, sync::Arc};

use futures::{FutureExt as _, Stream, StreamExt as _, stream};

use super::{Engine, EngineError, Shared};
use crate::{
    event::{Event, EventKind},
    id::{DeploymentId, EventSeq},
};

/// How many events are read at once.
const BATCH: usize = 256;

/// The events of one deployment, as they happen: ends after [`EventKind::Finished`].
///
/// Remember the last [`Event::seq`] to go on from there, in another process too.
#[must_use = "a watch shows nothing until it is polled"]
pub struct Watch {
    shared: Arc<Shared>,
    deployment: DeploymentId,
    after: EventSeq,
    read: VecDeque<Event>,
    finished: bool,
}

impl Engine {
    /// Follows a deployment from its first event.
    ///
    /// # Errors
    /// [`EngineError::NoSuchDeployment`].
    pub async fn watch(&self, id: DeploymentId) -> Result<Watch, EngineError> {
        self.watch_after(id, EventSeq::default()).await
    }

    /// Follows a deployment from the event after `after`.
    ///
    /// # Errors
    /// [`EngineError::NoSuchDeployment`].
    pub async fn watch_after(&self, id: DeploymentId, after: EventSeq) -> Result<Watch, EngineError> {
        let finished = self.deployment(id).await?.outcome().is_some()
            && self.shared.in_time(self.shared.store.events(id, after, 1)).await?.is_empty();
        let shared = self.shared.clone();
        Ok(Watch { shared, deployment: id, after, read: VecDeque::new(), finished })
    }
}

impl Watch {
    /// The next event; `None` after the last one.
    ///
    /// # Errors
    /// [`EngineError::Store`]; the next call tries again from the same place.
    pub async fn next(&mut self) -> Result<Option<Event>, EngineError> {
        loop {
            if let Some(event) = self.read.pop_front() {
                self.after = event.seq;
                self.finished = matches!(event.kind, EventKind::Finished { .. });
                return Ok(Some(event));
            }
            if self.finished {
                return Ok(None);
            }
            // Ask to be woken before reading: what happens in between is not missed.
            let shared = self.shared.clone();
            let mut nudged = Box::pin(shared.nudge.notified());
            nudged.as_mut().enable();
            let mut changed = shared.store.changed().fuse();
            let batch = shared.in_time(shared.store.events(self.deployment, self.after, BATCH)).await?;
            if batch.is_empty() {
                futures::select_biased! {
                    () = nudged.fuse() => {}
                    () = changed => {}
                    () = shared.executor.sleep(shared.timing.poll / 2).fuse() => {}
                }
            }
            self.read.extend(batch);
        }
    }

    /// The events as a stream, which ends after the last one or the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Event, EngineError>> + Send {
        stream::unfold(Some(self), |watch| async {
            let mut watch = watch?;
            match watch.next().await {
                Ok(event) => event.map(|event| (Ok(event), Some(watch))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }
}
