//! The archive that an engine builds from.

use std::{
    fs::{self, File, FileTimes},
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    },
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

use ocore_core::port::{Error, ErrorKind};
use ocore_docker::BuildContext;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::program::asked;

/// A repository whose files were made in this order.
fn repository(names: &[&str]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in names {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, name.repeat(1000)).unwrap();
    }
    directory
}

fn context(repository: &Path) -> Result<BuildContext, Error> {
    BuildContext::new().tree("src", repository, &CancellationToken::new())
}

fn archive(context: &BuildContext) -> (Vec<u8>, String) {
    let mut bytes = Vec::new();
    let digest = context.write(&mut bytes, &CancellationToken::new(), |_| {}).unwrap();
    (bytes, digest)
}

fn tar(arguments: &[&str], archive: &[u8]) -> String {
    String::from_utf8(asked("tar", arguments, archive)).unwrap()
}

#[test]
fn the_archive_is_the_same_whenever_the_files_are() {
    let names = ["a/x", "a/y", "b", "a.b/z", "run"];
    let (one, other) = (repository(&names), repository(&["run", "b", "a.b/z", "a/y", "a/x"]));
    for (directory, mode) in [(&one, 0o700), (&other, 0o555)] {
        fs::set_permissions(directory.path().join("run"), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(other.path().join("b"), fs::Permissions::from_mode(0o600)).unwrap();
    let long_ago = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1000));
    File::open(other.path().join("a/x")).unwrap().set_times(long_ago).unwrap();
    let (one, other) = (archive(&context(one.path()).unwrap()), archive(&context(other.path()).unwrap()));
    assert!(one == other);
    let listed = tar(&["--list", "--verbose", "--numeric-owner", "--utc", "--file=-"], &one.0);
    let first = "drwxr-xr-x 0/0               0 1980-01-01 00:00 src/a/";
    let listed: Vec<_> = listed.lines().collect();
    assert_eq!(listed[0].trim_end_matches('/'), first.trim_end_matches('/'));
    assert!(
        listed.iter().any(|line| line.starts_with("-rwxr-xr-x 0/0") && line.ends_with("src/run")),
        "{listed:?}"
    );
    assert!(
        listed.iter().any(|line| line.starts_with("-rw-r--r-- 0/0") && line.ends_with("src/b")),
        "{listed:?}"
    );
}

#[test]
fn what_is_different_has_another_digest() {
    let repository = repository(&["a", "b"]);
    let before = archive(&context(repository.path()).unwrap()).1;
    let changes: [&dyn Fn(&Path); 4] = [
        &|it| fs::write(it.join("a"), "other").unwrap(),
        &|it| fs::set_permissions(it.join("b"), fs::Permissions::from_mode(0o755)).unwrap(),
        &|it| fs::rename(it.join("a"), it.join("c")).unwrap(),
        &|it| fs::create_dir(it.join("empty")).unwrap(),
    ];
    let mut seen = vec![before];
    for change in changes {
        change(repository.path());
        let digest = archive(&context(repository.path()).unwrap()).1;
        assert!(!seen.contains(&digest));
        seen.push(digest);
    }
}

#[test]
fn another_program_unpacks_what_was_packed() {
    let long = format!("{0}/{0}/{0}/{1}", "folder".repeat(15), "name".repeat(40));
    let repository = repository(&["plain", ".hidden", "with space/ünïcode", &long, ".gitignore"]);
    fs::write(repository.path().join("large"), vec![7; 3_000_001]).unwrap();
    fs::write(repository.path().join("empty"), "").unwrap();
    symlink("plain", repository.path().join("link")).unwrap();
    symlink("folder".repeat(30), repository.path().join("far")).unwrap();
    let context = context(repository.path()).unwrap().text("Dockerfile", "FROM scratch\n").unwrap();
    let unpacked = tempfile::tempdir().unwrap();
    tar(&["--extract", "--file=-", "--directory", unpacked.path().to_str().unwrap()], &archive(&context).0);
    assert_eq!(fs::read_to_string(unpacked.path().join("Dockerfile")).unwrap(), "FROM scratch\n");
    let compared = Command::new("diff")
        .args(["--recursive", "--no-dereference"])
        .arg(repository.path())
        .arg(unpacked.path().join("src"))
        .output()
        .unwrap();
    assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stdout));
}

