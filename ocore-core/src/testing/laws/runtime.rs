//! The laws of [`Runtime`].

use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::{
    caller::{Caller, drop_early, eventually},
    declare_laws,
};
use crate::{
    environment::Environment,
    port::{ErrorKind, Observation, Runtime},
    release::{LiveInstance, Release, Started},
};

declare_laws! {
    $
    /// Expands to one test per law of the runtime. Takes an expression that makes a
    /// [`RuntimeFixture`](crate::testing::laws::runtime::RuntimeFixture) with nothing running; it may `await`.
    runtime_laws, runtime, [
        what_is_started_is_up,
        starting_twice_runs_it_once,
        what_is_stopped_is_down,
        stopping_twice_succeeds,
        what_was_stopped_can_be_revived,
        reviving_what_runs_changes_nothing,
        nothing_runs_after_a_withdrawal,
        withdrawing_nothing_succeeds,
        a_withdrawal_spares_what_was_revived,
        an_exit_is_seen_with_its_last_words,
        what_runs_has_last_words_too,
        an_update_runs_to_its_end,
        a_failed_update_is_permanent_and_shows_its_output,
        a_cancelled_update_has_really_stopped,
        a_dropped_update_stops,
        a_withdrawal_ends_an_update,
        a_cancelled_start_starts_nothing,
        an_older_fence_is_refused,
    ]
}

/// What a release of the laws does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Program {
    /// Prints [`WORDS`] and serves until it is stopped. Its update prints [`WORDS`] and succeeds.
    Serves,
    /// Prints [`WORDS`] and ends with an error, as soon as it is started. Its update does the same.
    Ends,
    /// Its update prints [`WORDS`] and never ends.
    UpdatesForEver,
}

/// What programs of the laws print, as a line of its own.
pub const WORDS: &str = "so says the program";

/// A runtime, and what it can run.
#[async_trait]
pub trait RuntimeFixture: Send + Sync {
    /// The runtime.
    fn runtime(&self) -> &dyn Runtime;
    /// An environment whose first instance the releases run in.
    fn environment(&self) -> Arc<Environment>;
    /// A release that can be started, with an Update step.
    async fn release(&self, program: Program) -> Release;
    /// How many copies of some release run in the instance now, whoever started them: asked of the world, not of the
    /// runtime.
    async fn serving(&self) -> usize;
    /// How many updates run in the instance now.
    async fn updating(&self) -> usize;
    /// Whether calls with an older fence are refused.
    fn refuses_older_fences(&self) -> bool;
}

/// A fixture with a caller.
struct Case<F> {
    fixture: F,
    caller: Caller,
}

impl<F: RuntimeFixture> Case<F> {
    fn new(fixture: F) -> Self {
        let caller = Caller::new(fixture.environment());
        Self { fixture, caller }
    }

    fn runtime(&self) -> &dyn Runtime {
        self.fixture.runtime()
    }

    async fn launch(&self, deployment: u128, fence: u64, release: &Release) -> Started {
        let context = self.caller.call(deployment, fence);
        let started = self.runtime().start(&context, self.caller.instance(), release).await;
        started.expect("the release can be started")
    }

    async fn start(&self, deployment: u128, fence: u64, release: &Release) -> Started {
        let started = self.launch(deployment, fence, release).await;
        self.expect_serving(1, "after the start").await;
        started
    }

    fn live(&self, started: &Started) -> LiveInstance {
        LiveInstance::new(self.caller.instance().clone(), started.clone())
    }

    async fn stop(&self, deployment: u128, fence: u64, started: &Started) {
        let context = self.caller.call(deployment, fence);
        let stopped = self.runtime().stop(&context, &self.live(started)).await;
        stopped.expect("what was started can be stopped");
        assert_eq!(self.fixture.serving().await, 0, "something serves after the stop has returned");
    }

    async fn revive(&self, deployment: u128, fence: u64, started: &Started, release: &Release) -> Started {
        let context = self.caller.call(deployment, fence);
        let revived = self.runtime().revive(&context, &self.live(started), release).await;
        let revived = revived.expect("what was stopped can be revived");
        self.expect_serving(1, "after the revival").await;
        revived
    }

