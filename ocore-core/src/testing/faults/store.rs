use chrono::{DateTime, Utc};
use futures::future::{BoxFuture, pending};

use super::{Answer, Call, Faulty, Hint, faulty, yield_now};
use crate::{
    deployment::Deployment,
    environment::Environment,
    event::{Event, NewEvent},
    id::{DeploymentId, EventSeq, Fence, WorkerId},
    name::EnvironmentName,
    port::{
        Acknowledged, Beat, CancelAnswer, Claimed, Commit, Committed, Enqueued, EnvironmentRecord,
        EnvironmentStore, Filter, HistoryStore, LaneQueue, LogLimit, LogStore, Page, QueueStore, Saved,
        SnapshotPin, SnapshotRecord, SnapshotStore, StoreError, StoreErrorKind, StoreResult, Worker,
    },
    request::NewDeployment,
};

impl Answer for StoreError {
    fn refused(call: Call) -> Self {
        Self::new(StoreErrorKind::NotSent, format!("{call}: no connection"))
    }

    fn permanent(call: Call) -> Self {
        Self::new(StoreErrorKind::Broken, format!("{call}: a record cannot be read"))
    }

    fn unanswered(call: Call) -> Self {
        Self::new(StoreErrorKind::Unknown, format!("{call}: the connection was lost"))
    }

    /// A call of a store is one transaction: it has no middle.
    async fn half<R>(_effect: impl Future<Output = StoreResult<R>> + Send) {}
}

faulty! {
    impl EnvironmentStore as "store" {
        fn save_environment(&self, environment: &Environment) -> StoreResult<Saved>;
        fn environment(&self, name: &EnvironmentName) -> StoreResult<Option<EnvironmentRecord>>;
        fn environments(&self) -> StoreResult<Vec<EnvironmentRecord>>;
    }

    async fn set_paused(&self, name: &EnvironmentName, by: Option<String>) -> StoreResult<bool> {
        let (inner, own, own_by) = (self.inner.clone(), name.clone(), by.clone());
        let late = boxed(move || async move { inner.set_paused(&own, own_by).await });
        self.faults.run(self.caller, call("set_paused"), self.inner.set_paused(name, by), late).await
    }

    async fn acknowledge(
        &self,
        name: &EnvironmentName,
        stranded: DeploymentId,
        actor: &str,
        at: DateTime<Utc>,
    ) -> StoreResult<Acknowledged> {
        let (inner, own, who) = (self.inner.clone(), name.clone(), actor.to_owned());
        let late = boxed(move || async move { inner.acknowledge(&own, stranded, &who, at).await });
        let effect = self.inner.acknowledge(name, stranded, actor, at);
        self.faults.run(self.caller, call("acknowledge"), effect, late).await
    }
}

faulty! {
    impl QueueStore as "store" {
        fn heartbeat(&self, worker: &Worker) -> StoreResult<Beat>;
        fn claim(&self, worker: &Worker, busy: &[EnvironmentName]) -> StoreResult<Claimed>;
        fn commit(&self, commit: &Commit) -> StoreResult<Committed>;
        fn lane(&self, environment: &EnvironmentName) -> StoreResult<Option<LaneQueue>>;
    }

    async fn enqueue(&self, new: NewDeployment, at: DateTime<Utc>) -> StoreResult<Enqueued> {
        let (inner, own) = (self.inner.clone(), new.clone());
        let late = boxed(move || async move { inner.enqueue(own, at).await });
        self.faults.run(self.caller, call("enqueue"), self.inner.enqueue(new, at), late).await
    }

    async fn request_cancel(
        &self,
        deployment: DeploymentId,
        actor: &str,
        at: DateTime<Utc>,
    ) -> StoreResult<CancelAnswer> {
        let (inner, own) = (self.inner.clone(), actor.to_owned());
        let late = boxed(move || async move { inner.request_cancel(deployment, &own, at).await });
        let effect = self.inner.request_cancel(deployment, actor, at);
        self.faults.run(self.caller, call("request_cancel"), effect, late).await
    }

    async fn retire(&self, worker: WorkerId) -> StoreResult<()> {
        let inner = self.inner.clone();
        let late = boxed(move || async move { inner.retire(worker).await });
        self.faults.run(self.caller, call("retire"), self.inner.retire(worker), late).await
    }

    /// Hears of everything that changes after this call, as the store itself does.
    fn changed<'life0, 'async_trait>(&'life0 self) -> BoxFuture<'async_trait, ()>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        let heard = self.inner.changed();
        match self.faults.hint() {
            Hint::Heard => heard,
            Hint::Lost => Box::pin(async move {
                heard.await;
                self.inner.changed().await;
            }),
            Hint::Spurious => Box::pin(yield_now()),
            Hint::Never => Box::pin(pending()),
        }
    }
}

