//! apalis-postgres: it knows no order between tasks. Tuned as in its own examples: tasks are fetched a hundred at a time,
//! notifications wake the worker, and tasks run on threads of their own.

use apalis::prelude::*;
use apalis_postgres::{Config, PgPool, PostgresStorage, queries};
use sqlx_for_apalis::postgres::PgPoolOptions;
use tokio::runtime::Handle;

use crate::{
    Refusal,
    job::{self, Job},
    peer::{Order, Peer},
};

const QUEUE: &str = "bench";

pub(crate) struct Apalis {
    pool: PgPool,
    tuned: bool,
}

async fn measured(job: Job) -> Result<(), BoxDynError> {
    job::run(job).await;
    Ok(())
}

impl Peer for Apalis {
    async fn set_up(url: &str, tuned: bool, order: Order) -> Result<Self, Refusal> {
        if matches!(order, Order::Lanes(_)) {
            return Err(Refusal::Unsupported("there is no order between tasks"));
        }
        let pool = PgPoolOptions::new().max_connections(if tuned { 20 } else { 10 }).connect(url).await?;
        PostgresStorage::setup(&pool).await?;
        Ok(Self { pool, tuned })
    }

    async fn ask(&self, jobs: &[Job]) -> Result<(), Refusal> {
        let tasks = jobs.iter().map(|job| Ok(TaskBuilder::new(serde_json::to_vec(job)?).build()));
        let tasks = tasks.collect::<Result<Vec<_>, serde_json::Error>>()?;
        let mut connection = self.pool.acquire().await?;
        queries::push_tasks(&mut *connection, QUEUE, tasks).await?;
        Ok(())
    }

    async fn work(&self) -> Result<(), Refusal> {
        let config = Config::default().queue(QUEUE);
        let (pool, tuned, runtime) = (self.pool.clone(), self.tuned, Handle::current());
        // A worker that hands its tasks to the runtime cannot itself be handed to it.
        std::thread::spawn(move || {
            let ended = runtime.block_on(async move {
                if tuned {
                    let config = config.batch_size(100).lock_tasks(false);
                    let backend = PostgresStorage::new(&pool).with_config(config).with_pubsub();
                    let worker = WorkerBuilder::new("bench").backend(backend).parallelize(tokio::spawn);
                    worker.build(measured).run().await
                } else {
                    let backend = PostgresStorage::new(&pool).with_config(config);
                    WorkerBuilder::new("bench").backend(backend).build(measured).run().await
                }
            });
            eprintln!("the worker has ended: {ended:?}");
        });
        Ok(())
    }
}
