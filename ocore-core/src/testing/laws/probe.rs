//! The laws of [`HealthProbe`].

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::declare_laws;
use crate::{
    environment::{Environment, EnvironmentSpec, Instance, InstanceSpec},
    event::{Progress, Stream},
    id::{DeploymentId, Fence},
    name::InstanceName,
    port::{Check, Context, ErrorKind, HealthProbe, Result, Sink},
    release::Started,
    secret::Secret,
};

declare_laws! {
    $
    /// Expands to one test per law of the probe. Takes an expression that makes a
    /// [`ProbeFixture`](crate::testing::laws::probe::ProbeFixture); it may `await`.
    probe_laws, probe, [
        a_well_instance_passes,
        an_unwell_instance_fails_and_its_words_are_kept,
        an_instance_that_is_not_there_is_a_failed_check_and_no_error,
        a_silent_instance_fails_within_the_timeout,
        every_check_asks_anew,
        evidence_is_bounded,
        a_cancelled_check_ends,
        a_check_that_is_dropped_does_not_harm_the_next,
    ]
}

/// An instance whose health the laws command, and the probe that is tried on it.
#[async_trait]
pub trait ProbeFixture: Send + Sync {
    /// The probe.
    fn probe(&self) -> &dyn HealthProbe;
    /// How the instance is configured: its address where the probe needs one.
    fn configure(&self, instance: InstanceSpec) -> InstanceSpec;
    /// What was started.
    fn started(&self) -> Started;
    /// From now on the instance is in this condition.
    async fn set_condition(&self, condition: Condition);
}

/// How an instance behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Condition {
    /// It is well.
    Well,
    /// It answers that it is not, with these words.
    Unwell {
        /// What it says.
        words: String,
    },
    /// It takes the question and never answers.
    Silent,
    /// It is not there.
    Absent,
}

/// The single check's timeout in the laws.
const CHECK_TIMEOUT: Duration = Duration::from_millis(400);

/// Within this time every check must have ended, on a machine that is busy with other things too.
const PATIENCE: Duration = Duration::from_secs(4);

/// The longest reason that may be given, in bytes.
const REASON_LENGTH_MAX: usize = 2_000;

/// The longest body that may be kept, in bytes.
const BODY_LENGTH_MAX: usize = 64 * 1024;

struct Quiet;

impl Sink for Quiet {
    fn log(&self, _instance: Option<&InstanceName>, _stream: Stream, _line: &str) {}
    fn progress(&self, _instance: Option<&InstanceName>, _progress: Progress) {}
    fn hide(&self, _secret: &Secret) {}
}

/// A fixture with the circumstances of one deployment around it.
struct Patient<F> {
    fixture: F,
    context: Context,
    cancellation: CancellationToken,
    instance: Instance,
}

impl<F: ProbeFixture> Patient<F> {
    fn new(fixture: F) -> Self {
        let spec = EnvironmentSpec::new("laws", "https://git.example.org/laws.git")
            .instance(fixture.configure(InstanceSpec::new("web")))
            .policy(|policy| policy.health.check_timeout = CHECK_TIMEOUT);
        let environment = Environment::try_from(spec).expect("the fixture configures a valid instance");
        let instance = environment.instances()[0].clone();
        let cancellation = CancellationToken::new();
        let context = Context::new(
            DeploymentId::from_u128(1),
            Arc::new(environment),
            Fence::new(1),
            cancellation.clone(),
            Arc::new(Quiet),
        );
        Self { fixture, context: context.for_instance(&instance.name), cancellation, instance }
    }

    async fn check(&self) -> Result<Check> {
        let started = self.fixture.started();
        let check = self.fixture.probe().check(&self.context, &self.instance, &started);
        tokio::time::timeout(PATIENCE, check).await.expect("a check ends soon after its timeout")
    }

    async fn check_when(&self, condition: Condition) -> Check {
        self.fixture.set_condition(condition.clone()).await;
        self.check().await.unwrap_or_else(|error| panic!("{condition:?} is no reason for an error: {error}"))
    }
}

#[track_caller]
fn failed(check: Check) -> (String, Option<String>) {
    match check {
        Check::Failed { reason, body } => {
            assert!(!reason.trim().is_empty(), "a failed check has a reason");
            assert!(!reason.contains('\n'), "a reason is one line: {reason:?}");
            (reason, body)
        }
        Check::Passed => panic!("the check passed"),
    }
}

