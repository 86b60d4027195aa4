//! The documents say what is so.

use std::{fs, path::Path};

use crate::{
    none,
    repository::{files, members, read, root},
};

const DOCUMENTS: [&str; 6] =
    ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"];

/// The command for the main job, and the one for the tests.
const QUICKSTART: &str = "cargo run --release --example quickstart";
const TEST: &str = "cargo xtask test";

#[test]
fn the_documents_are_there() {
    none(DOCUMENTS.into_iter().filter(|path| !root().join(path).is_file()).map(str::to_owned), "missing");
}

/// The code blocks of a document in these languages, and what follows the language's name.
fn blocks<'a>(text: &'a str, languages: &[&str]) -> Vec<(&'a str, &'a str)> {
    let mut blocks = Vec::new();
    for (n, part) in text.split("```").enumerate() {
        let (header, body) = part.split_once('\n').unwrap_or((part, ""));
        let (language, attributes) = header.split_once(',').unwrap_or((header, ""));
        if n % 2 == 1 && languages.contains(&language.trim()) {
            blocks.push((attributes, body));
        }
    }
    blocks
}

/// The cargo commands that a document shows.
fn commands(text: &str) -> Vec<String> {
    let lines =
        blocks(text, &["", "sh", "bash", "console", "shell"]).into_iter().flat_map(|(_, body)| body.lines());
    let lines = lines.map(|line| line.trim().trim_start_matches("$ "));
    let lines = lines.map(|line| line.split(" #").next().unwrap_or_default().trim().to_owned());
    lines.filter(|line| line.starts_with("cargo ")).collect()
}

#[test]
fn the_two_commands_of_the_readme_are_what_ci_runs() {
    let commands = commands(&read("README.md"));
    for command in [QUICKSTART, TEST] {
        assert!(
            commands.iter().any(|shown| shown == command),
            "the README does not show `{command}`: {commands:?}"
        );
    }
    let ci = read(".ci/run");
    let calls: Vec<&str> =
        ci.lines().filter(|line| line.contains("cargo ") && !line.contains("--version")).collect();
    assert_eq!(calls, [format!("exec {TEST}")], ".ci/run calls what people call, and nothing else");
    let steps = read("xtask/src/steps.rs");
    let arguments = QUICKSTART.trim_start_matches("cargo ");
    assert!(steps.contains(&format!("\"{arguments}\"")), "`{TEST}` does not run `{QUICKSTART}`");
}

#[test]
fn every_command_that_a_document_shows_exists() {
    let tasks = read("xtask/src/main.rs");
    let members = members();
    let targets = |kind: &str| -> Vec<String> {
        let all = members.iter().flat_map(|member| member.metadata["targets"].as_array().unwrap());
        let all = all.filter(|target| target["kind"].as_array().unwrap().iter().any(|found| found == kind));
        all.map(|target| target["name"].as_str().unwrap().to_owned()).collect()
    };
    for path in files(".md") {
        for command in commands(&read(&path)) {
            let words: Vec<&str> = command.split_whitespace().collect();
            for pair in words.windows(2) {
                let exists = match pair[0] {
                    "--example" => targets("example").iter().any(|name| name == pair[1]),
                    "--bench" => targets("bench").iter().any(|name| name == pair[1]),
                    "--bin" => targets("bin").iter().any(|name| name == pair[1]),
                    "--test" => targets("test").iter().any(|name| name == pair[1]),
                    "-p" => members.iter().any(|member| member.name == pair[1]),
                    "xtask" => tasks.contains(&format!("Some(\"{}\"", pair[1])) || pair[1] == "help",
                    _ => true,
                };
                assert!(exists, "{path} shows `{command}`, but there is no {}", pair.join(" "));
            }
        }
    }
}

#[test]
fn the_example_of_the_readme_is_compiled() {
    let readme = read("README.md");
    let examples = blocks(&readme, &["rust"]);
    assert!(!examples.is_empty(), "the README has no Rust example");
    let skipped = examples.iter().filter(|(attributes, _)| {
        ["ignore", "compile_fail", "should_panic"].iter().any(|word| attributes.contains(word))
    });
    assert_eq!(skipped.count(), 0, "every example of the README is compiled");
    let compiled = members().into_iter().any(|member| {
        let library = fs::read_to_string(root().join(&member.folder).join("src/lib.rs"));
        library.is_ok_and(|text| text.contains("include_str!(\"../../README.md\")"))
    });
    assert!(compiled, "no crate includes the README as documentation tests");
}

#[test]
fn links_lead_to_files() {
    let mut broken = Vec::new();
    for path in files(".md") {
        let text = read(&path);
        let folder = root().join(&path).parent().unwrap_or(Path::new("/")).to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split(['#', ' ']).next().unwrap_or_default();
            let elsewhere = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
            if !elsewhere && !folder.join(target).exists() {
                broken.push(format!("{path}: {link}"));
            }
        }
    }
    none(broken, "links to files that are not there");
}

/// The names in the last column of the table, and of no other column.
#[test]
fn every_hazard_of_a_snapshot_has_a_test() {
    let sources = files(".rs").into_iter().filter(|path| path.starts_with("ocore-postgres/"));
    let sources: String = sources.map(|path| read(&path)).collect();
    let document = read("docs/snapshot-hazards.md");
    let rows: Vec<&str> = document.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 30, "{} rows", rows.len());
    let without = rows.into_iter().filter(|row| {
        let tests = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        let names: Vec<&str> =
            tests.split('`').skip(1).step_by(2).filter(|it| !it.ends_with(".rs")).collect();
        names.is_empty() || !names.iter().all(|name| sources.contains(&format!("fn {name}(")))
    });
    none(without.map(str::to_owned), "name a test that is there");
}