#[test]
fn the_history_is_not_sent() {
    let repository = repository(&["a", ".git/config", "sub/.git/HEAD", "sub/b", "other/.git"]);
    let listed = tar(&["--list", "--file=-"], &archive(&context(repository.path()).unwrap()).0);
    let listed: Vec<_> = listed.lines().map(|line| line.trim_end_matches('/')).collect();
    assert_eq!(listed, ["src/a", "src/other", "src/sub", "src/sub/b"]);
}

#[test]
fn links_that_leave_the_tree_are_refused() {
    let check = |link: &str, target: &str, is_refused: bool| {
        let repository = repository(&["a/b", "c"]);
        symlink(target, repository.path().join(link)).unwrap();
        let answer = context(repository.path());
        assert_eq!(answer.is_err(), is_refused, "{link} -> {target}");
        if let Err(error) = answer {
            assert_eq!(error.kind(), ErrorKind::Permanent);
            let said = format!("the link {link} leaves the repository (it points to {target})");
            assert!(error.to_string().contains(&said), "{error}");
        }
    };
    check("a/link", "../c", false);
    check("a/link", "nowhere", false);
    check("a/link", "../../c", true);
    check("link", "/etc/passwd", true);
    check("link", "a/../../c", true);
}

#[test]
fn sockets_and_pipes_are_left_out_and_named() {
    let repository = repository(&["a"]);
    let _socket = UnixListener::bind(repository.path().join("socket")).unwrap();
    let made = Command::new("mkfifo").arg(repository.path().join("pipe")).status().unwrap();
    assert!(made.success());
    let context = context(repository.path()).unwrap();
    assert_eq!(context.left_out(), [Path::new("pipe"), Path::new("socket")]);
    assert_eq!(tar(&["--list", "--file=-"], &archive(&context).0), "src/a\n");
}

#[test]
fn limits_and_places_are_kept() {
    let refused = |answer: Result<BuildContext, Error>, expected: &str| {
        let error = answer.unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Permanent, expected));
    };
    let small = || BuildContext::new().size_max(10);
    refused(small().text("a", "12345678901"), "the build context holds more than 10 bytes");
    let twice = small().text("a", "1").unwrap().text("a", "2");
    refused(twice, "a is in the build context twice");
    refused(small().text("../a", "1"), "../a is no place below the top of a build context");
    refused(small().text("/a", "1"), "/a is no place below the top of a build context");
}

#[test]
fn a_file_that_changes_meanwhile_is_noticed() {
    let changes: [&dyn Fn(&Path); 4] = [
        &|it| fs::write(it, "shorter").unwrap(),
        &|it| fs::write(it, "longer".repeat(1000)).unwrap(),
        &|it| fs::remove_file(it).unwrap(),
        &|it| {
            fs::remove_file(it).unwrap();
            symlink("/etc/passwd", it).unwrap();
        },
    ];
    for change in changes {
        let repository = repository(&["a"]);
        let context = context(repository.path()).unwrap();
        change(&repository.path().join("a"));
        let error = context.write(&mut Vec::new(), &CancellationToken::new(), |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
        assert!(error.to_string().contains("/a"), "{error}");
    }
}

#[test]
fn a_cancel_ends_it_and_progress_is_told() {
    let repository = repository(&["a", "b"]);
    fs::write(repository.path().join("c"), vec![0; 1 << 20]).unwrap();
    let context = context(repository.path()).unwrap();
    let (token, mut told) = (CancellationToken::new(), Vec::new());
    let written = context.write(std::io::sink(), &token, |bytes| {
        told.push(bytes);
        if bytes > 500_000 {
            token.cancel();
        }
    });
    assert_eq!(written.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(told.is_sorted() && told.last().is_some_and(|bytes| *bytes < 1 << 20), "{told:?}");
    let listed = BuildContext::new().tree("", repository.path(), &token);
    assert_eq!(listed.unwrap_err().kind(), ErrorKind::Cancelled);
}
