//! The release's own migration: a process that this call waits for.

use std::{collections::VecDeque, process::Stdio, time::Duration};

use ocore_core::{
    environment::Instance,
    event::Stream,
    port::{Classify, Context, Error, Result},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    time::{Instant, timeout_at},
};

use super::{
    TAIL_LINES, describe,
    launch::{self, Launch},
    occupants::Place,
    record::{Name, Record},
};
use crate::process::Identity;

/// How long the rest of the output is waited for when the process and its children have ended.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// A longer line is cut into several.
const LINE_BYTES_MAX: usize = 64 * 1024;

pub(super) async fn run(
    context: &Context,
    place: &Place,
    instance: &Instance,
    launch: &Launch,
    name: Name,
    grace: Duration,
) -> Result<()> {
    let held = place.fenced.enter(context).await?;
    place.end_others(context, name.deployment, grace).await?;
    // What an earlier call started, of a worker that is dead or has lost the lane: it must not write any more.
    place.end(|found| found.deployment == name.deployment, Duration::ZERO).await?;
    if context.is_cancelled() {
        return Err(Error::cancelled());
    }
    launch::prepare_data(instance)?;
    let running = Running::start(place, launch, name)?;
    // Free again while the migration runs: a call with a higher fence must be able to end it.
    drop(held);
    let ended = running.follow(context).await;
    place.records.remove(name)?;
    let (status, tail) = ended?;
    if status.success() {
        return Ok(());
    }
    place.refuse_overtaken(context)?;
    let what = format!("the update of {} failed: {}", instance.name, describe(status));
    Err(Error::permanent(what).with_detail(tail))
}

/// A migration that is running. It is killed with all its children when this is dropped.
struct Running {
    place: Place,
    name: Name,
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.place.kill(|name| name == self.name);
    }
}

impl Running {
    fn start(place: &Place, launch: &Launch, name: Name) -> Result<Self> {
        let mut command = Command::from(launch.command(place, name, Stdio::piped(), Stdio::piped()));
        let child = launch.started(command.kill_on_drop(true).spawn())?;
        let pid = child.id();
        let running = Self { place: place.clone(), name, child };
        let pid = pid.ok_or_else(|| Error::transient("the new process has no number"))?;
        let process = Identity::of(pid).transient("find the new process")?;
        place.records.write(&Record {
            deployment: name.deployment,
            fence: name.fence,
            kind: name.kind,
            log_keeper: None,
            pipe: None,
            digest: launch.digest.clone(),
            process,
        })?;
        Ok(running)
    }

    async fn follow(mut self, context: &Context) -> Result<(std::process::ExitStatus, VecDeque<String>)> {
        let mut tail = Tail { context, lines: VecDeque::new() };
        let mut output = Lines::new(self.child.stdout.take(), Stream::Stdout);
        let mut error = Lines::new(self.child.stderr.take(), Stream::Stderr);
        let status = loop {
            tokio::select! {
                () = context.cancelled() => {
                    self.end().await?;
                    drop(self.child.wait().await);
                    return Err(Error::cancelled());
                }
                line = output.next(), if output.is_open() => tail.add(output.stream, line),
                line = error.next(), if error.is_open() => tail.add(error.stream, line),
                status = self.child.wait() => break status.unanswered("wait for the update")?,
            }
        };
        // Children that it has left behind could write data, and hold the pipes open.
        self.end().await?;
        let deadline = Instant::now() + DRAIN_MAX;
        output.drain(&mut tail, deadline).await;
        error.drain(&mut tail, deadline).await;
        Ok((status, tail.lines))
    }

    async fn end(&self) -> Result<()> {
        let name = self.name;
        self.place.end(move |found| found == name, Duration::ZERO).await
    }
}

/// What is shown as it comes, and its last lines.
struct Tail<'a> {
    context: &'a Context,
    lines: VecDeque<String>,
}

impl Tail<'_> {
    fn add(&mut self, stream: Stream, line: Option<String>) {
        let Some(line) = line else { return };
        self.context.output(stream, &line);
        if self.lines.len() == TAIL_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

/// The lines of a stream; a long one comes in pieces.
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

    async fn drain(&mut self, tail: &mut Tail<'_>, deadline: Instant) {
        while self.is_open() {
            let Ok(line) = timeout_at(deadline, self.next()).await else { return };
            tail.add(self.stream, line);
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
