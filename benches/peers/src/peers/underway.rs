//! underway: a second task with the same concurrency key cannot even wait, so that there are no lanes. Its worker runs as
//! many tasks at once as there are processors; its page shows how to raise that.

use std::sync::Arc;

use sqlx::{PgPool, Postgres, Transaction, postgres::PgPoolOptions};
use underway::{Queue, Task, Worker, task::Result as TaskResult};

use crate::{
    Refusal,
    job::{self, Job},
    peer::{Order, Peer},
};

pub(crate) struct Underway {
    pool: PgPool,
    queue: Arc<Queue<Plain>>,
    tuned: bool,
}

struct Plain;

impl Task for Plain {
    type Input = Job;
    type Output = ();

    async fn execute(&self, _transaction: Transaction<'_, Postgres>, job: Job) -> TaskResult<()> {
        job::run(job).await;
        Ok(())
    }
}

impl Peer for Underway {
    async fn set_up(url: &str, tuned: bool, order: Order) -> Result<Self, Refusal> {
        if matches!(order, Order::Lanes(_)) {
            return Err(Refusal::Unsupported("a second task of the same concurrency key cannot be queued"));
        }
        let pool = PgPoolOptions::new().max_connections(if tuned { 40 } else { 10 }).connect(url).await?;
        underway::run_migrations(&pool).await?;
        let queue = Queue::builder().name("bench").pool(pool.clone()).build().await?;
        Ok(Self { pool, queue: Arc::new(queue), tuned })
    }

    async fn ask(&self, jobs: &[Job]) -> Result<(), Refusal> {
        self.queue.enqueue_multi(&self.pool, &Plain, jobs).await?;
        Ok(())
    }

    async fn work(&self) -> Result<(), Refusal> {
        let mut worker = Worker::new(Arc::clone(&self.queue), Plain);
        if self.tuned {
            worker.set_concurrency_limit(32);
        }
        tokio::spawn(async move { worker.run().await });
        Ok(())
    }
}
