//! sqlxmq: ordered jobs, a channel for each lane. Its documentation advises to keep more jobs running for more speed.

use sqlx::{PgPool, postgres::PgPoolOptions};
use sqlxmq::{CurrentJob, JobRegistry, JobRunnerHandle};
use tokio::sync::Mutex;

use crate::{
    Refusal,
    job::{self, Job},
    peer::{Order, Peer},
};

pub(crate) struct Sqlxmq {
    pool: PgPool,
    tuned: bool,
    order: Order,
    runner: Mutex<Option<JobRunnerHandle>>,
}

#[sqlxmq::job(channel_name = "bench")]
async fn measured(mut current: CurrentJob) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
    let job: Job = current.json()?.ok_or("the job has no payload")?;
    job::run(job).await;
    current.complete().await?;
    Ok(())
}

impl Peer for Sqlxmq {
    async fn set_up(url: &str, tuned: bool, order: Order) -> Result<Self, Refusal> {
        let pool = PgPoolOptions::new().max_connections(if tuned { 20 } else { 10 }).connect(url).await?;
        sqlx::raw_sql(include_str!(concat!(env!("OUT_DIR"), "/sqlxmq.sql"))).execute(&pool).await?;
        Ok(Self { pool, tuned, order, runner: Mutex::new(None) })
    }

    async fn ask(&self, jobs: &[Job]) -> Result<(), Refusal> {
        let mut transaction = self.pool.begin().await?;
        for job in jobs {
            let lane = format!("lane-{}", job.lane);
            let mut builder = measured.builder();
            builder.set_json(job)?;
            if matches!(self.order, Order::Lanes(_)) {
                builder.set_channel_args(&lane).set_ordered(true);
            }
            builder.spawn(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    async fn work(&self) -> Result<(), Refusal> {
        let mut runner = JobRegistry::new(&[measured]).runner(&self.pool);
        if self.tuned {
            runner.set_concurrency(50, 100);
        }
        *self.runner.lock().await = Some(runner.run().await?);
        Ok(())
    }
}
