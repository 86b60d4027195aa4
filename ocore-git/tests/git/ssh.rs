//! A real ssh host on loopback: keys, host keys, refusals, limits, cancellation.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use crate::support::{
    Behind, Bench, Entry, at_rest, commit, files_below, noise, read_directory,
    ssh::{Manner, SshHost, encrypted, new_key, text_of},
};
use ocore_core::{
    port::{ErrorKind, Source},
    request::Revision,
    secret::Secret,
    source_laws,
};
use ocore_git::{Credentials, Limits, SourcePolicy};
use tokio_util::sync::CancellationToken;

/// A bench whose repository is behind a host, with the key that opens it.
fn over_ssh(change: impl FnOnce(&mut Limits)) -> (Bench, SshHost) {
    let mut bench = Bench::with_policy(SourcePolicy::default().limits(change));
    let host = SshHost::start(bench.directory.path());
    bench.url = host.url("origin.git");
    give(&bench, host.credentials());
    (bench, host)
}

fn give(bench: &Bench, credentials: Credentials) {
    bench.source.set_credentials(bench.environment().name(), Some(credentials));
}

/// A key as the host knows it, or another, and what opens it.
fn key(host: &SshHost, text: &str, passphrase: Option<&str>) -> Credentials {
    Credentials::ssh_key("git", Secret::new(text), passphrase.map(Secret::new), [host.host_key()])
}

mod laws_over_ssh {
    use super::*;

    source_laws!({
        let (bench, host) = over_ssh(|_| {});
        Behind(bench, host)
    });
}

