//! What the tests need from the system, checked before anything is built.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use ocore_test_postgres::Missing;

/// A program, and how to get it.
struct Tool {
    program: &'static str,
    arguments: &'static str,
    needed_for: &'static str,
    install: &'static str,
}

const TOOLS: [Tool; 9] = [
    Tool {
        program: "cc",
        arguments: "--version",
        needed_for: "linking, SQLite and libgit2",
        install: "install a C compiler: `apt-get install build-essential`, `dnf install gcc`, `xcode-select --install`",
    },
    Tool {
        program: "make",
        arguments: "--version",
        needed_for: "the custom adapter example",
        install: "install make: `apt-get install make`, `dnf install make`, `xcode-select --install`",
    },
    Tool {
        program: "git",
        arguments: "--version",
        needed_for: "the repositories that tests make",
        install: "install git: `apt-get install git`, `dnf install git`, `brew install git`",
    },
    Tool {
        program: "pkg-config",
        arguments: "--exists openssl",
        needed_for: "git over https and ssh, with the headers of OpenSSL",
        install: "install both: `apt-get install pkg-config libssl-dev`, `dnf install pkgconf openssl-devel`, \
                  `brew install pkgconf openssl`",
    },
    Tool {
        program: "unshare",
        arguments: "--user --map-root-user --mount true",
        needed_for: "the small disk that a test fills",
        install: "install util-linux, and let this user make namespaces: `sysctl user.max_user_namespaces` must not \
                  be 0, nor `kernel.unprivileged_userns_clone`; `kernel.apparmor_restrict_unprivileged_userns` must \
                  not be 1; a container needs the right to do so from outside",
    },
    Tool {
        program: "nsenter",
        arguments: "--version",
        needed_for: "the small disk that a test fills",
        install: "install util-linux: `apt-get install util-linux`, `dnf install util-linux-core`",
    },
    Tool {
        program: "setpriv",
        arguments: "--pdeathsig keep true",
        needed_for: "the database servers of the tests, which end with them",
        install: "install util-linux: `apt-get install util-linux`, `dnf install util-linux`",
    },
    Tool {
        program: "rustfmt",
        arguments: "--version",
        needed_for: "the format check",
        install: "run `rustup component add rustfmt`",
    },
    Tool {
        program: "cargo-clippy",
        arguments: "--version",
        needed_for: "the lints",
        install: "run `rustup component add clippy`",
    },
];

/// Whether everything is there that the tests need.
///
/// # Errors
/// Every missing program at once, with what to do.
pub(crate) fn check() -> Result<(), String> {
    missing(&TOOLS)?;
    postgres()
}

/// PostgreSQL's server, without a cluster of its own: where it is not there, Debian's package is installed.
const POSTGRES: [&str; 4] = [
    "apt-get update",
    "apt-get install --yes --no-install-recommends postgresql-common",
    "sed -i s/^#*create_main_cluster.*/create_main_cluster=false/ /etc/postgresql-common/createcluster.conf",
    "apt-get install --yes --no-install-recommends postgresql",
];

/// PgBouncer. Where Debian starts it at once, it serves nobody: it has no users.
const POOLER: [&str; 2] = ["apt-get update", "apt-get install --yes --no-install-recommends pgbouncer"];

fn postgres() -> Result<(), String> {
    install("PostgreSQL", || ocore_test_postgres::find("postgres"), &POSTGRES)?;
    install("PgBouncer", ocore_test_postgres::find_pooler, &POOLER)
}

/// Installs Debian's package of something that is not there, if that can be.
fn install(what: &str, find: impl Fn() -> Result<PathBuf, Missing>, commands: &[&str]) -> Result<(), String> {
    let Err(missing) = find() else { return Ok(()) };
    if !is_root() || !answers("apt-get", "--version") {
        return Err(format!("this machine lacks something:\n  {missing}"));
    }
    eprintln!("━━ {what} is not installed: installing Debian's package");
    for command in commands {
        let mut words = command.split(' ');
        let program = words.next().unwrap_or_default();
        let status = Command::new(program).args(words).env("DEBIAN_FRONTEND", "noninteractive").status();
        if !status.is_ok_and(|status| status.success()) {
            return Err(format!("`{command}` failed; {missing}"));
        }
    }
    find().map(drop).map_err(|missing| missing.to_string())
}

fn is_root() -> bool {
    let user = Command::new("id").arg("-u").output();
    user.is_ok_and(|user| user.stdout == b"0\n")
}

fn missing(tools: &[Tool]) -> Result<(), String> {
    let missing = tools.iter().filter(|tool| !answers(tool.program, tool.arguments));
    let lines: Vec<String> = missing
        .map(|tool| {
            format!(
                "\n  `{} {}` does not work (needed for {}): {}",
                tool.program, tool.arguments, tool.needed_for, tool.install
            )
        })
        .collect();
    if lines.is_empty() { Ok(()) } else { Err(format!("this machine lacks something:{}", lines.concat())) }
}

/// Whether `cargo nextest` can be used.
pub(crate) fn has_nextest() -> bool {
    answers("cargo-nextest", "nextest --version")
}

fn answers(program: &str, arguments: &str) -> bool {
    let silent = || Stdio::null();
    let status = Command::new(program)
        .args(arguments.split(' '))
        .stdin(silent())
        .stdout(silent())
        .stderr(silent())
        .status();
    status.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::{TOOLS, Tool, missing};

    #[test]
    fn a_missing_program_is_named_with_what_to_do() {
        let absent = Tool { program: "no-such-program-of-ocore", ..TOOLS[0] };
        let error = missing(&[absent]).unwrap_err();
        assert!(error.contains("`no-such-program-of-ocore --version` does not work"), "{error}");
        assert!(error.contains("build-essential"), "{error}");
    }
}
