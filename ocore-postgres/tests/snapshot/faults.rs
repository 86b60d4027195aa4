//! What goes wrong outside: programs that are killed, servers that stop, disks that are full, bits that flip.

use std::{fs, io::Write as _, path::Path, process::Command, time::Duration};

use ocore_core::{
    port::{Error, ErrorKind, Snapshotter as _},
    release::Snapshot,
    testing::laws::caller::eventually,
};
use ocore_postgres::snapshot::{Fingerprint, PostgresSnapshotterBuilder, Strategy, Verification};
use ocore_test_postgres::{Cluster, Stop};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use tokio_util::sync::CancellationToken;

use crate::{
    disk::SmallDisk,
    site::{PASSWORD, Site},
};

/// Enough to be at it for a while.
const MUCH: &str = "CREATE TABLE much AS SELECT n AS id, md5(n::text) || md5((-n)::text) AS value, json_build_object('n', n) AS \
                    document FROM generate_series(1, 400000) AS n; CREATE TABLE few AS SELECT 1 AS id";

async fn filled(strategy: Strategy) -> Site {
    let site = Site::with(|it| it.strategy(strategy).fingerprint(Fingerprint::None)).await;
    site.sql(MUCH).await;
    site
}

/// The programs that this process has started and that run.
pub(crate) fn children(name: &str) -> Vec<Pid> {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let found = entries.filter_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (number, rest) = stat.split_once(" (")?;
        let (program, rest) = rest.rsplit_once(") ")?;
        let parent = rest.split(' ').nth(1)?;
        (program == name && parent == own && !rest.starts_with('Z'))
            .then(|| number.parse().ok().and_then(Pid::from_raw))?
    });
    found.collect()
}

/// A token that nobody cancels.
fn never() -> CancellationToken {
    CancellationToken::new()
}

async fn try_take(site: &Site, token: &CancellationToken) -> Result<Snapshot, Error> {
    let caller = site.caller();
    site.snapshotter.take(&caller.cancellable(1, 1, token), caller.instance()).await
}

/// The database is whole, nothing is left, and the next snapshot is a good one.
async fn all_is_well(site: &Site) {
    assert_eq!(site.directories(), [].into(), "something is left on the disk");
    assert_eq!(children("pg_dump"), []);
    let backends = format!(
        "SELECT count(*)::text FROM pg_stat_activity WHERE usename = '{}' AND application_name LIKE 'ocore-snapshot%'",
        site.role
    );
    eventually("no session is left", || async { site.one("postgres", &backends).await == "0" }).await;
    assert_eq!(site.one(&site.database, "SELECT count(*)::text FROM much").await, "400000");
    let snapshot = site.take().await;
    site.sql("TRUNCATE much").await;
    site.restore(&snapshot).await;
    assert_eq!(site.one(&site.database, "SELECT count(*)::text FROM much").await, "400000");
}

async fn pg_dump_is_at_it(site: &Site) {
    let partial = || {
        let found = fs::read_dir(site.snapshots()).into_iter().flatten().flatten();
        found.map(|entry| entry.path().join("database.dump.zst")).find(|path| path.exists())
    };
    let written = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
    eventually("pg_dump writes", || async { partial().is_some_and(|path| written(&path) > 100_000) }).await;
}

/// P1: others take the broken file of a dump whose server process was killed for a good one.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_whose_server_process_is_ended_fails() {
    let site = filled(Strategy::Dump).await;
    let token = CancellationToken::new();
    let end = async {
        pg_dump_is_at_it(&site).await;
        let end = format!(
            "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity WHERE datname = '{}' AND query LIKE 'COPY%'",
            site.database
        );
        eventually("it is found", || async { !site.ask("postgres", &end).await.is_empty() }).await;
    };
    let (taken, ()) = tokio::join!(try_take(&site, &token), end);
    let error = taken.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(error.to_string().contains("pg_dump failed"), "{error}");
    assert!(error.detail().iter().any(|line| line.contains("COPY public.much")), "{:?}", error.detail());
    all_is_well(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pg_dump_that_is_killed_is_no_snapshot() {
    let never = never();
    let site = filled(Strategy::Dump).await;
    let kill = async {
        pg_dump_is_at_it(&site).await;
        for program in children("pg_dump") {
            kill_process(program, Signal::KILL).unwrap();
        }
    };
    let (taken, ()) = tokio::join!(try_take(&site, &never), kill);
    let error = taken.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(error.to_string().contains("signal: 9"), "{error}");
    all_is_well(&site).await;
}

/// H12: cancelled in the middle, program, server process and file are gone when the call returns.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_is_cancelled_in_the_middle_leaves_nothing() {
    let site = filled(Strategy::Dump).await;
    let token = CancellationToken::new();
    let cancel = async {
        pg_dump_is_at_it(&site).await;
        // H11: every user of the machine can read arguments.
        for program in children("pg_dump") {
            let arguments = fs::read(format!("/proc/{}/cmdline", program.as_raw_nonzero())).unwrap();
            let arguments = String::from_utf8(arguments).unwrap();
            assert!(arguments.contains("--format=custom") && !arguments.contains(PASSWORD), "{arguments}");
        }
        token.cancel();
    };
    let (taken, ()) = tokio::join!(try_take(&site, &token), cancel);
    assert_eq!(taken.unwrap_err().kind(), ErrorKind::Cancelled);
    all_is_well(&site).await;
}