fn unwell(words: &str) -> Condition {
    Condition::Unwell { words: words.to_owned() }
}

/// A well instance passes, as often as it is asked.
pub async fn a_well_instance_passes(fixture: impl ProbeFixture) {
    let patient = Patient::new(fixture);
    for _ in 0..3 {
        assert_eq!(patient.check_when(Condition::Well).await, Check::Passed);
    }
}

/// What an unwell instance says is in the reason or the body.
pub async fn an_unwell_instance_fails_and_its_words_are_kept(fixture: impl ProbeFixture) {
    let words = "the database is being upgraded";
    let (reason, body) = failed(Patient::new(fixture).check_when(unwell(words)).await);
    let evidence = format!("{reason} {}", body.unwrap_or_default());
    assert!(evidence.contains(words), "{words:?} is not in {evidence:?}");
}

/// An instance that is not there is a failed check, not an error: it may still come.
pub async fn an_instance_that_is_not_there_is_a_failed_check_and_no_error(fixture: impl ProbeFixture) {
    failed(Patient::new(fixture).check_when(Condition::Absent).await);
}

/// An instance that never answers fails the check when the single check's timeout has passed.
pub async fn a_silent_instance_fails_within_the_timeout(fixture: impl ProbeFixture) {
    let patient = Patient::new(fixture);
    let asked = Instant::now();
    failed(patient.check_when(Condition::Silent).await);
    assert!(asked.elapsed() >= CHECK_TIMEOUT / 2, "given up before the timeout");
}

/// Every answer is the instance's present one.
pub async fn every_check_asks_anew(fixture: impl ProbeFixture) {
    let patient = Patient::new(fixture);
    for _ in 0..2 {
        failed(patient.check_when(unwell("not yet")).await);
        assert_eq!(patient.check_when(Condition::Well).await, Check::Passed);
        failed(patient.check_when(Condition::Absent).await);
        assert_eq!(patient.check_when(Condition::Well).await, Check::Passed);
    }
}

/// However much an instance says, little is kept.
pub async fn evidence_is_bounded(fixture: impl ProbeFixture) {
    let words = "out of memory\n".repeat(100_000);
    let (reason, body) = failed(Patient::new(fixture).check_when(unwell(&words)).await);
    assert!(reason.len() <= REASON_LENGTH_MAX, "the reason has {} bytes", reason.len());
    let kept = body.unwrap_or_default();
    assert!(kept.len() <= BODY_LENGTH_MAX, "{} bytes of the body are kept", kept.len());
}

/// A check that is cancelled ends as cancelled, before its timeout.
pub async fn a_cancelled_check_ends(fixture: impl ProbeFixture) {
    let patient = Patient::new(fixture);
    patient.fixture.set_condition(Condition::Silent).await;
    patient.cancellation.cancel();
    let error = patient.check().await.expect_err("a cancelled check has no answer");
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
}

