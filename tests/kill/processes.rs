//! Worker processes, and what is left of their children.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use ocore_examples::Result;

/// A running `kill_worker`.
pub(crate) struct Worker(Child);

impl Worker {
    pub(crate) fn start(home: &Path) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kill_worker"));
        Ok(Self(command.arg(home).stdin(Stdio::piped()).spawn()?))
    }

    /// SIGKILL: no destructor, no flush, no goodbye.
    pub(crate) fn kill(mut self) -> Result<()> {
        if let Some(status) = self.0.try_wait()? {
            return Err(format!("a worker ended by itself: {status}").into());
        }
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    /// Ends its input, and waits for it to hand over.
    pub(crate) fn shut_down(mut self) -> Result<()> {
        drop(self.0.stdin.take());
        let status = self.0.wait()?;
        if status.success() { Ok(()) } else { Err(format!("a worker ended with {status}").into()) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _it_may_have_ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A process of this machine that has to do with the directory of the test.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) arguments: Vec<String>,
    pub(crate) variables: BTreeMap<String, String>,
}

impl Process {
    pub(crate) fn is_serving(&self) -> bool {
        self.is_application("serve")
    }

    pub(crate) fn is_application(&self, what: &str) -> bool {
        self.arguments.get(1..3).is_some_and(|words| words == ["sample-app", what])
    }
}

/// Every process whose arguments, environment or open files lead below `home`, this one excepted.
pub(crate) fn below(home: &Path) -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is there");
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter(|id| *id != std::process::id()).filter_map(|id| read(id, home)).collect()
}

fn read(id: u32, home: &Path) -> Option<Process> {
    let directory = Path::new("/proc").join(id.to_string());
    let words = |name: &str| -> Option<Vec<String>> {
        let bytes = fs::read(directory.join(name)).ok()?;
        let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        Some(words.map(|word| String::from_utf8_lossy(word).into_owned()).collect())
    };
    let (arguments, environment) = (words("cmdline")?, words("environ")?);
    let home_text = home.to_str().expect("the test's directory is text");
    let opens_a_file = || {
        let files = fs::read_dir(directory.join("fd")).ok().into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| target.starts_with(home))
    };
    let concerned =
        arguments.iter().chain(&environment).any(|text| text.contains(home_text)) || opens_a_file();
    let variables = environment.iter().filter_map(|text| text.split_once('='));
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    concerned.then_some(Process { arguments, variables })
}
