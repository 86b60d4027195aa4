//! Several jobs restore a large dump, from a file that is there for so long only.

use std::num::NonZeroUsize;

use ocore_core::{
    port::{ErrorKind, Snapshotter as _},
    testing::laws::caller::{Caller, eventually},
};
use ocore_postgres::snapshot::{Fingerprint, PostgresSnapshotterBuilder, Strategy};
use tokio_util::sync::CancellationToken;

use crate::{
    disk::SmallDisk,
    faults::children,
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

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_back_by_several_jobs_too() {
    let site = Site::with(three).await;
    site.sql(&everything(&site).await).await;
    site.sql(LARGE).await;
    let before = dumped(&site, &site.database);
    let snapshot = site.take().await;
    site.sql("TRUNCATE large; DROP TABLE sale CASCADE").await;
    let caller = site.caller();
    let restored = site.snapshotter.restore(&caller.call(2, 2), caller.instance(), &snapshot).await;
    restored.unwrap();
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
    let at_it = format!(
        "SELECT count(*)::text FROM pg_stat_activity WHERE usename = '{}' AND query ~ '^(COPY|CREATE INDEX)'",
        site.role
    );
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
    assert_eq!(site.one(&site.database, "SELECT count(*)::text FROM large").await, "80000");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_to_unpack_one_job_does_it_all() {
    let site = Site::with(three).await;
    let disk = SmallDisk::new(80);
    disk.hold(&site);
    site.sql(LARGE).await;
    let snapshot = site.take().await;
    site.sql("TRUNCATE large").await;
    let caller = site.caller();
    let restored = site.snapshotter.restore(&caller.call(2, 2), caller.instance(), &snapshot).await;
    restored.unwrap();
    assert!(!unpacked(&caller), "{:?}", caller.lines());
    assert_eq!(site.one(&site.database, "SELECT count(*)::text FROM large").await, "80000");
}
