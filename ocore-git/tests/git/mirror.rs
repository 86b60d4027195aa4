//! The mirror: incremental, pruned, shared, repaired.

use std::{
    fs,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::support::{Bench, Entry, commit, commit_tree, read_directory, write_tree};
use futures::future::join_all;
use ocore_core::{
    event::Progress,
    port::{ErrorKind, Source},
    release::Commit,
    request::Revision,
};
use ocore_git::{GitSource, SourcePolicy};
use tokio_util::sync::CancellationToken;

fn fill(bench: &Bench, commits: u32) -> String {
    let repository = bench.open();
    let mut last = String::new();
    for number in 0..commits {
        let text = format!("{number} {}", "some text ".repeat(20));
        last = commit(&repository, &[(b"file", Entry::File(text.as_bytes()))]).to_string();
    }
    last
}

fn objects(bench: &Bench) -> u64 {
    let progress: Vec<Progress> = std::mem::take(&mut *bench.sink.progress.lock().unwrap());
    progress.iter().filter(|p| p.what == "receiving objects").filter_map(|p| p.total).max().unwrap_or(0)
}

#[tokio::test]
async fn a_second_fetch_receives_what_is_new() {
    let bench = Bench::new();
    fill(&bench, 100);
    bench.fetch("main").await.unwrap();
    let deltas =
        |progress: &Progress| progress.what == "resolving deltas" && Some(progress.done) == progress.total;
    assert!(bench.sink.progress.lock().unwrap().iter().any(deltas));
    assert_eq!(objects(&bench), 300);
    let repository = bench.open();
    commit(&repository, &[(b"file", Entry::File(b"new"))]);
    bench.fetch("main").await.unwrap();
    assert_eq!(objects(&bench), 3);
}

#[tokio::test]
async fn a_whole_id_that_is_here_needs_no_repository() {
    let bench = Bench::new();
    let sha = fill(&bench, 1);
    let commit = bench.fetch("main").await.unwrap();
    fs::remove_dir_all(&bench.repository).unwrap();
    let found = bench.source.fetch(&bench.context(), &Revision::Commit(sha)).await.unwrap();
    assert_eq!(found, commit);
    bench.source.checkout(&bench.context(), &commit).await.unwrap();
    let error = bench.fetch("main").await.unwrap_err();
    assert!(error.to_string().contains("no such directory"), "{error}");
}

#[tokio::test]
async fn branches_that_are_gone_are_gone_and_make_room() {
    let bench = Bench::new();
    fill(&bench, 1);
    let repository = bench.open();
    let tree = write_tree(&repository, &[]);
    commit_tree(&repository, "a", "one", tree);
    bench.fetch("a").await.unwrap();
    repository.find_reference("refs/heads/a").unwrap().delete().unwrap();
    commit_tree(&repository, "a/b", "two", tree);
    assert_eq!(bench.fetch("a/b").await.unwrap().summary, "two");
    assert_eq!(bench.fetch("a").await.unwrap_err().kind(), ErrorKind::Permanent);
    repository.find_reference("refs/heads/a/b").unwrap().delete().unwrap();
    commit_tree(&repository, "a", "three", tree);
    assert_eq!(bench.fetch("a").await.unwrap().summary, "three");
}

#[tokio::test]
async fn a_forced_push_between_fetch_and_checkout_changes_nothing() {
    let bench = Bench::new();
    fill(&bench, 1);
    let commit_before = bench.fetch("main").await.unwrap();
    bench.open().find_reference("refs/heads/main").unwrap().delete().unwrap();
    commit(&bench.open(), &[(b"other", Entry::File(b"x"))]);
    bench.fetch("main").await.unwrap();
    let checkout = bench.source.checkout(&bench.context(), &commit_before).await.unwrap();
    assert!(checkout.path.join("file").exists() && !checkout.path.join("other").exists());
    // A worker that has never seen the commit cannot have it any more, and says so.
    let other = GitSource::new(bench.directory.path().join("other-root")).unwrap();
    let other = other.policy(SourcePolicy::default().allow_local_paths());
    let error = other.checkout(&bench.context(), &commit_before).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent);
    assert!(
        error.to_string().contains("no such commit") && error.to_string().contains("forced push"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_fetches_of_one_repository_are_safe() {
    let bench = Arc::new(Bench::new());
    let sha = fill(&bench, 200);
    let policy = SourcePolicy::default().allow_local_paths();
    let calls = (0..8_u128).map(|number| {
        let (bench, policy) = (Arc::clone(&bench), policy.clone());
        tokio::spawn(async move {
            // Sources of their own, as in several processes: only the files' locks are between them.
            let source = GitSource::new(&bench.root).unwrap().policy(policy);
            let context = bench.context_of(number, 1, CancellationToken::new());
            let commit = source.fetch(&context, &Revision::Branch("main".to_owned())).await.unwrap();
            source.checkout(&context, &commit).await.unwrap();
            commit.sha
        })
    });
    for found in join_all(calls).await {
        assert_eq!(found.unwrap(), sha);
    }
    assert_eq!(bench.mirrors().len(), 1);
    assert_eq!(bench.checkouts().len(), 8);
}

/// The other process is this test again, told by a variable to be the other one.
#[tokio::test(flavor = "multi_thread")]
async fn processes_share_a_mirror() {
    const TEST: &str = "mirror::processes_share_a_mirror";
    if let Ok(place) = std::env::var("OCORE_GIT_OTHER_PROCESS") {
        let (root, rest) = place.split_once('|').unwrap();
        let (marks, url) = rest.split_once('|').unwrap();
        let mut bench = Bench::new();
        bench.url = url.to_owned();
        bench.source = GitSource::new(root).unwrap().policy(SourcePolicy::default().allow_local_paths());
        for _ in 0..5 {
            bench.fetch("main").await.unwrap();
        }
        fs::write(format!("{marks}/{}", std::process::id()), "").unwrap();
        return;
    }
    let bench = Bench::new();
    fill(&bench, 100);
    let marks = bench.directory.path().join("marks");
    fs::create_dir(&marks).unwrap();
    let place = format!("{}|{}|{}", bench.root.display(), marks.display(), bench.url);
    let start = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", TEST]).env("OCORE_GIT_OTHER_PROCESS", &place).spawn().unwrap()
    };
    let children: Vec<_> = (0..3).map(|_| start()).collect();
    let mut sha = String::new();
    for number in 0..10 {
        let text = number.to_string();
        sha = commit(&bench.open(), &[(b"file", Entry::File(text.as_bytes()))]).to_string();
        assert_eq!(bench.fetch("main").await.unwrap().sha, sha);
    }
    for child in children {
        let mark = marks.join(child.id().to_string());
        assert!(child.wait_with_output().unwrap().status.success());
        assert!(mark.exists(), "the other process has done nothing");
    }
    assert_eq!(bench.checkout().await.unwrap().commit.sha, sha);
}

#[tokio::test]
async fn a_damaged_mirror_is_made_anew() {
    let damages: [fn(&std::path::Path); 5] = [
        |mirror| fs::write(mirror.join("HEAD"), "garbage").unwrap(),
        |mirror| fs::write(mirror.join("config"), "[garbage").unwrap(),
        |mirror| fs::remove_dir_all(mirror.join("objects/pack")).unwrap(),
        |mirror| fs::write(mirror.join("refs/heads/main"), "garbage").unwrap(),
        |mirror| {
            for entry in fs::read_dir(mirror.join("objects/pack")).unwrap() {
                let path = entry.unwrap().path();
                fs::remove_file(&path).unwrap();
                fs::write(&path, vec![7; 5000]).unwrap();
            }
        },
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let bench = Bench::new();
        let sha = fill(&bench, 20);
        let commit = bench.fetch("main").await.unwrap();
        damage(&bench.mirrors()[0]);
        let fetched = bench.fetch("main").await;
        assert_eq!(fetched.unwrap_or_else(|error| panic!("damage {number}: {error}")).sha, sha);
        damage(&bench.mirrors()[0]);
        let checkout = bench.source.checkout(&bench.context(), &commit).await;
        let checkout = match checkout {
            Ok(checkout) => checkout,
            // Found while the files were read: the next attempt makes the mirror anew.
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Transient, "damage {number}: {error}");
                bench.source.checkout(&bench.context(), &commit).await.unwrap()
            }
        };
        assert_eq!(read_directory(&checkout.path).unwrap().len(), 1);
    }
}

