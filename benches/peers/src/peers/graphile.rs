//! graphile_worker: a queue name for each lane. Tuned as its page on local queues advises: jobs are fetched a hundred at
//! a time, and completions are written together.

use std::{sync::Arc, time::Duration};

use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, LocalQueueConfig, RawJobSpec, TaskHandler, Worker, WorkerContext,
    WorkerOptions,
};

use crate::{
    Refusal,
    job::{self, Job},
    peer::{Order, Peer},
};

pub(crate) struct Graphile {
    worker: Arc<Worker>,
    order: Order,
}

impl TaskHandler for Job {
    const IDENTIFIER: &'static str = "job";

    async fn run(self, _context: WorkerContext) -> impl IntoTaskHandlerResult {
        job::run(self).await;
        Ok::<(), String>(())
    }
}

impl Peer for Graphile {
    async fn set_up(url: &str, tuned: bool, order: Order) -> Result<Self, Refusal> {
        let mut options = WorkerOptions::default().database_url(url).define_job::<Job>();
        if tuned {
            options = options
                .concurrency(20)
                .max_pg_conn(20)
                .local_queue(LocalQueueConfig::default().with_size(100))
                .complete_job_batch_delay(Duration::from_millis(2));
        }
        Ok(Self { worker: Arc::new(options.init().await?), order })
    }

    async fn ask(&self, jobs: &[Job]) -> Result<(), Refusal> {
        let jobs: Vec<RawJobSpec> = jobs
            .iter()
            .map(|job| {
                let queue_name = match self.order {
                    Order::None => None,
                    Order::Lanes(_) => Some(format!("lane-{}", job.lane)),
                };
                Ok(RawJobSpec {
                    identifier: Job::IDENTIFIER.to_string(),
                    payload: serde_json::to_value(job)?,
                    spec: JobSpec { queue_name, ..JobSpec::default() },
                })
            })
            .collect::<Result<_, serde_json::Error>>()?;
        self.worker.create_utils().add_raw_jobs(&jobs).await?;
        Ok(())
    }

    async fn work(&self) -> Result<(), Refusal> {
        let worker = Arc::clone(&self.worker);
        tokio::spawn(async move { worker.run().await });
        Ok(())
    }
}
