//! fang: it knows no order between jobs; a lane is a type of task with one worker. Its pages name one thing to set: how
//! long a worker sleeps when there is nothing to do.

use std::time::Duration;

use async_trait::async_trait;
use fang::{
    FangError, SleepParams,
    asynk::{
        async_queue::{AsyncQueue, AsyncQueueable},
        async_runnable::AsyncRunnable,
        async_worker_pool::AsyncWorkerPool,
    },
};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgConnection};

use crate::{
    Refusal,
    job::{self, Job},
    peer::{Order, Peer},
};

/// More would be more workers that poll.
const LANES_MAX: u32 = 64;

pub(crate) struct Fang {
    queue: AsyncQueue,
    tuned: bool,
    order: Order,
}

#[derive(Serialize, Deserialize)]
struct Task {
    job: Job,
    kind: String,
}

#[typetag::serde]
#[async_trait]
impl AsyncRunnable for Task {
    async fn run(&self, _queue: &dyn AsyncQueueable) -> Result<(), FangError> {
        job::run(self.job).await;
        Ok(())
    }

    fn task_type(&self) -> String {
        self.kind.clone()
    }
}

impl Peer for Fang {
    async fn set_up(url: &str, tuned: bool, order: Order) -> Result<Self, Refusal> {
        if matches!(order, Order::Lanes(lanes) if lanes > LANES_MAX) {
            return Err(Refusal::Unsupported("there is no order but one worker for each type of task"));
        }
        let mut connection = PgConnection::connect(url).await?;
        sqlx::raw_sql(include_str!(concat!(env!("OUT_DIR"), "/fang.sql"))).execute(&mut connection).await?;
        let mut queue = AsyncQueue::builder().uri(url).max_pool_size(20u32).build();
        queue.connect().await?;
        Ok(Self { queue, tuned, order })
    }

    async fn ask(&self, jobs: &[Job]) -> Result<(), Refusal> {
        for &job in jobs {
            let task = Task { job, kind: format!("lane-{}", job.lane) };
            self.queue.insert_task(&task).await?;
        }
        Ok(())
    }

    async fn work(&self) -> Result<(), Refusal> {
        let (lanes, workers) = match self.order {
            Order::None => (1, 20),
            Order::Lanes(lanes) => (lanes, 1),
        };
        let sleep = if self.tuned {
            let short = Duration::from_millis(50);
            SleepParams {
                sleep_period: short,
                max_sleep_period: short,
                min_sleep_period: short,
                sleep_step: Duration::ZERO,
            }
        } else {
            SleepParams::default()
        };
        for lane in 0..lanes {
            let mut pool: AsyncWorkerPool<AsyncQueue> = AsyncWorkerPool::builder()
                .number_of_workers(workers as u32)
                .queue(self.queue.clone())
                .sleep_params(sleep.clone())
                .task_type(format!("lane-{lane}"))
                .build();
            pool.start().await;
        }
        Ok(())
    }
}