#[tokio::test]
async fn what_a_killed_fetch_left_is_removed() {
    let bench = Bench::new();
    fill(&bench, 2);
    bench.fetch("main").await.unwrap();
    let mirror = &bench.mirrors()[0];
    let left = [
        mirror.join("objects/pack/pack_git2_1234"),
        mirror.join("refs/heads/main.lock"),
        mirror.join("HEAD.lock"),
    ];
    left.iter().for_each(|path| fs::write(path, "").unwrap());
    let sha = fill(&bench, 1);
    assert_eq!(bench.fetch("main").await.unwrap().sha, sha);
    assert!(left.iter().all(|path| !path.exists()));
    assert!(bench.sink.lines.lock().unwrap().iter().all(|line| !line.contains("made anew")));
}

#[tokio::test]
async fn a_mirror_with_too_many_packs_is_made_anew() {
    let bench = Bench::with_policy(SourcePolicy::default().allow_local_paths().limits(|l| l.packs_max = 3));
    for _ in 0..8 {
        let sha = fill(&bench, 1);
        assert_eq!(bench.fetch("main").await.unwrap().sha, sha);
        let packs = crate::support::names(&bench.mirrors()[0].join("objects/pack"));
        assert!(packs.iter().filter(|name| name.ends_with(".pack")).count() <= 4, "{packs:?}");
    }
}

