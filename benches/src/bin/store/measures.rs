//! What is measured, with what is wanted: the figures of the queue's design, for two cores and a disk that syncs in 2.6 ms.

use std::{sync::Arc, time::Duration};

use ocore_benches::{
    cpu, memory_store,
    table::{Row, median, quantile},
};
use ocore_core::{engine::Timing, port::Store};
use ocore_local::{Durability, SqliteStore};
use sqlx::PgPool;

use crate::{
    Arguments, big,
    drain::drain,
    fill::{self, Size},
    latency::{self, Samples},
    peers::{CONFIGS, PEERS, Peers, Shown},
    place::{Own, Place, SCHEMA},
};

/// The measurements, in the order of the table.
pub(crate) const NAMES: [&str; 14] = [
    "drain-50",
    "drain-1000",
    "drain-plain",
    "drain-pinned",
    "start",
    "start-own",
    "successor",
    "checkpoint",
    "cancel",
    "cancel-deaf",
    "crash",
    "idle",
    "embedded",
    "claim-big",
];

/// So many deployments are drained by us, and so many jobs by a peer, whose drains take longer.
const OURS: u64 = 50_000;
const PEERS_JOBS: u64 = 5_000;

pub(crate) struct Bench {
    pub(crate) place: Place,
    pub(crate) peers: Option<Peers>,
    pub(crate) arguments: Arguments,
}

/// Which of two figures is the better one.
#[derive(Clone, Copy)]
enum Better {
    More,
    Less,
}

impl Bench {
    pub(crate) async fn measure(&self, name: &str) -> Vec<Row> {
        match name {
            "drain-50" => self.drains(50, "strict order, 50 lanes", 5_000.0, "≥ 5,000/s").await,
            "drain-1000" => self.drains(1000, "strict order, 1,000 lanes", 12_000.0, "≥ 12,000/s").await,
            "drain-plain" => self.plain(false).await,
            "drain-pinned" => self.plain(true).await,
            "start" => {
                let ours = latency::start(&self.place, self.arguments.samples, false).await;
                let what = "request → first step, another process's idle worker";
                let row = latencies(what, &ours, "p50 ≤ 6 ms, p99 ≤ 15 ms", 6.0, 15.0);
                self.beside(row, &ours, "start-latency").await
            }
            "start-own" => {
                let ours = latency::start(&self.place, self.arguments.samples, true).await;
                let what = "request → first step, the asking process's idle worker";
                vec![latencies(what, &ours, "p50 ≤ 3.5 ms", 3.5, f64::INFINITY)]
            }
            "successor" => {
                let ours = latency::successor(&self.place, self.arguments.samples).await;
                let what = "last check → first step of the lane's next";
                let row = latencies(what, &ours, "p50 ≤ 4 ms, p99 ≤ 12 ms", 4.0, 12.0);
                self.beside(row, &ours, "successor-latency").await
            }
            "checkpoint" => {
                let ours = latency::checkpoint(&self.place, self.arguments.samples).await;
                vec![latencies("one commit between two steps", &ours, "p50 ≤ 3.2 ms", 3.2, f64::INFINITY)]
            }
            "cancel" => {
                let ours = latency::cancel(&self.place, self.arguments.samples / 3, true).await;
                let what = "cancel → running step, with notifications";
                let row = latencies(what, &ours, "p99 ≤ 50 ms", f64::INFINITY, 50.0);
                self.beside(row, &ours, "cancel-latency").await
            }
            "cancel-deaf" => {
                let ours = latency::cancel(&self.place, (self.arguments.samples / 20).max(3), false).await;
                let what = "cancel → running step, without notifications";
                let most = quantile(&ours, 1.0);
                let (middle, most) = (median(&ours) / 1000.0, most / 1000.0);
                let figures = format!("median {middle:.2} s, most {most:.2} s of {}", ours.len());
                // A heartbeat tells: 3 s, and the moment that its answer takes.
                vec![Row::new(what, figures).target("≤ 3 s and one answer", most <= 3.05)]
            }
            "crash" => vec![
                self.crash("by default", Timing::default(), 3, 12.0).await,
                self.crash("with tight settings", Timing::tight(), 10, 2.0).await,
            ],
            "idle" => {
                let seconds = if self.arguments.quick { 20 } else { 60 };
                let ours = latency::idle(&self.place, Duration::from_secs(seconds)).await;
                let row = Row::new("idle worker process", format!("{ours:.2} transactions/s"));
                let row = row.target("≤ 0.7 queries/s", ours <= 0.7);
                let seconds = seconds.to_string();
                let measure = ["idle-queries", "--seconds", &seconds];
                let (peers, refusals) = self.shown(&measure, &["default"]).await;
                compared(row, ours, &peers, refusals, "per_second", "/s", Better::Less)
            }
            "embedded" => self.embedded().await,
            "claim-big" => self.big().await,
            other => panic!("there is no measurement {other:?}"),
        }
    }

