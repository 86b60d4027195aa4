//! What a hostile repository can try, and what happens then.

use std::fs;

use crate::support::{Bench, Entry, commit, commit_tree, read_directory, write_tree};
use git2::Oid;
use ocore_core::{
    port::{Error, ErrorKind, Source},
    request::Revision,
};
use ocore_git::{CaseCollisions, SourcePolicy, Submodules};

fn local() -> SourcePolicy {
    SourcePolicy::default().allow_local_paths()
}

/// Checks out a commit with these entries: it is refused for good, says why, and leaves nothing.
async fn check_refused(policy: SourcePolicy, entries: Vec<(&[u8], Entry<'_>)>, expected: &str) -> Error {
    let bench = Bench::with_policy(policy);
    commit(&bench.open(), &entries);
    let error = bench.checkout().await.expect_err("a hostile tree is refused");
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    assert!(error.to_string().contains(expected), "{error:?} does not say {expected:?}");
    assert!(!error.to_string().chars().any(char::is_control), "{error:?} is not printable");
    assert_eq!(bench.checkouts(), Vec::<String>::new());
    assert!(!bench.directory.path().join("escaped").exists());
    error
}

fn file(name: &[u8]) -> Vec<(&[u8], Entry<'static>)> {
    vec![(name, Entry::File(b"x"))]
}

#[tokio::test]
async fn names_that_lead_elsewhere_are_refused() {
    let names: [&[u8]; 12] = [
        b"..",
        b".",
        b"../escaped",
        b"/escaped",
        b".git",
        b".GIT",
        b".Git",
        b"git~1",
        b"GIT~1",
        b"a\\b",
        "\u{200c}.git".as_bytes(),
        b"a\nb",
    ];
    for name in names {
        check_refused(local(), file(name), "must not be written").await;
    }
    check_refused(local(), vec![(b"..", Entry::Tree(file(b"escaped")))], "must not be written").await;
    check_refused(local(), vec![(b".git", Entry::Tree(file(b"config")))], "must not be written").await;
}

#[tokio::test]
async fn links_that_leave_the_tree_are_refused() {
    let link = |target: &'static [u8]| vec![(&b"link"[..], Entry::Link(target))];
    check_refused(local(), link(b"/etc/passwd"), "is absolute").await;
    check_refused(local(), link(b"../escaped"), "leaves the tree").await;
    check_refused(local(), link(b"a/../../escaped"), "goes up again").await;
    check_refused(local(), link(b""), "is empty").await;
    check_refused(local(), vec![(b"d", Entry::Tree(link(b"../../escaped")))], "leaves the tree").await;
    let twice = vec![(&b"a"[..], Entry::Link(b"b")), (b"a", Entry::Tree(file(b"x")))];
    check_refused(local(), twice, "there twice").await;
    check_refused(local(), vec![(b".gitmodules", Entry::Link(b"x"))], "is a symbolic link").await;
}

#[tokio::test]
async fn links_inside_and_programs_are_kept() {
    let bench = Bench::new();
    let inner = Entry::Tree(vec![(b"up", Entry::Link(b"../run"))]);
    commit(&bench.open(), &[(b"d", inner), (b"run", Entry::Program(b"#!")), (b"to", Entry::Link(b"d/up"))]);
    let checkout = bench.checkout().await.unwrap();
    let expected = [("d/up", "-> ../run"), ("run", "+x #!"), ("to", "-> d/up")];
    let expected = expected.map(|(path, what)| (path.to_owned(), what.to_owned()));
    assert_eq!(read_directory(&checkout.path), Some(expected.into()));
    assert_eq!(fs::read(checkout.path.join("to")).unwrap(), b"#!");
}

#[tokio::test]
async fn odd_modes_are_refused() {
    let blob = |bench: &Bench| bench.open().blob(b"x").unwrap();
    for mode in [0o60644, 0o20644, 0o10644, 0o140755] {
        let id = blob(&Bench::new());
        let bench = Bench::new();
        assert_eq!(blob(&bench), id);
        commit(&bench.open(), &[(b"device", Entry::Raw(mode, id))]);
        let error = bench.checkout().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{mode:o}: {error}");
        assert!(error.to_string().contains("which is no file"), "{mode:o}: {error}");
    }
}

#[tokio::test]
async fn names_that_differ_in_case_only_are_refused_unless_allowed() {
    let both = || vec![(&b"README"[..], Entry::File(b"a")), (b"readme", Entry::File(b"b"))];
    check_refused(local(), both(), "differs from another name in case only").await;
    let bench = Bench::with_policy(local().case_collisions(CaseCollisions::Allowed));
    commit(&bench.open(), &both());
    assert_eq!(read_directory(&bench.checkout().await.unwrap().path).unwrap().len(), 2);
}

#[tokio::test]
async fn attributes_filters_and_hooks_are_not_obeyed() {
    let bench = Bench::new();
    let attributes =
        b"* text eol=crlf ident filter=evil working-tree-encoding=UTF-16\nhidden export-ignore\n";
    let hook = Entry::Tree(vec![(b"post-checkout", Entry::Program(b"#!/bin/sh\ntouch ../escaped"))]);
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    let entries: [(&[u8], Entry<'_>); 5] = [
        (b".gitattributes", Entry::File(attributes)),
        (b"hidden", Entry::File(b"x")),
        (b"hooks", hook),
        (b"large", Entry::File(pointer)),
        (b"text", Entry::File(b"$Id$\na\n")),
    ];
    commit(&bench.open(), &entries);
    let found = read_directory(&bench.checkout().await.unwrap().path).unwrap();
    assert_eq!((found["text"].as_str(), found["hidden"].as_str()), ("$Id$\na\n", "x"));
    assert!(found["large"].starts_with("version https"));
}

#[tokio::test]
async fn each_limit_is_kept_and_names_itself() {
    let files = |count: u32| -> Vec<_> { (0..count).map(|n| format!("f{n:04}").into_bytes()).collect() };
    let names = files(11);
    let many = || names.iter().map(|name| (&name[..], Entry::File(b"x"))).collect::<Vec<_>>();
    check_refused(local().limits(|limits| limits.files_max = 10), many(), "limit files_max, 10").await;
    let large = vec![b'x'; 5000];
    let one = || vec![(&b"large"[..], Entry::File(&large))];
    check_refused(local().limits(|limits| limits.file_bytes_max = 4999), one(), "limit file_bytes_max, 4999")
        .await;
    let total = local().limits(|limits| limits.checkout_bytes_max = 9999);
    let three = vec![(&b"a"[..], Entry::File(&large)), (b"b", Entry::File(&large))];
    check_refused(total, three, "limit checkout_bytes_max, 9999").await;
    let deep = |levels: usize| {
        let leaf = Entry::Tree(vec![(&b"d"[..], Entry::File(b"x"))]);
        vec![(&b"d"[..], (1..levels).fold(leaf, |inner, _| Entry::Tree(vec![(b"d", inner)])))]
    };
    check_refused(local().limits(|limits| limits.path_depth_max = 5), deep(5), "limit path_depth_max, 5")
        .await;
    check_refused(local().limits(|limits| limits.path_length_max = 9), deep(5), "limit path_length_max, 9")
        .await;
    check_refused(local(), file(&[b'x'; 256]), "longer than 255 bytes").await;
    // At the limit, it goes.
    let bench = Bench::with_policy(local().limits(|limits| {
        (limits.path_depth_max, limits.path_length_max, limits.files_max) = (6, 11, 6);
    }));
    commit(&bench.open(), &deep(5));
    bench.checkout().await.unwrap();
}

/// Ten levels of directories, each of which has the next one ten times: ten thousand million files in eleven objects.
#[tokio::test]
async fn a_tree_bomb_ends_at_the_limit() {
    let bench = Bench::with_policy(local().limits(|limits| limits.files_max = 1000));
    let repository = bench.open();
    let names: Vec<_> = (0..10).map(|n| format!("d{n}").into_bytes()).collect();
    let mut tree = write_tree(&repository, &[(b"f", Entry::File(b"x"))]);
    for _ in 0..10 {
        let level: Vec<_> = names.iter().map(|name| (&name[..], Entry::Raw(0o40000, tree))).collect();
        tree = write_tree(&repository, &level);
    }
    commit_tree(&repository, "main", "a bomb", tree);
    let error = bench.checkout().await.unwrap_err();
    assert!(error.to_string().contains("limit files_max, 1000"), "{error}");
    assert_eq!(bench.checkouts(), Vec::<String>::new());
}

fn gitmodules(url: &str) -> Vec<u8> {
    format!("[submodule \"lib\"]\n\tpath = lib\n\turl = {url}\n").into_bytes()
}

#[tokio::test]
async fn submodules_from_local_paths_and_programs_are_refused() {
    let target = Bench::new();
    let id = commit(&target.open(), &file(b"secret"));
    let path = target.url.clone();
    let cases = [
        (format!("file://{path}"), "must not be a local path"),
        (path, "must not be a local path"),
        ("../origin.git".to_owned(), "must not be a local path"),
        ("ext::sh -c touch% escaped".to_owned(), "space or a control character"),
        ("ext::sh".to_owned(), "would run a program"),
        ("http://127.0.0.1:9/x".to_owned(), "protocol http is not allowed"),
        ("--upload-pack=x".to_owned(), "begins with a hyphen"),
        ("https://u:p@127.0.0.1/x".to_owned(), "holds a password"),
    ];
    for (url, expected) in cases {
        let content = gitmodules(&url);
        let entries = vec![(&b".gitmodules"[..], Entry::File(&content)), (b"lib", Entry::Submodule(id))];
        check_refused(local(), entries, expected).await;
    }
    check_refused(local(), vec![(b"lib", Entry::Submodule(id))], "no URL for it").await;
    let refused = local().submodules(Submodules::Refused);
    check_refused(refused, vec![(b"lib", Entry::Submodule(id))], "does not allow").await;
}

#[tokio::test]
async fn submodules_can_be_left_empty() {
    let bench = Bench::with_policy(local().submodules(Submodules::Empty));
    let nowhere = Oid::from_str("0123456789012345678901234567890123456789").unwrap();
    commit(&bench.open(), &[(b"lib", Entry::Submodule(nowhere)), (b"x", Entry::File(b"x"))]);
    let checkout = bench.checkout().await.unwrap();
    assert_eq!(crate::support::names(&checkout.path.join("lib")), Vec::<String>::new());
}

#[tokio::test]
async fn alternates_replacements_and_settings_of_the_repository_are_not_taken_over() {
    let bench = Bench::new();
    let repository = bench.open();
    let honest = commit(&repository, &[(b"a", Entry::File(b"honest"))]);
    let tree = write_tree(&repository, &[(b"a", Entry::File(b"evil"))]);
    let evil = commit_tree(&repository, "evil", "evil", tree);
    repository.reference(&format!("refs/replace/{honest}"), evil, true, "").unwrap();
    fs::write(bench.repository.join("info/grafts"), format!("{honest} {evil}\n")).unwrap();
    let other = Bench::new();
    fs::write(bench.repository.join("objects/info/alternates"), format!("{}/objects\n", other.url)).unwrap();
    repository.config().unwrap().set_str("core.fsmonitor", "touch escaped").unwrap();
    let checkout = bench.checkout().await.unwrap();
    assert_eq!(fs::read(checkout.path.join("a")).unwrap(), b"honest");
    let mirror = &bench.mirrors()[0];
    assert!(bench.repository.join("objects/info/alternates").exists());
    assert!(!mirror.join("objects/info/alternates").exists());
    assert!(!fs::read_to_string(mirror.join("config")).unwrap().contains("fsmonitor"));
    assert!(!mirror.join("info/grafts").exists() && !mirror.join("refs/replace").exists());
    // libgit2 puts an explanation there, and never runs a hook of a fetch.
    assert_eq!(crate::support::names(&mirror.join("hooks")), ["README.sample"]);
}

#[tokio::test]
async fn only_the_sources_own_checkouts_are_discarded() {
    let bench = Bench::new();
    commit(&bench.open(), &file(b"a"));
    let mut checkout = bench.checkout().await.unwrap();
    let own = checkout.path.clone();
    for path in
        [bench.root.clone(), bench.root.join("mirrors/x"), own.join(".."), bench.root.join("checkouts/..")]
    {
        checkout.path = path;
        assert_eq!(
            bench.source.discard(&bench.context(), checkout.clone()).await.unwrap_err().kind(),
            ErrorKind::Permanent
        );
    }
    assert!(own.join("a").exists());
}

#[tokio::test]
async fn local_paths_are_allowed_only_where_the_policy_says_so() {
    let bench = Bench::with_policy(SourcePolicy::default());
    commit(&bench.open(), &file(b"a"));
    let error = bench.fetch("main").await.unwrap_err();
    assert!(error.to_string().contains("local paths are not allowed"), "{error}");
    let allowed = bench.directory.path().join("allowed");
    fs::create_dir(&allowed).unwrap();
    let mut below = Bench::with_policy(SourcePolicy::default().allow_local_paths_below(&allowed));
    below.url = bench.url.clone();
    assert!(below.fetch("main").await.unwrap_err().to_string().contains("not below"));
    // A link inside of the allowed directory leads out of it.
    std::os::unix::fs::symlink(&bench.repository, allowed.join("link")).unwrap();
    below.url = allowed.join("link").to_str().unwrap().to_owned();
    assert!(below.fetch("main").await.unwrap_err().to_string().contains("not below"));
    crate::support::make_repository(&allowed.join("inside"));
    commit(&git2::Repository::open(allowed.join("inside")).unwrap(), &file(b"a"));
    below.url = allowed.join("inside").to_str().unwrap().to_owned();
    below.fetch("main").await.unwrap();
}

#[tokio::test]
async fn a_repository_below_an_allowed_directory_has_all_its_parts_there() {
    let secret = Bench::new();
    let id = commit(&secret.open(), &file(b"secret"));
    let allowed = secret.directory.path().join("allowed");
    fs::create_dir(&allowed).unwrap();
    let mut below = Bench::with_policy(SourcePolicy::default().allow_local_paths_below(&allowed));
    // A .git file, a link in place of the objects, objects that are borrowed.
    fs::create_dir(allowed.join("file")).unwrap();
    fs::write(allowed.join("file/.git"), format!("gitdir: {}\n", secret.url)).unwrap();
    for name in ["link", "borrowed"] {
        crate::support::make_repository(&allowed.join(name));
    }
    fs::remove_dir_all(allowed.join("link/objects")).unwrap();
    std::os::unix::fs::symlink(secret.repository.join("objects"), allowed.join("link/objects")).unwrap();
    let objects = format!("{}/objects\n", secret.url);
    fs::write(allowed.join("borrowed/objects/info/alternates"), objects).unwrap();
    fs::write(allowed.join("borrowed/refs/heads/main"), format!("{id}\n")).unwrap();
    for (name, expected) in [
        ("file", "a part of it is not below"),
        ("link", "a part of it is not below"),
        ("borrowed", "borrows objects of another repository"),
    ] {
        below.url = allowed.join(name).to_str().unwrap().to_owned();
        let error = below.fetch("main").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{name}: {error}");
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
}

#[tokio::test]
async fn authors_committers_and_messages_are_told_apart_and_read_in_any_encoding() {
    let bench = Bench::new();
    let repository = bench.open();
    let tree = write_tree(&repository, &[]);
    let text = [
        format!("tree {tree}\nauthor Ada <a@x> 1000000000 +0200\ncommitter Bob <b@x> 1700000000 -0700\n")
            .as_bytes(),
        b"encoding ISO-8859-1\n\nCaf\xe9\n\nmore",
    ]
    .concat();
    let id = repository.odb().unwrap().write(git2::ObjectType::Commit, &text).unwrap();
    repository.reference("refs/heads/main", id, true, "").unwrap();
    let found = bench.fetch("main").await.unwrap();
    assert_eq!(
        (found.sha, found.summary, found.author),
        (id.to_string(), "Café".to_owned(), "Ada".to_owned())
    );
    // When it came to be in this form.
    assert_eq!(found.time.timestamp(), 1_700_000_000);
}

#[tokio::test]
async fn a_long_message_is_cut_at_a_character() {
    let bench = Bench::new();
    let repository = bench.open();
    let tree = write_tree(&repository, &[]);
    commit_tree(&repository, "main", &format!("{}\nrest", "é".repeat(300)), tree);
    let found = bench.source.fetch(&bench.context(), &Revision::Branch("main".to_owned())).await.unwrap();
    assert_eq!(found.summary.chars().count(), 200);
}
