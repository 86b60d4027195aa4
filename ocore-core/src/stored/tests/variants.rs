//! The variants of everything stored, by exhaustive matches: a new variant does not compile until it is named
//! here, and fails a test until it has a golden file.

use std::collections::BTreeSet;

use crate::{
    deployment::Deployment,
    environment::SnapshotWhen,
    event::{EventKind, Stream, Unit},
    failure::{Cause, Failure, FailureClass},
    machine::{Aim, Outcome, State, Status, Step, Toward, Undo},
    release::Window,
    request::{Goal, Revision, RollbackMode, Trigger},
};

macro_rules! variants {
    ($($function:ident($type:ty) { $($pattern:pat $(if $guard:expr)? => $name:literal),+ $(,)? })+) => {
        $(fn $function(value: &$type) -> &'static str {
            match value { $($pattern $(if $guard)? => concat!(stringify!($function), " ", $name)),+ }
        })+

        /// The names of all variants.
        pub(super) fn all() -> Vec<&'static str> {
            vec![$($(concat!(stringify!($function), " ", $name)),+),+]
        }
    };
}

variants! {
    state(State) {
        State::Queued => "queued",
        State::Locate(state) if state.with_data() => "locate with data",
        State::Locate(_) => "locate without data",
        State::Fetch(_) => "fetch",
        State::Build(_) => "build",
        State::Snapshot(state) if state.taken().is_empty() => "snapshot",
        State::Snapshot(_) => "snapshot in part",
        State::Stop(state) if state.snapshots().is_none() => "stop before the snapshot",
        State::Stop(_) => "stop after the snapshot",
        State::Restore(_) => "restore",
        State::Update(_) => "update",
        State::Start(_) => "start",
        State::Probe(_) => "probe",
        State::Withdraw(_) => "withdraw",
        State::Revive(_) => "revive",
        State::Finished(_) => "finished",
    }
    outcome(Outcome) {
        Outcome::Running(_) => "running",
        Outcome::Untouched(_) => "untouched",
        Outcome::Undone { live: Some(_), .. } => "undone, previous serves",
        Outcome::Undone { live: None, .. } => "undone, nothing serves",
        Outcome::Stranded { .. } => "stranded",
    }
    cause(Cause) {
        Cause::Failed(_) => "failed",
        Cause::Cancelled => "cancelled",
        Cause::Superseded { .. } => "superseded",
    }
    undo(Undo) {
        Undo::Withdraw(_) => "withdraw",
        Undo::Restore(_) => "restore",
        Undo::Revive(_) => "revive",
    }
    toward(Toward) {
        Toward::Forward => "forward",
        Toward::Back(_) => "back",
    }
    aim(Aim) {
        Aim::Deploy => "deploy",
        Aim::Rollback { load: Some(_), .. } => "rollback with data",
        Aim::Rollback { load: None, .. } => "rollback without data",
    }
    when(SnapshotWhen) {
        SnapshotWhen::BeforeStop => "before the stop",
        SnapshotWhen::AfterStop => "after the stop",
    }
    window(Window) {
        Window::Empty => "empty",
        Window::Open(_) => "open",
    }
    goal(Goal) {
        Goal::Deploy(_) => "deploy",
        Goal::Rollback { .. } => "rollback",
        Goal::Recover(_) => "recover",
    }
    revision(Revision) {
        Revision::Branch(_) => "branch",
        Revision::Tag(_) => "tag",
        Revision::Commit(_) => "commit",
    }
    mode(RollbackMode) {
        RollbackMode::CodeAndData => "code and data",
        RollbackMode::CodeOnly => "code only",
    }
    trigger(Trigger) {
        Trigger::Push => "push",
        Trigger::Manual => "manual",
        Trigger::Api => "api",
        Trigger::Rollback { .. } => "rollback",
        Trigger::Retry { .. } => "retry",
        Trigger::Recovery { .. } => "recovery",
    }
    class(FailureClass) {
        FailureClass::Transient => "transient",
        FailureClass::Unanswered => "unanswered",
        FailureClass::Permanent => "permanent",
    }
    event(EventKind) {
        EventKind::Queued => "queued",
        EventKind::Began { .. } => "began",
        EventKind::Log(_) => "log",
        EventKind::Progress { .. } => "progress",
        EventKind::Retrying { .. } => "retrying",
        EventKind::Undoing { .. } => "undoing",
        EventKind::CancelRequested { .. } => "cancel requested",
        EventKind::Acknowledged { .. } => "acknowledged",
        EventKind::Finished { .. } => "finished",
    }
    stream(Stream) {
        Stream::Engine => "engine",
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    }
    unit(Unit) {
        Unit::Bytes => "bytes",
        Unit::Items => "items",
    }
    step(Step) {
        Step::Locate => "locate",
        Step::Fetch => "fetch",
        Step::Build => "build",
        Step::Snapshot => "snapshot",
        Step::Stop => "stop",
        Step::Restore => "restore",
        Step::Update => "update",
        Step::Start => "start",
        Step::Probe => "probe",
        Step::Withdraw => "withdraw",
        Step::Revive => "revive",
    }
    status(Status) {
        Status::Queued => "queued",
        Status::Building => "building",
        Status::Deploying => "deploying",
        Status::Running => "running",
        Status::Failed => "failed",
        Status::RolledBack => "rolled back",
        Status::Cancelled => "cancelled",
    }
}