    async fn withdraw(&self, deployment: u128, fence: u64) {
        let context = self.caller.call(deployment, fence);
        let withdrawn = self.runtime().withdraw(&context, self.caller.instance()).await;
        withdrawn.expect("a deployment can be withdrawn");
    }

    async fn inspect(&self, started: &Started) -> Observation {
        let context = self.caller.call(9, 9);
        let seen = self.runtime().inspect(&context, self.caller.instance(), started).await;
        seen.expect("an instance can be looked at")
    }

    /// A program needs a moment until it can be seen to run; one that runs does not stop by itself.
    async fn expect_serving(&self, count: usize, when: &str) {
        let is_so = || async { self.fixture.serving().await == count };
        eventually(&format!("{count} run {when}"), is_so).await;
    }

    async fn expect_updating(&self, count: usize, when: &str) {
        let is_so = || async { self.fixture.updating().await == count };
        eventually(&format!("{count} update {when}"), is_so).await;
    }

    fn has_told_words(&self) -> bool {
        self.caller.lines().iter().any(|(_, line)| line == WORDS)
    }
}

/// *Called first*: it runs, and can be seen to.
pub async fn what_is_started_is_up(fixture: impl RuntimeFixture) {
    let case = Case::new(fixture);
    let started = case.start(1, 1, &case.fixture.release(Program::Serves).await).await;
    assert_eq!(case.inspect(&started).await, Observation::Up);
    case.withdraw(1, 1).await;
}

/// *Called again* by the same deployment, under the same fence or a newer one.
pub async fn starting_twice_runs_it_once(fixture: impl RuntimeFixture) {
    let case = Case::new(fixture);
    let release = case.fixture.release(Program::Serves).await;
    for fence in [1, 1, 2] {
        let started = case.start(1, fence, &release).await;
        assert_eq!(case.fixture.serving().await, 1, "it was started more than once");
        assert_eq!(case.inspect(&started).await, Observation::Up);
    }
    case.withdraw(1, 2).await;
}

/// When the call returns, nothing of it runs any more.
pub async fn what_is_stopped_is_down(fixture: impl RuntimeFixture) {
    let case = Case::new(fixture);
    let started = case.start(1, 1, &case.fixture.release(Program::Serves).await).await;
    case.stop(2, 2, &started).await;
    match case.inspect(&started).await {
        Observation::Down { reason, .. } => assert!(!reason.trim().is_empty(), "no reason is given"),
        Observation::Up => panic!("what was stopped is still up"),
    }
    case.withdraw(1, 2).await;
}

/// *Called again*, or already stopped: succeeds.
pub async fn stopping_twice_succeeds(fixture: impl RuntimeFixture) {
    let case = Case::new(fixture);
    let started = case.start(1, 1, &case.fixture.release(Program::Serves).await).await;
    case.stop(2, 2, &started).await;
    case.stop(2, 2, &started).await;
    case.stop(3, 3, &started).await;
    case.withdraw(1, 3).await;
}

/// What was stopped runs again.
pub async fn what_was_stopped_can_be_revived(fixture: impl RuntimeFixture) {
    let case = Case::new(fixture);
    let release = case.fixture.release(Program::Serves).await;
    let started = case.start(1, 1, &release).await;
    case.stop(2, 2, &started).await;
    let revived = case.revive(2, 3, &started, &release).await;
    assert_eq!(case.inspect(&revived).await, Observation::Up);
    case.stop(3, 4, &revived).await;
    case.withdraw(1, 4).await;
}

/// *Called again*, or it was never stopped: finds it running.
pub async fn reviving_what_runs_changes_nothing(fixture: impl RuntimeFixture) {
    let case = Case::new(fixture);
    let release = case.fixture.release(Program::Serves).await;
    let mut started = case.start(1, 1, &release).await;
    for fence in [2, 2, 3] {
        started = case.revive(2, fence, &started, &release).await;
        assert_eq!(case.fixture.serving().await, 1, "it was started more than once");
        assert_eq!(case.inspect(&started).await, Observation::Up);
    }
    case.withdraw(1, 3).await;
}

