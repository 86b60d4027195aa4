//! A schema of its own in a database that all tests share, or on a server of its own.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use ocore_core::{
    id::WorkerId,
    name::PoolName,
    port::{Beat, Claim, Claimed, Enqueued, EnvironmentStore as _, QueueStore as _, Worker},
    request::Trigger,
    testing::laws::store::lab,
};
use ocore_postgres::store::{Builder, PostgresStore};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

pub(crate) struct Place {
    pub(crate) url: String,
    pub(crate) schema: String,
}

impl Place {
    /// A schema that is not made yet.
    pub(crate) fn new() -> Self {
        Self::on(ocore_test_postgres::shared_url("postgres"))
    }

    pub(crate) fn on(url: String) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self { url, schema: format!("store-{}-{number}", std::process::id()) }
    }

    /// A schema in a database that nobody else is in.
    pub(crate) async fn own_database() -> Self {
        let place = Self::new();
        let mut db = place.connect().await;
        let create = AssertSqlSafe(format!("CREATE DATABASE \"{}\"", place.schema));
        sqlx::raw_sql(create).execute(&mut db).await.expect("a database can be made");
        Self { url: ocore_test_postgres::shared_url(&place.schema), schema: place.schema }
    }

    /// Where the server listens.
    pub(crate) fn address(&self) -> std::net::SocketAddr {
        let (_, host) = self.url.split_once('@').expect("it is a server's URL");
        let (address, _) = host.split_once('/').expect("it is a server's URL");
        address.parse().expect("it is an address")
    }

    pub(crate) fn builder(&self) -> Builder {
        // Patient: the machine may be busy with much else.
        let builder = PostgresStore::builder(self.url.parse().expect("it is a URL"))
            .connect_timeout(Duration::from_secs(60));
        builder.schema(&self.schema)
    }

    pub(crate) async fn open(&self) -> PostgresStore {
        self.builder().migrate().await.expect("the store can be opened")
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("the server answers")
    }

    /// A statement, written for a schema named `ocore`.
    pub(crate) fn text(&self, statement: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(statement.replace("ocore.", &format!("\"{}\".", self.schema)))
    }

    /// Statements, written for a schema named `ocore`.
    pub(crate) async fn run(&self, statements: &str) -> sqlx::Result<()> {
        let mut db = self.connect().await;
        sqlx::raw_sql(self.text(statements)).execute(&mut db).await?;
        db.close().await
    }

    pub(crate) async fn count(&self, query: &str) -> i64 {
        self.count_on(&mut self.connect().await, query).await
    }

    pub(crate) async fn count_on(&self, db: &mut PgConnection, query: &str) -> i64 {
        sqlx::query_scalar(self.text(query)).fetch_one(db).await.expect("the query is valid")
    }
}

/// A store with an empty environment of this name.
pub(crate) async fn save(store: &PostgresStore, lane: &str) {
    store.save_environment(&lab::environment(lane, |spec| spec)).await.expect("it can be saved");
}

/// Asks for a deployment by hand.
pub(crate) async fn enqueue(store: &PostgresStore, number: u64, lane: &str) {
    let new = lab::new_deployment(number, &lab::name(lane), Trigger::Manual);
    let enqueued = store.enqueue(new, lab::at(0)).await.expect("it can be enqueued");
    assert!(matches!(enqueued, Enqueued::Accepted { .. }), "{enqueued:?}");
}

/// A worker that is registered.
pub(crate) async fn worker(store: &PostgresStore, number: u128) -> Worker {
    let worker =
        Worker::new(WorkerId::from_u128(number), vec![PoolName::default()], Duration::from_secs(600));
    assert!(matches!(store.heartbeat(&worker).await, Ok(Beat::Alive(_))));
    worker
}

pub(crate) async fn claim(store: &PostgresStore, worker: &Worker) -> Option<Claim> {
    match store.claim(worker, &[]).await.expect("the store answers") {
        Claimed::Work(claim) => Some(*claim),
        Claimed::Idle { .. } => None,
        other => panic!("the worker is alive: {other:?}"),
    }
}
