//! Programs that adapters run: a build, a migration, a dump. Linux only.

use std::{
    collections::VecDeque,
    io,
    os::unix::process::CommandExt as _,
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, ChildStderr, ChildStdout},
    signal::unix::{self, SignalKind},
    time::{Instant, timeout_at},
};

use crate::{
    event::Stream,
    port::{Classify as _, Context, Error, Result},
};

/// How long the rest of the output is waited for when the program has ended: something outside its group may hold the
/// pipes open.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// A longer line is cut into several.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// What is kept of the output, as evidence of a failure.
const TAIL_LINES_MAX: usize = 50;
const TAIL_BYTES_MAX: usize = 64 * 1024;

/// Runs a program to its end, as an adapter must: what it prints is shown line by line, and when the call is cancelled
/// or dropped, it ends with all its children.
///
/// The program's arguments, variables and directory are the caller's; standard input, output and error are not.
///
/// # Errors
/// Permanent if the program ends with a failure: the last lines of what it printed are the detail, 50 lines and 64 KiB at
/// most. Also if it is not found or must not be executed; transient if it cannot be started for another reason.
/// [`Error::cancelled`] if the call is cancelled.
pub async fn run(context: &Context, command: Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut program = match Program::start(command) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            return Err(error).permanent(format!("start {name}: is it installed?"));
        }
        started => started.transient(format!("start {name}"))?,
    };
    let ended = program.follow(context).await?;
    if ended.status.success() {
        return Ok(());
    }
    Err(Error::permanent(format!("{name} failed: {}", ended.status)).with_detail(ended.tail))
}

/// A program that runs, in a process group of its own. Dropped before its end, it is killed with its whole group.
#[derive(Debug)]
pub struct Program {
    child: Child,
    id: u32,
    /// `None` when it was waited for: from then on the number may be another group's.
    group: Option<Pid>,
    /// Told whenever a child of this process has ended.
    children: unix::Signal,
    stdout: Lines<ChildStdout>,
    stderr: Lines<ChildStderr>,
    tail: VecDeque<String>,
}

/// How a program ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct Ended {
    /// What it ended with.
    pub status: ExitStatus,
    /// The last lines of what it printed: 50 lines and 64 KiB at most.
    pub tail: VecDeque<String>,
}

impl Program {
    /// Starts a program, with nothing to read and with its output to [`follow`](Self::follow).
    ///
    /// # Errors
    /// What the system says.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn start(mut command: Command) -> io::Result<Self> {
        let children = unix::signal(SignalKind::child())?;
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        let id = child.id().expect("it was not waited for yet");
        let group = i32::try_from(id).ok().and_then(Pid::from_raw).expect("the system's own number");
        Ok(Self {
            id,
            group: Some(group),
            children,
            stdout: Lines::new(child.stdout.take(), Stream::Stdout),
            stderr: Lines::new(child.stderr.take(), Stream::Stderr),
            tail: VecDeque::new(),
            child,
        })
    }

    /// Its number, which is also that of its group.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Waits for its end, and shows what it prints. What it leaves behind in its group is killed.
    ///
    /// # Errors
    /// [`Error::cancelled`] if the call is cancelled: then it was killed. Unanswered if nobody knows how it ended.
    pub async fn follow(&mut self, context: &Context) -> Result<Ended> {
        loop {
            tokio::select! {
                () = context.cancelled() => {
                    self.end().await?;
                    return Err(Error::cancelled());
                }
                line = self.stdout.next(), if self.stdout.is_open() => keep(&mut self.tail, context, Stream::Stdout, line),
                line = self.stderr.next(), if self.stderr.is_open() => keep(&mut self.tail, context, Stream::Stderr, line),
                () = over(self.group, &mut self.children) => break,
            }
        }
        let status = self.end().await?;
        let deadline = Instant::now() + DRAIN_MAX;
        self.stdout.drain(&mut self.tail, context, deadline).await;
        self.stderr.drain(&mut self.tail, context, deadline).await;
        Ok(Ended { status, tail: std::mem::take(&mut self.tail) })
    }

    async fn end(&mut self) -> Result<ExitStatus> {
        self.kill();
        self.child.wait().await.unanswered("wait for the program")
    }

    fn kill(&mut self) {
        if let Some(group) = self.group.take() {
            // It fails if nothing is left to kill.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Completes when the program has ended, but leaves it to be waited for: until then its number is nobody else's.
async fn over(group: Option<Pid>, children: &mut unix::Signal) {
    let Some(group) = group else { return };
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    while matches!(waitid(WaitId::Pid(group), look), Ok(None)) {
        children.recv().await;
    }
}

/// Shows a line, and keeps it as long as it is one of the last.
fn keep(tail: &mut VecDeque<String>, context: &Context, stream: Stream, line: Option<String>) {
    let Some(line) = line else { return };
    context.output(stream, &line);
    tail.push_back(line);
    let mut bytes: usize = tail.iter().map(String::len).sum();
    while tail.len() > TAIL_LINES_MAX || bytes > TAIL_BYTES_MAX {
        bytes -= tail.pop_front().map_or(bytes, |line| line.len());
    }
}

/// The lines of a stream; a long one comes in pieces.
#[derive(Debug)]
struct Lines<R> {
    source: Option<R>,
    stream: Stream,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    const fn new(source: Option<R>, stream: Stream) -> Self {
        Self { source, stream, buffer: Vec::new() }
    }

    const fn is_open(&self) -> bool {
        self.source.is_some()
    }

    /// The next line, or `None` once at the end. Nothing is lost when this is dropped before it is done.
    async fn next(&mut self) -> Option<String> {
        loop {
            let end = self.buffer.iter().position(|byte| *byte == b'\n');
            let end =
                end.map(|end| end + 1).or((self.buffer.len() >= LINE_BYTES_MAX).then_some(LINE_BYTES_MAX));
            if let Some(end) = end {
                let line: Vec<u8> = self.buffer.drain(..end).collect();
                return Some(text(&line));
            }
            let read = match &mut self.source {
                Some(source) => source.read_buf(&mut self.buffer).await,
                None => return None,
            };
            if !matches!(read, Ok(1..)) {
                self.source = None;
                let rest = std::mem::take(&mut self.buffer);
                return (!rest.is_empty()).then(|| text(&rest));
            }
        }
    }

    async fn drain(&mut self, tail: &mut VecDeque<String>, context: &Context, deadline: Instant) {
        while self.is_open() {
            let Ok(line) = timeout_at(deadline, self.next()).await else { return };
            keep(tail, context, self.stream, line);
        }
    }
}

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim_end_matches(['\n', '\r']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_limited_in_length() {
        let long = "x".repeat(LINE_BYTES_MAX + 3);
        let input = format!("a\r\n\n{long}\nend");
        let mut lines = Lines::new(Some(input.as_bytes()), Stream::Stdout);
        let mut found = Vec::new();
        while lines.is_open() || !lines.buffer.is_empty() {
            found.extend(lines.next().await);
        }
        let lengths: Vec<usize> = found.iter().map(String::len).collect();
        assert_eq!(lengths, [1, 0, LINE_BYTES_MAX, 3, 3]);
    }
}
