//! The architecture as tests: what must not depend on what, what must not be written, and that the documents say
//! what is so.
#![expect(clippy::unwrap_used, reason = "a test's own means fail loudly")]

mod documents;
mod repository;
mod text;

use std::collections::BTreeSet;

use self::repository::{Member, closure, code, files, members};

/// What decides, and so knows no time, no chance and no world.
const PURE: [&str; 11] = [
    "deployment.rs",
    "environment",
    "failure.rs",
    "health.rs",
    "machine",
    "name.rs",
    "queue.rs",
    "release.rs",
    "request.rs",
    "retention.rs",
    "retry.rs",
];

/// What the pure part of the core must not mention.
const IMPURE: [&str; 22] = [
    "async ",
    ".await",
    "async_trait",
    "tokio",
    "futures::",
    "reqwest",
    "tracing::",
    "Instant",
    "SystemTime",
    "Utc::now",
    "Local::now",
    "random",
    "rand::",
    "new_v4",
    "now_v7",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "crate::engine",
    "crate::executor",
];

/// What the engine must get from its `Executor`, so that it runs under a virtual clock.
const AMBIENT: [&str; 10] = [
    "tokio::time",
    "tokio::spawn",
    "tokio::task",
    "tokio::net",
    "tokio::fs",
    "Instant",
    "SystemTime",
    "Utc::now",
    "std::thread",
    "rand::",
];

/// What the core must never be built with, however far down.
const NOT_IN_CORE: [&str; 13] = [
    "bollard",
    "clap",
    "git2",
    "indicatif",
    "libgit2-sys",
    "libsqlite3-sys",
    "ocore-git",
    "ocore-local",
    "ocore-postgres",
    "rusqlite",
    "sqlx",
    "sqlx-core",
    "tracing-subscriber",
];

/// The lines of a file's code that hold one of the words.
fn offences(path: &str, words: &[&str]) -> Vec<String> {
    let code = code(path);
    let lines = (1..).zip(code.lines());
    let found = lines.flat_map(|(n, line)| words.iter().map(move |word| (n, line, word)));
    found
        .filter(|(_, line, word)| line.contains(*word))
        .map(|(n, _, word)| format!("{path}:{n}: {word}"))
        .collect()
}

fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.starts_with("tests/kill/") || path.ends_with("/tests.rs")
}

fn sources(of: &str) -> Vec<String> {
    files(".rs")
        .into_iter()
        .filter(|path| path.starts_with(&format!("{of}/src/")) && !is_test(path))
        .collect()
}

#[track_caller]
fn none(offences: impl IntoIterator<Item = String>, rule: &str) {
    let offences: Vec<String> = offences.into_iter().collect();
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}

#[test]
fn what_decides_knows_no_world() {
    for part in PURE {
        let path = format!("ocore-core/src/{part}");
        let with_folder = format!("{}/", path.trim_end_matches(".rs"));
        let mut part_of = sources("ocore-core");
        part_of
            .retain(|file| *file == path || *file == format!("{path}.rs") || file.starts_with(&with_folder));
        assert!(!part_of.is_empty(), "{part} is gone: keep the list of the pure part true");
        none(part_of.iter().flat_map(|path| offences(path, &IMPURE)), "the core decides without the world");
    }
}

#[test]
fn the_engine_takes_time_tasks_and_chance_from_its_executor() {
    let mut engine = sources("ocore-core");
    engine.retain(|path| path.starts_with("ocore-core/src/engine"));
    assert!(!engine.is_empty());
    none(engine.iter().flat_map(|path| offences(path, &AMBIENT)), "ask the executor");
}

#[test]
fn the_core_is_built_without_adapters_and_what_they_need() {
    let members = members();
    let core = members.iter().find(|member| member.name == "ocore-core").unwrap();
    let closure = closure(core);
    assert!(
        closure.contains("serde_json") && closure.contains("hyper"),
        "the closure is not followed: {closure:?}"
    );
    none(
        NOT_IN_CORE.into_iter().filter(|name| closure.contains(*name)).map(str::to_owned),
        "not below the core",
    );
    none(
        core.dev_dependencies
            .iter()
            .filter(|name| name.starts_with("ocore-") && *name != "ocore-core" && *name != SERVERS)
            .cloned(),
        "not in the core's tests",
    );
}