/// H12b, H9: a restore that is cancelled while it is at work has changed nothing and leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_cancelled_in_the_middle_changes_nothing() {
    for strategy in [Strategy::Dump, Strategy::Clone] {
        let site = filled(strategy).await;
        let snapshot = site.take().await;
        let (mut tries, caller) = (0, site.caller());
        let (error, before) = loop {
            site.sql("UPDATE few SET id = 2").await;
            let (before, token) = (site.other_databases().await, CancellationToken::new());
            let cancel = async {
                eventually("a side database is made", || async {
                    site.other_databases().await.len() > before.len()
                })
                .await;
                token.cancel();
            };
            let context = caller.cancellable(1, 1, &token);
            let restore = site.snapshotter.restore(&context, caller.instance(), &snapshot);
            // A restore that was over before it heard of the cancel shows nothing.
            match tokio::join!(restore, cancel).0 {
                Err(error) => break (error, before),
                Ok(()) => tries += 1,
            }
            assert!(tries < 20, "no restore is cancelled in its middle");
        };
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(children("pg_restore"), []);
        assert_eq!(site.other_databases().await, before);
        assert_eq!(site.one(&site.database, "SELECT id::text FROM few").await, "2");
        site.restore(&snapshot).await;
        assert_eq!(site.one(&site.database, "SELECT id::text FROM few").await, "1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_in_the_middle_is_an_error_that_passes() {
    let never = never();
    let cluster = Cluster::start(&[]);
    let site = Site::on(&cluster.url("postgres"), |it| it.strategy(Strategy::Dump)).await;
    site.sql(MUCH).await;
    let stop = async {
        pg_dump_is_at_it(&site).await;
        cluster.stop(Stop::Immediate);
    };
    let (taken, ()) = tokio::join!(try_take(&site, &never), stop);
    let error = taken.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    cluster.resume();
    all_is_well(&site).await;
    // In the middle of a restore: what was there is there.
    let caller = site.caller();
    let snapshot = site.snapshotter.take(&caller.call(3, 3), caller.instance()).await.unwrap();
    site.sql("UPDATE few SET id = 2").await;
    let before = site.other_databases().await;
    let stop = async {
        eventually("it restores", || async { site.other_databases().await.len() > before.len() }).await;
        eventually("it restores", || async { !children("pg_restore").is_empty() }).await;
        cluster.restart(Stop::Immediate);
    };
    let context = caller.call(3, 3);
    let (restored, ()) = tokio::join!(site.snapshotter.restore(&context, caller.instance(), &snapshot), stop);
    let error = restored.unwrap_err();
    assert_ne!(error.kind(), ErrorKind::Permanent, "{error}");
    assert_eq!(site.one(&site.database, "SELECT id::text FROM few").await, "2");
    site.snapshotter.restore(&caller.call(3, 4), caller.instance(), &snapshot).await.unwrap();
    assert_eq!(site.one(&site.database, "SELECT id::text FROM few").await, "1");
}

/// H6: others leave a file there that looks like a dump.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_during_the_dump_is_named_and_nothing_is_left() {
    let never = never();
    let site = filled(Strategy::Dump).await;
    let disk = SmallDisk::new(80);
    disk.hold(&site);
    // There is room when it begins; then somebody else takes it.
    let filler = disk.path().join("filler");
    let fill = async {
        pg_dump_is_at_it(&site).await;
        let mut file = fs::File::create(&filler).unwrap();
        while file.write_all(&[7; 65536]).is_ok() {}
    };
    let (taken, ()) = tokio::join!(try_take(&site, &never), fill);
    let error = taken.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(error.to_string().contains("no space is left"), "{error}");
    // Too little from the beginning: it is not even begun.
    let error = try_take(&site, &never).await.unwrap_err();
    assert!(error.to_string().contains("bytes free, and the dump may need"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    fs::remove_file(&filler).unwrap();
    all_is_well(&site).await;
}

/// H6: the disk of the database's tablespace is full while the side database is filled, which lies there too.
#[tokio::test(flavor = "multi_thread")]
async fn a_servers_disk_that_is_full_during_the_restore_leaves_the_database_as_it_is() {
    let disk = SmallDisk::new(160);
    // Of its own: what cannot be written to this disk would be in everybody's way.
    let cluster = Cluster::start(&[]);
    let change = |it: PostgresSnapshotterBuilder| it.strategy(Strategy::Dump).fingerprint(Fingerprint::None);
    let site = Site::on(&cluster.url("postgres"), change).await;
    let tablespace = format!("small_{}", site.role);
    let place = disk.path().join("tablespace");
    fs::create_dir(&place).unwrap();
    let given = Command::new("chown").arg("postgres").arg(&place).status();
    assert!(given.unwrap().success());
    site.as_superuser(&format!("CREATE TABLESPACE {tablespace} LOCATION '{}'", place.display())).await;
    site.as_superuser(&format!("GRANT CREATE ON TABLESPACE {tablespace} TO {}", site.role)).await;
    let make = format!("CREATE DATABASE {} OWNER {} TABLESPACE {tablespace}", site.database, site.role);
    site.as_superuser(&make).await;
    site.sql(MUCH).await;
    let snapshot = site.take().await;
    site.sql("UPDATE few SET id = 2").await;
    let (caller, before) = (site.caller(), site.other_databases().await);
    let filler = disk.path().join("filler");
    // An empty database has its room; what is left for tables is too little.
    let leave = 25 * 1024 * 1024;
    let free = rustix::fs::statvfs(disk.path()).unwrap();
    let mut file = fs::File::create(&filler).unwrap();
    for _ in 0..(free.f_bavail * free.f_frsize).saturating_sub(leave) / 65536 {
        file.write_all(&[7; 65536]).unwrap();
    }
    let restored = site.snapshotter.restore(&caller.call(2, 2), caller.instance(), &snapshot).await;
    let error = restored.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}: {:?}", error.detail());
    assert!(error.to_string().contains("No space left on device"), "{error}");
    assert_eq!(site.one(&site.database, "SELECT id::text FROM few").await, "2");
    // Removing a database takes a checkpoint, which the full disk may have refused: the next call makes up for it.
    drop(file);
    fs::remove_file(&filler).unwrap();
    site.snapshotter.restore(&caller.call(2, 3), caller.instance(), &snapshot).await.unwrap();
    assert_eq!(site.one(&site.database, "SELECT id::text FROM few").await, "1");
    site.snapshotter.remove_replaced(&caller.call(2, 4), caller.instance()).await.unwrap();
    assert_eq!(site.other_databases().await, before);
    drop(site);
    drop(cluster);
    drop(disk);
}

/// H13: `pg_restore` restores flipped bits without a word, and its `--list` accepts a truncated file. Here every flip and
/// every truncation is found before anything is made on the server.
#[tokio::test(flavor = "multi_thread")]
async fn every_flipped_bit_and_every_truncation_is_found_before_anything_is_touched() {
    let site = Site::with(|it| it.strategy(Strategy::Dump).verification(Verification::Length)).await;
    site.sql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 500) AS n").await;
    let snapshot = site.take().await;
    let (file, before) = (site.dump_file(&snapshot), site.other_databases().await);
    let good = fs::read(&file).unwrap();
    let caller = site.caller();
    let mut damaged: Vec<Vec<u8>> = (0..10)
        .map(|n| {
            let mut bytes = good.clone();
            let bit = n * good.len() * 8 / 10 + n % 8;
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        })
        .collect();
    damaged.extend((0..4).map(|part| good[..good.len() * part / 4].to_vec()));
    damaged.push([good.as_slice(), b"x"].concat());
    for bytes in damaged {
        fs::write(&file, &bytes).unwrap();
        let restored = site.snapshotter.restore(&caller.call(2, 2), caller.instance(), &snapshot).await;
        let error = restored.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
        assert!(error.to_string().contains("corrupt"), "{error}");
    }
    assert_eq!(site.other_databases().await, before);
    fs::write(&file, good).unwrap();
    site.restore(&snapshot).await;
}