/// Whatever the deployment started, under whatever fence; twice.
pub async fn nothing_runs_after_a_withdrawal(fixture: impl RuntimeFixture) {
    let case = Case::new(fixture);
    let started = case.start(1, 1, &case.fixture.release(Program::Serves).await).await;
    for fence in [3, 4] {
        case.withdraw(1, fence).await;
        assert_eq!(case.fixture.serving().await, 0, "something runs after the withdrawal has returned");
        assert!(matches!(case.inspect(&started).await, Observation::Down { .. }), "it is said to be up");
    }
}

/// Nothing is there: succeeds.
pub async fn withdrawing_nothing_succeeds(fixture: impl RuntimeFixture) {
    Case::new(fixture).withdraw(1, 1).await;
}

/// An undo may be repeated from its first step: what serves again must survive that.
pub async fn a_withdrawal_spares_what_was_revived(fixture: impl RuntimeFixture) {
    let case = Case::new(fixture);
    let (old, new) =
        (case.fixture.release(Program::Serves).await, case.fixture.release(Program::Serves).await);
    let started = case.start(1, 1, &old).await;
    case.stop(2, 2, &started).await;
    case.start(2, 2, &new).await;
    case.withdraw(2, 3).await;
    let revived = case.revive(2, 3, &started, &old).await;
    case.withdraw(2, 4).await;
    assert_eq!(case.fixture.serving().await, 1, "the previous version was withdrawn");
    assert_eq!(case.inspect(&revived).await, Observation::Up);
    case.withdraw(1, 4).await;
}

/// An instance that ends by itself is down, and its log says why.
pub async fn an_exit_is_seen_with_its_last_words(fixture: impl RuntimeFixture) {
    let case = Case::new(fixture);
    let started = case.launch(1, 1, &case.fixture.release(Program::Ends).await).await;
    let is_down = || async { matches!(case.inspect(&started).await, Observation::Down { .. }) };
    eventually("the exit is seen", is_down).await;
    let Observation::Down { reason, log_tail } = case.inspect(&started).await else {
        panic!("what was down is up");
    };
    assert!(!reason.trim().is_empty(), "no reason is given");
    assert!(log_tail.iter().any(|line| line == WORDS), "its last words are not kept: {log_tail:?}");
    case.withdraw(1, 1).await;
}

/// The log of what runs can be seen, as many lines as asked for at most.
pub async fn what_runs_has_last_words_too(fixture: impl RuntimeFixture) {
    let case = Case::new(fixture);
    let started = case.start(1, 1, &case.fixture.release(Program::Serves).await).await;
    let tail = async |lines| {
        let context = case.caller.call(1, 1);
        let tail = case.runtime().tail(&context, case.caller.instance(), &started, lines).await;
        tail.expect("the log can be read")
    };
    let is_there = || async { tail(10).await.iter().any(|line| line == WORDS) };
    eventually("its words are in its log", is_there).await;
    assert!(tail(0).await.is_empty(), "more lines than were asked for");
    case.withdraw(1, 1).await;
}

/// It has ended when the call returns, and its output was told.
pub async fn an_update_runs_to_its_end(fixture: impl RuntimeFixture) {
    let case = Case::new(fixture);
    let release = case.fixture.release(Program::Serves).await;
    let updated = case.runtime().update(&case.caller.call(1, 1), case.caller.instance(), &release).await;
    updated.expect("the update succeeds");
    assert_eq!(case.fixture.updating().await, 0, "the update still runs");
    assert!(case.has_told_words(), "the update's output was not told: {:?}", case.caller.lines());
    case.withdraw(1, 1).await;
}

/// *Errors*: permanent, with the last lines of its output.
pub async fn a_failed_update_is_permanent_and_shows_its_output(fixture: impl RuntimeFixture) {
    let case = Case::new(fixture);
    let release = case.fixture.release(Program::Ends).await;
    let updated = case.runtime().update(&case.caller.call(1, 1), case.caller.instance(), &release).await;
    let error = updated.expect_err("the update fails");
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    assert!(
        error.detail().iter().any(|line| line == WORDS),
        "its last lines are missing: {:?}",
        error.detail()
    );
    case.withdraw(1, 1).await;
}

