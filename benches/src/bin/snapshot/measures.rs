//! What is measured, with the bounds that the design of snapshots has from measurements on such a machine.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use ocore_benches::table::Row;
use ocore_core::{environment::SnapshotWhen, port::Snapshotter as _, release::Snapshot};
use ocore_postgres::snapshot::{Fingerprint, PostgresSnapshotter, Strategy, Verification};

use crate::{
    Arguments, broken,
    cost::Series,
    exchange, generate,
    site::{Site, caller, fence, run, size},
};

/// The measurements, in the order of the table.
pub(crate) const NAMES: [&str; 7] =
    ["dump", "verify", "restore", "clone", "exchange", "cancel", "corruption"];

pub(crate) const DATABASES: [&str; 2] = ["small", "large"];

pub(crate) struct Bench {
    pub(crate) site: Site,
    pub(crate) arguments: Arguments,
}

/// A line of two figures in seconds, whose ratio is bounded.
fn compared(what: impl Into<String>, ours: f64, theirs: f64, peer: &str, most: f64) -> Row {
    let ratio = ours / theirs;
    let row = Row::new(what, format!("{ours:.3} s")).peer(format!("{theirs:.3} s ({peer})"), ratio);
    row.target(format!("≤ {most}"), ratio <= most)
}

/// The dumps of a database, and the sizes of two in bytes.
#[derive(Default)]
struct Dumps {
    ours: Series,
    default: Series,
    pipe: Series,
    plain: Series,
    size_ours: f64,
    size_default: f64,
}

/// The copies of a database.
#[derive(Default)]
struct Copies {
    ours: Series,
    wal_log: Series,
    file_copy: Series,
    one_file: Series,
}

impl Bench {
    pub(crate) async fn prepare(site: Site, arguments: Arguments) -> Self {
        let statements = [generate::small(), generate::large(arguments.scale)];
        for (database, statements) in DATABASES.into_iter().zip(statements) {
            let bytes = site.make(database, &statements).await;
            eprintln!("{database}: {:.0} MB", bytes / 1e6);
        }
        Self { site, arguments }
    }

    pub(crate) async fn measure(&self, name: &str) -> Vec<Row> {
        match name {
            "dump" => self.dumps().await,
            "verify" => vec![self.verification().await],
            "restore" => vec![self.restore("small", 0.7).await, self.restore("large", 0.9).await],
            "clone" => self.clones().await,
            "exchange" => exchange::measure(self).await,
            "cancel" => broken::cancel(self).await,
            "corruption" => vec![broken::corruption(self).await],
            other => panic!("there is no measurement {other:?}"),
        }
    }

    /// A snapshotter that dumps, and counts nothing.
    pub(crate) fn dumper(&self, verification: Verification) -> PostgresSnapshotter {
        self.site.snapshotter("ours", |it| {
            it.strategy(Strategy::Dump).verification(verification).fingerprint(Fingerprint::None)
        })
    }

    /// Takes a snapshot of a database that is served.
    pub(crate) async fn take(&self, snapshotter: &PostgresSnapshotter, database: &str) -> Snapshot {
        let caller = caller(database, SnapshotWhen::BeforeStop);
        let taken = snapshotter.take(&caller.call(1, fence()), caller.instance()).await;
        taken.expect("a snapshot can be taken")
    }

    /// Clones a database that is stopped.
    pub(crate) async fn clone_of(&self, snapshotter: &PostgresSnapshotter, database: &str) -> Snapshot {
        let caller = caller(database, SnapshotWhen::AfterStop);
        let taken = snapshotter.take(&caller.call(1, fence()), caller.instance()).await;
        taken.expect("a database can be cloned")
    }

    pub(crate) async fn put_back(
        &self,
        snapshotter: &PostgresSnapshotter,
        database: &str,
        snapshot: &Snapshot,
    ) {
        let caller = caller(database, SnapshotWhen::AfterStop);
        let restored = snapshotter.restore(&caller.call(2, fence()), caller.instance(), snapshot).await;
        restored.expect("a snapshot can be restored");
    }