/// A check whose future is dropped half way leaves nothing that the next one notices.
pub async fn a_check_that_is_dropped_does_not_harm_the_next(fixture: impl ProbeFixture) {
    let patient = Patient::new(fixture);
    patient.fixture.set_condition(Condition::Silent).await;
    for _ in 0..20 {
        let dropped = tokio::time::timeout(Duration::from_millis(5), patient.check()).await;
        assert!(dropped.is_err(), "a silent instance answered: {dropped:?}");
    }
    assert_eq!(patient.check_when(Condition::Well).await, Check::Passed);
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::{Mutex, PoisonError},
    };

    use super::*;
    use crate::{port::Error, testing::laws};

    /// Which law a probe breaks.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fault {
        None,
        NeverPasses,
        PassesAlways,
        KeepsNoWords,
        ErrorWhenAbsent,
        NeverGivesUp,
        GivesUpAtOnce,
        RemembersAnswers,
        KeepsEverything,
        IgnoresCancel,
        LosesItsTurnWhenDropped,
    }

    /// A probe and the instance that it asks, both in memory.
    struct Asked {
        fault: Fault,
        condition: Mutex<Condition>,
        remembered: Mutex<Option<Check>>,
        turns: tokio::sync::Semaphore,
    }

    impl Asked {
        fn new(fault: Fault) -> Self {
            let (condition, remembered) = (Mutex::new(Condition::Well), Mutex::new(None));
            Self { fault, condition, remembered, turns: tokio::sync::Semaphore::new(4) }
        }

        fn condition(&self) -> Condition {
            self.condition.lock().unwrap_or_else(PoisonError::into_inner).clone()
        }

        async fn ask(&self, context: &Context) -> Result<Check> {
            let failed = |reason: &str, body| Check::Failed { reason: reason.to_owned(), body };
            Ok(match self.condition() {
                Condition::Well if self.fault == Fault::NeverPasses => failed("bad luck", None),
                Condition::Well => Check::Passed,
                Condition::Unwell { .. } if self.fault == Fault::PassesAlways => Check::Passed,
                Condition::Unwell { .. } if self.fault == Fault::KeepsNoWords => failed("unwell", None),
                Condition::Unwell { words } if self.fault == Fault::KeepsEverything => {
                    failed("unwell", Some(words))
                }
                Condition::Unwell { words } => failed("unwell", Some(words.chars().take(4000).collect())),
                Condition::Absent if self.fault == Fault::ErrorWhenAbsent => {
                    return Err(Error::transient("connect"));
                }
                Condition::Absent => failed("not there", None),
                Condition::Silent => {
                    let timeout = context.environment().policy().health.check_timeout;
                    match self.fault {
                        Fault::NeverGivesUp => std::future::pending().await,
                        Fault::GivesUpAtOnce => {}
                        _ => tokio::time::sleep(timeout).await,
                    }
                    failed("no answer", None)
                }
            })
        }
    }

    #[async_trait]
    impl HealthProbe for Asked {
        async fn check(&self, context: &Context, _instance: &Instance, _started: &Started) -> Result<Check> {
            let turn = self.turns.acquire().await.expect("the semaphore is never closed");
            if self.fault == Fault::LosesItsTurnWhenDropped {
                turn.forget();
            }
            let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(check) = remembered.filter(|_| self.fault == Fault::RemembersAnswers) {
                return Ok(check);
            }
            let cancelled = async {
                if self.fault == Fault::IgnoresCancel {
                    std::future::pending::<()>().await;
                }
                context.cancelled().await;
            };
            let check = tokio::select! {
                () = cancelled => return Err(Error::cancelled()),
                check = self.ask(context) => check?,
            };
            *self.remembered.lock().unwrap_or_else(PoisonError::into_inner) = Some(check.clone());
            if self.fault == Fault::LosesItsTurnWhenDropped {
                self.turns.add_permits(1);
            }
            Ok(check)
        }
    }

    #[async_trait]
    impl ProbeFixture for Asked {
        fn probe(&self) -> &dyn HealthProbe {
            self
        }
        fn configure(&self, instance: InstanceSpec) -> InstanceSpec {
            instance
        }
        fn started(&self) -> Started {
            Started::new("web-1")
        }
        async fn set_condition(&self, condition: Condition) {
            *self.condition.lock().unwrap_or_else(PoisonError::into_inner) = condition;
        }
    }

    macro_rules! broken_by {
        ($($law:ident: $($fault:ident),+;)+) => {$(
            #[test]
            fn $law() {
                laws::run(super::$law(Asked::new(Fault::None)));
                for fault in [$(Fault::$fault),+] {
                    let broken = AssertUnwindSafe(|| laws::run(super::$law(Asked::new(fault))));
                    assert!(catch_unwind(broken).is_err(), "{fault:?} does not break the law");
                }
            }
        )+};
    }

    broken_by! {
        a_well_instance_passes: NeverPasses;
        an_unwell_instance_fails_and_its_words_are_kept: KeepsNoWords, PassesAlways;
        an_instance_that_is_not_there_is_a_failed_check_and_no_error: ErrorWhenAbsent;
        a_silent_instance_fails_within_the_timeout: NeverGivesUp, GivesUpAtOnce;
        every_check_asks_anew: RemembersAnswers;
        evidence_is_bounded: KeepsEverything;
        a_cancelled_check_ends: IgnoresCancel;
        a_check_that_is_dropped_does_not_harm_the_next: LosesItsTurnWhenDropped;
    }
}
