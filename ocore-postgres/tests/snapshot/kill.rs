//! A worker process that is killed in the middle: before or after each message that it sends to the server.

use std::{
    env,
    num::NonZeroUsize,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicU64, Ordering},
    },
    time::Duration,
};

use ocore_core::{
    port::Snapshotter,
    release::Snapshot,
    secret::Secret,
    testing::laws::{
        caller::{Caller, eventually},
        snapshotter::{Contents, SnapshotterFixture as _},
    },
};
use ocore_postgres::snapshot::{Fingerprint, PostgresSnapshotter, Strategy};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::site::{PASSWORD, Site};

/// How many moments of a call a worker is killed at, unless `OCORE_KILLS=all`: spread over it, the last ones all.
const MOMENTS: u64 = 5;
const LAST: u64 = 3;

/// Stands between a worker and the server, counts the worker's messages, and kills it at one of them.
struct Proxy {
    port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    messages: AtomicU64,
    /// The message before or after which the worker is killed; zero: none.
    fatal: AtomicU64,
    worker: AtomicI32,
}

impl Proxy {
    async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, state) = (listener.local_addr().unwrap().port(), Arc::new(State::default()));
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let state = shared.clone();
                tokio::spawn(async move {
                    let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                    // It ends when one of the two does.
                    drop(pass(client, server, &state).await);
                });
            }
        });
        Self { port, state }
    }
}