    pub(crate) async fn forget(
        &self,
        snapshotter: &PostgresSnapshotter,
        database: &str,
        snapshot: &Snapshot,
    ) {
        let caller = caller(database, SnapshotWhen::AfterStop);
        let removed = snapshotter.remove(&caller.call(2, fence()), snapshot).await;
        removed.expect("a snapshot can be removed");
    }

    async fn dumps(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for database in DATABASES {
            let mut dumps = Dumps::default();
            for _ in 0..self.arguments.rounds {
                self.dump_round(database, &mut dumps).await;
            }
            rows.extend(dumps.rows(database));
        }
        rows
    }

    async fn dump_round(&self, database: &str, dumps: &mut Dumps) {
        let (cluster, dumper) = (&self.site.cluster, self.dumper(Verification::Length));
        let snapshot = dumps.ours.add(cluster, self.take(&dumper, database)).await;
        dumps.size_ours = size(&self.site.path("ours").join(&snapshot.reference).join("database.dump.zst"));
        self.forget(&dumper, database, &snapshot).await;
        let file = self.site.path("peer.dump");
        dumps.default.add_blocking(cluster, || self.pg_dump(database, &[], &file)).await;
        dumps.size_default = size(&file);
        dumps.plain.add_blocking(cluster, || self.pg_dump(database, &["--compress=0"], &file)).await;
        dumps.pipe.add_blocking(cluster, || self.pg_dump_piped(database, &file)).await;
    }

    fn pg_dump(&self, database: &str, more: &[&str], file: &Path) {
        let mut dump = self.site.program("pg_dump", database);
        run(dump.arg("--format=custom").args(more).arg("--file").arg(file));
        sync(file);
    }

    fn pg_dump_piped(&self, database: &str, file: &Path) {
        let dump = self.site.program("pg_dump", database);
        let dump = dump.get_program().to_string_lossy().into_owned();
        let line = format!(
            "set -o pipefail; {dump} --format=custom --compress=0 | zstd -q -1 -f -o {}",
            file.display()
        );
        let mut shell = Command::new("bash");
        self.site.equip(&mut shell, database);
        run(shell.args(["-c", &line]));
        sync(file);
    }

    /// What it costs more to read a dump through.
    async fn verification(&self) -> Row {
        let (mut plain, mut through) = (Series::default(), Series::default());
        for _ in 0..self.arguments.rounds {
            for (verification, series) in
                [(Verification::Length, &mut plain), (Verification::ReadThrough, &mut through)]
            {
                let dumper = self.dumper(verification);
                let snapshot = series.add(&self.site.cluster, self.take(&dumper, "large")).await;
                self.forget(&dumper, "large", &snapshot).await;
            }
        }
        let more = through.wall() - plain.wall();
        compared("verification by reading through, large", more, plain.wall(), "our dump", 0.35)
    }

    /// A whole restore: a side database, filled, analysed and exchanged; beside a bare `pg_restore` into an empty one.
    async fn restore(&self, database: &str, most: f64) -> Row {
        let dumper = self.dumper(Verification::Length);
        let (cluster, snapshot) = (&self.site.cluster, self.take(&dumper, database).await);
        let file = self.site.path("peer.dump");
        self.pg_dump(database, &[], &file);
        let (mut ours, mut peer) = (Series::default(), Series::default());
        for _ in 0..self.arguments.rounds {
            ours.add(cluster, self.put_back(&dumper, database, &snapshot)).await;
            self.site.tidy().await;
            peer.add_blocking(cluster, || self.pg_restore(&file)).await;
            self.site.tidy().await;
        }
        self.forget(&dumper, database, &snapshot).await;
        let what = format!("restore beside and exchange, {database}");
        compared(what, ours.wall(), peer.wall(), "createdb; pg_restore", most)
    }

