//! The repository's own files, as the tidy tests read them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

pub(crate) fn read(path: &str) -> String {
    let found = fs::read_to_string(root().join(path));
    found.unwrap_or_else(|error| panic!("{path} cannot be read: {error}"))
}

/// The files that are committed, or would be by `git add --all`, with a name that ends so.
pub(crate) fn files(ending: &str) -> Vec<String> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"];
    let output = Command::new("git").args(arguments).current_dir(root()).output();
    let output = output.expect("git is installed: cargo xtask test says so if it is not");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let paths = String::from_utf8(output.stdout).unwrap();
    let mut files: Vec<String> = paths.split_terminator('\0').map(str::to_owned).collect();
    files.retain(|path| path.ends_with(ending) && root().join(path).is_file());
    files
}

/// Text files only.
pub(crate) fn texts() -> Vec<(String, String)> {
    let read = |path: String| Some((fs::read_to_string(root().join(&path)).ok()?, path));
    files("").into_iter().filter_map(read).map(|(text, path)| (path, text)).collect()
}

/// A Rust file without its comments and without its tests at the end. Line numbers stay.
pub(crate) fn code(path: &str) -> String {
    let text = read(path);
    let tests = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..tests].lines();
    lines.map(|line| if line.trim_start().starts_with("//") { "" } else { line }.to_owned() + "\n").collect()
}

/// A member of the workspace.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) folder: String,
    pub(crate) manifest: String,
    /// Direct dependencies by name, without those for tests.
    pub(crate) dependencies: BTreeSet<String>,
    pub(crate) dev_dependencies: BTreeSet<String>,
    pub(crate) metadata: Value,
}

pub(crate) fn members() -> Vec<Member> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let output = Command::new(cargo).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().iter().map(member).collect()
}

fn member(package: &Value) -> Member {
    let manifest = Path::new(package["manifest_path"].as_str().unwrap());
    let folder = manifest.parent().unwrap().strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    let all = package["dependencies"].as_array().unwrap();
    let names = |dev: bool| {
        let wanted = all.iter().filter(|dependency| (dependency["kind"] == "dev") == dev);
        wanted.map(|dependency| dependency["name"].as_str().unwrap().to_owned()).collect()
    };
    Member {
        name: package["name"].as_str().unwrap().to_owned(),
        manifest: read(&format!("{folder}/Cargo.toml")),
        folder,
        dependencies: names(false),
        dev_dependencies: names(true),
        metadata: package.clone(),
    }
}

/// Everything that a package may be built with, by the lock file: its features all on, its tests included for
/// itself but not for what it depends on.
pub(crate) fn closure(of: &Member) -> BTreeSet<String> {
    let locked = locked();
    let mut found = BTreeSet::new();
    let mut open: Vec<String> = of.dependencies.iter().cloned().collect();
    while let Some(name) = open.pop() {
        if found.insert(name.clone()) {
            open.extend(locked.get(&name).into_iter().flatten().cloned());
        }
    }
    found
}

/// Each locked package's dependencies; several versions of one are taken together.
fn locked() -> BTreeMap<String, BTreeSet<String>> {
    let lock = read("Cargo.lock");
    let mut packages: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for block in lock.split("[[package]]").skip(1) {
        let quoted = |line: &str| line.split('"').nth(1).map(str::to_owned);
        let name = block.lines().find(|line| line.starts_with("name = ")).and_then(quoted).unwrap();
        let dependencies = block.split_once("dependencies = [").map_or("", |(_, list)| list);
        let names = dependencies.lines().filter_map(quoted);
        let names = names.map(|name| name.split(' ').next().unwrap_or_default().to_owned());
        packages.entry(name).or_default().extend(names);
    }
    packages
}
