//! A value for every golden file, made as the engine makes them: by driving the machine.

use std::time::Duration;

use crate::{
    deployment::{Deployment, KeptByStore, Timings},
    environment::{Environment, EnvironmentSpec, InstanceSpec, SnapshotWhen},
    event::{EventKind, LogLine, Progress, Stream, Unit},
    failure::{Cause, Failure, FailureClass},
    id::{DeploymentId, Seq},
    machine::{
        Outcome, State, Status, Step,
        tests::drive::{
            Attempt, BEFORE, EARLIER, ID, Plan, PlannedAim, at, attempt, commit, environment, failure, live,
            snapshots, windows,
        },
    },
    name::{EnvironmentName, InstanceName},
    release::{Image, Live},
    request::{Goal, NewDeployment, Request, Revision, RollbackMode, Trigger},
};

const NEWER: DeploymentId = DeploymentId::from_u128(0x9e3e);

/// The state in which the step is due after the script; each attempt of the script is made when its step comes
/// up, all others succeed.
fn state_at(plan: Plan, script: &[(Step, Attempt)], due: Step) -> State {
    let mut state = plan.begin();
    let mut script = script.iter().peekable();
    while script.peek().is_some() || state.step() != Some(due) {
        let step = state.step().expect("the step comes up before the end");
        let scripted = script.next_if(|(at, _)| *at == step);
        state = attempt(plan, state, scripted.map_or(&Attempt::Done, |(_, attempt)| attempt));
    }
    state
}

/// The end that follows the script.
fn end_of(plan: Plan, script: &[(Step, Attempt)]) -> State {
    let ((step, last), before) = script.split_last().expect("a script has an attempt");
    let mut state = attempt(plan, state_at(plan, before, *step), last);
    while state.step().is_some() {
        state = attempt(plan, state, &Attempt::Done);
    }
    state
}

pub(super) fn deployments() -> Vec<(String, Deployment)> {
    let mut all = requests();
    all.extend(states().into_iter().map(|(name, state)| (name.to_owned(), full(state))));
    all.into_iter().map(|(name, deployment)| (format!("deployment-{name}"), deployment)).collect()
}

/// Queued deployments with every trigger and every goal.
fn requests() -> Vec<(String, Deployment)> {
    let deploy = |revision: fn(String) -> Revision, text: &str| Goal::Deploy(revision(text.into()));
    let rollback = |mode| Goal::Rollback { to: EARLIER, mode };
    let hopeless = |step| [(Step::Probe, Attempt::PERMANENT), (step, Attempt::PERMANENT)];
    let recover = |step| match end_of(Plan::DEPLOY, &hopeless(step)).outcome() {
        Some(Outcome::Stranded { undo, .. }) => Goal::Recover(undo.clone()),
        outcome => panic!("not stranded: {outcome:?}"),
    };
    let all = [
        ("push", Trigger::Push, deploy(Revision::Commit, &"0123456789".repeat(4))),
        ("manual", Trigger::Manual, deploy(Revision::Branch, "main")),
        ("api", Trigger::Api, deploy(Revision::Tag, "v1.2.3")),
        ("rollback-code-and-data", Trigger::Rollback { to: EARLIER }, rollback(RollbackMode::CodeAndData)),
        ("rollback-code-only", Trigger::Rollback { to: EARLIER }, rollback(RollbackMode::CodeOnly)),
        ("retry", Trigger::Retry { of: BEFORE }, deploy(Revision::Branch, "main")),
        ("recovery-withdraw", Trigger::Recovery { of: BEFORE }, recover(Step::Withdraw)),
        ("recovery-restore", Trigger::Recovery { of: BEFORE }, recover(Step::Restore)),
        ("recovery-revive", Trigger::Recovery { of: BEFORE }, recover(Step::Revive)),
    ];
    let queued = |(name, trigger, goal): (&str, _, _)| {
        let key = (name == "push").then(|| "delivery-1".to_owned());
        (format!("queued-{name}"), accepted(Request { trigger, actor: "ada".into(), goal, key }))
    };
    all.into_iter().map(queued).collect()
}

fn accepted(request: Request) -> Deployment {
    let environment = EnvironmentName::new("shop").unwrap();
    Deployment::accepted(NewDeployment { id: ID, environment, request }, Seq::new(7), at(0))
}

