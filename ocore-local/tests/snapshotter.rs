//! Snapshots of directories: the laws, and what is special about directories.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use chrono::DateTime;
use ocore_core::{
    environment::{Environment, EnvironmentSpec, InstanceSpec},
    port::{ErrorKind, Snapshotter},
    release::Snapshot,
    testing::laws::{
        caller::{Caller, eventually},
        snapshotter::{Contents, SnapshotterFixture},
    },
};
use ocore_local::LocalSnapshotter;
use tempfile::TempDir;

struct Fixture {
    root: TempDir,
    snapshotter: LocalSnapshotter,
}

fn fixture() -> Fixture {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("srv")).unwrap();
    let snapshotter = LocalSnapshotter::new(root.path().join("state"));
    Fixture { root, snapshotter }
}

fn environment(data: &Path) -> Arc<Environment> {
    let spec = EnvironmentSpec::new("test", "https://git.example.org/test.git");
    Arc::new(spec.instance(InstanceSpec::new("web").data_directory(data)).try_into().unwrap())
}

impl Fixture {
    fn data(&self) -> PathBuf {
        self.root.path().join("srv/data")
    }

    fn caller(&self) -> Caller {
        Caller::new(environment(&self.data()))
    }

    fn snapshots(&self) -> PathBuf {
        self.root.path().join("state/snapshots")
    }

    async fn take(&self, caller: &Caller) -> Snapshot {
        self.snapshotter.take(&caller.call(1, 1), caller.instance()).await.unwrap()
    }
}

fn names(directory: &Path) -> BTreeSet<String> {
    let Ok(found) = fs::read_dir(directory) else { return BTreeSet::new() };
    found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn read_contents(data: &Path) -> Option<Contents> {
    let found = fs::read_dir(data).ok()?.map(|entry| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())
    });
    Some(found.collect())
}

fn write_contents(data: &Path, contents: &Contents) {
    fs::create_dir_all(data).unwrap();
    for name in names(data).iter().filter(|name| !contents.contains_key(*name)) {
        fs::remove_file(data.join(name)).unwrap();
    }
    for (name, value) in contents {
        fs::write(data.join(name), value).unwrap();
    }
}

#[async_trait]
impl SnapshotterFixture for Fixture {
    fn snapshotter(&self) -> &dyn Snapshotter {
        &self.snapshotter
    }
    fn environment(&self) -> Arc<Environment> {
        environment(&self.data())
    }
    async fn write(&self, data: Option<&Contents>) {
        match data {
            Some(contents) => write_contents(&self.data(), contents),
            None => fs::remove_dir_all(self.data()).unwrap(),
        }
    }
    async fn read(&self) -> Option<Contents> {
        read_contents(&self.data())
    }
    async fn corrupt(&self, snapshot: &Snapshot) -> bool {
        fs::write(self.snapshots().join(&snapshot.reference).join("data/changed"), "odd").unwrap();
        true
    }
    async fn made(&self) -> BTreeSet<String> {
        let mut beside = names(&self.root.path().join("srv"));
        beside.remove("data");
        beside.into_iter().chain(names(&self.snapshots())).collect()
    }
    fn refuses_older_fences(&self) -> bool {
        true
    }
}

ocore_core::snapshotter_laws!(fixture());

/// Everything that a restore must bring back.
fn describe(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let content = if metadata.is_symlink() {
            format!("{:?}", fs::read_link(&path).unwrap())
        } else if metadata.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            "directory".to_owned()
        } else {
            format!("{:?}", fs::read(&path).unwrap())
        };
        let (mode, time) = (metadata.mode(), (metadata.mtime(), metadata.mtime_nsec()));
        lines.push(format!("{path:?} {mode:o} {} {} {time:?} {content}", metadata.uid(), metadata.gid()));
    }
    lines.sort();
    lines
}

