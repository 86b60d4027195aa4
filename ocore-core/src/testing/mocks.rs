//! [`mockall`] mocks of every port, for the tests of services that link ocore: each expects exactly the calls that a
//! test says, and panics at any other.
//!
//! To run whole deployments without a world, the [fakes](super::fakes) and the [memory store](super::memory) are
//! the better choice: they keep the contracts of the ports. A mock is for the one call that must fail in this way.
//!
//! ```
//! use std::sync::Arc;
//! use ocore_core::{
//!     id::DeploymentId,
//!     port::{Error, ErrorKind, HealthProbe, HistoryStore, Store},
//!     testing::mocks::{MockHealthProbe, MockStore},
//! };
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let id = DeploymentId::from_u128(7);
//! let mut store = MockStore::new();
//! store.expect_deployment().withf(move |asked| *asked == id).times(1).returning(|_| Ok(None));
//!
//! // What is tested takes any store.
//! async fn exists(store: Arc<dyn Store>, id: DeploymentId) -> bool {
//!     matches!(store.deployment(id).await, Ok(Some(_)))
//! }
//! assert!(!exists(Arc::new(store), id).await);
//!
//! let mut probe = MockHealthProbe::new();
//! probe.expect_check().returning(|_, _, _| Err(Error::permanent("no route to the rack")));
//! # let _: Arc<dyn HealthProbe> = Arc::new(probe);
//! # }
//! ```

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use mockall::mock;

use crate::{
    deployment::Deployment,
    environment::{Environment, Instance},
    event::{Event, NewEvent},
    id::{DeploymentId, EventSeq, Fence, WorkerId},
    name::EnvironmentName,
    port::{
        Acknowledged, Beat, Builder, CancelAnswer, Check, Checkout, Claimed, Commit, Committed, Context,
        Enqueued, EnvironmentRecord, EnvironmentStore, Filter, HealthProbe, HistoryStore, LaneQueue,
        Leftovers, LogLimit, LogStore, Observation, Page, QueueStore, Result, Runtime, Saved, SnapshotPin,
        SnapshotRecord, SnapshotStore, Snapshotter, Source, StoreResult, Worker,
    },
    release::{self, Image, LiveInstance, Release, Snapshot, Started},
    request::{NewDeployment, Revision},
};

mock! {
    /// A mock of [`Source`].
    #[derive(Debug)]
    pub Source {}

    #[async_trait]
    impl Source for Source {
        async fn fetch(&self, context: &Context, revision: &Revision) -> Result<release::Commit>;
        async fn checkout(&self, context: &Context, commit: &release::Commit) -> Result<Checkout>;
        async fn discard(&self, context: &Context, checkout: Checkout) -> Result<()>;
    }
}

mock! {
    /// A mock of [`Builder`].
    #[derive(Debug)]
    pub Builder {}

    #[async_trait]
    impl Builder for Builder {
        async fn build(&self, context: &Context, checkout: &Checkout) -> Result<Image>;
        async fn locate(&self, context: &Context, image: &Image) -> Result<bool>;
        async fn remove(&self, context: &Context, image: &Image) -> Result<()>;
        async fn sweep(&self, context: &Context, leftovers: &Leftovers) -> Result<()>;
    }
}

mock! {
    /// A mock of [`Snapshotter`].
    #[derive(Debug)]
    pub Snapshotter {}

    #[async_trait]
    impl Snapshotter for Snapshotter {
        async fn take(&self, context: &Context, instance: &Instance) -> Result<Snapshot>;
        async fn restore(&self, context: &Context, instance: &Instance, snapshot: &Snapshot) -> Result<()>;
        async fn changed_since(
            &self,
            context: &Context,
            instance: &Instance,
            snapshot: &Snapshot,
        ) -> Result<bool>;
        async fn remove(&self, context: &Context, snapshot: &Snapshot) -> Result<()>;
        async fn sweep(&self, context: &Context, leftovers: &Leftovers) -> Result<()>;
    }
}

