//! Takes one deployment from step to step: do the step, fold the result, write the next state.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, pin_mut, select_biased};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    call::Caller,
    perform::{Perform, snapshot_records},
    sink::LogSink,
    worker::{Adopted, Crew, Phase},
};
use crate::{
    deployment::{Deployment, between},
    event::{EventKind, LogLine, NewEvent, Stream},
    failure::{Cause, Failure, FailureClass},
    machine::{Cancel, Decision, Outcome, Report, State, Step},
    port::{Claim, Commit, Committed, Finish, Next, Sink as _, StoreErrorKind},
    request::Trigger,
};

/// The wait after a commit that the store did not answer: doubled each time, up to a second.
const COMMIT_RETRY_MIN: Duration = Duration::from_millis(50);

/// How often a commit is tried that the store says cannot work.
const BROKEN_COMMITS_MAX: u32 = 5;

/// Why a worker leaves a lane.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// It was given back, is empty, or lost.
    Lane {
        /// Whether a deployment of it ended, so that there may be something to clean up.
        ended: bool,
    },
    /// The store cannot write what comes next.
    Stuck,
}

/// Works on a lane until it is given back, is empty, or lost, or the store cannot write it.
pub(super) async fn drive(crew: Arc<Crew>, claim: Claim, adopted: &mut Adopted) -> Left {
    let (mut next, mut ended) = (Some(claim), false);
    let lost = crew.lease.lost().fuse();
    pin_mut!(lost);
    while let Some(claim) = next {
        let mut driver = Driver::take(crew.clone(), claim, adopted.cancel.clone());
        next = {
            let drive = driver.drive().fuse();
            pin_mut!(drive);
            select_biased! {
                () = lost => None,
                successor = drive => successor.map(|successor| *successor),
            }
        };
        if driver.stuck {
            return Left::Stuck;
        }
        ended |= driver.ended;
        if let Some(successor) = &next {
            *adopted = crew.adopt(successor);
        }
    }
    Left::Lane { ended }
}

struct Driver {
    crew: Arc<Crew>,
    shared: Arc<Shared>,
    sink: Arc<LogSink>,
    cancel: CancellationToken,
    /// The deployment, the fence, and what else goes into the next commit.
    commit: Commit,
    /// What is to be done, if the claim asks for more than the stored state says.
    resumed: Option<State>,
    /// When the present state was entered, or the lane was taken.
    since: Duration,
    /// Whether the deployment came to its end.
    ended: bool,
    /// Whether the store said that it cannot write what comes next.
    stuck: bool,
}

/// What came of a turn.
enum Turn {
    Next,
    Over(Option<Box<Claim>>),
}

/// Why a step was stopped from outside.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Cancel,
    Shutdown,
}

/// What came of an attempt.
enum Attempt<Evidence, Kept> {
    Reported(Report<Evidence, Kept>),
    Stopped(Why, Option<Report<Evidence, Kept>>),
    Lost,
}

impl Driver {
    fn take(crew: Arc<Crew>, claim: Claim, cancel: CancellationToken) -> Self {
        let shared = crew.shared.clone();
        let Claim { mut deployment, environment, live, acknowledged, fence, lost_worker } = claim;
        let at = shared.executor.utc();
        let sink = Arc::new(LogSink::new(shared.clone()));
        let mut resumed = None;
        if deployment.state == State::Queued {
            deployment.begin(environment, live, acknowledged, at);
        } else {
            deployment.spend(between(deployment.updated_at, at));
            let lost = lost_worker && !planted!(ForgetBegun);
            let state = deployment.state.clone();
            let known = if lost { state.lost_worker() } else { state };
            let idle = (at - deployment.updated_at).abs().to_std().unwrap_or_default();
            let claimed = known.clone().claimed(idle);
            if let Some(step) = claimed.step() {
                sink.enter(step);
            }
            if claimed != known {
                let minutes = idle.as_secs() / 60;
                let text =
                    format!("nobody has worked on it for {minutes} minutes; the snapshots are taken again");
                sink.log(None, Stream::Engine, &text);
            }
            if lost {
                resumed = Some(claimed);
            } else {
                deployment.state = claimed;
            }
        }
        if deployment.kept_by_store.cancel.is_some() {
            cancel.cancel();
        }
        let mut commit =
            Commit::new(crew.worker.id, fence, deployment, Next::Continue { fresh_fence: false });
        commit.log_limit = shared.log_limit;
        let since = shared.executor.now();
        Self { crew, sink, cancel, commit, resumed, since, ended: false, stuck: false, shared }
    }

