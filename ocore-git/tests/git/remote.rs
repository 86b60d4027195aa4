//! A real host on loopback, over http and https: credentials, refusals, limits, cancellation.

use std::{
    net::{IpAddr, Ipv4Addr, TcpListener},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use crate::support::{
    Behind, Bench, Entry, at_rest, commit, commit_tree, files_below,
    host::{Host, Manner, REDIRECT_WITHOUT_QUERY, TOKEN, USER, project},
    noise, read_directory,
};
use git2::Repository;
use ocore_core::{
    port::{ErrorKind, Source},
    request::Revision,
    secret::Secret,
    source_laws,
};
use ocore_git::{Addresses, Credentials, Limits, Protocol, SourcePolicy, Submodules};
use tokio_util::sync::CancellationToken;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn plain() -> SourcePolicy {
    SourcePolicy::default().protocols([Protocol::Http])
}

/// A bench whose repository is behind a host.
fn over_http(policy: SourcePolicy) -> (Bench, Host) {
    let mut bench = Bench::with_policy(policy);
    let host = Host::plain(bench.directory.path());
    bench.url = host.url("127.0.0.1", "origin.git");
    (bench, host)
}

fn over_tls(change: impl FnOnce(SourcePolicy) -> SourcePolicy) -> (Bench, Host) {
    let directory = Bench::new();
    let host = Host::tls(directory.directory.path());
    let policy = SourcePolicy::default().host_address("git.test", LOOPBACK);
    let policy = change(policy.trust_certificate("git.test", host.certificate.as_ref().unwrap()).unwrap());
    let source = ocore_git::GitSource::new(&directory.root).unwrap().policy(policy);
    let url = host.url("git.test", "origin.git");
    (Bench { source, url, ..directory }, host)
}

fn token() -> Credentials {
    Credentials::token(USER, Secret::new(TOKEN))
}

fn with_token(bench: &Bench) {
    bench.source.set_credentials(bench.environment().name(), Some(token()));
}

mod laws_over_http {
    use super::*;

    source_laws!({
        let (bench, host) = over_http(plain());
        Behind(bench, host)
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_a_repository_over_tls_and_is_hidden() {
    let (bench, host) = over_tls(|policy| policy);
    commit(&bench.open(), &[(b"a", Entry::File(b"x"))]);
    host.set(Manner::Protected);
    let error = bench.fetch("main").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent);
    assert!(
        error.to_string().contains("not authorised") && error.to_string().contains("none are given"),
        "{error}"
    );
    let wrong = Credentials::token(USER, Secret::new("another-token"));
    bench.source.set_credentials(bench.environment().name(), Some(wrong));
    let error = bench.fetch("main").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent);
    assert!(
        error.to_string().contains("does not accept") && !error.to_string().contains("another-token"),
        "{error}"
    );
    with_token(&bench);
    let checkout = bench.checkout().await.unwrap();
    assert_eq!(read_directory(&checkout.path).unwrap()["a"], "x");
    assert!(bench.sink.hidden.lock().unwrap().contains(&TOKEN.to_owned()));
    let seen = format!("{:?} {:?}", bench.sink.lines.lock().unwrap(), bench.source);
    assert!(!seen.contains(TOKEN), "{seen}");
    for path in files_below(&bench.root) {
        let content = std::fs::read(&path).unwrap_or_default();
        let found = content.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes());
        assert!(!found, "the token is in {}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_never_sent_over_http() {
    let (bench, host) = over_http(plain());
    commit(&bench.open(), &[(b"a", Entry::File(b"x"))]);
    host.set(Manner::Protected);
    with_token(&bench);
    let error = bench.fetch("main").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent);
    assert!(error.to_string().contains("never sent over http"), "{error}");
    assert!(!host.seen.requests.lock().unwrap().is_empty());
    assert_eq!(*host.seen.authorizations.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_environment_fetched_with_its_token_no_other_sees() {
    let (bench, host) = over_tls(|policy| policy);
    let id = commit(&bench.open(), &[(b"a", Entry::File(b"x"))]);
    host.set(Manner::Protected);
    with_token(&bench);
    bench.fetch("main").await.unwrap();
    // The same repository and the whole id of a commit that is here, but no credentials.
    bench.source.set_credentials(bench.environment().name(), None);
    let error = bench.source.fetch(&bench.context(), &Revision::Commit(id.to_string())).await.unwrap_err();
    assert!(error.to_string().contains("not authorised"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_trusted_is_refused() {
    let (mut bench, host) = over_tls(|policy| policy);
    commit(&bench.open(), &[(b"a", Entry::File(b"x"))]);
    with_token(&bench);
    let policy = SourcePolicy::default().host_address("git.test", LOOPBACK);
    let strict = bench.source.clone().policy(policy.clone());
    let error = strict.fetch(&bench.context(), &Revision::Branch("main".to_owned())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    assert!(error.to_string().contains("certificate is not valid"), "{error}");
    let another = Host::tls(bench.directory.path()).certificate.clone().unwrap();
    bench.source = bench.source.policy(policy.trust_certificate("git.test", &another).unwrap());
    let error = bench.fetch("main").await.unwrap_err();
    assert!(error.to_string().contains("none of those given"), "{error}");
    assert_eq!(*host.seen.authorizations.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn submodules_are_fetched_without_the_repositorys_token() {
    let (bench, host) = over_tls(|policy| policy);
    let inner = Repository::open(project(bench.directory.path(), "inner.git")).unwrap();
    let middle = Repository::open(project(bench.directory.path(), "middle.git")).unwrap();
    let inner_id = commit(&inner, &[(b"deep", Entry::File(b"inner"))]);
    let modules = b"[submodule \"i\"]\npath = sub/i\nurl = ../inner.git\n";
    let sub = Entry::Tree(vec![(b"i", Entry::Submodule(inner_id))]);
    let middle_id = commit(&middle, &[(b".gitmodules", Entry::File(modules)), (b"sub", sub)]);
    let modules = format!("[submodule \"m\"]\npath = m\nurl = {}\n", host.url("git.test", "middle.git"));
    let entries =
        [(&b".gitmodules"[..], Entry::File(modules.as_bytes())), (b"m", Entry::Submodule(middle_id))];
    commit(&bench.open(), &entries);
    let checkout = bench.checkout().await.unwrap();
    let found = read_directory(&checkout.path).unwrap();
    assert_eq!(found["m/sub/i/deep"], "inner");
    assert!(found.keys().all(|path| !path.contains(".git/")), "{found:?}");

    // Now the host wants a token for all of them, and the environment has one for its own repository.
    host.set(Manner::Protected);
    std::fs::remove_dir_all(bench.root.join("mirrors")).unwrap();
    std::fs::create_dir(bench.root.join("mirrors")).unwrap();
    with_token(&bench);
    let error = bench.checkout().await.unwrap_err();
    assert!(
        error.to_string().contains("middle.git") && error.to_string().contains("none are given"),
        "{error}"
    );
    assert_eq!(bench.checkouts(), Vec::<String>::new());
    // Unless the host of the engine says for which.
    let environment = bench.environment();
    let prefix = host.url("git.test", "middle.git");
    let source = bench.source.clone().submodule_credentials(environment.name(), &prefix, token()).unwrap();
    let commit = source.fetch(&bench.context(), &Revision::Branch("main".to_owned())).await.unwrap();
    let error = source.checkout(&bench.context(), &commit).await.unwrap_err();
    assert!(error.to_string().contains("inner.git"), "{error}");
    let prefix = host.url("git.test", "inner.git");
    let source = source.submodule_credentials(environment.name(), &prefix, token()).unwrap();
    source.checkout(&bench.context(), &commit).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submodule_leads_into_no_private_network_but_its_parents() {
    let (bench, host) = over_http(plain());
    let inner = Repository::open(project(bench.directory.path(), "inner.git")).unwrap();
    let id = commit(&inner, &[(b"deep", Entry::File(b"inner"))]);
    let add = |url: &str| {
        let modules = format!("[submodule \"i\"]\npath = i\nurl = {url}\n");
        commit(
            &bench.open(),
            &[(b".gitmodules", Entry::File(modules.as_bytes())), (b"i", Entry::Submodule(id))],
        );
    };
    // Another name of the same machine, as an address of the private network would be.
    add(&host.url("localhost", "inner.git"));
    let error = bench.checkout().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    assert!(error.to_string().contains("connect to localhost: its address"), "{error}");
    add(&host.url("127.0.0.1", "inner.git"));
    bench.checkout().await.unwrap();
    add(&host.url("localhost", "inner.git"));
    let allowed = plain().host_address("localhost", LOOPBACK).allow_address(LOOPBACK);
    let bench = Bench { source: bench.source.clone().policy(allowed), ..bench };
    bench.checkout().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn submodules_without_end_are_refused() {
    let limited = plain().submodules(Submodules::Fetched { depth_max: 2, count_max: 3 });
    let (bench, _host) = over_http(limited);
    let mut id = commit(&Repository::open(project(bench.directory.path(), "r0.git")).unwrap(), &[]);
    for number in 1..4 {
        let repository =
            Repository::open(project(bench.directory.path(), &format!("r{number}.git"))).unwrap();
        let modules = format!("[submodule \"s\"]\npath = s\nurl = ../r{}.git\n", number - 1);
        let entries = [(&b".gitmodules"[..], Entry::File(modules.as_bytes())), (b"s", Entry::Submodule(id))];
        id = commit(&repository, &entries);
    }
    let mut deep = Bench { url: bench.url.replace("origin", "r3"), ..bench };
    let error = deep.checkout().await.unwrap_err();
    assert!(error.to_string().contains("depth_max, 2"), "{error}");
    deep.url = deep.url.replace("r3", "r2");
    deep.checkout().await.unwrap();
}

/// Sets the host's manner, and checks what a fetch says.
async fn check_answer(manner: Manner, kind: ErrorKind, expected: &str) {
    let (bench, host) = over_http(plain());
    commit(&bench.open(), &[(b"a", Entry::File(b"x"))]);
    host.set(manner);
    let error = bench.fetch("main").await.unwrap_err();
    assert_eq!(error.kind(), kind, "{manner:?}: {error}");
    assert!(error.to_string().contains(expected), "{manner:?}: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_answer_of_a_host_is_told_apart() {
    check_answer(Manner::Status(404), ErrorKind::Permanent, "no such repository").await;
    check_answer(Manner::Status(403), ErrorKind::Permanent, "not authorised").await;
    check_answer(Manner::Status(503), ErrorKind::Transient, "cannot answer now").await;
    check_answer(Manner::WebPage, ErrorKind::Permanent, "not a git repository").await;
    check_answer(Manner::Redirect, ErrorKind::Permanent, "redirects").await;
}

/// libgit2 1.9.7 follows such a redirect although it is told not to, and dies of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_without_a_query_does_not_end_the_process() {
    let (bench, host) = over_tls(|policy| policy);
    commit(&bench.open(), &[(b"a", Entry::File(b"x"))]);
    for answer in [
        REDIRECT_WITHOUT_QUERY,
        "HTTP/1.0 307 x\r\nLocation: /x/info/refs\r\n\r\n",
        "HTTP/1.1 301\r\nLocation: /x/info/refs\r\n\r\n",
    ] {
        host.set(Manner::Raw(answer));
        let error = bench.fetch("main").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent);
        assert!(error.to_string().contains("redirects, which is not followed"), "{error}");
    }
    // What libgit2 would skip in front of a redirect is no answer at all.
    for answer in [
        "\nHTTP/1.1 302 Found\r\nLocation: /x/info/refs\r\n\r\n",
        "\r\nHTTP/1.1 302 Found\r\nLocation: /x/info/refs\r\n\r\n",
        "\r\r\n\nHTTP/1.1 302 Found\r\nLocation: /x/info/refs\r\n\r\n",
        "HTTP/1.1 20\nHTTP/1.1 302 Found\r\nLocation: /x/info/refs\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "garbage",
    ] {
        host.set(Manner::Raw(answer));
        let error = bench.fetch("main").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{answer:?}: {error}");
        assert!(error.to_string().contains("does not speak HTTP"), "{answer:?}: {error}");
    }
    host.set(Manner::Raw(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 302 Found\r\nLocation: /x/info/refs\r\n\r\n",
    ));
    let error = bench.fetch("main").await.unwrap_err();
    assert!(error.to_string().contains("refuses with status 100"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_answer_on_one_connection_is_not_followed() {
    let (bench, host) = over_tls(|policy| policy);
    let id = commit(&bench.open(), &[(b"a", Entry::File(b"x"))]);
    host.set(Manner::AnswerTwice);
    // It depends on the moment whether libgit2 sees it at all.
    if let Err(error) = bench.fetch("main").await {
        assert!(error.to_string().contains("Data after `Connection: close`"), "{error}");
    }
    assert!(host.seen.requests.lock().unwrap().iter().all(|request| request.contains("/origin.git/")));
    host.set(Manner::Serve);
    assert_eq!(bench.fetch("main").await.unwrap().sha, id.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_branches_without_end_is_given_up() {
    let (bench, host) = over_http(limited(|limits| limits.references_max = 10));
    let id = commit(&bench.open(), &[]);
    for number in 0..9_000 {
        let name = format!("refs/heads/{}{number}", "long".repeat(40));
        bench.open().reference(&name, id, true, "").unwrap();
    }
    let error = bench.fetch("main").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    assert!(error.to_string().contains("limit references_max, 10"), "{error}");
    assert!(error.to_string().contains("list of branches and tags is longer"), "{error}");
    assert_eq!(host.seen.requests.lock().unwrap().len(), 1, "no pack was asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_repository_says_so_over_http() {
    let (bench, _host) = over_http(plain());
    let error = bench.fetch("main").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent);
    assert!(error.to_string().contains("is empty"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_is_broken_at_its_origin_is_cloned_once_more_and_then_refused() {
    let (bench, _host) = over_http(plain());
    let repository = bench.open();
    let good = commit(&repository, &[(b"a", Entry::File(b"x"))]);
    // git takes the mode for a file's; libgit2 does not read the tree at all.
    let blob = repository.blob(b"x").unwrap();
    let tree = [&b"1100644 a\0"[..], blob.as_bytes()].concat();
    let tree = repository.odb().unwrap().write(git2::ObjectType::Tree, &tree).unwrap();
    commit_tree(&repository, "broken", "a broken commit", tree);
    let broken = bench.fetch("broken").await.unwrap();
    let first = bench.source.checkout(&bench.context(), &broken).await.unwrap_err();
    assert_eq!(first.kind(), ErrorKind::Transient, "{first}");
    let second = bench.source.checkout(&bench.context(), &broken).await.unwrap_err();
    assert_eq!(second.kind(), ErrorKind::Permanent, "{second}");
    assert!(second.to_string().contains("the repository itself is broken"), "{second}");
    assert_eq!(bench.times_made_anew(), 1);
    // Other commits of the repository are none the worse for it.
    assert_eq!(bench.checkout().await.unwrap().commit.sha, good.to_string());
    assert_eq!(bench.times_made_anew(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_cannot_be_reached_are_told_apart() {
    let mut bench = Bench::with_policy(plain());
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    bench.url = format!("http://{closed}/x");
    let error = bench.fetch("main").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert!(error.to_string().contains("the host does not answer"), "{error}");
    bench.url = "http://no-such-host.invalid/x".to_owned();
    let error = bench.fetch("main").await.unwrap_err();
    // Without a network nobody can say that there is no such host.
    let is_final = error.to_string().contains("find the host no-such-host.invalid: no such host");
    assert_eq!(error.kind(), if is_final { ErrorKind::Permanent } else { ErrorKind::Transient }, "{error}");
    assert!(error.to_string().contains("find the host no-such-host.invalid"), "{error}");
    bench.url = "http://169.254.169.254/latest".to_owned();
    let error = bench.fetch("main").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent);
    assert!(error.to_string().contains("is not allowed by the policy"), "{error}");
    bench.source = bench.source.clone().policy(plain().addresses(Addresses::Public));
    bench.url = format!("http://{closed}/x");
    let error = bench.fetch("main").await.unwrap_err();
    assert!(error.to_string().contains("127.0.0.1 is not allowed"), "{error}");
}

fn limited(change: impl FnOnce(&mut Limits)) -> SourcePolicy {
    plain().limits(change)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_host_is_given_up() {
    let policy = limited(|limits| limits.idle_time_max = Duration::from_secs(2));
    let (bench, host) = over_http(policy);
    commit(&bench.open(), &[(b"noise", Entry::File(&noise(2_000_000)))]);
    host.set(Manner::StallAfter(500_000));
    let began = Instant::now();
    let error = bench.fetch("main").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert!(error.to_string().contains("does not answer for"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    // And the mirror is fit for use.
    host.set(Manner::Serve);
    bench.fetch("main").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_accepts_and_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let limits = limited(|limits| limits.idle_time_max = Duration::from_millis(300));
    let mut bench = Bench::with_policy(limits);
    bench.url = format!("http://{}/x", listener.local_addr().unwrap());
    let error = bench.fetch("main").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(error.to_string().contains("does not answer for"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_a_fetch_are_kept() {
    let (bench, host) = over_http(limited(|limits| limits.received_bytes_max = 1_000_000));
    commit(&bench.open(), &[(b"noise", Entry::File(&noise(30_000_000)))]);
    let error = bench.fetch("main").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    assert!(error.to_string().contains("limit received_bytes_max, 1000000"), "{error}");
    // What the system keeps between the two of them comes on top.
    assert!(host.seen.sent_bytes.load(Ordering::Relaxed) < 15_000_000);
    let (bench, _host) = over_http(limited(|limits| limits.time_max = Duration::from_millis(1)));
    commit(&bench.open(), &[(b"a", Entry::File(b"x"))]);
    let error = bench.fetch("main").await.unwrap_err();
    assert!(error.to_string().contains("limit time_max"), "{error}");
    let (bench, _host) = over_http(limited(|limits| limits.objects_max = 2));
    commit(&bench.open(), &[(b"a", Entry::File(b"x"))]);
    let error = bench.fetch("main").await.unwrap_err();
    assert!(error.to_string().contains("limit objects_max, 2"), "{error}");
    let (bench, host) = over_http(limited(|limits| limits.object_bytes_max = 1_000_000));
    commit(&bench.open(), &[(b"zeros", Entry::File(&vec![0; 1_000_001]))]);
    let error = bench.fetch("main").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    assert!(error.to_string().contains("object of 1000001 bytes"), "{error}");
    assert!(error.to_string().contains("limit object_bytes_max, 1000000"), "{error}");
    assert!(host.seen.sent_bytes.load(Ordering::Relaxed) < 10_000);
    let (bench, host) = over_http(limited(|limits| limits.references_max = 1));
    let id = commit(&bench.open(), &[]);
    bench.open().reference("refs/heads/other", id, true, "").unwrap();
    let before = host.seen.requests.lock().unwrap().len();
    let error = bench.fetch("main").await.unwrap_err();
    assert!(error.to_string().contains("limit references_max, 1"), "{error}");
    assert_eq!(host.seen.requests.lock().unwrap().len(), before + 1, "no pack is asked for");
}

/// Polls until the host has sent so many bytes.
async fn sent(host: &Host, bytes: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while host.seen.sent_bytes.load(Ordering::Relaxed) < bytes {
        assert!(Instant::now() < deadline, "the host has not sent {bytes} bytes");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_stops_a_fetch_that_waits_for_a_silent_host() {
    let (bench, host) = over_http(plain());
    commit(&bench.open(), &[(b"noise", Entry::File(&noise(2_000_000)))]);
    host.set(Manner::StallAfter(500_000));
    let token = CancellationToken::new();
    let (context, main) = (bench.context_of(1, 1, token.clone()), Revision::Branch("main".to_owned()));
    let cancel = async {
        sent(&host, 500_000).await;
        token.cancel();
        Instant::now()
    };
    let (fetched, cancelled) = tokio::join!(bench.source.fetch(&context, &main), cancel);
    assert_eq!(fetched.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(cancelled.elapsed() < Duration::from_secs(1), "{:?}", cancelled.elapsed());
    at_rest(&bench).await;
    host.set(Manner::Serve);
    bench.fetch("main").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_fetch_stops_its_thread() {
    let (bench, host) = over_http(plain());
    commit(&bench.open(), &[(b"noise", Entry::File(&noise(2_000_000)))]);
    host.set(Manner::StallAfter(500_000));
    let (context, main) = (bench.context(), Revision::Branch("main".to_owned()));
    tokio::select! {
        _ = bench.source.fetch(&context, &main) => panic!("the host stalls"),
        () = sent(&host, 500_000) => {}
    }
    at_rest(&bench).await;
    host.set(Manner::Serve);
    bench.fetch("main").await.unwrap();
}

/// Drops fetch and checkout after every number of polls that they need, and looks that nothing goes on.
#[tokio::test(flavor = "multi_thread")]
async fn calls_can_be_dropped_at_every_poll() {
    let (bench, _host) = over_http(plain());
    let main = Revision::Branch("main".to_owned());
    let (mut polls, mut finished) = (0, false);
    while !finished {
        let id = commit(&bench.open(), &[(b"a", Entry::File(polls.to_string().as_bytes()))]);
        let context = bench.context();
        let mut work = Box::pin(async {
            let commit = bench.source.fetch(&context, &main).await.unwrap();
            bench.source.checkout(&context, &commit).await.unwrap()
        });
        let mut left = polls;
        finished = std::future::poll_fn(|wake| {
            if left == 0 {
                return std::task::Poll::Ready(false);
            }
            left -= 1;
            work.as_mut().poll(wake).map(|_| true)
        })
        .await;
        drop(work);
        if !finished {
            at_rest(&bench).await;
        }
        let checkout = bench.checkout().await.unwrap();
        assert_eq!(checkout.commit.sha, id.to_string(), "after {polls} polls");
        bench.source.discard(&context, checkout).await.unwrap();
        polls += 1;
        assert!(polls < 200);
    }
    assert!(polls > 3, "{polls}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_stops_a_checkout_and_removes_it() {
    let bench = Bench::new();
    let names: Vec<_> = (0..20_000).map(|n| format!("f{n:05}").into_bytes()).collect();
    let files: Vec<_> = names.iter().map(|name| (&name[..], Entry::File(b"x"))).collect();
    commit(&bench.open(), &files);
    let commit = bench.fetch("main").await.unwrap();
    let token = CancellationToken::new();
    let on_progress = token.clone();
    *bench.sink.on_progress.lock().unwrap() = Some(Box::new(move |progress| {
        if progress.what == "writing files" {
            on_progress.cancel();
        }
    }));
    let context = bench.context_of(1, 1, token.clone());
    let error = bench.source.checkout(&context, &commit).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(bench.checkouts(), Vec::<String>::new());
}