mock! {
    /// A mock of [`Runtime`].
    #[derive(Debug)]
    pub Runtime {}

    #[async_trait]
    impl Runtime for Runtime {
        async fn stop(&self, context: &Context, live: &LiveInstance) -> Result<()>;
        async fn update(&self, context: &Context, instance: &Instance, release: &Release) -> Result<()>;
        async fn start(&self, context: &Context, instance: &Instance, release: &Release) -> Result<Started>;
        async fn withdraw(&self, context: &Context, instance: &Instance) -> Result<()>;
        async fn revive(&self, context: &Context, live: &LiveInstance, release: &Release) -> Result<Started>;
        async fn inspect(
            &self,
            context: &Context,
            instance: &Instance,
            started: &Started,
        ) -> Result<Observation>;
        async fn tail(
            &self,
            context: &Context,
            instance: &Instance,
            started: &Started,
            lines: usize,
        ) -> Result<Vec<String>>;
    }
}

mock! {
    /// A mock of [`HealthProbe`].
    #[derive(Debug)]
    pub HealthProbe {}

    #[async_trait]
    impl HealthProbe for HealthProbe {
        async fn check(&self, context: &Context, instance: &Instance, started: &Started) -> Result<Check>;
    }
}

mock! {
    /// A mock of a whole [`Store`](crate::port::Store).
    #[derive(Debug)]
    pub Store {}

    #[async_trait]
    impl EnvironmentStore for Store {
        async fn save_environment(&self, environment: &Environment) -> StoreResult<Saved>;
        async fn environment(&self, name: &EnvironmentName) -> StoreResult<Option<EnvironmentRecord>>;
        async fn environments(&self) -> StoreResult<Vec<EnvironmentRecord>>;
        async fn set_paused(&self, name: &EnvironmentName, by: Option<String>) -> StoreResult<bool>;
        async fn acknowledge(
            &self,
            name: &EnvironmentName,
            stranded: DeploymentId,
            actor: &str,
            at: DateTime<Utc>,
        ) -> StoreResult<Acknowledged>;
    }

    #[async_trait]
    impl QueueStore for Store {
        async fn enqueue(&self, new: NewDeployment, at: DateTime<Utc>) -> StoreResult<Enqueued>;
        async fn heartbeat(&self, worker: &Worker) -> StoreResult<Beat>;
        async fn claim(&self, worker: &Worker, busy: &[EnvironmentName]) -> StoreResult<Claimed>;
        async fn commit(&self, commit: &Commit) -> StoreResult<Committed>;
        async fn request_cancel(
            &self,
            deployment: DeploymentId,
            actor: &str,
            at: DateTime<Utc>,
        ) -> StoreResult<CancelAnswer>;
        async fn retire(&self, worker: WorkerId) -> StoreResult<()>;
        async fn lane(&self, environment: &EnvironmentName) -> StoreResult<Option<LaneQueue>>;
        async fn changed(&self);
    }

    #[async_trait]
    impl HistoryStore for Store {
        async fn deployment(&self, id: DeploymentId) -> StoreResult<Option<Deployment>>;
        async fn history(
            &self,
            filter: &Filter,
            before: Option<DeploymentId>,
            limit: usize,
        ) -> StoreResult<Page>;
    }

    #[async_trait]
    impl LogStore for Store {
        async fn append(
            &self,
            environment: &EnvironmentName,
            deployment: DeploymentId,
            fence: Fence,
            events: Vec<NewEvent>,
            limit: LogLimit,
        ) -> StoreResult<bool>;
        async fn events(
            &self,
            deployment: DeploymentId,
            after: EventSeq,
            limit: usize,
        ) -> StoreResult<Vec<Event>>;
    }

    #[async_trait]
    impl SnapshotStore for Store {
        async fn snapshots(&self, environment: &EnvironmentName) -> StoreResult<Vec<SnapshotRecord>>;
        async fn retire_snapshots(
            &self,
            environment: &EnvironmentName,
            references: &[String],
            at: DateTime<Utc>,
        ) -> StoreResult<Vec<String>>;
        async fn forget_snapshots(
            &self,
            environment: &EnvironmentName,
            references: &[String],
        ) -> StoreResult<()>;
        async fn pin_snapshots(
            &self,
            environment: &EnvironmentName,
            deployment: DeploymentId,
            pin: &SnapshotPin,
        ) -> StoreResult<bool>;
    }
}