    async fn drive(&mut self) -> Option<Box<Claim>> {
        if let Some(state) = self.resumed.take() {
            self.say("the worker before did not report back; taking over");
            // Counted before anything is tried: a step that kills its workers must not be tried for ever.
            if let Turn::Over(successor) = self.write(Decision::go_on(state)).await {
                return successor;
            }
        } else if let Some(step) = self.commit.deployment.step() {
            self.sink.enter(step);
            self.sink.tell(EventKind::Began { step });
        }
        loop {
            if let Turn::Over(successor) = self.turn().await {
                return successor;
            }
        }
    }

    async fn turn(&mut self) -> Turn {
        if !self.crew.lease.holds() {
            return Turn::Over(None);
        }
        let state = self.commit.deployment.state.clone();
        if self.cancel.is_cancelled()
            && let Cancel::Accepted(state) = state.clone().cancel(false)
        {
            return self.write(Decision::go_on(state)).await;
        }
        if self.crew.phase() >= Phase::HandingOver {
            return self.hand_over(state).await;
        }
        match state {
            State::Locate(state) => self.step(state).await,
            State::Fetch(state) => self.step(state).await,
            State::Build(state) => self.step(state).await,
            State::Snapshot(state) => self.step(state).await,
            State::Stop(state) => self.step(state).await,
            State::Restore(state) => self.step(state).await,
            State::Update(state) => self.step(state).await,
            State::Start(state) => self.step(state).await,
            State::Probe(state) => self.step(state).await,
            State::Withdraw(state) => self.step(state).await,
            State::Revive(state) => self.step(state).await,
            // A claim begins a queued deployment, and a commit of the end is the last one.
            State::Queued | State::Finished(_) => Turn::Over(None),
        }
    }

    async fn step<S>(&mut self, mut step: S) -> Turn
    where
        S: Perform + Send + Sync,
        S::Evidence: Send,
        S::Kept: Send,
    {
        let began = self.shared.executor.now();
        let undo = self.commit.deployment.state.is_undo();
        let attempt = self.attempt(&step, undo).await;
        let took = self.shared.executor.now() - began;
        match attempt {
            Attempt::Lost => Turn::Over(None),
            Attempt::Reported(report) | Attempt::Stopped(_, Some(report @ Report::Done(_))) => {
                self.record(&step, &report);
                self.write(step.fold(report, took)).await
            }
            Attempt::Stopped(why, report) => {
                let mut fresh_fence = report.is_none();
                if let Some(report) = report {
                    self.record(&step, &report);
                    if let Report::Failed { kept, failures } = report {
                        fresh_fence = failures.iter().any(|it| it.class == FailureClass::Unanswered);
                        step.keep(kept);
                    }
                }
                match why {
                    Why::Shutdown => self.hand_over(step.into().interrupted()).await,
                    Why::Cancel => {
                        let (Cancel::Accepted(state) | Cancel::TooLate(state)) = step.into().cancel(true);
                        let fresh_fence = fresh_fence && !planted!(CancelKeepsFence);
                        self.write(Decision { fresh_fence, ..Decision::go_on(state) }).await
                    }
                }
            }
        }
    }

    /// Writes what was found into the record, and into the store's list of snapshots.
    fn record<S: Perform>(&mut self, step: &S, report: &Report<S::Evidence, S::Kept>) {
        let deployment = &mut self.commit.deployment;
        let restored = deployment.restored.clone();
        let changed = step.record(report, deployment);
        self.commit.snapshots.extend(snapshot_records(deployment, changed));
        for (name, window) in deployment.lost_writes().filter(|(name, _)| !restored.contains(*name)) {
            let seconds = window.as_secs_f64();
            let text =
                format!("what was written in the {seconds} s between the snapshot and the stop is lost");
            self.sink.log(Some(name), Stream::Engine, &text);
        }
    }

    /// One attempt at a step, until it reports or is stopped, or the store says that the lane is lost. What is logged
    /// meanwhile is stored; a call that stores it is waited for, so that it cannot come after the commit.
    async fn attempt<S: Perform + Sync>(&self, step: &S, undo: bool) -> Attempt<S::Evidence, S::Kept> {
        let ended = Notify::new();
        let work = self.work(step, undo).fuse();
        let flush = self.flush(&ended).fuse();
        pin_mut!(work, flush);
        let attempt = select_biased! {
            _ = flush => return Attempt::Lost,
            attempt = work => attempt,
        };
        ended.notify_one();
        if flush.await { attempt } else { Attempt::Lost }
    }

