//! Releases as directories: the laws, and what is special about directories.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use chrono::DateTime;
use ocore_core::{
    environment::{EnvironmentSpec, InstanceSpec},
    event::Stream,
    port::{Builder, Checkout, Error, ErrorKind, Result},
    release::{Commit, Image},
    testing::laws::{builder::BuilderFixture, caller::Caller},
};
use ocore_local::LocalBuilder;
use tempfile::TempDir;

struct Fixture {
    root: TempDir,
    builder: LocalBuilder,
    checkouts: AtomicU64,
}

fn fixture() -> Fixture {
    let root = tempfile::tempdir().unwrap();
    let builder = LocalBuilder::new(root.path().join("state"));
    Fixture { root, builder, checkouts: AtomicU64::new(0) }
}

impl Fixture {
    fn new_checkout(&self, procfile: &str) -> Checkout {
        let number = self.checkouts.fetch_add(1, Ordering::Relaxed);
        let path = self.root.path().join(format!("checkout-{number}"));
        fs::create_dir_all(path.join("bin")).unwrap();
        fs::write(path.join("Procfile"), procfile).unwrap();
        fs::write(path.join("bin/server"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(path.join("bin/server"), fs::Permissions::from_mode(0o750)).unwrap();
        fs::write(path.join("large"), vec![7; 3 << 20]).unwrap();
        Checkout::new(path, Commit::new(&"a".repeat(40), "commit", "author", DateTime::UNIX_EPOCH))
    }

    fn releases(&self) -> PathBuf {
        self.root.path().join("state/releases")
    }

    fn tree(&self, image: &Image) -> PathBuf {
        self.releases().join(&image.reference).join("tree")
    }

    async fn build(&self, caller: &Caller, checkout: &Checkout) -> Result<Image> {
        self.builder.build(&caller.call(1, 1), checkout).await
    }
}

#[async_trait]
impl BuilderFixture for Fixture {
    fn builder(&self) -> &dyn Builder {
        &self.builder
    }
    fn checkout(&self) -> Checkout {
        self.new_checkout("web: bin/server\n")
    }
    fn unbuildable(&self) -> Checkout {
        self.new_checkout("release: bin/server\n")
    }
    async fn made(&self) -> BTreeSet<String> {
        let Ok(found) = fs::read_dir(self.releases()) else { return BTreeSet::new() };
        found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
    async fn damage(&self, image: &Image) -> bool {
        let path = self.tree(image).join("large");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[1 << 20] ^= 1;
        fs::write(&path, bytes).unwrap();
        true
    }
}

ocore_core::builder_laws!(fixture());

fn caller() -> Caller {
    let spec = EnvironmentSpec::new("test", "https://git.example.org/test.git");
    Caller::new(Arc::new(spec.instance(InstanceSpec::new("web")).try_into().unwrap()))
}

async fn build_error(change: impl FnOnce(&Path)) -> Error {
    let fixture = fixture();
    let checkout = fixture.checkout();
    change(&checkout.path);
    let error = fixture.build(&caller(), &checkout).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    assert_eq!(fixture.made().await, BTreeSet::new());
    error
}

#[tokio::test]
async fn what_cannot_be_a_release_says_why() {
    type Change = fn(&Path);
    let cases: [(&str, Change); 10] = [
        ("Procfile at its top", |path| fs::remove_file(path.join("Procfile")).unwrap()),
        ("Procfile line 2: expected `NAME: COMMAND`", |path| {
            fs::write(path.join("Procfile"), "web: a\nnonsense\n").unwrap();
        }),
        ("Procfile is not a file", |path| {
            fs::remove_file(path.join("Procfile")).unwrap();
            fs::create_dir(path.join("Procfile")).unwrap();
        }),
        ("Procfile is not a file", |path| {
            fs::rename(path.join("Procfile"), path.join("other")).unwrap();
            symlink("other", path.join("Procfile")).unwrap();
        }),
        ("has no program ./none", |path| fs::write(path.join("Procfile"), "web: ./none\n").unwrap()),
        ("there is no program \"no-such-program\"", |path| {
            fs::write(path.join("Procfile"), "web: bin/server\nrelease: no-such-program\n").unwrap();
        }),
        ("the instance has no port", |path| {
            fs::write(path.join("Procfile"), "web: bin/server $PORT\n").unwrap();
        }),
        ("is longer than", |path| fs::write(path.join("Procfile"), vec![b'#'; 70_000]).unwrap()),
        ("the link bin/link leaves the repository (it points to ../../x)", |path| {
            symlink("../../x", path.join("bin/link")).unwrap();
        }),
        ("the link link leaves the repository", |path| symlink("/etc/passwd", path.join("link")).unwrap()),
    ];
    for (expected, change) in cases {
        let error = build_error(change).await.to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn nothing_is_built_for_a_port_that_another_program_has() {
    let fixture = fixture();
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let spec = EnvironmentSpec::new("test", "https://git.example.org/test.git");
    let spec = spec.instance(InstanceSpec::new("web").port(port));
    let caller = Caller::new(Arc::new(spec.try_into().unwrap()));
    let error = fixture.build(&caller, &fixture.checkout()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    assert!(error.to_string().contains(&format!("port {port} is in use by process")), "{error}");
    drop(taken);
    fixture.build(&caller, &fixture.checkout()).await.unwrap();
}

#[tokio::test]
async fn a_release_has_a_limit() {
    let fixture = fixture();
    let builder = fixture.builder.clone().size_max(1 << 20);
    let error = builder.build(&caller().call(1, 1), &fixture.checkout()).await.unwrap_err();
    assert!(error.to_string().contains("more than 1048576 bytes"), "{error}");
    assert_eq!(fixture.made().await, BTreeSet::new());
}

#[tokio::test]
async fn a_release_holds_the_files_and_says_what_to_run() {
    let (fixture, caller) = (fixture(), caller());
    let checkout = fixture.new_checkout("web: bin/server $RELEASE_DIR\nrelease: bin/server\nworker: x\n");
    symlink("server", checkout.path.join("bin/link")).unwrap();
    fs::create_dir(checkout.path.join("empty")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(checkout.path.join("socket")).unwrap();
    let image = fixture.build(&caller, &checkout).await.unwrap();
    assert!(image.has_update);
    assert_eq!(image.settings["web"], "bin/server $RELEASE_DIR");
    assert_eq!(image.settings["release"], "bin/server");
    let tree = fixture.tree(&image);
    assert_eq!(fs::read(tree.join("large")).unwrap().len(), 3 << 20);
    assert_eq!(fs::read_link(tree.join("bin/link")).unwrap(), Path::new("server"));
    assert!(tree.join("empty").is_dir() && !tree.join("socket").exists());
    let mode = |path: &str| fs::metadata(tree.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("bin/server"), mode("large"), mode("bin")), (0o554, 0o444, 0o555));
    let lines: Vec<String> = caller.lines().into_iter().map(|(_, line)| line).collect();
    assert!(lines.iter().any(|line| line.contains("line 3: `worker` is not run")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("socket is a socket or a pipe")), "{lines:?}");
    assert!(caller.lines().iter().all(|(stream, _)| *stream == Stream::Engine));
}

#[tokio::test]
async fn only_unfinished_releases_of_the_same_deployment_are_removed() {
    let (fixture, caller) = (fixture(), caller());
    let id = "00000000-0000-0000-0000-00000000000";
    for name in ["1-1", "1-2.partial", "1-9.partial", "2-1.partial"] {
        fs::create_dir_all(fixture.releases().join(format!("{id}{name}/tree"))).unwrap();
    }
    fixture.builder.build(&caller.call(1, 3), &fixture.checkout()).await.unwrap();
    let expected = ["1-1", "1-3", "1-9.partial", "2-1.partial"].map(|name| format!("{id}{name}"));
    assert_eq!(fixture.made().await, BTreeSet::from(expected));
}

#[tokio::test]
async fn only_releases_are_removed() {
    let (fixture, caller) = (fixture(), caller());
    let image = fixture.build(&caller, &fixture.checkout()).await.unwrap();
    for name in ["", "..", "../releases", "/etc", "x-1", &format!("{}/tree", image.reference)] {
        let image = Image::new(name);
        let error = fixture.builder.remove(&caller.call(1, 1), &image).await.unwrap_err();
        assert!(error.to_string().contains("is no release of this builder"), "{error}");
        assert!(!fixture.builder.locate(&caller.call(1, 1), &image).await.unwrap());
    }
    assert!(fixture.tree(&image).join("large").exists());
}
