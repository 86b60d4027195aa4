//! The measurements, each of one peer.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::{
    Refusal,
    job::{Begun, Job, RECORD},
    peer::{Order, Peer},
};

/// A drain that lasts longer is measured by what was done until then.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one sample of a latency may take.
const SAMPLE: Duration = Duration::from_secs(30);
/// No more samples are taken after so long.
const SAMPLES: Duration = Duration::from_secs(30);
/// A worker that has just started is left to itself for so long.
const SETTLE: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Measure {
    DrainLanes,
    DrainPlain,
    StartLatency,
    SuccessorLatency,
    CancelLatency,
    IdleQueries,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    lanes: u32,
    jobs: u64,
    samples: usize,
    seconds: u64,
    pinned: bool,
}

impl Options {
    pub(crate) fn read(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self { lanes: 50, jobs: 5_000, samples: 100, seconds: 20, pinned: false };
        let mut arguments = arguments.iter();
        while let Some(option) = arguments.next() {
            let mut number = || {
                let value = arguments.next().ok_or_else(|| format!("{option} needs a number"))?;
                value.parse::<u32>().map_err(|error| format!("{option} {value}: {error}"))
            };
            match option.as_str() {
                "--lanes" => options.lanes = number()?,
                "--jobs" => options.jobs = number()?.into(),
                "--samples" => options.samples = number()? as usize,
                "--seconds" => options.seconds = number()?.into(),
                "--pinned-xmin" => options.pinned = true,
                other => return Err(format!("there is no option {other}")),
            }
        }
        Ok(options)
    }
}

impl Measure {
    pub(crate) fn named(name: &str) -> Result<Self, String> {
        Ok(match name {
            "drain-lanes" => Self::DrainLanes,
            "drain-plain" => Self::DrainPlain,
            "start-latency" => Self::StartLatency,
            "successor-latency" => Self::SuccessorLatency,
            "cancel-latency" => Self::CancelLatency,
            "idle-queries" => Self::IdleQueries,
            other => return Err(format!("there is no measurement {other:?}")),
        })
    }

    pub(crate) async fn run<P: Peer>(self, tuned: bool, options: Options) -> Result<Value, Refusal> {
        let url = std::env::var("DATABASE_URL")?;
        let order = match self {
            Self::DrainLanes => Order::Lanes(options.lanes),
            Self::SuccessorLatency => Order::Lanes(1),
            _ => Order::None,
        };
        let mut watcher = PgConnection::connect(&url).await?;
        let peer = P::set_up(&url, tuned, order).await?;
        match self {
            Self::DrainLanes => drain(&peer, options.jobs, options.lanes).await,
            Self::DrainPlain => {
                if options.pinned {
                    // An open snapshot, as a long query or a dump has it.
                    let pin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class";
                    sqlx::raw_sql(pin).execute(&mut watcher).await?;
                }
                let mut result = drain(&peer, options.jobs, 1).await?;
                result["order"] = Value::Null;
                Ok(result)
            }
            Self::StartLatency => start(&peer, options.samples).await,
            Self::SuccessorLatency => successor(&peer, options.samples).await,
            Self::CancelLatency => cancel(&peer, options.samples).await,
            Self::IdleQueries => idle(&peer, &mut watcher, options.seconds).await,
        }
    }
}

/// So many waiting jobs, until the last one has begun: its end, and its commit, are given to the peer for nothing.
async fn drain(peer: &impl Peer, jobs: u64, lanes: u32) -> Result<Value, Refusal> {
    let all: Vec<Job> = (0..jobs)
        .map(|number| Job { number, lane: (number % u64::from(lanes)) as u32, hold: false })
        .collect();
    for some in all.chunks(1_000) {
        peer.ask(some).await?;
    }
    let from = Instant::now();
    peer.work().await?;
    let begun = match RECORD.wait(all.len(), PATIENCE).await {
        Ok(begun) => begun,
        Err(_) => RECORD.begun(),
    };
    let Some(last) = begun.last() else {
        return Err(Refusal::Failed(format!("no job has begun in {PATIENCE:?}")));
    };
    let per_second = begun.len() as f64 / last.at.duration_since(from).as_secs_f64();
    let order = if in_order(&begun) { "kept" } else { "broken" };
    Ok(json!({ "measure": "drain", "per_second": per_second, "order": order }))
}