/// A record in which every field has a value.
fn full(state: State) -> Deployment {
    let goal = Goal::Deploy(Revision::Branch("main".into()));
    let request = Request { trigger: Trigger::Manual, actor: "ada".into(), goal, key: Some("key-1".into()) };
    let mut deployment = accepted(request);
    deployment.started_at = Some(at(3));
    deployment.updated_at = at(60);
    deployment.finished_at = state.outcome().map(|_| at(60));
    deployment.timings = Timings {
        queue_wait: Duration::from_secs(3),
        build: Duration::from_millis(40_500),
        deployment: Duration::from_nanos(7_000_000_001),
        downtime: Duration::from_secs(2),
    };
    deployment.commit = Some(commit());
    deployment.image = Some(Image::new("image-of-5eed").with_update(true).with_setting("web", "serve $PORT"));
    deployment.snapshots = snapshots("before");
    deployment.windows = windows();
    deployment.replaced = Some(BEFORE);
    deployment.superseded = vec![EARLIER];
    deployment.kept_by_store =
        KeptByStore { seq: Seq::new(7), version: 12, begun: true, cancel: Some("bob".into()) };
    deployment.state = state;
    deployment
}

/// Every state, as it is met on the way, and every end.
fn states() -> Vec<(&'static str, State)> {
    let rollback = |mode| Plan { aim: PlannedAim::Rollback { mode, image_present: false }, ..Plan::ROLLBACK };
    let (update, code_only) = (Plan::UPDATE, rollback(RollbackMode::CodeOnly));
    let partly = || Attempt::partly(FailureClass::Transient);
    let after_partly = |plan, step| state_at(plan, &[(step, partly())], step);
    let broken = |step| vec![(Step::Probe, Attempt::PERMANENT), (step, partly())];
    let mut all = vec![
        ("locate", state_at(Plan::ROLLBACK, &[], Step::Locate)),
        ("locate-code-only", state_at(code_only, &[], Step::Locate)),
        ("fetch", state_at(update, &[(Step::Fetch, Attempt::TRANSIENT)], Step::Fetch)),
        ("fetch-rollback", state_at(rollback(RollbackMode::CodeAndData), &[], Step::Fetch)),
        ("fetch-acknowledged", Plan::UPDATE.begin_after(vec![EARLIER, BEFORE])),
        ("build", state_at(update, &[(Step::Build, Attempt::Lost)], Step::Build)),
        ("build-rollback-code-only", state_at(code_only, &[], Step::Build)),
        ("snapshot", state_at(update, &[], Step::Snapshot)),
        ("snapshot-in-part", after_partly(update, Step::Snapshot)),
        ("snapshot-after-stop", after_partly(update.after_stop(), Step::Snapshot)),
        ("snapshot-first", state_at(Plan::FIRST, &[], Step::Snapshot)),
        ("stop", after_partly(update, Step::Stop)),
        ("stop-interrupted", state_at(update, &[], Step::Stop).interrupted()),
        ("stop-before-snapshot", after_partly(update.after_stop(), Step::Stop)),
        ("update", state_at(update, &[(Step::Update, Attempt::UNANSWERED)], Step::Update)),
        ("start", after_partly(update, Step::Start)),
        ("start-rollback", state_at(Plan::ROLLBACK, &[], Step::Start)),
        ("probe", state_at(update, &[(Step::Probe, Attempt::TRANSIENT)], Step::Probe)),
        ("withdraw-forward", state_at(update, &[(Step::Start, Attempt::UNANSWERED)], Step::Withdraw)),
        ("withdraw-back", state_at(update, &broken(Step::Withdraw), Step::Withdraw)),
        ("restore-forward", after_partly(Plan::ROLLBACK, Step::Restore)),
        ("restore-back", state_at(update, &broken(Step::Restore), Step::Restore)),
        ("revive", state_at(update, &broken(Step::Revive), Step::Revive)),
    ];
    all.extend(ends());
    all
}

fn ends() -> Vec<(&'static str, State)> {
    let cancelled = Attempt::Cancelled { begun: true };
    let stranded =
        |plan, step| end_of(plan, &[(Step::Probe, Attempt::PERMANENT), (step, Attempt::PERMANENT)]);
    let superseded = Cause::Superseded { by: NEWER };
    let cancelled_undo = [(Step::Start, cancelled.clone()), (Step::Restore, Attempt::UNANSWERED)];
    vec![
        ("running", end_of(Plan::UPDATE, &[(Step::Probe, Attempt::Done)])),
        ("running-rollback", end_of(Plan::ROLLBACK, &[(Step::Probe, Attempt::Done)])),
        ("untouched-failed", end_of(Plan::UPDATE, &[(Step::Build, Attempt::PERMANENT)])),
        ("untouched-cancelled", end_of(Plan::UPDATE, &[(Step::Build, cancelled.clone())])),
        ("untouched-superseded", State::finished(Outcome::Untouched(superseded))),
        ("undone-failed-previous", end_of(Plan::UPDATE, &[(Step::Start, Attempt::PERMANENT)])),
        ("undone-failed-nothing", end_of(Plan::FIRST, &[(Step::Start, Attempt::PERMANENT)])),
        ("undone-cancelled-previous", end_of(Plan::UPDATE, &cancelled_undo)),
        ("undone-cancelled-nothing", end_of(Plan::FIRST, &[(Step::Update, cancelled)])),
        ("stranded-withdraw", stranded(Plan::UPDATE, Step::Withdraw)),
        ("stranded-restore", stranded(Plan::ROLLBACK, Step::Restore)),
        ("stranded-revive", stranded(Plan::UPDATE, Step::Revive)),
    ]
}

