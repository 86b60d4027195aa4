//! Bad input gets an error that says what is wrong and what to do, and the live instance keeps serving.

use std::{
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
};

use ocore_examples::sample_app::Manifest;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Decode, Sqlite, Type, sqlite::SqliteConnectOptions};

use crate::program::{Ran, Site, processes, program};

/// A site whose version 1 serves.
fn serving() -> Site {
    let site = Site::new();
    site.commit(&Manifest::new("1", 1));
    site.deploy().expect(0, "Running after");
    site
}

#[track_caller]
fn check(site: &Site, arguments: &[&str], code: i32, part: &str) {
    site.run(arguments).expect(code, part);
    assert_eq!(site.version(), "1", "the live instance does not serve any more");
}

#[test]
fn repositories() {
    let site = serving();
    fs::create_dir(site.path("no repository")).unwrap();
    git2::Repository::init(site.path("empty")).unwrap();
    check(&site, &["--repository", "nowhere"], 1, "nowhere: no such directory");
    check(&site, &["--repository", "no repository"], 1, "the directory is not a git repository");
    check(&site, &["--repository", "empty"], 1, "the repository is empty; push a commit first");
    check(&site, &["--repository", ""], 2, "the repository is empty; give a URL or a path");
    check(&site, &["--repository", "file:///etc"], 1, "/etc: the directory is not a git repository");
    check(&site, &["--repository", "https://user:password@localhost/x.git"], 2, "holds a password");
    check(&site, &["--repository", "repository", "--ref", "nowhere"], 1, "  fetch     failed, ");
    check(&site, &["--repository", "repository", "--ref", "nowhere"], 1, "find branch nowhere");
    check(&site, &["--ref=--upload-pack=x"], 2, "names no branch");
    check(&site, &["--ref", "a..b"], 2, "names no branch");
    check(&site, &["--ref", "0123456"], 1, "no such commit");
}

#[test]
fn procfiles() {
    let site = serving();
    for (text, part) in [
        ("release: true\n", "no `web:`"),
        ("web true\n", "line 1"),
        ("web: ./nowhere\n", "the release has no program ./nowhere"),
    ] {
        fs::write(site.path("repository/Procfile"), text).unwrap();
        site.repository.commit_all("A bad Procfile").unwrap();
        check(&site, &["--ref", "main"], 1, part);
    }
    fs::remove_file(site.path("repository/Procfile")).unwrap();
    site.repository.commit_all("No Procfile").unwrap();
    check(&site, &["--ref", "main"], 1, "the repository has no Procfile at its top");
    assert_eq!(site.statuses(), ["Running", "Failed", "Failed", "Failed", "Failed"]);
}

#[test]
fn names_and_ids() {
    let site = serving();
    let repository = ["--repository", "repository", "--name"];
    for (name, part) in [
        ("a/b", "has a character that is not allowed"),
        ("a\nb", "has a character that is not allowed"),
        ("", "is empty"),
        (&"x".repeat(10_000), "is too long"),
    ] {
        check(&site, &[&repository[..], &[name]].concat(), 2, part);
    }
    check(&site, &["history", "--name", "nowhere"], 2, "there is no environment \"nowhere\"");
    check(&site, &["rollback", "zzzz"], 2, "is no id");
    check(&site, &["rollback", "0123456789abcdef"], 2, "see the history");
    check(&site, &["logs", &"a".repeat(10_000)], 2, "is no id");
    let live = site.history()[0].0.clone();
    check(&site, &["rollback", &live], 2, "is live already");
    check(&site, &["cancel", &live], 2, "is over: Running");
    check(&site, &["--repository", "repository", "history"], 2, "does not belong to a subcommand");
    check(&site, &["--port", "0"], 2, "--port");
    check(&site, &["--port", "70000"], 2, "--port");
    check(&site, &["--health-path", "no slash"], 2, "must begin with /");
    assert_eq!(site.statuses(), ["Running"]);
}

#[test]
fn ports_and_directories_that_somebody_else_has() {
    let site = serving();
    let other = ["--repository", "repository", "--name", "staging"];
    let (port, data) = (site.port.to_string(), site.path(".ocore/data/production"));
    check(&site, &[&other[..], &["--port", &port]].concat(), 2, "environment production uses");
    check(
        &site,
        &[&other[..], &["--data-directory", data.to_str().unwrap()]].concat(),
        2,
        "environment production uses",
    );
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port_taken = taken.local_addr().unwrap().port().to_string();
    check(&site, &["--port", &port_taken], 1, &format!("port {port_taken} is in use by process"));
    fs::write(site.path("file"), "").unwrap();
    let missing = "find the directory above the data directory";
    check(&site, &["--port", &port, "--data-directory", "file"], 1, "file is not a directory");
    check(&site, &["--data-directory", "missing/data"], 1, missing);
    // Nothing was stopped for any of them.
    assert_eq!(site.statuses(), ["Running", "Failed", "Failed", "Failed"]);
}