/// Cancelled means that it does not write any more.
pub async fn a_cancelled_update_has_really_stopped(fixture: impl RuntimeFixture) {
    let case = Case::new(fixture);
    let release = case.fixture.release(Program::UpdatesForEver).await;
    let cancellation = CancellationToken::new();
    let context = case.caller.cancellable(1, 1, &cancellation);
    let update = case.runtime().update(&context, case.caller.instance(), &release);
    let cancel = async {
        case.expect_updating(1, "before the cancel").await;
        cancellation.cancel();
    };
    let (updated, ()) = futures::join!(update, cancel);
    assert_eq!(case.fixture.updating().await, 0, "the update runs after the cancelled call has returned");
    let error = updated.expect_err("a cancelled update does not succeed");
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    case.withdraw(1, 1).await;
}

/// Dropping a call's future leaves nothing running.
pub async fn a_dropped_update_stops(fixture: impl RuntimeFixture) {
    let case = Case::new(fixture);
    let release = case.fixture.release(Program::UpdatesForEver).await;
    let context = case.caller.call(1, 1);
    {
        let update = case.runtime().update(&context, case.caller.instance(), &release);
        let begun = case.expect_updating(1, "before the drop");
        futures::pin_mut!(update, begun);
        futures::future::select(update, begun).await;
    }
    case.expect_updating(0, "after the drop").await;
    case.withdraw(1, 1).await;
}

/// A worker that has lost its lane may still be updating: the next one ends that, under a newer fence.
pub async fn a_withdrawal_ends_an_update(fixture: impl RuntimeFixture) {
    let case = Case::new(fixture);
    let release = case.fixture.release(Program::UpdatesForEver).await;
    let context = case.caller.call(1, 1);
    let update = case.runtime().update(&context, case.caller.instance(), &release);
    let withdraw = async {
        case.expect_updating(1, "before the withdrawal").await;
        case.withdraw(1, 2).await;
        assert_eq!(case.fixture.updating().await, 0, "the update runs after the withdrawal has returned");
    };
    let (updated, ()) = futures::join!(update, withdraw);
    updated.expect_err("an update that was ended does not succeed");
}

/// A cancelled call does nothing, or has undone it.
pub async fn a_cancelled_start_starts_nothing(fixture: impl RuntimeFixture) {
    let case = Case::new(fixture);
    let release = case.fixture.release(Program::Serves).await;
    let started = case.runtime().start(&case.caller.cancelled(1, 1), case.caller.instance(), &release).await;
    let error = started.expect_err("a cancelled start does not succeed");
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    drop_early(std::future::pending::<()>()).await;
    assert_eq!(case.fixture.serving().await, 0, "a cancelled start has started something");
}

/// A worker that has lost its lane changes nothing any more.
pub async fn an_older_fence_is_refused(fixture: impl RuntimeFixture) {
    let case = Case::new(fixture);
    if !case.fixture.refuses_older_fences() {
        return;
    }
    let release = case.fixture.release(Program::Serves).await;
    let started = case.start(1, 5, &release).await;
    let (context, instance) = (case.caller.call(1, 4), case.caller.instance());
    let late = [
        ("stop", case.runtime().stop(&context, &case.live(&started)).await),
        ("withdraw", case.runtime().withdraw(&context, instance).await),
        ("update", case.runtime().update(&context, instance, &release).await),
        ("start", case.runtime().start(&context, instance, &release).await.map(drop)),
        ("revive", case.runtime().revive(&context, &case.live(&started), &release).await.map(drop)),
    ];
    for (call, result) in late {
        let error = result.err().unwrap_or_else(|| panic!("{call} with an older fence was not refused"));
        assert_eq!(error.kind(), ErrorKind::Permanent, "{call}: {error}");
    }
    assert_eq!(case.fixture.serving().await, 1, "a call with an older fence had an effect");
    case.withdraw(1, 5).await;
}

#[cfg(test)]
mod tests;
