use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;

use super::*;
use crate::{
    id::DeploymentId,
    port::{Builder, Checkout, Context, Error, ErrorKind},
    release::{Commit, Image},
    testing::sim::{Ended, Sim, SimOptions},
};

/// Counts what had an effect.
#[derive(Default)]
struct Counter(AtomicU64);

#[async_trait]
impl Builder for Counter {
    async fn build(&self, _: &Context, _: &Checkout) -> Result<Image, Error> {
        self.0.fetch_add(1, Ordering::Relaxed);
        yield_now().await;
        self.0.fetch_add(100, Ordering::Relaxed);
        Ok(Image::new("image"))
    }
    async fn locate(&self, _: &Context, _: &Image) -> Result<bool, Error> {
        Ok(true)
    }
    async fn remove(&self, _: &Context, _: &Image) -> Result<(), Error> {
        Ok(())
    }
}

/// What one build with this fault answers, and what it has done by then and in the end.
fn build(fault: Option<Fault>) -> (Option<Option<ErrorKind>>, u64, u64) {
    let sim = Sim::new(SimOptions::seed(1));
    let (world, worker) = (sim.process("world"), sim.process("worker"));
    let faults = Faults::in_sim(world.executor());
    if let Some(fault) = fault {
        faults.plan(0, fault);
    }
    let builder = faults.wrap(Counter::default());
    let (answer, used) = (Arc::new(Mutex::new(None)), builder.clone());
    worker.spawn({
        let answer = answer.clone();
        async move {
            let commit = Commit::new(&"a".repeat(40), "m", "a", chrono::DateTime::UNIX_EPOCH);
            let context = context();
            let built = used.build(&context, &Checkout::new("/x".into(), commit)).await;
            *answer.lock().unwrap() = Some(built.err().map(|error| error.kind()));
        }
    });
    sim.run_until(Duration::ZERO, || false);
    let early = builder.inner().0.load(Ordering::Relaxed);
    worker.kill();
    assert_eq!(sim.run_until(LATE_MAX, || false), Ended::Idle);
    assert_eq!(faults.call_count(), 1);
    let answer = *answer.lock().unwrap();
    (answer, early, builder.inner().0.load(Ordering::Relaxed))
}

fn context() -> Context {
    use crate::{
        environment::{Environment, EnvironmentSpec, InstanceSpec},
        event::{Progress, Stream},
        id::Fence,
        name::InstanceName,
        port::Sink,
        secret::Secret,
    };
    struct Nowhere;
    impl Sink for Nowhere {
        fn log(&self, _: Option<&InstanceName>, _: Stream, _: &str) {}
        fn progress(&self, _: Option<&InstanceName>, _: Progress) {}
        fn hide(&self, _: &Secret) {}
    }
    let spec = EnvironmentSpec::new("shop", "fake").instance(InstanceSpec::new("web"));
    let environment = Arc::new(Environment::try_from(spec).unwrap());
    Context::new(
        DeploymentId::from_u128(1),
        environment,
        Fence::new(1),
        Default::default(),
        Arc::new(Nowhere),
    )
}

#[test]
fn each_fault_has_its_answer_and_its_effect() {
    const UNANSWERED: Option<Option<ErrorKind>> = Some(Some(ErrorKind::Unanswered));
    assert_eq!(build(None), (Some(None), 101, 101));
    assert_eq!(build(Some(Fault::Refused)), (Some(Some(ErrorKind::Transient)), 0, 0));
    assert_eq!(build(Some(Fault::NoAnswer)), (UNANSWERED, 101, 101));
    assert_eq!(build(Some(Fault::Permanent)), (Some(Some(ErrorKind::Permanent)), 0, 0));
    assert_eq!(build(Some(Fault::Hang)), (None, 0, 0));
    assert_eq!(build(Some(Fault::HangAfter)), (None, 101, 101));
    assert_eq!(build(Some(Fault::Late)), (None, 0, 101));
    assert_eq!(build(Some(Fault::LateAfterDeadline)), (None, 0, 101));
    assert_eq!(build(Some(Fault::LateAfterLease)), (None, 0, 101));
    assert_eq!(build(Some(Fault::LostThenLate)), (UNANSWERED, 0, 101));
    assert_eq!(build(Some(Fault::HalfDone)), (UNANSWERED, 1, 1));
}

#[test]
fn drawn_faults_come_as_often_as_the_odds_say_and_stop() {
    let sim = Sim::new(SimOptions::seed(1));
    let faults = Faults::in_sim(sim.process("world").executor());
    faults.draw(7, Odds::new(0, 1000));
    let call = Call { port: "builder", method: "build" };
    let failed = (0..10_000).filter(|_| faults.begin(0, call).issued.fault.is_some()).count();
    assert!((900..1100).contains(&failed), "{failed} of 10,000");
    let hits = faults.hits();
    for fault in Fault::ALL {
        assert!(hits[&(call, fault)] > 50, "{fault:?}");
    }
    faults.stop();
    assert!((0..1000).all(|_| faults.begin(0, call).issued.fault.is_none()));
}

#[test]
fn a_method_that_always_fails_does_so_until_the_faults_stop() {
    let sim = Sim::new(SimOptions::seed(1));
    let faults = Faults::in_sim(sim.process("world").executor());
    faults.plan_always("builder", "build", Fault::Refused);
    let fault = |method| faults.begin(0, Call { port: "builder", method }).issued.fault;
    assert_eq!(
        (fault("build"), fault("locate"), fault("build")),
        (Some(Fault::Refused), None, Some(Fault::Refused))
    );
    faults.stop();
    assert_eq!(fault("build"), None);
}

#[test]
fn late_effects_land_before_and_after_their_caller_gives_up() {
    let (build, commit) =
        (Call { port: "builder", method: "build" }, Call { port: "store", method: "commit" });
    for number in 0..1000 {
        let after = |fault: Fault, call| fault.delay(call, &mut Chance::new(number)).as_secs();
        for call in [build, commit] {
            assert!(after(Fault::Late, call) < 4);
            assert!((25..60).contains(&after(Fault::LateAfterLease, call)));
        }
        assert!((5..8).contains(&after(Fault::LateAfterDeadline, commit)));
        assert!((17..20).contains(&after(Fault::LateAfterDeadline, build)));
    }
}

#[tokio::test]
async fn a_hint_can_be_lost_or_spurious() {
    use crate::{executor::TokioExecutor, port::QueueStore as _, testing::memory::MemoryStore};
    use futures::FutureExt as _;
    let executor = Arc::new(TokioExecutor::new());
    let faults = Faults::new(executor.clone());
    let plain = MemoryStore::new(executor);
    let (store, change) = (faults.wrap(plain.clone()), || plain.retire(crate::id::WorkerId::from_u128(1)));
    let heard = store.changed();
    change().await.unwrap();
    assert!(heard.now_or_never().is_some(), "from the call on, not only from the first poll");

    faults.plan_always("store", "changed", Fault::NoAnswer);
    let mut lost = store.changed();
    change().await.unwrap();
    assert!((&mut lost).now_or_never().is_none());
    change().await.unwrap();
    assert!(lost.now_or_never().is_some());

    faults.plan_always("store", "changed", Fault::Refused);
    store.changed().await;
}