async fn refused(bench: &Bench, kind: ErrorKind, expected: &str) {
    let error = bench.fetch("main").await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(expected), "{error} does not say {expected:?}");
    assert!(!error.to_string().contains(char::is_control), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_another_key_learns_nothing() {
    let (bench, host) = over_ssh(|_| {});
    commit(&bench.open(), &[(b"a", Entry::File(b"x"))]);
    let other = SshHost::start(bench.directory.path());
    let secret = Secret::new(text_of(host.client_key()));
    give(&bench, Credentials::ssh_key("git", secret, None, [other.host_key()]));
    refused(&bench, ErrorKind::Permanent, "not the one that is trusted").await;
    assert_eq!(host.seen.questions.load(Ordering::Relaxed), 0, "it was asked how to prove who one is");
    assert_eq!(host.seen.keys.load(Ordering::Relaxed), 0, "it has seen a key");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_open_nothing_say_so() {
    use ErrorKind::Permanent;
    let (bench, host) = over_ssh(|_| {});
    commit(&bench.open(), &[(b"a", Entry::File(b"x"))]);
    give(&bench, key(&host, &text_of(&new_key()), None));
    refused(&bench, Permanent, "not authorised: the host does not accept the environment's credentials")
        .await;
    give(&bench, key(&host, "-----BEGIN OPENSSH PRIVATE KEY-----\ngarbage\n", None));
    refused(&bench, Permanent, "the private key cannot be used").await;
    let locked = encrypted(host.client_key(), "open sesame");
    for passphrase in [None, Some("wrong")] {
        give(&bench, key(&host, &locked, passphrase));
        refused(&bench, Permanent, "the private key cannot be used").await;
    }
    give(&bench, key(&host, &locked, Some("open sesame")));
    bench.fetch("main").await.unwrap();
    bench.source.set_credentials(bench.environment().name(), None);
    refused(&bench, Permanent, "ssh needs a private key").await;
    give(&bench, Credentials::token("git", Secret::new("token")));
    refused(&bench, Permanent, "ssh needs a private key").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_form_of_a_url_names_its_path_and_user() {
    let (mut bench, host) = over_ssh(|_| {});
    commit(&bench.open(), &[(b"a", Entry::File(b"x"))]);
    let port = host.address.port();
    let cases = [
        (format!("ssh://git@127.0.0.1:{port}/origin.git"), "git", "git-upload-pack '/origin.git'"),
        (format!("ssh://ada@127.0.0.1:{port}/origin.git/"), "ada", "git-upload-pack '/origin.git/'"),
        (format!("ssh://127.0.0.1:{port}/origin.git"), "git", "git-upload-pack '/origin.git'"),
        (format!("ssh://127.0.0.1:{port}/~/origin.git"), "git", "git-upload-pack '~/origin.git'"),
    ];
    for (url, user, command) in cases {
        bench.url = url;
        bench.fetch("main").await.unwrap();
        assert_eq!(host.seen.commands.lock().unwrap().pop().as_deref(), Some(command), "{}", bench.url);
        assert_eq!(host.seen.users.lock().unwrap().pop().as_deref(), Some(user), "{}", bench.url);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hosts_say_is_understood() {
    let (bench, host) = over_ssh(|_| {});
    commit(&bench.open(), &[(b"a", Entry::File(b"x"))]);
    for text in [
        "ERROR: Repository not found.\n",
        "remote: \nremote: ========================================================================\nremote: \n\
         remote: ERROR: The project you were looking for could not be found or you don't have permission to view \
         it.\n\nremote: \nremote: ========================================================================\n",
        "Gitea: Repository does not exist or you do not have access\n",
        "Forgejo: Cannot find repository: acme/shop\nfatal: Could not read from remote repository.\n",
        "fatal: '/x.git' does not appear to be a git repository\n",
        "conq: repository does not exist.\n",
        "fatal: no such repository\n",
    ] {
        host.set(Manner::Stderr(text));
        refused(&bench, ErrorKind::Permanent, "no such repository, or no right to see it").await;
    }
    host.set(Manner::Stderr("ERROR: Permission to acme/shop.git denied to deploy key\n"));
    refused(&bench, ErrorKind::Permanent, "not authorised").await;
    host.set(Manner::Stderr("remote: Internal API unreachable\n"));
    refused(&bench, ErrorKind::Transient, "the connection failed").await;
    host.set(Manner::Serve);
    let mut nowhere = bench;
    nowhere.url = host.url("nowhere.git");
    refused(&nowhere, ErrorKind::Permanent, "no such repository").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_hangs_up_may_be_asked_again() {
    let (bench, host) = over_ssh(|_| {});
    let id = commit(&bench.open(), &[(b"a", Entry::File(b"x"))]);
    host.set(Manner::CloseInAuthentication);
    refused(&bench, ErrorKind::Transient, "").await;
    host.set(Manner::RefuseKey);
    refused(&bench, ErrorKind::Permanent, "does not accept the environment's credentials").await;
    host.set(Manner::Serve);
    assert_eq!(bench.fetch("main").await.unwrap().sha, id.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_stops_a_fetch_at_every_stage() {
    let (bench, host) = over_ssh(|_| {});
    commit(&bench.open(), &[(b"noise", Entry::File(&noise(2_000_000)))]);
    for manner in [
        Manner::SilentBeforeBanner,
        Manner::SilentInKeyExchange,
        Manner::SilentInAuthentication,
        Manner::StallAfter(1),
        Manner::StallAfter(500_000),
    ] {
        host.set(manner);
        let token = CancellationToken::new();
        let (context, main) = (bench.context_of(1, 1, token.clone()), Revision::Branch("main".to_owned()));
        let cancel = async {
            tokio::time::timeout(Duration::from_secs(20), host.seen.silent.notified()).await.unwrap();
            token.cancel();
            Instant::now()
        };
        let (fetched, cancelled) = tokio::join!(bench.source.fetch(&context, &main), cancel);
        assert_eq!(fetched.unwrap_err().kind(), ErrorKind::Cancelled, "{manner:?}");
        assert!(cancelled.elapsed() < Duration::from_secs(1), "{manner:?}: {:?}", cancelled.elapsed());
        at_rest(&bench).await;
    }
    host.set(Manner::Serve);
    bench.fetch("main").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_a_fetch_are_kept() {
    let (bench, host) = over_ssh(|limits| limits.received_bytes_max = 1_000_000);
    commit(&bench.open(), &[(b"noise", Entry::File(&noise(10_000_000)))]);
    refused(&bench, ErrorKind::Permanent, "limit received_bytes_max, 1000000").await;
    assert!(host.seen.sent_bytes.load(Ordering::Relaxed) < 9_000_000);
    let (bench, host) = over_ssh(|limits| limits.idle_time_max = Duration::from_millis(500));
    commit(&bench.open(), &[(b"a", Entry::File(b"x"))]);
    for manner in [Manner::SilentBeforeBanner, Manner::SilentInKeyExchange, Manner::SilentInAuthentication] {
        host.set(manner);
        refused(&bench, ErrorKind::Transient, "does not answer for").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_in_no_line_no_error_and_no_file() {
    let (bench, host) = over_ssh(|_| {});
    commit(&bench.open(), &[(b"a", Entry::File(b"x"))]);
    let text = text_of(host.client_key());
    let mut shown = String::new();
    for manner in [Manner::RefuseKey, Manner::CloseInAuthentication, Manner::Stderr("x\n"), Manner::Serve] {
        host.set(manner);
        if let Err(error) = bench.checkout().await {
            shown.push_str(&format!("{error} {error:?}\n"));
        }
    }
    assert_eq!(bench.checkouts().len(), 1);
    shown.push_str(&format!("{:?} {:?}", bench.sink.lines.lock().unwrap(), bench.source));
    assert!(bench.sink.hidden.lock().unwrap().contains(&text));
    let lines: Vec<_> = text.lines().filter(|line| line.len() > 20 && !line.starts_with("---")).collect();
    assert!(lines.len() > 3);
    for line in lines {
        assert!(!shown.contains(line), "{shown}");
        for path in files_below(&bench.root) {
            let content = std::fs::read(&path).unwrap_or_default();
            let found = content.windows(line.len()).any(|window| window == line.as_bytes());
            assert!(!found, "the key is in {}", path.display());
        }
    }
    assert_eq!(read_directory(&bench.root.join("checkouts").join(&bench.checkouts()[0])).unwrap()["a"], "x");
}
