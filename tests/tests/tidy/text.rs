//! What must not be written anywhere.

use crate::{
    none,
    repository::{files, read, texts},
};

/// The longest source file, in lines.
const LINES_MAX: usize = 600;

/// The words are put together here, so that this file does not hold them.
fn unfinished() -> Vec<String> {
    let macros = ["to", "unimple", "db"].into_iter().zip(["do!(", "mented!(", "g!("]);
    let marks = ["TO", "FIX", "XX"].into_iter().zip(["DO", "ME", "X"]);
    macros.chain(marks).map(|(head, tail)| format!("{head}{tail}")).collect()
}

fn registries() -> Vec<String> {
    let hosts = [
        &["crates", "io"][..],
        &["npmjs", "org"],
        &["npmjs", "com"],
        &["yarnpkg", "com"],
        &["pypi", "org"],
        &["pythonhosted", "org"],
        &["rubygems", "org"],
        &["proxy", "golang", "org"],
    ];
    hosts.map(|parts| parts.join(".")).to_vec()
}

#[test]
fn nothing_is_left_unfinished() {
    let words = unfinished();
    let rust = texts().into_iter().filter(|(path, _)| path.ends_with(".rs") || path.ends_with(".toml"));
    let found = rust.flat_map(|(path, text)| {
        let hits = words.iter().filter(|word| text.contains(word.as_str()));
        hits.map(|word| format!("{path}: {word}")).collect::<Vec<_>>()
    });
    none(found, "finish it, or write an issue");
}

#[test]
fn no_registry_is_named() {
    let hosts = registries();
    let texts = texts().into_iter().filter(|(path, _)| !path.ends_with("Cargo.lock"));
    let found = texts.flat_map(|(path, text)| {
        let hits = hosts.iter().filter(|host| text.contains(host.as_str()));
        hits.map(|host| format!("{path}: {host}")).collect::<Vec<_>>()
    });
    none(found, "where packages come from is for whoever builds");
}

#[test]
fn lints_are_expected_with_a_reason_and_never_allowed() {
    let (allow, expect) = (["[al", "low("].concat(), ["[ex", "pect("].concat());
    for path in files(".rs") {
        let text = read(&path);
        for attribute in ["#", "#!"] {
            let allowed = format!("{attribute}{allow}");
            assert!(
                !text.contains(&allowed),
                "{path}: say `expect`, with a reason: it complains when it is not needed"
            );
            for (_, rest) in
                text.match_indices(&format!("{attribute}{expect}")).map(|(at, _)| text.split_at(at))
            {
                let end = rest.find(")]").unwrap_or(rest.len());
                assert!(rest[..end].contains("reason = \""), "{path}: no reason in {}", &rest[..end]);
            }
        }
    }
}

#[test]
fn files_are_short() {
    let sources = files(".rs").into_iter().filter(|path| path.contains("/src/"));
    let long =
        sources.map(|path| (read(&path).lines().count(), path)).filter(|(lines, _)| *lines > LINES_MAX);
    none(
        long.map(|(lines, path)| format!("{path}: {lines} lines")),
        "past 600 lines a file becomes a folder",
    );
}
