//! The server that a bench starts, with the disk written as in production, and what is opened in it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use ocore_core::port::Store;
use ocore_postgres::store::{Builder, PostgresStore};
use ocore_test_postgres::Cluster;
use sqlx::{AssertSqlSafe, PgPool, postgres::PgConnectOptions};

/// Beside PostgreSQL's own defaults: room, as on any server that is in use.
const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("max_connections", "200"),
    ("shared_buffers", "1GB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "30min"),
];

pub(crate) struct Place {
    pub(crate) cluster: Cluster,
    numbers: AtomicU64,
}

/// A store in a database of its own.
pub(crate) struct Own {
    pub(crate) store: Arc<dyn Store>,
    /// For what is done beside the store.
    pub(crate) db: PgPool,
    pub(crate) name: String,
    url: String,
}

/// The schema of every store of the benches.
pub(crate) const SCHEMA: &str = "ocore";

impl Place {
    pub(crate) fn start() -> Self {
        Self { cluster: Cluster::start(SETTINGS), numbers: AtomicU64::new(0) }
    }

    /// An empty database: its URL, and its name.
    pub(crate) async fn database(&self) -> (String, String) {
        let name = format!("bench_{}", self.numbers.fetch_add(1, Ordering::Relaxed));
        let admin = PgPool::connect(&self.cluster.url("postgres")).await.expect("the server answers");
        let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::raw_sql(create).execute(&admin).await.expect("a database can be made");
        admin.close().await;
        (self.cluster.url(&name), name)
    }

    pub(crate) async fn drop_database(&self, name: &str) {
        let admin = PgPool::connect(&self.cluster.url("postgres")).await.expect("the server answers");
        let drop = AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"));
        sqlx::raw_sql(drop).execute(&admin).await.expect("a database can be dropped");
        admin.close().await;
    }

    pub(crate) async fn store(&self) -> Own {
        let (url, name) = self.database().await;
        let store = builder(&url).migrate().await.expect("the store can be opened");
        let db = PgPool::connect(&url).await.expect("the server answers");
        Own { store: Arc::new(store), db, name, url }
    }
}

impl Own {
    /// Another client, as of another process.
    pub(crate) async fn client(&self) -> PostgresStore {
        builder(&self.url).open().await.expect("the store can be opened")
    }

    /// Another client, which neither tells nor hears of changes.
    pub(crate) async fn deaf_client(&self) -> PostgresStore {
        builder(&self.url).hints(false).open().await.expect("the store can be opened")
    }
}

fn builder(url: &str) -> Builder {
    PostgresStore::builder(url.parse::<PgConnectOptions>().expect("it is a URL")).schema(SCHEMA)
}
