//! A program of PostgreSQL that runs, with bytes going in or out.

use std::{
    io::{self, PipeReader, PipeWriter, Read as _},
    os::unix::process::CommandExt as _,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use ocore_core::port::{Classify as _, Context, Error, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    process::Child,
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::server::Server;

/// What is kept of the standard error: its beginning names the cause, its end says how it ended.
const ERROR_BYTES_MAX: usize = 32 * 1024;
/// How long a program that was told to end may take.
const GRACE: Duration = Duration::from_secs(2);
/// How long the standard error is waited for when the program has ended: something else may hold it open.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// A running program in a process group of its own. Dropped before its end, the whole group is killed.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    name: &'static str,
    group: Option<Pid>,
    errors: oneshot::Receiver<String>,
}

/// Starts a program whose output is read from what this returns.
pub(super) fn produce(command: Command, name: &'static str) -> Result<(Running, PipeReader)> {
    let (reader, writer) = io::pipe().transient("make a pipe")?;
    Ok((Running::start(command, name, Stdio::null(), writer.into())?, reader))
}

/// Starts a program that reads what is written into what this returns.
pub(super) fn consume(command: Command, name: &'static str, output: Stdio) -> Result<(Running, PipeWriter)> {
    let (reader, writer) = io::pipe().transient("make a pipe")?;
    Ok((Running::start(command, name, reader.into(), output)?, writer))
}

/// Starts a program whose work is in its arguments.
pub(super) fn alone(command: Command, name: &'static str) -> Result<Running> {
    Running::start(command, name, Stdio::null(), Stdio::null())
}

impl Running {
    fn start(mut command: Command, name: &'static str, input: Stdio, output: Stdio) -> Result<Self> {
        let (mut reader, writer) = io::pipe().transient("make a pipe")?;
        command.process_group(0).stdin(input).stdout(output).stderr(writer);
        let started = tokio::process::Command::from(command).kill_on_drop(true).spawn();
        let child = started.transient(format!("start {name}"))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let (sender, errors) = oneshot::channel();
        thread::Builder::new()
            .name(format!("{name} errors"))
            .spawn(move || drop(sender.send(bounded(&mut reader))))
            .transient("start a thread")?;
        Ok(Self { child, name, group, errors })
    }

    /// Waits for the program's end. Cancelled, it is told to end, then killed.
    pub(super) async fn end(&mut self, context: &Context, server: &Server) -> Result<()> {
        let status = tokio::select! {
            () = context.cancelled() => {
                self.stop().await;
                return Err(Error::cancelled());
            }
            status = self.child.wait() => status.transient(format!("wait for {}", self.name))?,
        };
        // What it has left in its group: nothing should be.
        self.kill();
        let errors = timeout(DRAIN_MAX, &mut self.errors).await.ok().and_then(std::result::Result::ok);
        let errors = server.scrub(&errors.unwrap_or_default());
        judge(self.name, status, &errors)
    }

    /// Ends it: first politely, so that it can cancel what the server does for it.
    pub(super) async fn stop(&mut self) {
        if let Some(group) = self.group {
            let _ = kill_process_group(group, Signal::TERM);
        }
        let deadline = Instant::now() + GRACE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            sleep(Duration::from_millis(5)).await;
        }
        self.kill();
        drop(self.child.wait().await);
    }

    fn kill(&mut self) {
        if let Some(group) = self.group.take() {
            // It fails if nothing is left to kill.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads to the end, so that nobody waits for a full pipe, and keeps the beginning and the end.
fn bounded(reader: &mut PipeReader) -> String {
    let (mut head, mut tail, mut buffer) = (Vec::new(), Vec::new(), [0; 8192]);
    while let Ok(count @ 1..) = reader.read(&mut buffer) {
        let room = (ERROR_BYTES_MAX - head.len()).min(count);
        head.extend_from_slice(&buffer[..room]);
        tail.extend_from_slice(&buffer[room..count]);
        let excess = tail.len().saturating_sub(ERROR_BYTES_MAX);
        if excess > 0 {
            tail.drain(..excess);
            head.truncate(ERROR_BYTES_MAX);
        }
    }
    head.extend_from_slice(&tail);
    String::from_utf8_lossy(&head).into_owned()
}

/// Errors that pass: the server went away or is full, a lock was not given, a disk is full.
const PASSING: [&str; 9] = [
    "server closed the connection",
    "terminating connection",
    "could not connect",
    "connection to server",
    "canceling statement due to lock timeout",
    "No space left on device",
    "could not extend file",
    "the database system is",
    "out of memory",
];

fn judge(name: &str, status: ExitStatus, errors: &str) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let lines: Vec<_> = errors.lines().map(str::to_owned).collect();
    let cause = lines.iter().find(|line| line.contains("error:")).or(lines.first());
    let cause = cause.map_or_else(String::new, |line| format!(": {line}"));
    let what = format!("{name} failed ({status}){cause}");
    // A signal came from outside: the next attempt may be left alone.
    let passes = status.code().is_none() || PASSING.iter().any(|text| errors.contains(text));
    let error = if passes { Error::transient(what) } else { Error::permanent(what) };
    Err(error.with_detail(lines))
}
