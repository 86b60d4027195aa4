//! The store on a real server, with a clock that is moved by hand.

mod model;
mod overlap;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use ocore_core::{port::Store, testing::laws::store::Fixture};
use ocore_test_postgres::{Pooler, shared_url};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::PostgresStore;

/// A schema of its own, whose clock stands still until it is moved.
pub(super) struct InSchema {
    schema: String,
    pooler: Option<Pooler>,
}

impl InSchema {
    pub(super) async fn new() -> Self {
        Self::with(None).await
    }

    /// Behind a pooler whose few connections are shared by all clients of the test.
    async fn behind_a_pooler() -> Self {
        Self::with(Some(Pooler::start(&shared_url("postgres"), 3))).await
    }

    async fn with(pooler: Option<Pooler>) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let schema = format!("test {} {number}", std::process::id());
        let made = Self { schema, pooler };
        made.builder().migrate().await.expect("the schema can be made");
        made.run(
            "CREATE TABLE ocore.clock AS SELECT timestamptz '2000-01-01' AS now;
             CREATE OR REPLACE FUNCTION ocore.now() RETURNS timestamptz LANGUAGE sql VOLATILE
             AS 'SELECT now FROM ocore.clock';
             CREATE OR REPLACE FUNCTION ocore.fence_min() RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT 0::bigint'",
        )
        .await;
        made
    }

    fn builder(&self) -> super::Builder {
        let url = self.pooler.as_ref().map_or_else(|| shared_url("postgres"), |it| it.url("postgres"));
        let builder = PostgresStore::builder(url.parse().unwrap()).schema(&self.schema).connections_max(4);
        let builder = builder.connect_timeout(Duration::from_secs(60));
        if self.pooler.is_some() { builder.behind_pooler() } else { builder }
    }

    pub(super) async fn open(&self) -> PostgresStore {
        self.builder().open().await.unwrap()
    }

    /// Statements, written for a schema named `ocore`.
    pub(super) async fn run(&self, statements: &str) {
        let text = statements.replace("ocore.", &format!("\"{}\".", self.schema));
        let mut db = PgConnection::connect(&shared_url("postgres")).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut db).await.unwrap();
        db.close().await.unwrap();
    }
}

impl InSchema {
    /// Puts other texts into a function.
    async fn change(&self, function: &str, changes: &[(&str, &str)]) {
        let mut db = PgConnection::connect(&shared_url("postgres")).await.unwrap();
        let definition = sqlx::query_scalar(
            "SELECT pg_get_functiondef(p.oid) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
             WHERE n.nspname = $1 AND p.proname = $2",
        );
        let definition: String =
            definition.bind(&self.schema).bind(function).fetch_one(&mut db).await.unwrap();
        let mut definition = definition.replace(&format!("\"{}\".", self.schema), "ocore.");
        for (text, wrong) in changes {
            assert!(definition.contains(text), "{function} has another text: {definition}");
            definition = definition.replace(text, wrong);
        }
        self.run(&definition).await;
    }
}

#[async_trait]
impl Fixture for InSchema {
    async fn client(&self) -> Arc<dyn Store> {
        Arc::new(self.open().await)
    }

    async fn pass(&self, duration: Duration) {
        let micros = duration.as_micros();
        self.run(&format!("UPDATE ocore.clock SET now = now + {micros} * interval '1 microsecond'")).await;
    }

    fn unit(&self) -> Duration {
        Duration::from_secs(1)
    }
}

mod laws {
    use super::InSchema;

    ocore_core::store_laws!(InSchema::new().await);
}

mod laws_behind_a_pooler {
    use super::InSchema;

    ocore_core::store_laws!(InSchema::behind_a_pooler().await);
}