/// Starts database servers for tests; every test may use it.
const SERVERS: &str = "ocore-test-postgres";

/// The members that another may be built with.
fn allowed(member: &Member, all: &BTreeSet<String>) -> BTreeSet<String> {
    match member.name.as_str() {
        "ocore-core" | SERVERS => BTreeSet::new(),
        "xtask" => BTreeSet::from([SERVERS.to_owned()]),
        "ocore-examples" | "ocore-benches" | "ocore-tests" | "ocore-kill-tests" => all.clone(),
        // Every other member is an adapter.
        _ => BTreeSet::from(["ocore-core".to_owned()]),
    }
}

#[test]
fn adapters_know_the_core_and_nothing_else_of_ocore() {
    let members = members();
    let all: BTreeSet<String> = members.iter().map(|member| member.name.clone()).collect();
    for member in &members {
        let mut allowed = allowed(member, &all);
        let others = |names: &BTreeSet<String>| names.intersection(&all).cloned().collect::<BTreeSet<_>>();
        none(others(&member.dependencies).difference(&allowed).cloned(), &member.name);
        allowed.extend([member.name.clone(), SERVERS.to_owned()]);
        none(
            others(&member.dev_dependencies).difference(&allowed).cloned(),
            &format!("tests of {}", member.name),
        );
    }
    let mut adapters = members.iter().map(|member| member.folder.as_str()).collect::<BTreeSet<_>>();
    adapters.retain(|folder| folder.starts_with("ocore-") && *folder != "ocore-core");
    let used = adapters.iter().flat_map(|folder| sources(folder));
    none(used.flat_map(|path| offences(&path, &["ocore_core::engine"])), "adapters obey, they do not act");
}

#[test]
fn every_member_takes_versions_and_lints_from_the_workspace() {
    for member in members() {
        for line in [
            "version.workspace = true",
            "edition.workspace = true",
            "rust-version.workspace = true",
            "license.workspace = true",
            "[lints]\nworkspace = true",
        ] {
            assert!(member.manifest.contains(line), "{}/Cargo.toml lacks `{line}`", member.folder);
        }
        assert_eq!(member.metadata["edition"], "2024", "{}", member.name);
        assert_eq!(member.metadata["license"], "MIT OR Apache-2.0", "{}", member.name);
        let sections = member.manifest.split("\n[").filter(|section| section.contains("dependencies]\n"));
        let pinned = sections.flat_map(str::lines).filter(|line| line.contains("= \""));
        none(
            pinned.filter(|line| !line.contains("path = ")).map(str::to_owned),
            "versions are said once, in the root",
        );
    }
}

/// The words of a text, as names are made of them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

#[test]
fn every_law_is_in_a_list() {
    let mut paths = files(".rs");
    paths.retain(|path| path.starts_with("ocore-core/src/testing/laws/") && !is_test(path));
    let codes: Vec<String> = paths.iter().map(|path| code(path)).collect();
    let invocations = codes.iter().flat_map(|code| code.split("declare_laws!").skip(1));
    let lists = invocations.filter_map(|text| text.split_once('[')?.1.split(']').next());
    let listed: BTreeSet<&str> = lists.flat_map(words).collect();
    assert!(listed.len() > 40, "the lists are not found: {listed:?}");
    let functions = codes.iter().flat_map(|code| code.split("\npub async fn ").skip(1));
    // A law is what takes a fixture; the other functions help.
    let laws = functions
        .filter(|text| text.split('{').next().is_some_and(|head| words(head).any(|it| it == "fixture")));
    let names: BTreeSet<&str> = laws.filter_map(|text| words(text).next()).collect();
    assert!(names.len() > 40, "the laws are not found: {names:?}");
    none(
        names.difference(&listed).map(|name| (*name).to_owned()),
        "laws that nobody runs, because no list has them",
    );
}