/// H14, H20: a table that somebody has locked for himself.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_does_not_wait_for_ever_for_a_lock() {
    let never = never();
    let site = Site::with(|it| it.strategy(Strategy::Dump).lock_wait(Duration::from_millis(300))).await;
    site.sql("CREATE TABLE t (id int)").await;
    let mut holder = site.connect(&site.database).await;
    holder.execute(AssertSqlSafe("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE")).await.unwrap();
    let error = try_take(&site, &never).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    holder.close().await.unwrap();
    assert_eq!(site.directories(), [].into());
    site.take().await;
}

/// Level 3: a dump that cannot be restored is no snapshot, whatever its checksum says.
#[tokio::test(flavor = "multi_thread")]
async fn a_drill_finds_a_dump_that_cannot_be_restored() {
    let drill = |it: PostgresSnapshotterBuilder| it.verification(Verification::Drill);
    let site = Site::with(|it| drill(it).strategy(Strategy::Dump).fingerprint(Fingerprint::None)).await;
    // At the restore the function does not find its table: nothing says so before.
    site.sql(
        "CREATE TABLE rate AS SELECT 2 AS value; \
         CREATE FUNCTION rated(int) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RETURN $1 * value > 0 FROM rate; END'; \
         CREATE TABLE t (id int CONSTRAINT rated CHECK (rated(id))); INSERT INTO t VALUES (1)",
    )
    .await;
    let error = try_take(&site, &never()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    assert!(error.to_string().contains("pg_restore failed") && error.to_string().contains("rate"), "{error}");
    assert_eq!(site.directories(), [].into());
    assert_eq!(site.other_databases().await, [].into());
    site.sql("ALTER TABLE t DROP CONSTRAINT rated").await;
    let snapshot = site.take().await;
    assert_eq!(site.manifest(&snapshot)["data"]["database"]["dump"]["verified"]["level"], 3);
    assert_eq!(site.other_databases().await, [].into());
}

/// H9: a clone that is cancelled while the server copies is gone, and the application's database is open again.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_is_cancelled_in_the_middle_leaves_nothing() {
    let site = filled(Strategy::Clone).await;
    let token = CancellationToken::new();
    let copying = format!(
        "SELECT pid::text FROM pg_stat_activity WHERE usename = '{}' AND query LIKE 'CREATE DATABASE%TEMPLATE%' \
         AND state = 'active'",
        site.role
    );
    let cancel = async {
        eventually("the server copies", || async { !site.ask("postgres", &copying).await.is_empty() }).await;
        token.cancel();
    };
    let (taken, ()) = tokio::join!(try_take(&site, &token), cancel);
    assert_eq!(taken.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(site.ask("postgres", &copying).await, [""; 0]);
    assert_eq!(site.other_databases().await, [].into());
    all_is_well(&site).await;
}

/// H9b: a removal that was interrupted leaves a database that can only be removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_removal_was_interrupted_is_removed_by_the_next_call() {
    let site = Site::with(|it| it.strategy(Strategy::Clone)).await;
    site.sql("CREATE TABLE t AS SELECT 1 AS id").await;
    let snapshot = site.take().await;
    let (role, database) = (&site.role, &site.database);
    let left = format!("{database}__ocr_left");
    site.as_superuser(&format!("CREATE DATABASE {left} OWNER {role}")).await;
    site.as_superuser(&format!("UPDATE pg_database SET datconnlimit = -2 WHERE datname = '{left}'")).await;
    let row = format!(
        "INSERT INTO ocore_snapshot.made (name, kind, database, deployment, reference) \
         VALUES ('{left}', 'side', '{database}', 'x', 'x')"
    );
    site.as_superuser_in(&site.maintenance, &row).await;
    let before = site.other_databases().await;
    assert!(before.contains(&left));
    let caller = site.caller();
    site.snapshotter.restore(&caller.call(2, 2), caller.instance(), &snapshot).await.unwrap();
    assert!(!site.exists(&left).await);
}

/// H6: a copy for which there is no room is not begun.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_without_room_is_a_dump_instead() {
    let disk = SmallDisk::new(8);
    let site = Site::with(|it| it.strategy(Strategy::Auto).server_files(disk.path())).await;
    site.sql("CREATE TABLE t AS SELECT 1 AS id").await;
    let snapshot = site.take().await;
    let database = &site.manifest(&snapshot)["data"]["database"];
    assert_eq!(database["strategy"], "dump");
    assert!(database["because"].as_str().unwrap().contains("a copy needs"), "{}", database["because"]);
}