    async fn filled(&self, size: Size) -> Own {
        let own = self.place.store().await;
        fill::lanes(&own.store, size.lanes).await;
        fill::queue(&own.store, &own.db, SCHEMA, size, 1).await;
        fill::vacuum(&own.db).await;
        own
    }

    /// Drains of so many lanes: deployments per second, and microseconds of the processors for each.
    async fn drained(&self, lanes: u64, pinned: bool) -> (f64, f64) {
        let deployments = if self.arguments.quick { OURS / 5 } else { OURS } / lanes * lanes;
        let (mut speeds, mut costs) = (Vec::new(), Vec::new());
        for _ in 0..self.arguments.rounds {
            let size = Size { lanes, deployments };
            let own = self.filled(size).await;
            let pin = if pinned { Some(pin(&own.db).await) } else { None };
            let before = cpu::used(&self.place.cluster);
            speeds.push(drain(&own.store, size).await);
            let used = cpu::used(&self.place.cluster).saturating_sub(before);
            costs.push(used.as_secs_f64() * 1e6 / deployments as f64);
            drop(pin);
            let name = own.name.clone();
            drop(own);
            self.place.drop_database(&name).await;
        }
        (median(&speeds), median(&costs))
    }

    async fn drains(&self, lanes: u64, what: &str, least: f64, target: &str) -> Vec<Row> {
        let (speed, cost) = self.drained(lanes, false).await;
        let row = Row::new(what, format!("{speed:.0}/s ({cost:.0} µs of processor each)"));
        let row = row.target(target, speed >= least);
        let (lanes, jobs) = (lanes.to_string(), self.jobs());
        let measure = ["drain-lanes", "--lanes", &lanes, "--jobs", &jobs];
        let (peers, refusals) = self.shown(&measure, &CONFIGS).await;
        compared(row, speed, &peers, refusals, "per_second", "/s", Better::More)
    }

    /// The peers without keys; we have order and history here too.
    async fn plain(&self, pinned: bool) -> Vec<Row> {
        let (speed, cost) = self.drained(1000, pinned).await;
        let what = if pinned {
            "drain while a snapshot is pinned; peers without order"
        } else {
            "drain; peers without order"
        };
        let row = Row::new(what, format!("{speed:.0}/s ({cost:.0} µs of processor each)"));
        // River 0.x, a Go library, measured on such a machine for the design: 9,600 to 13,400/s.
        let row = if pinned { row } else { row.target("≥ 9,600/s (River)", speed >= 9_600.0) };
        let jobs = self.jobs();
        let mut measure = vec!["drain-plain", "--jobs", &jobs];
        measure.extend(pinned.then_some("--pinned-xmin"));
        let (peers, refusals) = self.shown(&measure, &CONFIGS).await;
        compared(row, speed, &peers, refusals, "per_second", "/s", Better::More)
    }

    fn jobs(&self) -> String {
        if self.arguments.quick { PEERS_JOBS / 10 } else { PEERS_JOBS }.to_string()
    }

    async fn crash(&self, how: &str, timing: Timing, samples: usize, most: f64) -> Row {
        let ours = latency::crash(&self.place, samples, timing).await;
        let (middle, longest) = (median(&ours) / 1000.0, quantile(&ours, 1.0) / 1000.0);
        let what = format!("crash of a worker → another one resumes, {how}");
        Row::new(what, format!("median {middle:.2} s, most {longest:.2} s of {samples}"))
            .target(format!("≤ {most} s"), longest <= most)
    }

    async fn embedded(&self) -> Vec<Row> {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let deployments = if self.arguments.quick { 500 } else { 5_000 };
        let sqlite = async |durability, file| {
            let store = SqliteStore::open_with(directory.path().join(file), durability).await;
            let store: Arc<dyn Store> = Arc::new(store.expect("the store can be opened"));
            asked_and_drained(&store, Size { lanes: 50, deployments }).await
        };
        let normal = sqlite(Durability::Relaxed, "relaxed").await;
        let full = sqlite(Durability::Full, "full").await;
        let memory = in_memory(Size { lanes: 50, deployments: deployments * 20 }).await;
        vec![
            Row::new("drain of SQLite, 50 lanes, synchronous=NORMAL", format!("{normal:.0}/s"))
                .target("≥ 3,000/s", normal >= 3_000.0),
            Row::new("drain of SQLite, 50 lanes, synchronous=FULL", format!("{full:.0}/s")),
            Row::new("drain of memory, 50 lanes", format!("{memory:.0}/s"))
                .target("≥ 500,000/s", memory >= 500_000.0),
        ]
    }

