//! Runs example programs and looks at what they leave.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use ocore_examples::{http, sample_app::Manifest, sample_repository::SampleRepository};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);

/// The example of this name, as cargo has built it beside this test.
pub(crate) fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own path");
    let target = own.ancestors().nth(2).expect("a test is in target/PROFILE/deps");
    let path = target.join("examples").join(name);
    assert!(path.is_file(), "{} is not there: build it with `cargo build --examples`", path.display());
    path
}

/// Waits until it is so.
#[track_caller]
pub(crate) fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A program that runs, with its output in a file.
pub(crate) struct Running {
    child: Child,
    output: PathBuf,
}

impl Running {
    pub(crate) fn start(mut command: Command, output: &Path) -> Self {
        let file = File::create(output).expect("the output's file is made");
        let errors = file.try_clone().expect("a file has two handles");
        let child =
            command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn().expect("the program starts");
        Self { child, output: output.to_owned() }
    }

    pub(crate) fn text(&self) -> String {
        fs::read_to_string(&self.output).expect("the output is text")
    }

    #[track_caller]
    pub(crate) fn wait_for_line(&self, part: &str) {
        wait_until(&format!("{part:?} is printed; so far: {}", self.text()), || self.text().contains(part));
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it has not been waited for");
    }

    /// Signals again and again: one that comes right behind another is taken for the same.
    pub(crate) fn signal_until_it_ends(&self, signal: Signal) {
        let state = || fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        wait_until("the program has ended", || {
            self.signal(signal);
            state().contains(") Z ")
        });
    }

    /// The exit code; `None` if it was killed.
    #[track_caller]
    pub(crate) fn wait(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return (status.code(), self.text());
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _it_may_have_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A repository, a state directory in a path with blanks, and a port.
pub(crate) struct Site {
    directory: tempfile::TempDir,
    pub(crate) repository: SampleRepository,
    pub(crate) port: u16,
}

impl Site {
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("ocore test ").tempdir().expect("a directory");
        let path = directory.path().join("repository");
        let repository = SampleRepository::create_for(path, &program("deploy")).expect("a repository");
        Self { directory, repository, port: http::free_port().expect("a free port") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn commit(&self, release: &Manifest) -> String {
        self.repository.commit(release, &format!("Version {}", release.version)).expect("a commit")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("deploy"));
        command.current_dir(self.directory.path()).args(arguments).env("OCORE_GIT_TOKEN", CANARY);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().expect("the program starts"))
    }

    /// Deploys the head of the branch.
    pub(crate) fn deploy(&self) -> Ran {
        let port = self.port.to_string();
        self.run(&["--repository", "repository", "--port", &port, "--health-seconds", "2"])
    }

    pub(crate) fn version(&self) -> String {
        http::get(self.port, "/version").unwrap_or_else(|error| error.to_string())
    }

    /// Ids and statuses of the history, oldest first.
    pub(crate) fn history(&self) -> Vec<(String, String)> {
        let table = self.run(&["history"]);
        assert_eq!(table.code, Some(0), "{}", table.text);
        rows(&table.text)
    }

    pub(crate) fn statuses(&self) -> Vec<String> {
        self.history().into_iter().map(|(_, status)| status).collect()
    }

    pub(crate) fn data(&self) -> ocore_examples::sample_app::Store {
        ocore_examples::sample_app::Store::new(self.path(".ocore/data/production"))
    }

    /// Starts a deployment in the background, and waits until it is in its migration.
    pub(crate) fn start_slow(&self) -> Running {
        let running = Running::start(self.command(&[]), &self.path("output"));
        running.wait_for_line("  stop ");
        // The step that comes now is the migration; its process is there when it has begun.
        wait_until("the migration runs", || processes(self.directory.path(), "migrate") > 0);
        running
    }
}

/// A secret that no output may show.
pub(crate) const CANARY: &str = "canary-7f3a9c51";

impl Drop for Site {
    fn drop(&mut self) {
        let _there_may_be_nothing_to_stop = self.command(&["stop"]).output();
    }
}

/// What a program has printed, and its exit code.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) text: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = [output.stdout, output.stderr].concat();
        Self { code: output.status.code(), text: String::from_utf8_lossy(&text).into_owned() }
    }
}

impl Ran {
    #[track_caller]
    pub(crate) fn expect(self, code: i32, part: &str) -> Self {
        assert!(
            self.code == Some(code) && self.text.contains(part),
            "{:?}, not {code} and {part:?}: {}",
            self.code,
            self.text
        );
        assert!(!self.text.contains(CANARY), "a secret is shown: {}", self.text);
        self
    }
}

/// The ids and statuses of a history's table.
pub(crate) fn rows(table: &str) -> Vec<(String, String)> {
    let cells = |line: &str| line.split(['│', '┆']).map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let mut lines = table.lines().filter(|line| line.starts_with('│')).map(cells);
    let head = lines.next().expect("the table has a head");
    let column = |name: &str| head.iter().position(|cell| cell == name).expect("the column is there");
    let (id, status) = (column("id"), column("status"));
    lines.map(|row| (row[id].trim_end_matches(" *").to_owned(), row[status].clone())).collect()
}

/// How many processes of the sample application run whose data or release is below a directory.
pub(crate) fn processes(below: &Path, what: &str) -> usize {
    pids(below, what).len()
}

/// The only process of that kind.
pub(crate) fn process_of(below: &Path, what: &str) -> Pid {
    let [pid] = pids(below, what)[..] else { panic!("not one process: {what}") };
    Pid::from_raw(pid).expect("a process has a number")
}

fn pids(below: &Path, what: &str) -> Vec<i32> {
    let below = below.as_os_str().as_encoded_bytes();
    let is_one = |id: &OsStr| {
        let directory = Path::new("/proc").join(id);
        let arguments = fs::read(directory.join("cmdline")).unwrap_or_default();
        let environment = fs::read(directory.join("environ")).unwrap_or_default();
        let wanted = format!("sample-app\0{what}");
        contains(&arguments, wanted.as_bytes()) && contains(&environment, below)
    };
    let entries = fs::read_dir("/proc").expect("/proc is there").flatten();
    let ours = entries.filter(|entry| is_one(&entry.file_name()));
    ours.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

pub(crate) fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