    fn pg_restore(&self, file: &Path) {
        run(self.site.program("createdb", "postgres").args(["--template=template0", "peer_restored"]));
        let mut restore = self.site.program("pg_restore", "peer_restored");
        run(restore.args(["--exit-on-error", "--dbname=peer_restored"]).arg(file));
    }

    async fn clones(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for database in DATABASES {
            let (mut copies, file) = (Copies::default(), self.one_file(database).await);
            for _ in 0..self.arguments.rounds {
                self.copy_round(database, &file, &mut copies).await;
            }
            rows.extend(copies.rows(database));
        }
        rows
    }

    async fn copy_round(&self, database: &str, file: &Path, copies: &mut Copies) {
        let cluster = &self.site.cluster;
        let cloner = self.site.snapshotter("clones", |it| it.strategy(Strategy::Clone));
        let snapshot = copies.ours.add(cluster, self.clone_of(&cloner, database)).await;
        self.forget(&cloner, database, &snapshot).await;
        for (how, series) in [("wal_log", &mut copies.wal_log), ("file_copy", &mut copies.file_copy)] {
            let statement = [format!("CREATE DATABASE peer_clone TEMPLATE {database} STRATEGY {how}")];
            series.add(cluster, self.site.as_superuser("postgres", &statement)).await;
            self.site.tidy().await;
        }
        let copied = self.site.path("copied");
        let copy = || {
            run(Command::new("cp").arg(file).arg(&copied));
            sync(&copied);
        };
        copies.one_file.add_blocking(cluster, copy).await;
    }

    /// All files of a database in one.
    async fn one_file(&self, database: &str) -> PathBuf {
        let oid = format!("SELECT oid::bigint FROM pg_database WHERE datname = '{database}'");
        let oid = self.site.number(&oid).await;
        let directory = self.site.cluster.data().join("base").join(oid.to_string());
        let file = self.site.path("one-file");
        let line = format!("cat {}/* > {}", directory.display(), file.display());
        run(Command::new("bash").args(["-c", &line]));
        file
    }
}

impl Dumps {
    fn rows(&self, database: &str) -> Vec<Row> {
        let (what, large) = (format!("dump, {database}"), database == "large");
        let (ours, default, name) = (self.ours.wall(), self.default.wall(), "pg_dump -Fc");
        let mut rows = vec![compared(&what, ours, default, name, if large { 0.15 } else { 0.5 })];
        if large {
            let cpu = format!("{what}: processor time of client and server");
            rows.push(compared(cpu, self.ours.cpu(), self.default.cpu(), name, 0.2));
        }
        let ratio = self.size_ours / self.size_default;
        let row = Row::new(format!("{what}: size"), format!("{:.1} MB", self.size_ours / 1e6));
        let row = row.peer(format!("{:.1} MB ({name})", self.size_default / 1e6), ratio);
        rows.push(row.target("≤ 1.02", ratio <= 1.02));
        rows.push(compared(&what, ours, self.pipe.wall(), "pg_dump -Fc -Z0 to zstd -1", 1.1));
        rows.push(compared(&what, ours, self.plain.wall(), "pg_dump -Fc -Z0", 1.4));
        rows
    }
}

impl Copies {
    fn rows(&self, database: &str) -> Vec<Row> {
        let (what, ours) = (format!("clone, {database}"), self.ours.wall());
        let mut rows = Vec::new();
        if database == "large" {
            rows.push(compared(&what, ours, self.one_file.wall(), "cp and sync of one file", 2.5));
        }
        let (wal_log, file_copy) = (self.wal_log.wall(), self.file_copy.wall());
        let (best, name) = if wal_log < file_copy { (wal_log, "wal_log") } else { (file_copy, "file_copy") };
        let what = format!("{what}: beside the better way");
        rows.push(compared(what, ours, best, &format!("CREATE DATABASE, {name}"), 1.15));
        rows
    }
}

fn sync(path: &Path) {
    run(Command::new("sync").arg(path));
}
