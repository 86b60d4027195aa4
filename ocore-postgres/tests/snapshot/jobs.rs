//! Several jobs restore a large dump, from a file that is there for so long only.

use std::{
    fs,
    num::NonZeroUsize,
    os::unix::fs::PermissionsExt as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use ocore_core::{
    port::{ErrorKind, Snapshotter as _},
    release::Snapshot,
    testing::laws::caller::{Caller, eventually},
};
use ocore_postgres::snapshot::{Fingerprint, PostgresSnapshotterBuilder, Strategy};
use tempfile::TempDir;
use tokio::{runtime::Handle, task::block_in_place};
use tokio_util::sync::CancellationToken;

use crate::{
    disk::SmallDisk,
    faults::children,
    kill,
    round_trip::{dumped, everything},
    site::Site,
};

/// Large before compression, and soon written.
const LARGE: &str = "CREATE TABLE large AS SELECT n AS id, repeat('much of the same ', 60) AS text FROM generate_series(1, 80000) AS n; \
                     CREATE INDEX ON large (id); CREATE INDEX ON large (text, id)";

fn three(builder: PostgresSnapshotterBuilder) -> PostgresSnapshotterBuilder {
    builder
        .strategy(Strategy::Dump)
        .fingerprint(Fingerprint::Rows)
        .restore_jobs(NonZeroUsize::new(3).unwrap())
}

fn unpacked(caller: &Caller) -> bool {
    caller.lines().iter().any(|(_, line)| line.ends_with("bytes for 3 jobs"))
}

/// Restores, and gives what was said.
async fn restored(site: &Site, snapshot: &Snapshot) -> Caller {
    let caller = site.caller();
    site.snapshotter.restore(&caller.call(2, 2), caller.instance(), snapshot).await.unwrap();
    caller
}

async fn is_whole(site: &Site) {
    assert_eq!(site.one(&site.database, "SELECT count(*)::text FROM large").await, "80000");
}

/// What is at work in the side database.
fn sessions_at_it(site: &Site) -> String {
    format!(
        "SELECT count(*)::text FROM pg_stat_activity WHERE usename = '{}' AND query ~ '^(COPY|CREATE INDEX)'",
        site.role
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_back_by_several_jobs_too() {
    let site = Site::with(three).await;
    site.sql(&everything(&site).await).await;
    site.sql(LARGE).await;
    let before = dumped(&site, &site.database);
    let snapshot = site.take().await;
    site.sql("TRUNCATE large; DROP TABLE sale CASCADE").await;
    let caller = restored(&site, &snapshot).await;
    assert!(unpacked(&caller), "{:?}", caller.lines());
    assert!(dumped(&site, &site.database) == before, "something is different");
    assert_eq!(site.directories(), [snapshot.reference].into(), "what was unpacked is left");
    let is_shown = |what| caller.progress().iter().any(|it| it.what == what);
    assert!(is_shown("restoring") || is_shown("building indexes and constraints"), "{:?}", caller.progress());
}

/// The program's jobs are programs of their own: none of them may go on.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_are_cancelled_leave_nothing() {
    let site = Site::with(three).await;
    site.sql(LARGE).await;
    let snapshot = site.take().await;
    site.sql("TRUNCATE large").await;
    let (caller, token) = (site.caller(), CancellationToken::new());
    let at_it = sessions_at_it(&site);
    let cancel = async {
        eventually("a job is at it", || async { site.one("postgres", &at_it).await != "0" }).await;
        token.cancel();
    };
    let context = caller.cancellable(1, 1, &token);
    let restore = site.snapshotter.restore(&context, caller.instance(), &snapshot);
    let error = tokio::join!(restore, cancel).0.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert!(unpacked(&caller), "{:?}", caller.lines());
    assert_eq!(children("pg_restore"), []);
    assert_eq!(site.one("postgres", &at_it).await, "0");
    assert_eq!(site.other_databases().await, [].into());
    assert_eq!(site.directories(), [snapshot.reference.clone()].into());
    site.restore(&snapshot).await;
    is_whole(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_to_unpack_one_job_does_it_all() {
    let site = Site::with(three).await;
    let disk = SmallDisk::new(80);
    disk.hold(&site);
    site.sql(LARGE).await;
    let snapshot = site.take().await;
    site.sql("TRUNCATE large").await;
    let caller = restored(&site, &snapshot).await;
    assert!(!unpacked(&caller), "{:?}", caller.lines());
    is_whole(&site).await;
}

/// The jobs are nobody's children then, and no pipe ends for them: the next call ends them, and removes what they have made.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_whose_worker_is_killed_are_ended_by_the_next_call() {
    let site = Site::with(|it| three(it).keep_replaced(Duration::ZERO)).await;
    site.sql(LARGE).await;
    let snapshot = site.take().await;
    site.sql("DELETE FROM large WHERE id > 1; CREATE TABLE kept ()").await;
    let mut worker = kill::start(&site, site.superuser.get_port(), "dump", 7, Some(&snapshot));
    let at_it = sessions_at_it(&site);
    eventually("a job is at it", || async { site.one("postgres", &at_it).await != "0" }).await;
    worker.kill().unwrap();
    worker.wait().unwrap();
    assert_eq!(
        site.one(&site.database, "SELECT (count(*) + 0 * (SELECT count(*) FROM kept))::text FROM large")
            .await,
        "1"
    );
    assert!(site.directories().iter().any(|name| name.contains("-unpacked.")), "{:?}", site.directories());
    let caller = site.caller();
    let restored = site.snapshotter.restore(&caller.call(8, 8), caller.instance(), &snapshot).await;
    restored.unwrap();
    is_whole(&site).await;
    eventually("no session is left", || async { site.one("postgres", &at_it).await == "0" }).await;
    site.snapshotter.remove_replaced(&caller.call(8, 9), caller.instance()).await.unwrap();
    assert_eq!(site.other_databases().await, [].into());
    assert_eq!(site.directories(), [snapshot.reference].into());
}

fn began_again(caller: &Caller) -> Option<String> {
    let lines = caller.lines().into_iter().map(|(_, line)| line);
    lines.into_iter().find(|line| line.starts_with("3 jobs failed, one begins again: "))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_while_a_dump_is_unpacked_leaves_one_job_to_do_it() {
    let site = Site::with(three).await;
    let disk = SmallDisk::new(200);
    disk.hold(&site);
    site.sql(LARGE).await;
    let snapshot = site.take().await;
    site.sql("TRUNCATE large").await;
    let is_unpacked = || {
        let names = fs::read_dir(site.snapshots()).unwrap().flatten();
        names.map(|entry| entry.path().join("unpacked.dump")).any(|path| path.exists())
    };
    // It has a tenth of a second for it: if that was not enough, it tries again.
    for fence in 2..12 {
        assert!(disk.resize(200));
        let (caller, is_over) = (site.caller(), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_unpacked() && !is_over.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
                disk.resize(40)
            });
            let context = caller.call(2, fence);
            let restore = site.snapshotter.restore(&context, caller.instance(), &snapshot);
            block_in_place(|| Handle::current().block_on(restore)).unwrap();
            is_over.store(true, Ordering::Relaxed);
        });
        is_whole(&site).await;
        assert_eq!(site.directories(), [snapshot.reference.clone()].into());
        if let Some(line) = began_again(&caller) {
            return assert!(line.contains("no space is left"), "{line}");
        }
    }
    panic!("the disk was never full in time");
}

/// A directory with the tools of this server, of which `pg_restore` cannot do several jobs.
fn tools_for_one_job() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for tool in ["pg_dump", "pg_restore"] {
        let program = ocore_test_postgres::find(tool).unwrap();
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *--jobs*) echo 'pg_restore: error: could not execute query: ERROR:  deadlock \
             detected' >&2; exit 1;; esac\nexec {} \"$@\"\n",
            program.display()
        );
        let path = directory.path().join(tool);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    directory
}

/// Jobs that wait for each other's locks were ended by the server once, and the restore failed for good.
#[tokio::test(flavor = "multi_thread")]
async fn what_several_jobs_fail_at_one_does_again() {
    let tools = tools_for_one_job();
    let site = Site::with(|it| three(it).tools(tools.path())).await;
    site.sql(LARGE).await;
    let snapshot = site.take().await;
    site.sql("TRUNCATE large").await;
    let caller = restored(&site, &snapshot).await;
    let line = began_again(&caller).unwrap();
    assert!(line.contains("deadlock detected"), "{line}");
    is_whole(&site).await;
    assert_eq!(site.other_databases().await.len(), 1, "more than the database that was replaced");
}
