//! The programs of PostgreSQL, and the user that runs its server.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::mpsc,
    thread,
};

/// A program that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    program: String,
    install: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "there is no {}: {}, or put the directory of its programs on the PATH",
            self.program, self.install
        )
    }
}

impl std::error::Error for Missing {}

/// A program of PostgreSQL: where `pg_config` says, in Debian's place of the newest version, or on the path.
///
/// # Errors
/// What to install.
pub fn find(program: &str) -> Result<PathBuf, Missing> {
    let configured = Command::new("pg_config").arg("--bindir").output();
    let configured = configured.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let mut debian: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    debian.sort_by_key(|path| {
        let version = path.parent().and_then(Path::file_name).map(|it| it.to_string_lossy().parse::<u32>());
        std::cmp::Reverse(version.and_then(Result::ok))
    });
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories =
        configured.map(PathBuf::from).into_iter().chain(debian).chain(std::env::split_paths(&path));
    let found = directories.map(|directory| directory.join(program)).find(|path| path.is_file());
    let install = "install the server, `apt-get install postgresql` or `dnf install postgresql-server`";
    found.ok_or_else(|| Missing { program: format!("{program} of PostgreSQL"), install })
}

/// PgBouncer: on the path, or where Debian puts what only root needs.
///
/// # Errors
/// What to install.
pub fn find_pooler() -> Result<PathBuf, Missing> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = directories.map(|directory| directory.join("pgbouncer")).find(|path| path.is_file());
    let install = "install it, `apt-get install pgbouncer` or `dnf install pgbouncer`";
    found.ok_or_else(|| Missing { program: "pgbouncer".to_owned(), install })
}

/// A command that runs as a user who may run a server, which root may not, and ends with this process.
pub(crate) fn as_server(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "INT"]);
    if is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
    }
    command.arg("--").arg(program);
    // Readable for every user; the messages in English.
    command.current_dir("/").env("LC_ALL", "C.UTF-8");
    command
}

/// From a thread that lives as long as the process: the kernel ends the program when the thread that started it ends.
pub(crate) fn spawn(mut command: Command) -> Child {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        drop(sender.send(command.spawn()));
        loop {
            thread::park();
        }
    });
    receiver.recv().expect("the thread answers").expect("start the program")
}

/// Gives a directory or a file to the user that runs the server.
pub(crate) fn hand_over(directory: &Path) {
    if is_root() {
        let given = Command::new("chown").arg("postgres").arg(directory).status().expect("run chown");
        assert!(given.success(), "there is no user postgres, which comes with PostgreSQL's package");
    }
}

fn is_root() -> bool {
    let own = fs::metadata("/proc/self").expect("there is a /proc");
    std::os::unix::fs::MetadataExt::uid(&own) == 0
}