/// Whether the jobs of each lane have begun in the order in which they were asked for.
fn in_order(begun: &[Begun]) -> bool {
    let mut last: HashMap<u32, u64> = HashMap::new();
    begun.iter().all(|one| {
        let before = last.insert(one.job.lane, one.job.number);
        before.is_none_or(|before| before < one.job.number)
    })
}

/// Lets the peer work, and takes so many samples of a latency, or as many as fit into the time.
async fn sampled(
    peer: &impl Peer,
    samples: usize,
    sample: impl AsyncFn(u64) -> Result<Duration, Refusal>,
) -> Result<Value, Refusal> {
    peer.work().await?;
    tokio::time::sleep(SETTLE).await;
    let (mut latencies, until) = (Vec::new(), Instant::now() + SAMPLES);
    for number in (0..samples as u64).take_while(|_| Instant::now() < until) {
        // The end of the job before is written down by then.
        tokio::time::sleep(Duration::from_millis(50)).await;
        RECORD.clear();
        latencies.push(sample(number).await?);
    }
    Ok(quantiles(latencies))
}

/// Away from the beat of any poll, at another moment each time.
async fn pause(number: u64) {
    tokio::time::sleep(Duration::from_millis(20 + number * 37 % 100)).await;
}

/// Waits until so many jobs of a sample have begun.
async fn begun(jobs: usize) -> Result<Vec<Begun>, Refusal> {
    RECORD.wait(jobs, SAMPLE).await.map_err(Refusal::Failed)
}

async fn start(peer: &impl Peer, samples: usize) -> Result<Value, Refusal> {
    let sample = async |number| {
        pause(number).await;
        let from = Instant::now();
        peer.ask(&[Job { number, lane: 0, hold: false }]).await?;
        Ok(begun(1).await?[0].at.saturating_duration_since(from))
    };
    sampled(peer, samples, sample).await
}

async fn successor(peer: &impl Peer, samples: usize) -> Result<Value, Refusal> {
    let sample = async |number| {
        let first = Job { number: number * 2, lane: 0, hold: true };
        let second = Job { number: number * 2 + 1, lane: 0, hold: false };
        peer.ask(&[first, second]).await?;
        begun(1).await?;
        pause(number).await;
        let from = Instant::now();
        RECORD.release();
        let begun = begun(2).await?;
        if begun[0].job.number != first.number || begun[1].at < from {
            let why = "the second job of a lane did not wait for the first one's end";
            return Err(Refusal::Unsupported(why));
        }
        Ok(begun[1].at.duration_since(from))
    };
    sampled(peer, samples, sample).await
}

async fn cancel(peer: &impl Peer, samples: usize) -> Result<Value, Refusal> {
    let sample = async |number| {
        let job = Job { number, lane: 0, hold: true };
        peer.ask(&[job]).await?;
        begun(1).await?;
        pause(number).await;
        let from = Instant::now();
        peer.cancel(job).await?;
        RECORD.cancelled(SAMPLE).await.map_err(Refusal::Failed)?;
        Ok(from.elapsed())
    };
    sampled(peer, samples, sample).await
}

/// Transactions in the database while nothing is to be done.
async fn idle(peer: &impl Peer, watcher: &mut PgConnection, seconds: u64) -> Result<Value, Refusal> {
    peer.work().await?;
    tokio::time::sleep(SETTLE).await;
    let before = transactions(watcher).await?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let after = transactions(watcher).await?;
    // Each look is a transaction of its own; the first one counts for the second one.
    let per_second = (after - before - 1).max(0) as f64 / seconds as f64;
    Ok(json!({ "measure": "idle", "per_second": per_second }))
}

async fn transactions(watcher: &mut PgConnection) -> Result<i64, Refusal> {
    // The backends report to the statistics at most once a second.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let count = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    Ok(sqlx::query_scalar(count).fetch_one(watcher).await?)
}

fn quantiles(mut latencies: Vec<Duration>) -> Value {
    latencies.sort();
    let at = |share: f64| {
        let index = ((latencies.len() - 1) as f64 * share).round() as usize;
        latencies[index].as_secs_f64() * 1e3
    };
    json!({ "measure": "latency", "p50_ms": at(0.5), "p99_ms": at(0.99), "samples": latencies.len() })
}
