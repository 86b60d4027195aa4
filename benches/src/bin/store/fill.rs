//! Fills a store: the first deployment of every lane as anyone asks for one, the others as copies of its rows.

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use ocore_core::{
    name::EnvironmentName,
    port::{Enqueued, Saved, Store},
    request::Trigger,
    testing::laws::store::lab,
};
use sqlx::{AssertSqlSafe, PgPool};

/// How many requests are under way at the same time.
const AT_ONCE: usize = 16;

/// How much there is in a store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) lanes: u64,
    /// All lanes' together.
    pub(crate) deployments: u64,
}

impl Size {
    const fn each(self) -> u64 {
        self.deployments / self.lanes
    }
}

pub(crate) fn lane(number: u64) -> EnvironmentName {
    lab::name(&format!("lane-{number:04}"))
}

/// Saves the lanes.
pub(crate) async fn lanes(store: &Arc<dyn Store>, count: u64) {
    let saved = stream::iter(0..count).map(|number| async move {
        let environment = lab::environment(lane(number).as_str(), |spec| {
            spec.policy(|policy| policy.queue_length_max = 10_000)
        });
        let saved = store.save_environment(&environment).await.expect("the environment can be saved");
        assert!(matches!(saved, Saved::Created | Saved::Updated), "{saved:?}");
    });
    saved.buffer_unordered(AT_ONCE).collect::<()>().await;
}

/// Accepts deployments as anyone asks for them, each lane's next one in turn, with ids from `first` on.
pub(crate) async fn ask(store: &Arc<dyn Store>, size: Size, first: u64) {
    for begun in (0..size.deployments).step_by(usize::try_from(size.lanes).expect("a small number")) {
        let round = begun..(begun + size.lanes).min(size.deployments);
        let asked = stream::iter(round).map(|number| async move {
            let new = lab::new_deployment(first + number, &lane(number % size.lanes), Trigger::Manual);
            let enqueued = store.enqueue(new, lab::at(0)).await.expect("the store works");
            assert!(matches!(enqueued, Enqueued::Accepted { .. }), "{enqueued:?}");
        });
        asked.buffer_unordered(AT_ONCE).collect::<()>().await;
    }
}

/// Accepts deployments in PostgreSQL: the first of each lane is asked for, the others are copies of what that has written.
pub(crate) async fn queue(store: &Arc<dyn Store>, db: &PgPool, schema: &str, size: Size, first: u64) {
    ask(store, Size { deployments: size.lanes, ..size }, first).await;
    copy(db, schema, "waiting", size.each() - 1).await;
}

/// Copies of the newest deployment of each lane in this phase, each after the one before.
pub(crate) async fn copy(db: &PgPool, schema: &str, phase: &str, each: u64) {
    let text = "
        CREATE TEMPORARY TABLE copies ON COMMIT DROP AS
            SELECT gen_random_uuid() AS id, d.id AS of, n
            FROM (SELECT DISTINCT ON (environment) * FROM ocore.deployments WHERE phase = '%phase%'
                  ORDER BY environment, seq DESC) AS d, generate_series(1, %each%) AS n;
        INSERT INTO ocore.deployments
            (id, environment, seq, version, begun, cancel, phase, status, trigger_kind, key, requested_at, record,
             receipt_worker, receipt_fence, receipt_answer, log_last, log_head_bytes)
        SELECT c.id, d.environment, d.seq + c.n, d.version, d.begun, d.cancel, d.phase, d.status, d.trigger_kind, d.key,
               d.requested_at, replace(d.record, d.id::text, c.id::text), d.receipt_worker, d.receipt_fence,
               d.receipt_answer, d.log_last, d.log_head_bytes
        FROM copies c JOIN ocore.deployments d ON d.id = c.of ORDER BY c.n, d.environment;
        INSERT INTO ocore.events (deployment, seq, at, bytes, kind)
        SELECT c.id, e.seq, e.at, e.bytes, e.kind FROM copies c JOIN ocore.events e ON e.deployment = c.of;
        UPDATE ocore.lanes SET seq = seq + %each%;";
    let text = text.replace("ocore.", &format!("\"{schema}\".")).replace("%phase%", phase);
    let text = text.replace("%each%", &each.to_string());
    let mut transaction = db.begin().await.expect("the server answers");
    sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut *transaction).await.expect("the rows can be copied");
    transaction.commit().await.expect("the rows can be copied");
}

/// What any server does by itself, sooner or later.
pub(crate) async fn vacuum(db: &PgPool) {
    sqlx::raw_sql("VACUUM (ANALYZE)").execute(db).await.expect("the tables can be vacuumed");
    sqlx::raw_sql("CHECKPOINT").execute(db).await.expect("the server can write");
}
