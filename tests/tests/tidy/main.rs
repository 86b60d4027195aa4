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
const NOT_IN_CORE: [&str; 12] = [
    "bollard",
    "clap",
    "git2",
    "indicatif",
    "libgit2-sys",
    "libsqlite3-sys",
    "ocore-git",
    "ocore-local",
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
    path.contains("/tests/") || path.ends_with("/tests.rs")
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
            .filter(|name| name.starts_with("ocore-") && *name != "ocore-core")
            .cloned(),
        "not in the core's tests",
    );
}

/// The members that another may be built with.
fn allowed(member: &Member, all: &BTreeSet<String>) -> BTreeSet<String> {
    match member.name.as_str() {
        "ocore-core" | "xtask" => BTreeSet::new(),
        "ocore-examples" | "ocore-benches" | "ocore-tests" => all.clone(),
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
        allowed.insert(member.name.clone());
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

#[test]
fn every_law_is_in_its_list() {
    let mut laws = files(".rs");
    laws.retain(|path| path.starts_with("ocore-core/src/testing/laws/") && !is_test(path));
    assert!(laws.len() >= 6, "{laws:?}");
    let mut count = 0;
    for path in laws {
        let code = code(&path);
        let declared: Vec<&str> =
            code.lines().filter_map(|line| line.strip_prefix("pub async fn ")).collect();
        let list = code.split_once("declare_laws! {").and_then(|(_, rest)| Some(rest.split_once("\n}")?.0));
        let list = list.unwrap_or_default();
        for declaration in declared {
            let name = declaration.split(['(', '<']).next().unwrap();
            let listed = list.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name);
            assert!(listed, "{path}: the law {name} is not in the list, so nobody runs it");
            count += 1;
        }
    }
    assert!(count >= 8, "only {count} laws were found");
}
