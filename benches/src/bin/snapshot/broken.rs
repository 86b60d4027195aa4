//! What is cancelled, killed and corrupt.

use std::{
    env, fs,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use ocore_benches::table::{Row, median, quantile};
use ocore_core::{
    environment::SnapshotWhen,
    port::{ErrorKind, Snapshotter as _},
    secret::Secret,
};
use ocore_postgres::snapshot::{Fingerprint, PostgresSnapshotter, Strategy, Verification};
use tokio_util::sync::CancellationToken;

use crate::{
    measures::Bench,
    site::{caller, fence},
};

/// What a worker is told: the server, its directory, its fence.
const WORKER: &str = "OCORE_BENCH_WORKER";
const FILES: &str = "OCORE_BENCH_FILES";
const FENCE: &str = "OCORE_BENCH_FENCE";
/// How many damages are tried.
const DAMAGES: usize = 240;
/// How long the server goes on for a client that is gone, as the snapshotter asks it to; and what is granted beside.
const KILLED_MAX: f64 = 0.5;

/// How many sessions of a snapshot there are.
const SESSIONS: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'ocore-snapshot%'";
const AT_WORK: &str = "SELECT count(*) FROM pg_stat_progress_copy";

async fn until(bench: &Bench, question: &str, holds: impl Fn(f64) -> bool) {
    while !holds(bench.site.number(question).await) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// In the middle of the copying of a table: by a cancel, and by the death of the worker.
pub(crate) async fn cancel(bench: &Bench) -> Vec<Row> {
    let (mut cancelled, mut killed) = (Vec::new(), Vec::new());
    for _ in 0..bench.arguments.rounds.max(3) {
        cancelled.push(cancelled_within(bench).await);
        killed.push(killed_within(bench).await);
    }
    let row = |what: &str, times: &[f64], most: f64| {
        let latest = quantile(times, 1.0);
        let figures = format!("median {:.2} s, most {latest:.2} s of {}", median(times), times.len());
        Row::new(what, figures).target(format!("≤ {most} s"), latest <= most)
    };
    vec![
        row("a dump is cancelled: no program, no session, no file", &cancelled, 0.5),
        row("the worker of a dump is killed: no session", &killed, KILLED_MAX),
    ]
}

/// Waits until a table is being copied, and a little more.
async fn in_the_middle(bench: &Bench) {
    until(bench, AT_WORK, |copying| copying > 0.0).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
}

/// Seconds from the cancel of a dump until nothing is left of it.
async fn cancelled_within(bench: &Bench) -> f64 {
    let snapshotter = bench.dumper(Verification::Length);
    let (token, caller) = (CancellationToken::new(), caller("large", SnapshotWhen::BeforeStop));
    let context = caller.cancellable(1, fence(), &token);
    let taking = snapshotter.take(&context, caller.instance());
    let cancel = async {
        in_the_middle(bench).await;
        token.cancel();
        Instant::now()
    };
    let (taken, at) = tokio::join!(taking, cancel);
    let error = taken.expect_err("it was cancelled in the middle");
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    until(bench, SESSIONS, |sessions| sessions == 0.0).await;
    let within = at.elapsed().as_secs_f64();
    let left: Vec<_> = fs::read_dir(bench.site.path("ours")).expect("it is there").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    within
}

/// Seconds from the death of a worker until the server has given up its dump.
async fn killed_within(bench: &Bench) -> f64 {
    let mut worker = worker(bench);
    in_the_middle(bench).await;
    worker.kill().expect("it works");
    let at = Instant::now();
    worker.wait().expect("it ends");
    until(bench, SESSIONS, |sessions| sessions == 0.0).await;
    at.elapsed().as_secs_f64()
}

/// This program again, as a worker that dumps the large database.
fn worker(bench: &Bench) -> Child {
    let mut command = Command::new(env::current_exe().expect("the program has a name"));
    let files = bench.site.path("killed");
    command
        .env(WORKER, bench.site.cluster.url("bench_ocore"))
        .env(FILES, files)
        .env(FENCE, fence().to_string());
    command.stdin(Stdio::null()).spawn().expect("a worker can be started")
}

pub(crate) fn is_worker() -> bool {
    env::var_os(WORKER).is_some()
}

/// As a superuser, whose password is in the URL.
pub(crate) async fn work() -> ExitCode {
    let variable = |name| env::var(name).expect("the variable is set");
    let url = variable(WORKER);
    let password = url.split_once('@').and_then(|(user, _)| user.rsplit_once(':')).map_or("", |(_, it)| it);
    let options = url.parse().expect("it is a URL");
    let builder = PostgresSnapshotter::builder(options, Secret::new(password), variable(FILES));
    let snapshotter = builder.strategy(Strategy::Dump).fingerprint(Fingerprint::None).build();
    let caller = caller("large", SnapshotWhen::BeforeStop);
    let fence = variable(FENCE).parse().expect("a number");
    match snapshotter.take(&caller.call(1, fence), caller.instance()).await {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Flipped bits and lengths all over a dump: each is refused before a database is made.
pub(crate) async fn corruption(bench: &Bench) -> Row {
    let dumper = bench.dumper(Verification::Length);
    let snapshot = bench.take(&dumper, "small").await;
    let path = bench.site.path("ours").join(&snapshot.reference).join("database.dump.zst");
    let good = fs::read(&path).expect("the dump can be read");
    let caller = caller("small", SnapshotWhen::AfterStop);
    let databases = "SELECT max(oid::bigint) FROM pg_database";
    let before = bench.site.number(databases).await;
    let mut found = 0;
    for number in 0..DAMAGES {
        let mut bytes = good.clone();
        // Spread over the file, at another bit each time.
        let place = (number * 7919 * 104_729) % bytes.len();
        if number % 6 == 5 {
            bytes.truncate(place)
        } else {
            bytes[place] ^= 1 << (number % 8)
        }
        fs::write(&path, bytes).expect("the dump can be written");
        let refused = dumper.restore(&caller.call(2, fence()), caller.instance(), &snapshot).await;
        let is_found = refused.is_err_and(|error| error.to_string().contains("corrupt"));
        found += usize::from(is_found && bench.site.number(databases).await <= before);
    }
    let what = format!("{DAMAGES} flipped bits and truncations");
    Row::new(what, format!("{found} found before anything is made")).target("all", found == DAMAGES)
}
