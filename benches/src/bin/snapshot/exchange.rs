//! The exchange of two databases, as clients see it that connect again at once; and a rollback by it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ocore_benches::table::{Row, median, quantile};
use ocore_core::environment::SnapshotWhen;
use ocore_postgres::snapshot::{Strategy, Verification};
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _, postgres::PgConnectOptions};
use tokio::task::JoinHandle;

use crate::{
    measures::Bench,
    site::{caller, fence},
};

const CLIENTS: usize = 8;
/// Between two questions of a client.
const THINK: Duration = Duration::from_millis(2);

/// Between two exchanges.
const CALM: Duration = Duration::from_millis(400);

type Seen = Vec<(Instant, String)>;

fn client(options: PgConnectOptions, over: Arc<AtomicBool>) -> JoinHandle<Seen> {
    tokio::spawn(async move {
        let mut seen = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let Ok(mut session) = PgConnection::connect_with(&options).await else { continue };
            while let Ok(row) = session.fetch_one("SELECT value FROM marker").await {
                seen.push((Instant::now(), row.get::<String, _>(0)));
                if over.load(Ordering::Relaxed) {
                    break;
                }
                tokio::time::sleep(THINK).await;
            }
        }
        seen
    })
}

/// How long nobody was served at each change of the value.
fn gaps(mut seen: Seen) -> Vec<f64> {
    seen.sort();
    let changes = seen.windows(2).filter(|pair| pair[0].1 != pair[1].1);
    changes.map(|pair| pair[1].0.duration_since(pair[0].0).as_secs_f64() * 1e3).collect()
}

pub(crate) async fn measure(bench: &Bench) -> Vec<Row> {
    let small = Exchanges::of(bench, "small").await;
    let large = Exchanges::of(bench, "large").await;
    let ratio = large.p95() / small.p95();
    let row = Row::new("exchange: large by small", format!("p95 {:.0} ms", large.p95()));
    let row = row.peer(format!("p95 {:.0} ms (small)", small.p95()), ratio);
    let ratio = row.target("≤ 1.5", ratio <= 1.5);
    vec![small.row("small"), large.row("large"), ratio, by_pg_restore(bench, median(&large.times)).await]
}

/// What exchanges were like: how long nobody was served, in milliseconds, and how long the calls took, in seconds.
struct Exchanges {
    gaps: Vec<f64>,
    times: Vec<f64>,
}

impl Exchanges {
    async fn of(bench: &Bench, database: &str) -> Self {
        let cloner = bench.site.snapshotter("clones", |it| it.strategy(Strategy::Clone));
        let snapshot = bench.clone_of(&cloner, database).await;
        let mut session = bench.site.session(database).await;
        session.execute("UPDATE marker SET value = 'after'").await.expect("it can be written");
        session.close().await.expect("the session ends");
        bench.put_back(&cloner, database, &snapshot).await;
        // From here on each exchange is the way back from the one before.
        let over = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| client(bench.site.options(database), over.clone())).collect();
        let (caller, mut times) = (caller(database, SnapshotWhen::AfterStop), Vec::new());
        for _ in 0..bench.arguments.exchanges {
            tokio::time::sleep(CALM).await;
            let began = Instant::now();
            let undone = cloner.undo(&caller.call(2, fence()), caller.instance()).await;
            times.push(began.elapsed().as_secs_f64());
            undone.expect("it can be exchanged");
        }
        tokio::time::sleep(CALM).await;
        over.store(true, Ordering::Relaxed);
        let mut seen = Vec::new();
        for client in clients {
            seen.extend(client.await.expect("a client ends"));
        }
        let gaps = gaps(seen);
        assert_eq!(gaps.len(), bench.arguments.exchanges, "each exchange is seen once");
        bench.forget(&cloner, database, &snapshot).await;
        bench.site.tidy().await;
        Self { gaps, times }
    }

    fn p95(&self) -> f64 {
        quantile(&self.gaps, 0.95)
    }

    fn row(&self, database: &str) -> Row {
        let (middle, late, count) = (median(&self.gaps), self.p95(), self.gaps.len());
        let what = format!("exchange, {database}: nobody is served, {CLIENTS} clients");
        let row = Row::new(what, format!("p50 {middle:.0} ms, p95 {late:.0} ms of {count}"));
        row.target("p95 ≤ 100 ms", late <= 100.0)
    }
}

/// The same rollback from a dump.
async fn by_pg_restore(bench: &Bench, exchange: f64) -> Row {
    let dumper = bench.dumper(Verification::Length);
    let snapshot = bench.take(&dumper, "large").await;
    let began = Instant::now();
    bench.put_back(&dumper, "large", &snapshot).await;
    let dump = began.elapsed().as_secs_f64();
    bench.forget(&dumper, "large", &snapshot).await;
    let ratio = exchange / dump;
    let row = Row::new("rollback by exchange, large", format!("{exchange:.3} s"));
    row.peer(format!("{dump:.3} s (from a dump)"), ratio).target("≤ 0.005", ratio <= 0.005)
}