/// Holds the lock of the bench's only mirror.
fn hold_lock(bench: &Bench) -> fs::File {
    let lock = bench.mirrors()[0].with_extension("lock");
    let file = fs::File::open(lock).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_mirror_is_made_anew_once_for_all_who_wait() {
    let bench = Bench::new();
    fill(&bench, 5);
    let commit = bench.fetch("main").await.unwrap();
    let contexts: Vec<_> =
        (1..6).map(|number| bench.context_of(number, 1, CancellationToken::new())).collect();
    fs::write(bench.mirrors()[0].join("damaged"), "").unwrap();
    let lock = hold_lock(&bench);
    let mut calls =
        Box::pin(join_all(contexts.iter().map(|context| bench.source.checkout(context, &commit))));
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut calls).await.is_err(), "they wait");
    drop(lock);
    calls.await.into_iter().for_each(|checkout| drop(checkout.unwrap()));
    assert_eq!(bench.times_made_anew(), 1);
}

#[tokio::test]
async fn a_mirror_stays_until_there_is_another() {
    let bench = Bench::with_policy(SourcePolicy::default().allow_local_paths().limits(|l| l.packs_max = 1));
    let lost = fill(&bench, 1);
    bench.fetch("main").await.unwrap();
    // The first commit is lost to a forced push, and its mirror has too many packs.
    bench.open().find_reference("refs/heads/main").unwrap().delete().unwrap();
    commit(&bench.open(), &[(b"other", Entry::File(b"x"))]);
    bench.fetch("main").await.unwrap();
    let away = bench.repository.with_extension("away");
    fs::rename(&bench.repository, &away).unwrap();
    for damaged in [false, true] {
        if damaged {
            fs::write(bench.mirrors()[0].join("damaged"), "").unwrap();
        }
        let error = bench.fetch("main").await.unwrap_err();
        assert!(error.to_string().contains("no such directory"), "{error}");
        assert_eq!(bench.mirrors().len(), 1, "nothing is left beside it");
    }
    // The mirror is marked, and the host is down; but the commit is here.
    let found = bench.source.fetch(&bench.context(), &Revision::Commit(lost.clone())).await.unwrap();
    assert_eq!(found.sha, lost);
    bench.source.checkout(&bench.context(), &found).await.unwrap();
}

#[tokio::test]
async fn what_the_dead_have_left_is_removed() {
    let bench = Bench::new();
    fill(&bench, 1);
    bench.fetch("main").await.unwrap();
    let lock = hold_lock(&bench);
    let name = bench.mirrors()[0].file_name().unwrap().to_str().unwrap().to_owned();
    let mirrors = ["gone", "new"].map(|end| bench.root.join(format!("mirrors/.{name}.0123.{end}")));
    let checkouts = ["1-1.0123", "2-1.0123.gone"].map(|name| bench.root.join(format!("checkouts/.{name}")));
    let held = bench.root.join("checkouts/.3-1.0123");
    let make = |path: &std::path::PathBuf| fs::create_dir_all(path.join("inside")).unwrap();
    mirrors.iter().chain(&checkouts).chain([&held]).for_each(make);
    let holder = fs::File::open(&held).unwrap();
    rustix::fs::flock(&holder, rustix::fs::FlockOperation::LockExclusive).unwrap();
    GitSource::new(&bench.root).unwrap();
    assert!(checkouts.iter().all(|path| !path.exists()));
    assert!(held.exists() && mirrors.iter().all(|path| path.exists()), "what somebody holds stays");
    drop(lock);
    GitSource::new(&bench.root).unwrap();
    assert!(held.exists() && mirrors.iter().all(|path| !path.exists()));
    mirrors.iter().for_each(make);
    bench.fetch("main").await.unwrap();
    assert!(mirrors.iter().all(|path| !path.exists()), "whoever has the lock sweeps too");
}