#[async_trait::async_trait]
impl<T: HistoryStore> HistoryStore for Faulty<T> {
    async fn deployment(&self, id: DeploymentId) -> StoreResult<Option<Deployment>> {
        self.faults.run(self.caller, call("deployment"), self.inner.deployment(id), nothing).await
    }

    async fn history(
        &self,
        filter: &Filter,
        before: Option<DeploymentId>,
        limit: usize,
    ) -> StoreResult<Page> {
        self.faults
            .run(self.caller, call("history"), self.inner.history(filter, before, limit), nothing)
            .await
    }
}

#[async_trait::async_trait]
impl<T: LogStore> LogStore for Faulty<T> {
    async fn append(
        &self,
        environment: &EnvironmentName,
        deployment: DeploymentId,
        fence: Fence,
        events: Vec<NewEvent>,
        limit: LogLimit,
    ) -> StoreResult<bool> {
        let (inner, name, own) = (self.inner.clone(), environment.clone(), events.clone());
        let late = boxed(move || async move { inner.append(&name, deployment, fence, own, limit).await });
        let effect = self.inner.append(environment, deployment, fence, events, limit);
        self.faults.run(self.caller, call("append"), effect, late).await
    }

    async fn events(
        &self,
        deployment: DeploymentId,
        after: EventSeq,
        limit: usize,
    ) -> StoreResult<Vec<Event>> {
        self.faults
            .run(self.caller, call("events"), self.inner.events(deployment, after, limit), nothing)
            .await
    }
}

faulty! {
    impl SnapshotStore as "store" {
        fn snapshots(&self, environment: &EnvironmentName) -> StoreResult<Vec<SnapshotRecord>>;
        fn forget_snapshots(&self, environment: &EnvironmentName, references: &[String]) -> StoreResult<()>;
    }

    async fn retire_snapshots(
        &self,
        environment: &EnvironmentName,
        references: &[String],
        at: DateTime<Utc>,
    ) -> StoreResult<Vec<String>> {
        let (inner, name, own) = (self.inner.clone(), environment.clone(), references.to_vec());
        let late = boxed(move || async move { inner.retire_snapshots(&name, &own, at).await });
        let effect = self.inner.retire_snapshots(environment, references, at);
        self.faults.run(self.caller, call("retire_snapshots"), effect, late).await
    }

    async fn pin_snapshots(
        &self,
        environment: &EnvironmentName,
        deployment: DeploymentId,
        pin: &SnapshotPin,
    ) -> StoreResult<bool> {
        let (inner, name, own) = (self.inner.clone(), environment.clone(), pin.clone());
        let late = boxed(move || async move { inner.pin_snapshots(&name, deployment, &own).await });
        let effect = self.inner.pin_snapshots(environment, deployment, pin);
        self.faults.run(self.caller, call("pin_snapshots"), effect, late).await
    }
}

const fn call(method: &'static str) -> Call {
    Call { port: "store", method }
}

/// A call that lands late and that nobody hears the answer of.
fn boxed<F: Future + Send + 'static>(
    make: impl FnOnce() -> F + Send + 'static,
) -> impl FnOnce() -> BoxFuture<'static, ()> + Send {
    move || {
        Box::pin(async move {
            let _nobody_hears = make().await;
        })
    }
}

/// A call that only reads has no effect that could be late.
fn nothing() -> BoxFuture<'static, ()> {
    Box::pin(std::future::ready(()))
}