pub(super) fn events() -> Vec<(String, EventKind)> {
    let web = || Some(InstanceName::new("a").unwrap());
    let log = |stream, instance| {
        let text = "ünïcode \"quoted\" \\u{1b} [secret]".to_owned();
        EventKind::Log(LogLine::new(Step::Build, instance, stream, text))
    };
    let progress = |instance, total, unit| {
        let progress = Progress::new("receiving objects", 7, total, unit);
        EventKind::Progress { step: Step::Fetch, instance, progress }
    };
    let retrying = |class| EventKind::Retrying { failure: failure(Step::Stop, class), after_millis: 1500 };
    let mut detailed = Failure::new(Step::Probe, FailureClass::Permanent, "not healthy").of(&web().unwrap());
    detailed.detail = vec!["exit code 1".to_owned(), "Traceback".to_owned()];
    let mut all = vec![
        ("queued".to_owned(), EventKind::Queued),
        ("log-engine".to_owned(), log(Stream::Engine, None)),
        ("log-stdout".to_owned(), log(Stream::Stdout, web())),
        ("log-stderr".to_owned(), log(Stream::Stderr, web())),
        ("progress-bytes".to_owned(), progress(None, Some(9), Unit::Bytes)),
        ("progress-items".to_owned(), progress(web(), None, Unit::Items)),
        ("retrying-transient".to_owned(), retrying(FailureClass::Transient)),
        ("retrying-unanswered".to_owned(), retrying(FailureClass::Unanswered)),
        ("retrying-detailed".to_owned(), EventKind::Retrying { failure: detailed, after_millis: 0 }),
        ("undoing".to_owned(), EventKind::Undoing { reason: "probe of a: not healthy".into() }),
        ("cancel-requested".to_owned(), EventKind::CancelRequested { actor: "ada".into() }),
        ("acknowledged".to_owned(), EventKind::Acknowledged { actor: "ada".into() }),
        ("finished-superseded".to_owned(), finished(Status::Cancelled, None, Some(NEWER))),
        ("finished-reason".to_owned(), finished(Status::Failed, Some("fetch: no such branch"), None)),
    ];
    all.extend(Step::ALL.map(|step| (format!("began-{step}"), EventKind::Began { step })));
    all.extend(Status::ALL.map(|status| {
        (format!("finished-{}", status.as_str().to_lowercase()), finished(status, None, None))
    }));
    all.into_iter().map(|(name, event)| (format!("event-{name}"), event)).collect()
}

fn finished(status: Status, reason: Option<&str>, superseded_by: Option<DeploymentId>) -> EventKind {
    EventKind::Finished { status, reason: reason.map(str::to_owned), superseded_by }
}

pub(super) fn lives() -> Vec<(String, Live)> {
    let mut bare = live(BEFORE);
    for live in bare.instances.values_mut() {
        live.instance.port = None;
        live.instance.database = None;
        live.instance.data_directory = None;
        live.instance.variables.clear();
    }
    vec![("live".to_owned(), live(BEFORE)), ("live-bare".to_owned(), bare)]
}

pub(super) fn environments() -> Vec<(String, Environment)> {
    let bare = EnvironmentSpec::new("shop", "/srv/git/shop")
        .instance(InstanceSpec::new("web"))
        .policy(|policy| policy.deadlines.fetch = Duration::from_secs(600));
    let bare = Environment::try_from(bare).unwrap();
    let keeping = EnvironmentSpec::new("shop", "/srv/git/shop").instance(InstanceSpec::new("web"));
    let keeping = keeping.policy(|policy| {
        let retention = &mut policy.retention;
        let calendar = &mut retention.snapshots_calendar;
        (calendar.hourly, calendar.daily, calendar.weekly) = (24, 7, 5);
        (calendar.monthly, calendar.yearly, calendar.utc_offset_minutes) = (12, 10, -210);
        (retention.snapshots_min, retention.snapshots_bytes_max) = (3, Some(500 << 30));
        retention.snapshots_removals_max = 20;
    });
    let keeping = Environment::try_from(keeping).unwrap();
    vec![
        ("environment".to_owned(), environment(SnapshotWhen::AfterStop)),
        ("environment-bare".to_owned(), bare),
        ("environment-retention".to_owned(), keeping),
    ]
}