#[tokio::test]
async fn a_restore_brings_back_every_kind_of_entry() {
    let fixture = fixture();
    let (data, caller) = (fixture.data(), fixture.caller());
    fs::create_dir_all(data.join("a/b/empty")).unwrap();
    fs::write(data.join("a/b/file"), "x").unwrap();
    fs::write(data.join("a/executable"), "x").unwrap();
    fs::set_permissions(data.join("a/executable"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::write(data.join(std::ffi::OsStr::from_bytes(b"odd \xff\n%41 name")), "y").unwrap();
    symlink("/nowhere/at all", data.join("a/link")).unwrap();
    fs::File::open(data.join("a/b/file")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    fs::set_permissions(data.join("a/b"), fs::Permissions::from_mode(0o555)).unwrap();
    let before = describe(&data);
    let snapshot = fixture.take(&caller).await;
    let (context, instance) = (caller.call(1, 1), caller.instance());
    assert!(!fixture.snapshotter.changed_since(&context, instance, &snapshot).await.unwrap());
    fs::set_permissions(data.join("a/b"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_dir_all(data.join("a")).unwrap();
    fs::write(data.join("a"), "now a file").unwrap();
    assert!(fixture.snapshotter.changed_since(&context, instance, &snapshot).await.unwrap());
    fixture.snapshotter.restore(&context, instance, &snapshot).await.unwrap();
    assert_eq!(describe(&data), before);
    assert_eq!(names(&fixture.root.path().join("srv")), BTreeSet::from(["data".to_owned()]));
    fixture.snapshotter.remove(&context, &snapshot).await.unwrap();
    assert_eq!(names(&fixture.snapshots()), BTreeSet::new());
}

#[tokio::test]
async fn nothing_has_changed_where_there_is_nothing() {
    let fixture = fixture();
    let caller = fixture.caller();
    let snapshot = fixture.take(&caller).await;
    let (context, instance) = (caller.call(1, 1), caller.instance());
    assert!(!fixture.snapshotter.changed_since(&context, instance, &snapshot).await.unwrap());
    fs::create_dir(fixture.data()).unwrap();
    assert!(fixture.snapshotter.changed_since(&context, instance, &snapshot).await.unwrap());
}

#[tokio::test]
async fn an_empty_directory_is_not_the_same_as_none() {
    let fixture = fixture();
    let caller = fixture.caller();
    fs::create_dir(fixture.data()).unwrap();
    let snapshot = fixture.take(&caller).await;
    assert!(snapshot.size_bytes > 0);
    fs::remove_dir(fixture.data()).unwrap();
    fixture.snapshotter.restore(&caller.call(1, 1), caller.instance(), &snapshot).await.unwrap();
    assert_eq!(read_contents(&fixture.data()), Some(Contents::new()));
}

#[tokio::test]
async fn every_kind_of_damage_is_refused() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 7] = [
        ("a bit of a file", |path| fs::write(path.join("data/file"), "contenT").unwrap()),
        ("a file cut off", |path| fs::write(path.join("data/file"), "conten").unwrap()),
        ("a file that has grown", |path| fs::write(path.join("data/file"), "content+").unwrap()),
        ("a file that is gone", |path| fs::remove_file(path.join("data/file")).unwrap()),
        ("a link in place of a file", |path| {
            fs::remove_file(path.join("data/file")).unwrap();
            symlink("other", path.join("data/file")).unwrap();
        }),
        ("no manifest", |path| fs::remove_file(path.join("manifest")).unwrap()),
        ("a manifest cut off", |path| {
            let manifest = fs::read(path.join("manifest")).unwrap();
            fs::write(path.join("manifest"), &manifest[..manifest.len() - 2]).unwrap();
        }),
    ];
    for (what, damage) in damages {
        let fixture = fixture();
        let caller = fixture.caller();
        fs::create_dir(fixture.data()).unwrap();
        fs::write(fixture.data().join("file"), "content").unwrap();
        fs::write(fixture.data().join("other"), "content").unwrap();
        let snapshot = fixture.take(&caller).await;
        damage(&fixture.snapshots().join(&snapshot.reference));
        fs::write(fixture.data().join("file"), "now").unwrap();
        let before = describe(&fixture.data());
        let restored = fixture.snapshotter.restore(&caller.call(1, 1), caller.instance(), &snapshot).await;
        let error = restored.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Permanent, "{what}: {error}");
        assert_eq!(describe(&fixture.data()), before, "{what}");
        assert_eq!(names(&fixture.root.path().join("srv")).len(), 1, "{what}: something is left");
    }
}

#[tokio::test]
async fn what_cannot_be_restored_later_is_refused_at_once() {
    type Change = fn(&Path);
    let cases: [(&str, Change); 3] = [
        ("is a link", |data| symlink("/tmp", data).unwrap()),
        ("is not a directory", |data| fs::write(data, "x").unwrap()),
        ("find the directory above the data directory", |data| {
            fs::remove_dir(data.parent().unwrap()).unwrap()
        }),
    ];
    for (expected, change) in cases {
        let fixture = fixture();
        let caller = fixture.caller();
        change(&fixture.data());
        let error = fixture.snapshotter.take(&caller.call(1, 1), caller.instance()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(names(&fixture.snapshots()), BTreeSet::new());
    }
}

#[tokio::test]
async fn data_and_ocores_own_files_must_not_be_in_each_other() {
    let fixture = fixture();
    fs::create_dir_all(fixture.root.path().join("state/snapshots")).unwrap();
    symlink(fixture.root.path(), fixture.root.path().join("srv/elsewhere")).unwrap();
    for data in ["state", "state/snapshots", "state/snapshots/data", "srv/elsewhere/state"] {
        let caller = Caller::new(environment(&fixture.root.path().join(data)));
        let result = fixture.snapshotter.take(&caller.call(1, 1), caller.instance()).await;
        let error = result.expect_err(data);
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
        assert!(error.to_string().contains("are in each other"), "{data}: {error}");
        assert_eq!(names(&fixture.snapshots()), BTreeSet::new());
    }
}

/// Two roots, or two environments, have no lock in common where their paths differ.
#[tokio::test]
async fn data_that_another_instance_works_on_is_refused() {
    let fixture = fixture();
    fs::create_dir(fixture.data()).unwrap();
    symlink("srv", fixture.root.path().join("link")).unwrap();
    let mut other = Command::new("sleep")
        .arg("1000")
        .env("OCORE_PROCESS", "0123456789abcdef:00000000-0000-0000-0000-000000000001:1:web")
        .env("DATA_DIR", fixture.data())
        .spawn()
        .unwrap();
    let caller = Caller::new(environment(&fixture.root.path().join("link/data")));
    let result = fixture.snapshotter.take(&caller.call(1, 1), caller.instance()).await;
    other.kill().unwrap();
    other.wait().unwrap();
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    assert!(error.to_string().contains("works on the data directory"), "{error}");
    fixture.snapshotter.take(&caller.call(1, 1), caller.instance()).await.unwrap();
}

#[tokio::test]
async fn only_snapshots_are_removed() {
    let fixture = fixture();
    let caller = fixture.caller();
    for name in ["", "..", "/etc", "../../srv"] {
        let snapshot = Snapshot::new(name, DateTime::UNIX_EPOCH, 0);
        let error = fixture.snapshotter.remove(&caller.call(1, 1), &snapshot).await.unwrap_err();
        assert!(error.to_string().contains("is no snapshot"), "{error}");
    }
}

/// `first` is always written before `second`: a copy with a newer `second` never was the data.
#[tokio::test]
async fn a_snapshot_of_data_in_use_is_of_one_moment() {
    let fixture = fixture();
    let (data, caller) = (fixture.data(), fixture.caller());
    fs::create_dir(&data).unwrap();
    let write = |data: &Path, number: u32| {
        for name in ["first", "second"] {
            fs::write(data.join("beside"), vec![b'x'; number as usize]).unwrap();
            fs::rename(data.join("beside"), data.join(name)).unwrap();
        }
    };
    write(&data, 0);
    let ended = Arc::new(AtomicBool::new(false));
    let writer = thread::spawn({
        let (data, ended) = (data.clone(), ended.clone());
        move || {
            let mut number = 0;
            while !ended.load(Ordering::Relaxed) {
                number += 1;
                write(&data, number);
                thread::sleep(Duration::from_millis(if number % 20 == 0 { 250 } else { 1 }));
            }
        }
    });
    for fence in 1..6 {
        let snapshot = match fixture.snapshotter.take(&caller.call(1, fence), caller.instance()).await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
                assert!(error.to_string().contains("keeps changing"), "{error}");
                continue;
            }
        };
        let copy = fixture.snapshots().join(&snapshot.reference).join("data");
        let size = |name: &str| fs::metadata(copy.join(name)).unwrap().len();
        let (first, second) = (size("first"), size("second"));
        assert!(first == second || first == second + 1, "{first} {second}");
    }
    ended.store(true, Ordering::Relaxed);
    writer.join().unwrap();
}

#[tokio::test]
async fn what_never_holds_still_is_refused_and_leaves_nothing() {
    let fixture = fixture();
    let (data, caller) = (fixture.data(), fixture.caller());
    fs::create_dir(&data).unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let writer = thread::spawn({
        let (file, ended) = (data.join("file"), ended.clone());
        move || {
            while !ended.load(Ordering::Relaxed) {
                fs::write(&file, "x").unwrap();
            }
        }
    });
    let error = fixture.snapshotter.take(&caller.call(1, 1), caller.instance()).await.unwrap_err();
    ended.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(error.to_string().contains("snapshots after the stop"), "{error}");
    assert_eq!(names(&fixture.snapshots()), BTreeSet::new());
}

const WORKER_ROOT: &str = "OCORE_TEST_WORKER_ROOT";
const WORKER_SNAPSHOT: &str = "OCORE_TEST_WORKER_SNAPSHOT";

/// Not a test: the worker that the next test kills. It restores over and over.
#[test]
fn as_worker_that_is_killed() {
    let (Ok(root), Ok(name)) = (env::var(WORKER_ROOT), env::var(WORKER_SNAPSHOT)) else { return };
    let root = PathBuf::from(root);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let snapshotter = LocalSnapshotter::new(root.join("state"));
        let caller = Caller::new(environment(&root.join("srv/data")));
        let snapshot = Snapshot::new(name, DateTime::UNIX_EPOCH, 1);
        fs::write(root.join("ready"), "").unwrap();
        loop {
            snapshotter.restore(&caller.call(1, 1), caller.instance(), &snapshot).await.unwrap();
        }
    });
}