/// The variants that have been seen.
#[derive(Default)]
pub(super) struct Seen(pub(super) BTreeSet<&'static str>);

impl Seen {
    pub(super) fn deployment(&mut self, deployment: &Deployment) {
        self.0.insert(state(&deployment.state));
        self.0.insert(trigger(&deployment.request.trigger));
        self.0.extend(deployment.windows.values().map(window));
        self.goal(&deployment.request.goal);
        if let Some(job) = deployment.state.job() {
            self.0.insert(aim(&job.aim));
            self.0.insert(when(&job.environment.policy().snapshot));
        }
        match &deployment.state {
            State::Withdraw(state) => self.0.extend([toward(state.toward())]),
            State::Restore(state) => self.0.extend([toward(state.toward())]),
            _ => {}
        }
        if let Some(why) = deployment.state.cause() {
            self.cause(why);
        }
        if let Some(end) = deployment.outcome() {
            self.0.insert(outcome(end));
            if let Outcome::Stranded { undo: resumable, failure, .. } = end {
                self.0.insert(undo(resumable));
                self.failure(failure);
            }
        }
    }

    pub(super) fn event(&mut self, kind: &EventKind) {
        self.0.insert(event(kind));
        match kind {
            EventKind::Began { step: began } => self.0.extend([step(began)]),
            EventKind::Log(line) => self.0.extend([stream(&line.stream)]),
            EventKind::Progress { progress, .. } => self.0.extend([unit(&progress.unit)]),
            EventKind::Retrying { failure, .. } => self.failure(failure),
            EventKind::Finished { status: end, .. } => self.0.extend([status(end)]),
            EventKind::Queued
            | EventKind::Undoing { .. }
            | EventKind::CancelRequested { .. }
            | EventKind::Acknowledged { .. } => {}
        }
    }

    fn goal(&mut self, asked: &Goal) {
        self.0.insert(goal(asked));
        match asked {
            Goal::Deploy(asked) => self.0.extend([revision(asked)]),
            Goal::Rollback { mode: asked, .. } => self.0.extend([mode(asked)]),
            Goal::Recover(_) => {}
        }
    }

    fn cause(&mut self, why: &Cause) {
        self.0.insert(cause(why));
        if let Some(failure) = why.failure() {
            self.failure(failure);
        }
    }

    fn failure(&mut self, failure: &Failure) {
        self.0.insert(class(&failure.class));
    }
}
