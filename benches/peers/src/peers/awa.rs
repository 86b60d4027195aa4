//! awa: order within a queue is the order of claims; jobs that must not run at once need a queue with one worker for each
//! lane. Tuned as its page on configuration says for hot queues: more workers, more claimers, a shorter poll.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use awa::{Client, InsertOpts, JobArgs, JobContext, JobResult, QueueConfig};
use serde::{Deserialize, Serialize};
use sqlx::{PgPool, postgres::PgPoolOptions};

use crate::{
    Refusal,
    job::{self, Job, RECORD},
    peer::{Order, Peer},
};

/// A queue has a dispatcher that polls.
const LANES_MAX: u32 = 64;

pub(crate) struct Awa {
    pool: PgPool,
    client: Client,
    /// What awa calls the jobs that were asked for alone, by their numbers here.
    ids: Mutex<HashMap<u64, i64>>,
}

#[derive(Debug, Serialize, Deserialize, JobArgs)]
struct Measured {
    job: Job,
}

/// Waits for the flag of a cancelled job: there is nothing to wait on.
async fn seen(flag: &AtomicBool) {
    while !flag.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn queue(lane: u32) -> String {
    format!("lane-{lane}")
}

impl Peer for Awa {
    async fn set_up(url: &str, tuned: bool, order: Order) -> Result<Self, Refusal> {
        let mut config = QueueConfig::default();
        if tuned {
            config.poll_interval = Duration::from_millis(50);
        }
        let lanes = match order {
            Order::Lanes(lanes) if lanes > LANES_MAX => {
                return Err(Refusal::Unsupported(
                    "there is no order but a queue with one worker for each lane",
                ));
            }
            Order::Lanes(lanes) => {
                config.max_workers = 1;
                lanes
            }
            Order::None => {
                if tuned {
                    config.max_workers = 200;
                    config.claimers = 2;
                }
                1
            }
        };
        // Each queue keeps one connection for itself.
        let connections = lanes + if tuned { 20 } else { 10 };
        let pool = PgPoolOptions::new().max_connections(connections).connect(url).await?;
        awa::migrations::run(&pool).await?;
        let handler = |measured: Measured, context: &JobContext| {
            let flag = context.cancellation_flag();
            async move {
                tokio::select! {
                    () = job::run(measured.job) => {}
                    () = seen(&flag) => RECORD.cancel(),
                }
                Ok(JobResult::Completed)
            }
        };
        let mut builder = Client::builder(pool.clone()).register::<Measured, _, _>(handler);
        for lane in 0..lanes {
            builder = builder.queue(queue(lane), config.clone());
        }
        Ok(Self { pool, client: builder.build()?, ids: Mutex::default() })
    }

    async fn ask(&self, jobs: &[Job]) -> Result<(), Refusal> {
        let opts = |job: &Job| InsertOpts { queue: queue(job.lane), ..InsertOpts::default() };
        if let [job] = jobs {
            let row = awa::insert_with(&self.pool, &Measured { job: *job }, opts(job)).await?;
            self.ids.lock().expect("nobody has panicked").insert(job.number, row.id);
            return Ok(());
        }
        let params =
            jobs.iter().map(|job| awa::model::insert::params_with(&Measured { job: *job }, opts(job)));
        let params = params.collect::<Result<Vec<_>, _>>()?;
        awa::insert_many_copy_from_pool(&self.pool, &params).await?;
        Ok(())
    }

    async fn work(&self) -> Result<(), Refusal> {
        self.client.start().await?;
        Ok(())
    }

    async fn cancel(&self, job: Job) -> Result<(), Refusal> {
        let id = self.ids.lock().expect("nobody has panicked").get(&job.number).copied();
        let id = id.ok_or_else(|| Refusal::Failed(format!("job {} was not asked for alone", job.number)))?;
        awa::admin::cancel(&self.pool, id).await?;
        Ok(())
    }
}
