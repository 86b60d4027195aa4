//! The SQLite store keeps the laws with the machine's own clock, and files that are not its own are refused in words.

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use ocore_core::{
    id::WorkerId,
    name::PoolName,
    port::{Claimed, EnvironmentStore, QueueStore, Store, StoreError, StoreErrorKind, Worker},
    request::Trigger,
    testing::laws::store::{Fixture, lab},
};
use ocore_local::{Durability, SqliteStore};

/// Every client is a store of its own, as in another process.
struct RealTime {
    directory: tempfile::TempDir,
}

impl RealTime {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory can be made") }
    }
}

#[async_trait]
impl Fixture for RealTime {
    async fn client(&self) -> Arc<dyn Store> {
        let path = self.directory.path().join("store.sqlite");
        let store = SqliteStore::open_with(path, Durability::Relaxed).await;
        Arc::new(store.expect("the file can be opened"))
    }

    async fn pass(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn unit(&self) -> Duration {
        Duration::from_millis(400)
    }
}

ocore_core::store_laws!(RealTime::new());

async fn refused(path: &Path) -> StoreError {
    SqliteStore::open(path).await.expect_err("the file is refused")
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("none/store.sqlite");
    let error = refused(&path).await;
    let text = error.to_string();
    assert!(text.contains(&path.display().to_string()) && text.contains("directory must exist"), "{text}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.txt");
    let notes = "remember the milk, and much more than that\n".repeat(100);
    std::fs::write(&path, &notes).unwrap();
    let error = refused(&path).await;
    assert_eq!(error.kind(), StoreErrorKind::Broken);
    assert!(error.to_string().contains("not a database"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), notes);
}

async fn execute(path: &Path, statements: &'static str) {
    use sqlx::ConnectOptions;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let mut db = options.connect().await.expect("the file can be opened");
    sqlx::raw_sql(statements).execute(&mut db).await.expect("the statements are valid");
    sqlx::Connection::close(db).await.expect("the file can be closed");
}

#[tokio::test]
async fn a_database_of_another_program_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.sqlite");
    execute(&path, "CREATE TABLE lanes (name TEXT)").await;
    let before = std::fs::read(&path).unwrap();
    let error = refused(&path).await;
    assert!(error.to_string().contains("another program"), "{error}");
    assert!(std::fs::read(&path).unwrap() == before, "the file was changed");
    let names: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names, ["other.sqlite"]);
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.sqlite");
    drop(SqliteStore::open(&path).await.unwrap());
    execute(&path, "PRAGMA user_version = 999").await;
    let error = refused(&path).await;
    assert_eq!(error.kind(), StoreErrorKind::Broken);
    let text = error.to_string();
    assert!(text.contains("written by a newer ocore") && text.contains("999"), "{text}");
}

#[tokio::test]
async fn a_damaged_file_is_named_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.sqlite");
    drop(SqliteStore::open(&path).await.unwrap());
    execute(&path, "PRAGMA wal_checkpoint(TRUNCATE)").await;
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100..].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let error = refused(&path).await;
    assert_eq!(error.kind(), StoreErrorKind::Broken);
    assert!(error.to_string().contains("damaged"), "{error}");
}

/// A store's file is lost, and another takes its place; the world still knows the fences of the first.
#[tokio::test]
async fn fences_go_on_above_those_of_a_file_that_was_lost() {
    let directory = tempfile::tempdir().unwrap();
    let (path, backup) = (directory.path().join("store.sqlite"), directory.path().join("backup.sqlite"));
    let store = SqliteStore::open(&path).await.unwrap();
    let environment = lab::environment("web", |spec| spec);
    let enqueue = async |store: &SqliteStore, number| {
        let new = lab::new_deployment(number, environment.name(), Trigger::Manual);
        store.enqueue(new, lab::at(0)).await.unwrap();
    };
    let claim = async |store: &SqliteStore, number| {
        let id = WorkerId::from_u128(number);
        let worker = Worker::new(id, vec![PoolName::default()], Duration::from_secs(10));
        store.heartbeat(&worker).await.unwrap();
        match store.claim(&worker, &[]).await.unwrap() {
            Claimed::Work(claim) => claim.fence,
            other => panic!("nothing was claimed: {other:?}"),
        }
    };
    store.save_environment(&environment).await.unwrap();
    enqueue(&store, 1).await;
    execute(&path, "PRAGMA wal_checkpoint(TRUNCATE)").await;
    std::fs::copy(&path, &backup).unwrap();
    let lost = claim(&store, 1).await;
    drop(store);

    let restored = claim(&SqliteStore::open(&backup).await.unwrap(), 2).await;
    assert!(restored > lost, "{restored} comes after {lost}");
    let anew = SqliteStore::open(directory.path().join("anew.sqlite")).await.unwrap();
    anew.save_environment(&environment).await.unwrap();
    enqueue(&anew, 2).await;
    let begun = claim(&anew, 3).await;
    assert!(begun > restored, "{begun} comes after {restored}");
}

#[tokio::test]
async fn many_processes_can_make_the_same_file_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.sqlite");
    let opened = (0..8).map(|_| SqliteStore::open(&path));
    for store in futures::future::join_all(opened).await {
        assert_eq!(store.unwrap().environments().await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_change_by_another_client_wakes_those_who_wait() {
    use ocore_core::{
        environment::{Environment, EnvironmentSpec, InstanceSpec},
        port::EnvironmentStore,
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.sqlite");
    let (one, other) = (SqliteStore::open(&path).await.unwrap(), SqliteStore::open(&path).await.unwrap());
    let spec =
        EnvironmentSpec::new("a", "https://git.example.org/shop.git").instance(InstanceSpec::new("web"));
    let environment = Environment::try_from(spec).unwrap();
    other.save_environment(&environment).await.unwrap();
    for round in 0..5 {
        let changed = one.changed();
        assert!(
            other.set_paused(environment.name(), (round % 2 == 0).then(|| "ada".to_owned())).await.unwrap()
        );
        let told = tokio::time::timeout(Duration::from_secs(20), changed).await;
        assert!(told.is_ok(), "another client's change is not told");
    }
}