    async fn work<S: Perform + Sync>(&self, step: &S, undo: bool) -> Attempt<S::Evidence, S::Kept> {
        let cancellation = CancellationToken::new();
        let caller = Caller {
            shared: self.shared.clone(),
            step: S::STEP,
            fence: self.commit.fence,
            cancellation: cancellation.clone(),
            sink: self.sink.clone(),
        };
        // However the attempt ends, what it has started is told to stop.
        let _stop = cancellation.clone().drop_guard();
        let perform = step.perform(&caller).fuse();
        let stop = self.stop(undo).fuse();
        pin_mut!(perform, stop);
        let why = select_biased! {
            report = perform => return Attempt::Reported(report),
            why = stop => why,
        };
        cancellation.cancel();
        select_biased! {
            report = perform => Attempt::Stopped(why, Some(report)),
            () = self.shared.executor.sleep(self.shared.timing.cancel_grace).fuse() => {
                Attempt::Stopped(why, None)
            }
        }
    }

    /// Completes when the step should be stopped. An undo is not stopped by a cancel.
    async fn stop(&self, undo: bool) -> Why {
        let cancelled = async {
            if undo {
                std::future::pending::<()>().await;
            }
            self.cancel.cancelled().await;
        };
        let interrupted = self.crew.reached(Phase::Interrupting).fuse();
        let cancelled = cancelled.fuse();
        pin_mut!(cancelled, interrupted);
        select_biased! {
            () = cancelled => Why::Cancel,
            () = interrupted => Why::Shutdown,
        }
    }

    /// Stores what is logged, until the attempt has ended. `false` as soon as the store says that the lane is lost.
    async fn flush(&self, ended: &Notify) -> bool {
        let Deployment { environment, id, .. } = &self.commit.deployment;
        loop {
            let due = async {
                self.sink.filled().await;
                self.shared.executor.sleep(self.shared.timing.flush).await;
            };
            let (due, ended) = (due.fuse(), ended.notified().fuse());
            pin_mut!(due, ended);
            select_biased! {
                () = ended => return true,
                () = due => {}
            }
            let events = self.sink.take();
            let append = self.shared.store.append(
                environment,
                *id,
                self.commit.fence,
                events.clone(),
                self.shared.log_limit,
            );
            match self.shared.in_time(append).await {
                Ok(true) => self.shared.nudge.notify_waiters(),
                Ok(false) => return false,
                // It may have been stored: a line twice is better than a line lost.
                Err(_) => self.sink.put_back(events),
            }
        }
    }

    /// Gives the lane back at a step boundary, or with a step that was interrupted.
    async fn hand_over(&mut self, state: State) -> Turn {
        self.say("this worker shuts down; another one goes on");
        self.write(Decision { after: Some(Duration::ZERO), ..Decision::go_on(state) }).await
    }

    fn say(&self, text: &str) {
        self.sink.log(None, Stream::Engine, text);
    }

    /// Writes a decision. A verdict that a cancel has overtaken is not written, and everything is as before.
    async fn write(&mut self, decision: Decision) -> Turn {
        let now = self.shared.executor.now();
        self.commit.next = self.next(&decision);
        let verdict = matches!(&self.commit.next, Next::Finish(finish) if finish.verdict);
        let before = verdict.then(|| self.commit.deployment.clone());
        let undoing = self.commit.deployment.state.is_undo();
        self.commit.events = self.sink.take();
        let logged = self.commit.events.len();
        let Decision { state, after, failure, .. } = decision;
        let deployment = &mut self.commit.deployment;
        deployment.spend(now.saturating_sub(self.since));
        deployment.enter(state, self.shared.executor.utc());
        deployment.kept_by_store.version += 1;
        let milestones = milestones(&self.commit, undoing, failure.as_ref(), after);
        self.commit.events.extend(milestones);
        let Some(answer) = self.commit().await else { return Turn::Over(None) };
        self.shared.nudge.notify_waiters();
        match answer {
            Committed::Continued { fence, cancel } => {
                self.since = now;
                self.commit.fence = fence;
                self.commit.snapshots.clear();
                if let Some(step) = self.commit.deployment.step() {
                    self.sink.enter(step);
                }
                if cancel {
                    self.cancel.cancel();
                }
                Turn::Next
            }
            Committed::CancelPending => {
                // Nothing was written: the cancel came before the verdict, and is what counts.
                self.commit.events.truncate(logged);
                self.sink.put_back(std::mem::take(&mut self.commit.events));
                self.commit.deployment = before.expect("only a verdict is refused because of a cancel");
                self.cancel.cancel();
                Turn::Next
            }
            Committed::Finished { successor } => {
                self.ended = true;
                Turn::Over(successor)
            }
            Committed::Fenced if planted!(FencedIgnored) => Turn::Next,
            Committed::Fenced => {
                tracing::warn!(deployment = %self.commit.deployment.id, "another worker has taken over");
                Turn::Over(None)
            }
            Committed::Released => Turn::Over(None),
        }
    }