#[tokio::test]
async fn earlier_checkouts_of_the_deployment_are_removed_and_later_ones_win() {
    let bench = Bench::new();
    fill(&bench, 1);
    let commit = bench.fetch("main").await.unwrap();
    let token = CancellationToken::new;
    let first = bench.source.checkout(&bench.context_of(1, 1, token()), &commit).await.unwrap();
    let other = bench.source.checkout(&bench.context_of(2, 1, token()), &commit).await.unwrap();
    let left = bench.root.join(format!("checkouts/.{}-1.0123.partial", bench.context().deployment()));
    fs::create_dir(&left).unwrap();
    let later = bench.source.checkout(&bench.context_of(1, 5, token()), &commit).await.unwrap();
    assert!(!first.path.exists() && !left.exists());
    assert!(later.path.exists() && other.path.exists());
    let error = bench.source.checkout(&bench.context_of(1, 4, token()), &commit).await.unwrap_err();
    assert!(error.to_string().contains("another worker has taken over"), "{error}");
    assert!(later.path.exists());
}

#[tokio::test]
async fn short_ids_that_fit_several_commits_are_refused() {
    let bench = Bench::new();
    let repository = bench.open();
    let tree = write_tree(&repository, &[]);
    // Ids that begin with the same seven digits are found among many: about 2^14 commits have such a pair.
    let mut seen = std::collections::HashMap::new();
    let pair = (0..).find_map(|number| {
        let text = format!("tree {tree}\nauthor A <a> 1 +0000\ncommitter A <a> 1 +0000\n\n{number}");
        let id = git2::Oid::hash_object(git2::ObjectType::Commit, text.as_bytes()).unwrap();
        seen.insert(id.to_string()[..7].to_owned(), text.clone()).map(|other| (id, text, other))
    });
    let (id, text, other) = pair.unwrap();
    for (name, text) in [("main", text), ("other", other)] {
        let id = repository.odb().unwrap().write(git2::ObjectType::Commit, text.as_bytes()).unwrap();
        repository.reference(&format!("refs/heads/{name}"), id, true, "").unwrap();
    }
    let find = |sha: String| async { bench.source.fetch(&bench.context(), &Revision::Commit(sha)).await };
    let error = find(id.to_string()[..7].to_owned()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent);
    assert!(error.to_string().contains("fits several commits"), "{error}");
    assert_eq!(find(id.to_string()[..20].to_owned()).await.unwrap().sha, id.to_string());
    let error = find(tree.to_string()).await.unwrap_err();
    assert!(error.to_string().contains("no such commit"), "a tree is no commit: {error}");
}

#[tokio::test]
async fn repositories_that_are_none_say_so() {
    let mut bench = Bench::new();
    let error = bench.fetch("main").await.unwrap_err();
    assert!(error.to_string().contains("is empty; push a commit first"), "{error}");
    let plain = bench.directory.path().join("plain");
    fs::create_dir(&plain).unwrap();
    for (url, expected) in
        [(plain.to_str().unwrap(), "not a git repository"), ("/no/such/place", "no such directory")]
    {
        bench.url = url.to_owned();
        let error = bench.fetch("main").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_somebody_else_holds_is_waited_for_and_a_cancel_ends_the_wait() {
    let bench = Bench::new();
    fill(&bench, 1);
    bench.fetch("main").await.unwrap();
    let file = hold_lock(&bench);
    let token = CancellationToken::new();
    let (context, main) = (bench.context_of(1, 1, token.clone()), Revision::Branch("main".to_owned()));
    let mut fetch = Box::pin(bench.source.fetch(&context, &main));
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut fetch).await.is_err(), "it waits");
    let asked = Instant::now();
    token.cancel();
    assert_eq!(fetch.await.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(asked.elapsed() < Duration::from_secs(1));
    drop(file);
    let _: Commit = bench.fetch("main").await.unwrap();
}
