//! Shows a deployment while it goes on: bars on a terminal, plain lines in a pipe.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use indicatif::{ProgressBar, ProgressStyle};
use ocore_core::{
    deployment::Deployment,
    engine::Engine,
    event::{Event, EventKind, LogLine, Progress, Stream, Unit},
    id::DeploymentId,
    machine::{Status, Step},
};

use crate::{Result, history};

/// How often progress is written into a pipe.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Which log lines are shown beside the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lines {
    /// None.
    None,
    /// What programs write: the output of builds and migrations.
    Programs,
}

/// Prints a line; on a terminal whose reader has gone, or into a closed pipe, nothing happens.
pub fn say(text: impl AsRef<str>) {
    let mut stdout = io::stdout().lock();
    let _the_reader_has_gone = writeln!(stdout, "{}", text.as_ref()).and_then(|()| stdout.flush());
}

/// Follows a deployment to its end and shows it; returns it as it ended.
///
/// # Errors
/// There is no such deployment, or the store fails.
pub async fn follow(engine: &Engine, id: DeploymentId, lines: Lines) -> Result<Deployment> {
    follow_with(engine, id, lines, async |_| Ok(())).await
}

/// Follows a deployment as [`follow`] does, and tells `listen` of every event.
///
/// # Errors
/// As [`follow`], and what `listen` returns.
pub async fn follow_with(
    engine: &Engine,
    id: DeploymentId,
    lines: Lines,
    mut listen: impl AsyncFnMut(&Event) -> Result<()>,
) -> Result<Deployment> {
    let mut watch = engine.watch(id).await?;
    let mut screen = Screen::new(lines);
    while let Some(event) = watch.next().await? {
        screen.show(&event);
        listen(&event).await?;
    }
    let deployment = engine.deployment(id).await?;
    screen.end(&history::outcome(&deployment));
    Ok(deployment)
}

struct Screen {
    lines: Lines,
    bar: ProgressBar,
    on_terminal: bool,
    step: Option<(Step, DateTime<Utc>)>,
    undoing: bool,
    /// When progress was written into the pipe last.
    told: Instant,
}

impl Screen {
    fn new(lines: Lines) -> Self {
        let on_terminal = io::stdout().is_terminal() && io::stderr().is_terminal();
        let bar = if on_terminal { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { lines, bar, on_terminal, step: None, undoing: false, told: Instant::now() }
    }

    fn show(&mut self, event: &Event) {
        match &event.kind {
            EventKind::Began { step } => self.enter(*step, event.at),
            EventKind::Progress { progress, .. } => self.advance(progress),
            EventKind::Log(line) => self.log(line),
            EventKind::Retrying { failure, after_millis } => {
                let wait = history::seconds(Duration::from_millis(*after_millis));
                self.print(&format!("  {failure}; trying again in {wait}"));
            }
            EventKind::Undoing { reason } => {
                self.undoing = true;
                self.leave(event.at, "✗", "broken off");
                self.print(&format!("  undoing, because {reason}"));
            }
            EventKind::Acknowledged { actor } => self.print(&format!("  acknowledged by {actor}")),
            EventKind::CancelRequested { actor } => self.print(&format!("  cancel asked for by {actor}")),
            EventKind::Finished { status, .. } => match status {
                // Where there was an undo, it is the undo that is done.
                Status::Failed if !self.undoing => self.leave(event.at, "✗", "failed"),
                Status::Cancelled if !self.undoing => self.leave(event.at, "✗", "broken off"),
                _ => self.leave(event.at, "✓", "done"),
            },
            _ => {}
        }
    }

    fn enter(&mut self, step: Step, at: DateTime<Utc>) {
        if self.step.is_some_and(|(present, _)| present == step) {
            return;
        }
        // Only what was begun is withdrawn: before another attempt, where no undo was told of.
        let (mark, word) = if step == Step::Withdraw { ("✗", "broken off") } else { ("✓", "done") };
        self.leave(at, mark, word);
        self.step = Some((step, at));
        self.told = Instant::now();
        if !self.on_terminal {
            return say(format!("  {step:<9} …"));
        }
        self.bar.set_style(ProgressStyle::default_spinner());
        self.bar.set_message(step.to_string());
    }

    /// Writes down the step that is over, and how long it took by the clocks of those who did it.
    fn leave(&mut self, at: DateTime<Utc>, mark: &str, word: &str) {
        let Some((step, since)) = self.step.take() else { return };
        let took = history::seconds((at - since).to_std().unwrap_or_default());
        if self.on_terminal {
            self.print(&format!("  {mark} {step:<9} {took}"));
        } else {
            self.print(&format!("  {step:<9} {word}, {took}"));
        }
    }

    fn advance(&mut self, progress: &Progress) {
        if !self.on_terminal {
            if self.told.elapsed() > TELL_EVERY {
                self.told = Instant::now();
                say(format!("    {progress}"));
            }
            return;
        }
        let Some(total) = progress.total else {
            let step = self.step.map(|(step, _)| step.to_string()).unwrap_or_default();
            return self.bar.set_message(format!("{step}: {progress}"));
        };
        let template = match progress.unit {
            Unit::Bytes => "{spinner} {msg} [{bar:30}] {bytes}/{total_bytes}",
            _ => "{spinner} {msg} [{bar:30}] {pos}/{len}",
        };
        let style = ProgressStyle::with_template(template).expect("the template is a constant that parses");
        self.bar.set_style(style);
        self.bar.set_length(total);
        self.bar.set_position(progress.done);
        self.bar.set_message(progress.what.clone());
    }

    fn log(&self, line: &LogLine) {
        let shown = match self.lines {
            Lines::None => false,
            Lines::Programs => matches!(line.stream, Stream::Stdout | Stream::Stderr),
        };
        if shown {
            self.print(&format!("    | {}", line.text));
        }
    }

    fn end(&self, outcome: &str) {
        self.bar.finish_and_clear();
        say(format!("  {outcome}"));
    }

    fn print(&self, line: &str) {
        if self.on_terminal {
            self.bar.suspend(|| say(line));
        } else {
            say(line);
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
