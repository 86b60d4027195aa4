//! One call of a port: with a deadline, safe against panics, its error made into a failure that can be stored.

use std::{any::Any, future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{FutureExt as _, pin_mut, select_biased};
use tokio_util::sync::CancellationToken;

use super::{Shared, sink::LogSink};
use crate::{
    failure::{Failure, FailureClass},
    id::{DeploymentId, Fence},
    machine::{Aim, Job, Step},
    port::{self, Context, EnvironmentRecord, ErrorKind, StoreResult},
    secret::printable,
};

/// How long a call that has passed its deadline may take to stop before it is dropped.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// The most that a failure keeps of its evidence: the last lines, and of these the last bytes. It is written with
/// every state that has the failure.
const DETAIL_LINES_MAX: usize = 100;
const DETAIL_BYTES_MAX: usize = 64 * 1024;

/// Makes the calls of one attempt at a step.
pub(super) struct Caller {
    pub(super) shared: Arc<Shared>,
    pub(super) step: Step,
    pub(super) fence: Fence,
    pub(super) cancellation: CancellationToken,
    pub(super) sink: Arc<LogSink>,
}

impl Caller {
    /// For calls that belong to no step: in the name of a deployment that is over.
    pub(super) fn outside_of_steps(
        shared: Arc<Shared>,
        record: &EnvironmentRecord,
        id: DeploymentId,
    ) -> (Self, Job) {
        let sink = Arc::new(LogSink::new(shared.clone()));
        let job = Job {
            id,
            environment: record.environment.clone(),
            aim: Aim::Deploy,
            previous: None,
            acknowledged: Vec::new(),
        };
        let (step, fence, cancellation) = (Step::Probe, record.fence, CancellationToken::new());
        (Self { shared, step, fence, cancellation, sink }, job)
    }

    /// A context for one call, with a token that is cancelled with the attempt or by the call's own deadline.
    pub(super) fn context(&self, job: &Job) -> Context {
        let token = self.cancellation.child_token();
        Context::new(job.id, job.environment.clone(), self.fence, token, self.sink.clone())
    }

    /// The answer of a call, or the failure that it ended in.
    pub(super) async fn answer<T>(
        &self,
        context: &Context,
        deadline: Duration,
        call: impl Future<Output = port::Result<T>>,
    ) -> Result<T, Failure> {
        let call = AssertUnwindSafe(call).catch_unwind().fuse();
        pin_mut!(call);
        let executor = &self.shared.executor;
        select_biased! {
            answer = call => self.judge(answer),
            () = executor.sleep(if planted!(DeadlineIgnored) { Duration::MAX } else { deadline }).fuse() => {
                context.cancellation().cancel();
                select_biased! {
                    answer = call => if let Ok(Ok(answer)) = answer { return Ok(answer) },
                    () = executor.sleep(STOP_GRACE).fuse() => {}
                }
                let message = format!("did not end within {} and was stopped", seconds(deadline));
                Err(Failure::new(self.step, FailureClass::Unanswered, message))
            }
        }
    }

    fn judge<T>(&self, answer: Result<port::Result<T>, Box<dyn Any + Send>>) -> Result<T, Failure> {
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.failure(&error)),
            Err(panic) => {
                let message = format!("the adapter panicked: {}", panic_message(&*panic));
                Err(self.failure(&port::Error::permanent(message)))
            }
        }
    }

    /// An adapter's error, redacted.
    fn failure(&self, error: &port::Error) -> Failure {
        let clean = |text: &str| printable(&self.shared.redactor, text);
        let mut failure = Failure::new(self.step, error.class(), clean(&error.to_string()));
        if error.kind() == ErrorKind::Cancelled && !self.cancellation.is_cancelled() {
            failure.message = "the adapter stopped as if it had been cancelled".to_owned();
        }
        failure.detail = self.evidence(error.detail());
        failure
    }

    /// The end of the evidence, redacted.
    fn evidence(&self, lines: &[String]) -> Vec<String> {
        let mut room = DETAIL_BYTES_MAX;
        let last = lines.iter().rev().take(DETAIL_LINES_MAX);
        let clean = last.map(|line| printable(&self.shared.redactor, line)).map_while(|mut line| {
            let fits = line.len() <= room;
            line.truncate(line.floor_char_boundary(room));
            room -= line.len();
            (fits || !line.is_empty()).then_some(line)
        });
        let mut kept: Vec<String> = clean.collect();
        kept.reverse();
        kept
    }

    /// A failure of the engine's own making.
    pub(super) fn fail(
        &self,
        class: FailureClass,
        message: impl Into<String>,
        detail: Vec<String>,
    ) -> Failure {
        let clean = |text: &str| printable(&self.shared.redactor, text);
        let mut failure = Failure::new(self.step, class, clean(&message.into()));
        failure.detail = self.evidence(&detail);
        failure
    }

    /// What the store says, or the failure that the call ended in.
    pub(super) async fn read<T>(&self, call: impl Future<Output = StoreResult<T>>) -> Result<T, Failure> {
        let answer = self.shared.in_time(call).await;
        answer.map_err(|error| self.fail(FailureClass::Transient, error.to_string(), Vec::new()))
    }
}

impl Shared {
    /// A store call with a deadline. Past it, it is unknown whether it happened. What a store says of its failure is
    /// redacted: it may quote what it was given, or where it was sent.
    pub(super) async fn in_time<T>(&self, call: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
        let call = call.fuse();
        pin_mut!(call);
        select_biased! {
            answer = call => answer.map_err(|error| {
                port::StoreError::new(error.kind(), printable(&self.redactor, &error.to_string()))
            }),
            () = self.executor.sleep(self.timing.store_call).fuse() => {
                let message = format!("no answer within {}", seconds(self.timing.store_call));
                Err(port::StoreError::new(port::StoreErrorKind::Unknown, message))
            }
        }
    }
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