async fn pass(mut client: TcpStream, mut server: TcpStream, state: &State) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let forth = async {
        let mut buffer = vec![0; 64 * 1024];
        let mut counted = None;
        loop {
            let count = from_client.read(&mut buffer).await?;
            if count == 0 {
                return to_server.shutdown().await;
            }
            // The worker's own sessions say how dates are written; those of pg_dump and pg_restore do not.
            let is_own = *counted.get_or_insert_with(|| contains(&buffer[..count], b"DateStyle"));
            let message = if is_own { state.messages.fetch_add(1, Ordering::SeqCst) + 1 } else { 0 };
            let fatal = is_own && message == state.fatal.load(Ordering::SeqCst);
            // Every other one still reaches the server.
            if !fatal || message % 2 == 0 {
                to_server.write_all(&buffer[..count]).await?;
            }
            if fatal {
                state.kill().await;
            }
        }
    };
    let back = async {
        tokio::io::copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::try_join!(forth, back).map(drop)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

impl State {
    async fn kill(&self) {
        eventually("the worker is known", || async { self.worker.load(Ordering::SeqCst) != 0 }).await;
        let worker = Pid::from_raw(self.worker.load(Ordering::SeqCst)).unwrap();
        kill_process(worker, Signal::KILL).unwrap();
    }
}

/// Starts a worker that makes one call and ends.
pub(crate) fn start(site: &Site, port: u16, strategy: &str, fence: u64, restore: Option<&Snapshot>) -> Child {
    let mut worker = Command::new(env::current_exe().unwrap());
    worker
        .args(["--exact", "kill::worker", "--ignored", "--nocapture"])
        .env("OCORE_WORKER_PORT", port.to_string())
        .env("OCORE_WORKER_ROLE", &site.role)
        .env("OCORE_WORKER_DATABASES", format!("{} {}", site.database, site.maintenance))
        .env("OCORE_WORKER_FILES", site.snapshots())
        .env("OCORE_WORKER_STRATEGY", strategy)
        .env("OCORE_WORKER_FENCE", fence.to_string())
        .env("OCORE_WORKER_RESTORE", restore.map_or("", |snapshot| &snapshot.reference))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    worker.spawn().unwrap()
}

/// The worker: makes one call, as its variables say.
#[tokio::test]
#[ignore = "is the worker that the tests of kills start"]
async fn worker() {
    let variable = |name: &str| env::var(format!("OCORE_WORKER_{name}")).unwrap();
    let databases = variable("DATABASES");
    let (database, maintenance) = databases.split_once(' ').unwrap();
    let options = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(variable("PORT").parse().unwrap())
        .username(&variable("ROLE"))
        .database(maintenance)
        .ssl_mode(PgSslMode::Disable);
    let snapshotter = PostgresSnapshotter::builder(options, Secret::new(PASSWORD), variable("FILES"))
        .strategy(strategy(&variable("STRATEGY")))
        .fingerprint(Fingerprint::Rows)
        .restore_jobs(NonZeroUsize::new(3).unwrap())
        .keep_replaced(Duration::ZERO)
        .build();
    let caller = Caller::new(Site::environment_stopped(database));
    let fence = variable("FENCE").parse().unwrap();
    let (context, instance) = (caller.call(u128::from(fence), fence), caller.instance());
    match variable("RESTORE").as_str() {
        "" => drop(snapshotter.take(&context, instance).await.unwrap()),
        reference => {
            let snapshot = Snapshot::new(reference, chrono::Utc::now(), 1);
            snapshotter.restore(&context, instance, &snapshot).await.unwrap();
        }
    }
    snapshotter.finish_dumps().await;
}

fn strategy(text: &str) -> Strategy {
    match text {
        "dump" => Strategy::Dump,
        "clone" => Strategy::Clone,
        "clone_then_dump" => Strategy::CloneThenDump,
        other => panic!("no strategy {other}"),
    }
}

fn contents(value: &str) -> Contents {
    (0..50).map(|n| (format!("key {n}"), format!("{value} {n}"))).collect()
}

/// Runs a worker to its end, or to its death.
async fn run(site: &Site, proxy: &Proxy, strategy: &str, fence: u64, restore: Option<&Snapshot>) -> bool {
    proxy.state.messages.store(0, Ordering::SeqCst);
    proxy.state.worker.store(0, Ordering::SeqCst);
    let child = start(site, proxy.port, strategy, fence, restore);
    proxy.state.worker.store(i32::try_from(child.id()).unwrap(), Ordering::SeqCst);
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let fatal = proxy.state.fatal.load(Ordering::SeqCst);
    assert!(output.status.success() || fatal > 0, "{}", String::from_utf8_lossy(&output.stderr));
    output.status.success()
}

fn moments(messages: u64) -> Vec<u64> {
    if env::var("OCORE_KILLS").is_ok_and(|kills| kills == "all") {
        return (1..=messages).collect();
    }
    let step = messages.saturating_sub(LAST).div_ceil(MOMENTS).max(1);
    let spread = (1..=messages.saturating_sub(LAST)).step_by(usize::try_from(step).unwrap());
    spread.chain(messages.saturating_sub(LAST) + 1..=messages).collect()
}

async fn site(strategy: Strategy) -> Site {
    Site::with(|it| it.strategy(strategy).fingerprint(Fingerprint::Rows).keep_replaced(Duration::ZERO)).await
}

/// What the killed worker's programs do is over soon.
async fn quiet(site: &Site) {
    let question = format!(
        "SELECT count(*)::text FROM pg_stat_activity WHERE usename = '{}' AND application_name LIKE 'ocore-snapshot%'",
        site.role
    );
    eventually("nothing of the killed worker runs on", || async {
        site.one("postgres", &question).await == "0"
    })
    .await;
}

/// Kills a worker at moments of a restore: the data is what it was or what the snapshot holds, and the next call has its
/// way and leaves nothing.
async fn check_restore(name: &str) {
    let site = site(strategy(name)).await;
    let proxy = Proxy::start(site.superuser.get_port()).await;
    let caller = site.caller();
    let take = async |fence: u64| {
        site.write(Some(&contents("old"))).await;
        let taken = site.snapshotter.take(&caller.call(1, fence), caller.instance()).await.unwrap();
        site.snapshotter.finish_dumps().await;
        site.write(Some(&contents("new"))).await;
        taken
    };
    let snapshot = take(1).await;
    assert!(run(&site, &proxy, name, 2, Some(&snapshot)).await);
    let messages = proxy.state.messages.load(Ordering::SeqCst);
    assert!(messages > 20, "{messages}");
    let mut killed = 0;
    for moment in moments(messages) {
        let fence = 10 * moment;
        let snapshot = take(fence).await;
        let before = site.made().await;
        proxy.state.fatal.store(moment, Ordering::SeqCst);
        killed += u32::from(!run(&site, &proxy, name, fence + 1, Some(&snapshot)).await);
        let data = site.read().await;
        let known = [Some(contents("old")), Some(contents("new"))];
        assert!(known.contains(&data), "killed at message {moment} of {messages}: {data:?}");
        let restored =
            site.snapshotter.restore(&caller.call(1, fence + 2), caller.instance(), &snapshot).await;
        restored.unwrap_or_else(|error| panic!("after a kill at message {moment} of {messages}: {error}"));
        assert_eq!(
            site.read().await,
            Some(contents("old")),
            "after a kill at message {moment} of {messages}"
        );
        quiet(&site).await;
        let made = site.made().await;
        assert!(
            made.is_subset(&before),
            "killed at message {moment} of {messages}: {made:?}, not {before:?}"
        );
        site.snapshotter.remove(&caller.call(1, fence + 3), &snapshot).await.unwrap();
    }
    assert!(killed > 4, "{killed} workers were killed");
}

/// Kills a worker at moments of a snapshot: the data stays what it is, the next snapshot is a good one, and when the
/// deployments are over nothing is left of the killed one.
async fn check_take(name: &str) {
    let site = site(strategy(name)).await;
    let proxy = Proxy::start(site.superuser.get_port()).await;
    let caller = site.caller();
    site.write(Some(&contents("old"))).await;
    let empty = site.made().await;
    assert!(run(&site, &proxy, name, 1, None).await);
    let messages = proxy.state.messages.load(Ordering::SeqCst);
    let mut killed = 0;
    for moment in moments(messages) {
        let fence = 10 * moment;
        site.write(Some(&contents("old"))).await;
        proxy.state.fatal.store(moment, Ordering::SeqCst);
        killed += u32::from(!run(&site, &proxy, name, fence, None).await);
        assert_eq!(site.read().await, Some(contents("old")), "killed at message {moment}");
        let deployment = u128::from(fence);
        let taken = site.snapshotter.take(&caller.call(deployment, fence + 1), caller.instance()).await;
        let taken = taken.unwrap_or_else(|error| panic!("after a kill at message {moment}: {error}"));
        site.snapshotter.finish_dumps().await;
        site.write(Some(&contents("new"))).await;
        let context = caller.call(deployment, fence + 2);
        site.snapshotter.restore(&context, caller.instance(), &taken).await.unwrap();
        assert_eq!(site.read().await, Some(contents("old")), "after a kill at message {moment}");
        quiet(&site).await;
        let ended = [1, deployment].map(ocore_core::id::DeploymentId::from_u128);
        let leftovers = ocore_core::port::Leftovers::new(ended.into(), [taken.reference.clone()].into());
        site.snapshotter.sweep(&context, &leftovers).await.unwrap();
        assert_eq!(site.made().await, [taken.reference.clone()].into(), "killed at message {moment}");
        site.snapshotter.remove(&context, &taken).await.unwrap();
        assert_eq!(site.made().await, empty, "killed at message {moment}");
    }
    assert!(killed > 4, "{killed} workers were killed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_in_a_restore_leaves_old_or_new_data() {
    check_restore("dump").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_in_a_restore_from_a_clone_leaves_old_or_new_data() {
    check_restore("clone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_while_a_clone_takes_its_place_leaves_old_or_new_data() {
    check_restore("clone_then_dump").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_in_a_snapshot_leaves_nothing_that_stays() {
    check_take("dump").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_in_a_clone_or_its_dump_leaves_nothing_that_stays() {
    check_take("clone_then_dump").await;
}