#[tokio::test]
async fn a_worker_killed_while_it_restores_leaves_old_or_new_data() {
    let fixture = fixture();
    let (data, caller) = (fixture.data(), fixture.caller());
    let all =
        |value: &str| -> Contents { (0..20).map(|name| (format!("{name}"), value.to_owned())).collect() };
    write_contents(&data, &all("from the snapshot"));
    let snapshot = fixture.take(&caller).await;
    let mut restored = 0;
    for round in 0..40_u64 {
        write_contents(&data, &all("written later"));
        let mut worker = Command::new(env::current_exe().unwrap())
            .args(["--exact", "as_worker_that_is_killed", "--test-threads=1"])
            .env(WORKER_ROOT, fixture.root.path())
            .env(WORKER_SNAPSHOT, &snapshot.reference)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let ready = fixture.root.path().join("ready");
        eventually("the worker is at work", || async { ready.exists() }).await;
        fs::remove_file(ready).unwrap();
        thread::sleep(Duration::from_micros(round * 2_111 % 90_000));
        worker.kill().unwrap();
        worker.wait().unwrap();
        let found = read_contents(&data);
        let is_new = found == Some(all("from the snapshot"));
        assert!(is_new || found == Some(all("written later")), "round {round}: {found:?}");
        restored += u32::from(is_new);
    }
    fixture.snapshotter.restore(&caller.call(1, 1), caller.instance(), &snapshot).await.unwrap();
    assert_eq!(read_contents(&data), Some(all("from the snapshot")));
    assert_eq!(names(&fixture.root.path().join("srv")), BTreeSet::from(["data".to_owned()]));
    assert!(restored > 0, "no worker was killed late enough to have restored anything");
}