    /// The claim in a store that is nearly empty, and in one that is full.
    async fn big(&self) -> Vec<Row> {
        let Arguments { waiting, over, samples, .. } = self.arguments;
        let samples = samples.min(500);
        let small = big::claims(&self.place, 1000, 0, samples).await;
        let large = big::claims(&self.place, waiting, over, samples).await;
        let (small, large) = (median(&small), median(&large));
        let ratio = large / small;
        let row = Row::new(
            format!("claim, {waiting} queued and {over} finished, by that of a store with 1,000 queued"),
            format!("p50 {large:.2} ms"),
        );
        let row = row.peer(format!("p50 {small:.2} ms (ours, nearly empty)"), ratio);
        vec![row.target("≤ 1.5 ×", ratio <= 1.5)]
    }

    /// A line for each peer beside ours: by the middle.
    async fn beside(&self, row: Row, ours: &Samples, measure: &str) -> Vec<Row> {
        let samples = (self.arguments.samples / 3).to_string();
        let (peers, refusals) = self.shown(&[measure, "--samples", &samples], &CONFIGS).await;
        compared(row, median(ours), &peers, refusals, "p50_ms", " ms", Better::Less)
    }

    /// What the peers show, and why some show nothing.
    async fn shown(&self, measure: &[&str], configs: &[&str]) -> (Vec<Shown>, Vec<Row>) {
        let (mut shown, mut refusals) = (Vec::new(), Vec::new());
        let Some(peers) = &self.peers else { return (shown, refusals) };
        for peer in PEERS {
            for config in configs {
                match peers.show(&self.place, measure, peer, config).await {
                    Ok(one) => shown.push(one),
                    // One that cannot do it at all need not be asked twice.
                    Err(why) => {
                        let mut row = Row::new(format!("({})", measure[0]), "");
                        row.peer = format!("none: {}", why.replace(['|', '\n'], " "));
                        refusals.push(row);
                        break;
                    }
                }
            }
        }
        (shown, refusals)
    }
}

fn latencies(what: &str, ours: &Samples, target: &str, p50: f64, p99: f64) -> Row {
    let (middle, late) = (median(ours), quantile(ours, 0.99));
    let figures = format!("p50 {middle:.2} ms, p99 {late:.2} ms of {}", ours.len());
    Row::new(what, figures).target(target, middle <= p50 && late <= p99)
}

/// Our line beside the best peer, and a line for each of the others.
fn compared(
    row: Row,
    ours: f64,
    peers: &[Shown],
    refusals: Vec<Row>,
    field: &str,
    unit: &str,
    better: Better,
) -> Vec<Row> {
    let mut figures: Vec<(f64, String)> = peers
        .iter()
        .filter_map(|peer| {
            let figure = peer.number(field)?;
            let order = peer.value["order"].as_str().map(|order| format!(", order {order}"));
            let late = peer.number("p99_ms").map(|late| format!(", p99 {late:.1} ms"));
            let (order, late) = (order.unwrap_or_default(), late.unwrap_or_default());
            let figure_text = if figure >= 100.0 { format!("{figure:.0}") } else { format!("{figure:.2}") };
            Some((figure, format!("{figure_text}{unit}{late} ({}{order})", peer.peer)))
        })
        .collect();
    figures.sort_by(|(a, _), (b, _)| match better {
        Better::More => b.total_cmp(a),
        Better::Less => a.total_cmp(b),
    });
    let mut rows = vec![row];
    for (figure, text) in figures {
        let line = match rows.as_mut_slice() {
            [first] if first.peer.is_empty() => first.clone().peer(text, ours / figure),
            _ => Row::new("〃", "〃").peer(text, ours / figure),
        };
        if rows.len() == 1 && rows[0].peer.is_empty() {
            rows[0] = line;
        } else {
            rows.push(line);
        }
    }
    rows.extend(refusals);
    rows
}

/// An open transaction that keeps the server from forgetting anything that is over.
async fn pin(db: &PgPool) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut transaction =
        db.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await.expect("the server answers");
    sqlx::raw_sql("SELECT count(*) FROM pg_class").execute(&mut *transaction).await.expect("it can be read");
    transaction
}

/// On one thread: nothing waits for a disk or another process, and two would only wake each other.
async fn in_memory(size: Size) -> f64 {
    let drained = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime can be made").block_on(async {
            let store: Arc<dyn Store> = Arc::new(memory_store());
            asked_and_drained(&store, size).await
        })
    });
    drained.await.expect("it ends well")
}

async fn asked_and_drained(store: &Arc<dyn Store>, size: Size) -> f64 {
    fill::lanes(store, size.lanes).await;
    fill::ask(store, size, 1).await;
    drain(store, size).await
}