    /// Commits until the store answers. Nothing comes of it if the store says again and again that it cannot work.
    async fn commit(&mut self) -> Option<Committed> {
        let Deployment { id, environment, .. } = &self.commit.deployment;
        let (mut wait, mut broken) = (COMMIT_RETRY_MIN, 0);
        loop {
            let sent = self.shared.executor.now();
            match self.shared.in_time(self.shared.store.commit(&self.commit)).await {
                Ok(answer) => {
                    self.crew.heard(environment, sent);
                    return Some(answer);
                }
                Err(error) => {
                    tracing::warn!(%error, deployment = %id, "a commit failed");
                    broken += u32::from(error.kind() == StoreErrorKind::Broken);
                }
            }
            if broken == BROKEN_COMMITS_MAX {
                self.stuck = true;
                return None;
            }
            self.shared.executor.sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(1));
        }
    }

    /// What becomes of the lane.
    fn next(&self, decision: &Decision) -> Next {
        let Some(outcome) = decision.state.outcome() else {
            let hand_over = (self.crew.phase() >= Phase::HandingOver).then_some(Duration::ZERO);
            return match decision.after.or(hand_over) {
                Some(after) => Next::Release { after },
                None => {
                    Next::Continue { fresh_fence: decision.fresh_fence && !planted!(SameFenceAfterTimeout) }
                }
            };
        };
        let recovery = matches!(self.commit.deployment.request.trigger, Trigger::Recovery { .. });
        Next::Finish(Finish {
            live: match outcome {
                Outcome::Undone { .. } if planted!(LiveNotUpdatedAfterRevive) => None,
                Outcome::Running(live) | Outcome::Undone { live: Some(live), .. } => Some(live.clone()),
                _ => None,
            },
            attention: match outcome {
                Outcome::Stranded { .. } if planted!(StrandedNotMarked) => None,
                Outcome::Stranded { .. } => Some(true),
                Outcome::Undone { .. } if recovery => Some(false),
                _ => None,
            },
            claim_next: self.crew.phase() == Phase::Working,
            verdict: matches!(outcome, Outcome::Running(_)),
        })
    }
}

/// The events that a commit tells of.
fn milestones(
    commit: &Commit,
    undoing: bool,
    failure: Option<&Failure>,
    after: Option<Duration>,
) -> Vec<NewEvent> {
    let mut kinds = Vec::new();
    let state = &commit.deployment.state;
    if let (Some(failure), Some(after)) = (failure, after) {
        let after_millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        // The evidence counts as lines of the log: what is told of each attempt has no limit of its own.
        kinds.extend(evidence(failure.step, &failure.detail));
        let failure = Failure { detail: Vec::new(), ..failure.clone() };
        kinds.push(EventKind::Retrying { failure, after_millis });
    } else if let Some(failure) = failure {
        kinds.extend(evidence(failure.step, &failure.detail));
    }
    if state.is_undo() && !undoing {
        let failed = failure.map(ToString::to_string);
        kinds.push(EventKind::Undoing { reason: failed.unwrap_or_else(|| "it is cancelled".to_owned()) });
    }
    if let Some(outcome) = state.outcome() {
        let reason = match outcome {
            Outcome::Stranded { cause, failure, .. } => {
                let first =
                    cause.failure().map_or_else(|| "it was cancelled".to_owned(), ToString::to_string);
                Some(format!("{first}; it could not be undone: {failure}"))
            }
            outcome => outcome.cause().and_then(Cause::failure).map(ToString::to_string),
        };
        let status = commit.deployment.status();
        kinds.push(EventKind::Finished { status, reason, superseded_by: None });
    } else if let (Next::Continue { .. }, Some(step)) = (&commit.next, state.step()) {
        kinds.push(EventKind::Began { step });
    }
    let at = commit.deployment.updated_at;
    kinds.into_iter().map(|kind| NewEvent::new(at, kind)).collect()
}

/// The evidence of a failure, as lines of the log.
fn evidence(step: Step, detail: &[String]) -> impl Iterator<Item = EventKind> {
    detail.iter().map(move |text| EventKind::Log(LogLine::new(step, None, Stream::Engine, text.clone())))
}
