//! Processes as `/proc` shows them.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

/// How long a process may take to become another program.
const EXEC_MAX: Duration = Duration::from_secs(2);

/// A process that existed when `/proc` was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) name: String,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    /// When it was started, in clock ticks since the machine was.
    pub(crate) started: u64,
    /// Whether it has ended, and only its exit code is left.
    pub(crate) ended: bool,
    /// Whether it is a thread of the kernel, which never has an environment.
    of_kernel: bool,
    /// Whether it says where its code begins: the kernel notes that after the arguments and the environment.
    has_code: bool,
}

impl Process {
    pub(crate) fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut process = Self::parse(pid, &stat)?;
        if process.ended {
            // A program whose first thread has ended looks like one that has ended, but other threads may go on.
            let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
            process.ended = threads <= 1;
        }
        Some(process)
    }

    /// The name stands in parentheses and may hold blanks and parentheses itself.
    fn parse(pid: i32, stat: &str) -> Option<Self> {
        let (head, rest) = stat.rsplit_once(") ")?;
        let (_, name) = head.split_once('(')?;
        const OF_KERNEL: u32 = 0x0020_0000;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let flags: u32 = fields.get(6)?.parse().ok()?;
        Some(Self {
            pid,
            name: name.to_owned(),
            ended: matches!(*fields.first()?, "Z" | "X" | "x"),
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
            of_kernel: flags & OF_KERNEL != 0,
            has_code: *fields.get(23)? != "0",
        })
    }

    /// All processes that have not ended.
    pub(crate) fn all() -> io::Result<Vec<Self>> {
        let pids = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        Ok(pids.filter_map(Self::read).filter(|process| !process.ended).collect())
    }

    /// A variable of the environment that it was started with, where it may be read.
    pub(crate) fn variable(&self, name: &str) -> io::Result<Option<String>> {
        let environment = self.environment()?;
        let mut variables = environment.split(|byte| *byte == 0);
        let value = variables.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        Ok(value.map(|value| String::from_utf8_lossy(value).into_owned()))
    }

    /// Its environment. A process that becomes another program has none for a moment in which its files that end
    /// with the old program, and with them its locks, are already closed: that moment is waited for. Empty also where
    /// it may not be read.
    fn environment(&self) -> io::Result<Vec<u8>> {
        let began = Instant::now();
        loop {
            // Looked at before the environment, which may come in between.
            let complete = !self.becomes_a_program();
            let Ok(environment) = fs::read(format!("/proc/{}/environ", self.pid)) else {
                return Ok(Vec::new());
            };
            if complete || !environment.is_empty() {
                return Ok(environment);
            }
            if began.elapsed() > EXEC_MAX {
                let what = format!("process {} ({}) is still being started", self.pid, self.name);
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether the environment may be yet to come.
    fn becomes_a_program(&self) -> bool {
        let now = Self::read(self.pid).filter(|now| now.started == self.started);
        now.is_some_and(|now| !now.of_kernel && !now.ended && !now.has_code)
    }

    /// What its standard output and standard error are connected to.
    fn outputs(&self) -> impl Iterator<Item = PathBuf> + '_ {
        [1, 2].into_iter().filter_map(|fd| fs::read_link(format!("/proc/{}/fd/{fd}", self.pid)).ok())
    }

    /// Whether it writes into the pipe.
    pub(crate) fn writes_to(&self, pipe: u64) -> bool {
        let pipe = format!("pipe:[{pipe}]");
        self.outputs().any(|output| output.as_os_str().as_bytes() == pipe.as_bytes())
    }

    /// Sends a signal to this very process: never to another that has got its number since.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let gone =
            |error| if error == rustix::io::Errno::SRCH { Ok(()) } else { Err(io::Error::from(error)) };
        let handle = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Err(error) => return gone(error),
            Ok(handle) => handle,
        };
        if Self::read(self.pid).is_none_or(|now| now.started != self.started) {
            return Ok(());
        }
        rustix::process::pidfd_send_signal(handle, signal).or_else(gone)
    }
}

/// The processes of `all` that descend from one of `roots`, by number.
pub(crate) fn descendants(all: &[Process], roots: HashSet<i32>) -> HashSet<i32> {
    let mut found = roots;
    loop {
        let children =
            all.iter().filter(|process| found.contains(&process.parent)).map(|process| process.pid);
        let new: Vec<i32> = children.filter(|pid| !found.contains(pid)).collect();
        if new.is_empty() {
            return found;
        }
        found.extend(new);
    }
}

/// Names one process for ever: a number alone is given out again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    pub(crate) pid: i32,
    started: u64,
    boot: String,
}

impl Identity {
    /// The identity of a child that has not been waited for.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).map_err(io::Error::other)?;
        let process = Process::read(pid).ok_or_else(|| io::Error::other("the process is not in /proc"))?;
        Ok(Self { pid, started: process.started, boot: boot()? })
    }

    /// The process, unless it has ended.
    pub(crate) fn process(&self) -> Option<Process> {
        let process = Process::read(self.pid)?;
        let same = process.started == self.started && boot().is_ok_and(|boot| boot == self.boot);
        (same && !process.ended).then_some(process)
    }

    /// Whether it was started before the machine was, the last time.
    pub(crate) fn is_of_another_boot(&self) -> bool {
        boot().is_ok_and(|boot| boot != self.boot)
    }
}

/// Names the time since the machine was started.
fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "7 (a) Z (b)) S 3 5 5 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0 0 4096 0 0";
        let process = Process::parse(7, stat).unwrap();
        assert_eq!(process.name, "a) Z (b)");
        assert_eq!((process.parent, process.group, process.started, process.ended), (3, 5, 4711, false));
    }

    #[test]
    fn a_number_alone_names_nobody() {
        let ours = Identity::of(std::process::id()).unwrap();
        assert_eq!(ours.process().unwrap().pid, ours.pid);
        assert_eq!(Identity { started: ours.started + 1, ..ours.clone() }.process(), None);
        assert_eq!(Identity { boot: "another".into(), ..ours.clone() }.process(), None);
        // Would end this test if it reached it.
        let other = Process { started: ours.started + 1, ..ours.process().unwrap() };
        other.signal(Signal::KILL).unwrap();
    }

    /// When the lock that a new process shares is free, it may have no environment yet.
    #[test]
    fn a_process_that_is_being_started_has_its_variables() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let lock = || {
            let file = fs::File::create(&path).unwrap();
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
            file
        };
        let stop = std::sync::atomic::AtomicBool::new(false);
        let late = thread::scope(|scope| {
            // Without a busy machine the moment is too short to be met.
            for _ in 0..4 {
                scope.spawn(|| {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let late = (0..300).filter(|_| {
                let held = lock();
                let mut child =
                    std::process::Command::new("sleep").arg("100").env("MARK", "here").spawn().unwrap();
                drop(held);
                drop(lock());
                let process = Process::read(i32::try_from(child.id()).unwrap()).unwrap();
                let found = process.variable("MARK").unwrap();
                child.kill().unwrap();
                child.wait().unwrap();
                found.as_deref() != Some("here")
            });
            let late = late.count();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            late
        });
        assert_eq!(late, 0, "of 300 new processes so many seemed to have no environment");
    }

    #[test]
    fn children_of_children_are_found() {
        let process = |pid, parent| Process { pid, parent, ..Process::read(1).unwrap() };
        let all = [process(2, 1), process(4, 3), process(3, 2), process(9, 1)];
        assert_eq!(descendants(&all, HashSet::from([2])), HashSet::from([2, 3, 4]));
    }
}
