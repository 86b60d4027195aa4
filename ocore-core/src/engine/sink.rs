//! Log lines and progress on their way to the store: made safe, thinned out, collected.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::Shared;
use crate::{
    event::{EventKind, LogLine, NewEvent, Progress, Stream},
    machine::Step,
    name::InstanceName,
    port::Sink,
    secret::{Secret, printable},
};

/// Progress of one instance is passed on this often at most.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// What may wait for a store that does not answer, in bytes. Beyond it lines are counted and dropped.
const WAITING_BYTES_MAX: u64 = 4 << 20;

/// The sink of one deployment.
pub(super) struct LogSink {
    shared: Arc<Shared>,
    waiting: Mutex<Waiting>,
    filled: Notify,
}

struct Waiting {
    step: Step,
    events: Vec<NewEvent>,
    bytes: u64,
    dropped: u64,
    shown: HashMap<Option<InstanceName>, Duration>,
}

impl LogSink {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let shown = HashMap::new();
        let waiting = Waiting { step: Step::Fetch, events: Vec::new(), bytes: 0, dropped: 0, shown };
        Self { shared, waiting: Mutex::new(waiting), filled: Notify::new() }
    }

    /// From now on lines belong to this step.
    pub(super) fn enter(&self, step: Step) {
        let mut waiting = self.lock();
        waiting.step = step;
        waiting.shown.clear();
    }

    /// Adds an event of the engine's own.
    pub(super) fn tell(&self, kind: EventKind) {
        let mut waiting = self.lock();
        let bytes = kind.log_bytes();
        if bytes > 0 && waiting.bytes + bytes > WAITING_BYTES_MAX {
            waiting.dropped += 1;
            return;
        }
        waiting.bytes += bytes;
        waiting.events.push(NewEvent::new(self.shared.executor.utc(), kind));
        self.filled.notify_one();
    }

    /// Completes when something waits.
    pub(super) async fn filled(&self) {
        while self.lock().events.is_empty() {
            self.filled.notified().await;
        }
    }

    /// Takes everything that waits.
    pub(super) fn take(&self) -> Vec<NewEvent> {
        let mut waiting = self.lock();
        waiting.bytes = 0;
        let mut events = std::mem::take(&mut waiting.events);
        let dropped = std::mem::take(&mut waiting.dropped);
        if dropped > 0 {
            let text = format!("[{dropped} lines were dropped: the store did not keep up]");
            let line = LogLine::new(waiting.step, None, Stream::Engine, text);
            events.push(NewEvent::new(self.shared.executor.utc(), EventKind::Log(line)));
        }
        events
    }

    /// Puts back what could not be stored.
    pub(super) fn put_back(&self, mut events: Vec<NewEvent>) {
        let mut waiting = self.lock();
        waiting.bytes += events.iter().map(|event| event.kind.log_bytes()).sum::<u64>();
        events.append(&mut waiting.events);
        waiting.events = events;
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for LogSink {
    fn log(&self, instance: Option<&InstanceName>, stream: Stream, line: &str) {
        let text = printable(&self.shared.redactor, line);
        let step = self.lock().step;
        self.tell(EventKind::Log(LogLine::new(step, instance.cloned(), stream, text)));
    }

    fn progress(&self, instance: Option<&InstanceName>, mut progress: Progress) {
        let now = self.shared.executor.now();
        let step = {
            let mut waiting = self.lock();
            let complete = progress.total == Some(progress.done);
            let shown = waiting.shown.get(&instance.cloned());
            if !complete && shown.is_some_and(|shown| now < *shown + PROGRESS_INTERVAL) {
                return;
            }
            waiting.shown.insert(instance.cloned(), now);
            waiting.step
        };
        progress.what = printable(&self.shared.redactor, &progress.what).chars().take(200).collect();
        self.tell(EventKind::Progress { step, instance: instance.cloned(), progress });
    }

    fn hide(&self, secret: &Secret) {
        if !planted!(SecretForgotten) {
            self.shared.redactor.hide_for_now(secret);
        }
    }
}
