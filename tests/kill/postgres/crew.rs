//! Worker processes: started, killed, frozen.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use sqlx::{Connection as _, PgConnection, types::Uuid};

use crate::Result;

/// The lease of a worker, with tight settings and by default; and how long a lane is looked after.
pub(crate) const TIGHT_LEASE: Duration = Duration::from_millis(1500);
pub(crate) const DEFAULT_LEASE: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Crew {
    url: String,
    tight: bool,
    workers: Vec<Child>,
}

impl Crew {
    pub(crate) fn new(url: &str, tight: bool) -> Self {
        Self { url: url.to_owned(), tight, workers: Vec::new() }
    }

    pub(crate) fn fill(&mut self, count: usize) -> Result<()> {
        while self.workers.len() < count {
            let mut command = Command::new(env!("CARGO_BIN_EXE_kill_worker_postgres"));
            command.env("WORLD", &self.url).env("TIMING", if self.tight { "tight" } else { "default" });
            self.workers.push(command.stdin(Stdio::piped()).spawn()?);
        }
        Ok(())
    }

    /// SIGKILL: no destructor, no flush, no goodbye.
    pub(crate) fn kill(&mut self, index: usize) -> Result<()> {
        let mut worker = self.workers.swap_remove(index % self.workers.len());
        if let Some(status) = worker.try_wait()? {
            return Err(format!("a worker ended by itself: {status}").into());
        }
        worker.kill()?;
        worker.wait()?;
        Ok(())
    }

    /// SIGSTOP, and SIGCONT after so long: it goes on in the middle of what it did.
    pub(crate) async fn freeze(&self, index: usize, time: Duration) -> Result<()> {
        let worker = self.workers[index % self.workers.len()].id();
        let signal = |name: &str| Command::new("kill").arg(name).arg(worker.to_string()).status();
        signal("-STOP")?;
        tokio::time::sleep(time).await;
        signal("-CONT")?;
        Ok(())
    }

    /// Ends their input, and waits for them to hand over.
    pub(crate) fn shut_down(&mut self) -> Result<()> {
        for mut worker in self.workers.drain(..) {
            drop(worker.stdin.take());
            let status = worker.wait()?;
            if !status.success() {
                return Err(format!("a worker ended with {status}").into());
            }
        }
        Ok(())
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            let _it_may_have_ended = worker.kill();
            let _reaped = worker.wait();
        }
    }
}

/// Lanes that changed hands after a worker was killed: how many the killed one had held, and how long it took until the last of
/// them was another's. Nothing, if it had held none.
pub(crate) async fn taken_over(url: String, lease: Duration) -> Option<(usize, Duration)> {
    let began = Instant::now();
    let held: BTreeMap<String, Uuid> =
        rows(&url, "SELECT name, holder FROM ocore.lanes WHERE holder IS NOT NULL")
            .await?
            .into_iter()
            .collect();
    let mut changed = BTreeMap::new();
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now =
            rows(&url, "SELECT name, coalesce(holder, active, gen_random_uuid()) FROM ocore.lanes").await;
        for (lane, holder) in now.unwrap_or_default() {
            if held.get(&lane).is_some_and(|before| *before != holder) {
                changed.entry(lane).or_insert_with(|| began.elapsed());
            }
        }
        if began.elapsed() < lease {
            continue;
        }
        let dead = "SELECT id::text, id FROM ocore.workers WHERE over OR lease_end <= clock_timestamp()";
        let dead: BTreeSet<Uuid> =
            rows(&url, dead).await.unwrap_or_default().into_iter().map(|row| row.1).collect();
        let of_dead: Vec<_> =
            held.iter().filter(|(_, holder)| dead.contains(*holder)).map(|it| it.0).collect();
        if of_dead.iter().all(|lane| changed.contains_key(*lane)) || began.elapsed() > PATIENCE {
            let last = of_dead.iter().map(|lane| changed.get(*lane).copied().unwrap_or(PATIENCE)).max()?;
            return Some((of_dead.len(), last));
        }
    }
}

async fn rows(url: &str, query: &'static str) -> Option<Vec<(String, Uuid)>> {
    let mut db = PgConnection::connect(url).await.ok()?;
    let rows = sqlx::query_as(query).fetch_all(&mut db).await.ok()?;
    db.close().await.ok()?;
    Some(rows)
}