#[test]
fn a_data_directory_that_is_not_writable() {
    let site = serving();
    let data = site.path(".ocore/data/production");
    fs::set_permissions(&data, Permissions::from_mode(0o555)).unwrap();
    // Root may write anywhere: in a namespace of its own the same user has no such right.
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-user=1000", "--map-group=1000"]).arg(program("deploy")).arg("--ref=main");
    command.current_dir(site.path(""));
    let ran = Ran::from(command.output().unwrap());
    ran.expect(1, "the worker's user is not allowed to: change its owner or mode");
    assert_eq!(site.version(), "1");
    assert_eq!(site.statuses(), ["Running", "Failed"]);
    fs::set_permissions(&data, Permissions::from_mode(0o755)).unwrap();
    site.run(&["--ref", "main"]).expect(0, "Running after");
}

#[test]
fn state_directories() {
    let site = serving();
    fs::write(site.path("file"), "").unwrap();
    let deploy = ["--repository", "repository", "--state"];
    check(&site, &[&deploy[..], &["file"]].concat(), 2, "give another one with --state");
    check(&site, &["--state", "nowhere", "history"], 2, "nothing was deployed");
    check(&site, &["--state", "new"], 2, "give --repository");
    fs::create_dir(site.path("corrupt")).unwrap();
    fs::write(site.path("corrupt/ocore.sqlite"), "this is no database".repeat(1000)).unwrap();
    check(&site, &[&deploy[..], &["corrupt"]].concat(), 2, "the file is not a database; choose another path");
}

#[test]
fn a_state_file_of_a_newer_version_is_left_alone() {
    let site = serving();
    let path = site.path(".ocore/ocore.sqlite");
    let known: i64 = sql(&path, "PRAGMA user_version");
    sql::<i64>(&path, "PRAGMA user_version = 999; SELECT 1");
    let newer = fs::read(&path).unwrap();
    for arguments in [&["--ref", "main"][..], &["history"]] {
        let part = format!("this file was written by a newer ocore (schema 999; this one knows {known})");
        check(&site, arguments, 2, &part);
    }
    assert!(fs::read(&path).unwrap() == newer, "the file was changed");
    sql::<i64>(&path, &format!("PRAGMA user_version = {known}; SELECT 1"));
    assert_eq!(site.statuses(), ["Running"]);
}

/// The answer of a state file. All that was written to it is in the file itself afterwards, and in no log beside it.
fn sql<T>(path: &Path, statement: &str) -> T
where
    T: Send + Unpin + for<'r> Decode<'r, Sqlite> + Type<Sqlite>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut db = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
        let answer = sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&mut db).await.unwrap();
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut db).await.unwrap();
        db.close().await.unwrap();
        answer
    })
}

#[test]
fn a_damaged_state_file_is_replaced_as_the_error_says() {
    let site = serving();
    let state = |end: &str| site.path(&format!(".ocore/ocore.sqlite{end}"));
    let (kept, endings) = (site.path("backup"), ["", "-wal", "-shm"]);
    fs::create_dir(&kept).unwrap();
    for end in endings.iter().filter(|end| state(end).exists()) {
        fs::copy(state(end), kept.join(format!("x{end}"))).unwrap();
    }
    site.commit(&Manifest::new("2", 2));
    site.run(&["--ref", "main"]).expect(0, "Running after");
    let damage = |version: &str| {
        let mut bytes = fs::read(state("")).unwrap();
        bytes[100..].fill(0xa5);
        fs::write(state(""), bytes).unwrap();
        for end in endings[1..].iter().filter(|end| state(end).exists()) {
            fs::write(state(end), "").unwrap();
        }
        let refused = site.run(&["--ref", "main"]).expect(2, "the file is damaged; restore it from a backup");
        assert!(refused.text.contains("or move it away to begin anew"), "{}", refused.text);
        assert_eq!(site.version(), version);
        for end in endings.iter().filter(|end| state(end).exists()) {
            fs::remove_file(state(end)).unwrap();
        }
    };
    damage("2");
    for end in endings.iter().filter(|end| kept.join(format!("x{end}")).exists()) {
        fs::copy(kept.join(format!("x{end}")), state(end)).unwrap();
    }
    site.commit(&Manifest::new("3", 3));
    site.run(&["--ref", "main"]).expect(0, "Running after");
    assert_eq!((site.version(), processes(&site.path(""), "serve")), ("3".to_owned(), 1));
    damage("3");
    site.commit(&Manifest::new("4", 4));
    site.deploy().expect(0, "Running after");
    assert_eq!((site.version(), processes(&site.path(""), "serve")), ("4".to_owned(), 1));
    assert_eq!(site.statuses(), ["Running"]);
}
