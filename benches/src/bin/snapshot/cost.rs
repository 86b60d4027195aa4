//! What something costs, in seconds: by the wall, and of the processors of the server, of this process and of its programs.

use std::time::Instant;

use ocore_benches::{cpu, table::median};
use ocore_test_postgres::Cluster;

/// The same thing in every round.
#[derive(Debug, Default)]
pub(crate) struct Series {
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

impl Series {
    /// Waits for this, and adds what it costs.
    pub(crate) async fn add<T>(&mut self, cluster: &Cluster, work: impl Future<Output = T>) -> T {
        let (before, began) = (cpu::used(cluster), Instant::now());
        let done = work.await;
        self.wall.push(began.elapsed().as_secs_f64());
        self.cpu.push(cpu::used(cluster).saturating_sub(before).as_secs_f64());
        done
    }

    /// The same of what holds up a thread.
    pub(crate) async fn add_blocking(&mut self, cluster: &Cluster, work: impl FnOnce()) {
        self.add(cluster, async { tokio::task::block_in_place(work) }).await;
    }

    pub(crate) fn wall(&self) -> f64 {
        median(&self.wall)
    }

    pub(crate) fn cpu(&self) -> f64 {
        median(&self.cpu)
    }
}
