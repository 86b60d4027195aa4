//! An engine whose first step and last check tell when they are reached.

use std::time::Instant;

use async_trait::async_trait;
use chrono::DateTime;
use ocore_benches::Nothing;
use ocore_core::{
    engine::{Engine, Timing},
    environment::Instance,
    port::{Check, Checkout, Context, Error, HealthProbe, Result, Source, Store},
    release::{Commit, Started},
    request::Revision,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    /// The first step begins.
    Begin,
    /// The last check passes.
    Check,
    /// A cancel has reached the first step.
    Cancelled,
}

/// Tells what is reached, and when.
#[derive(Debug, Clone)]
struct Stopwatch {
    told: UnboundedSender<(At, Instant)>,
    /// Whether the first step lasts until it is cancelled.
    waits: bool,
}

impl Stopwatch {
    fn tell(&self, at: At) {
        let _nobody_listens = self.told.send((at, Instant::now()));
    }
}

#[async_trait]
impl Source for Stopwatch {
    async fn fetch(&self, context: &Context, _: &Revision) -> Result<Commit> {
        self.tell(At::Begin);
        if self.waits {
            context.cancelled().await;
            self.tell(At::Cancelled);
            return Err(Error::cancelled());
        }
        Ok(Commit::new(&"a".repeat(40), "nothing", "nobody", DateTime::UNIX_EPOCH))
    }
    async fn checkout(&self, context: &Context, commit: &Commit) -> Result<Checkout> {
        Nothing.checkout(context, commit).await
    }
    async fn discard(&self, _: &Context, _: Checkout) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl HealthProbe for Stopwatch {
    async fn check(&self, _: &Context, _: &Instance, _: &Started) -> Result<Check> {
        self.tell(At::Check);
        Ok(Check::Passed)
    }
}

pub(crate) type Reached = UnboundedReceiver<(At, Instant)>;

/// An engine over this store, and what its deployments reach.
pub(crate) fn engine(store: impl Store, timing: Timing, waits: bool) -> (Engine, Reached) {
    let (told, reached) = unbounded_channel();
    let stopwatch = Stopwatch { told, waits };
    let builder = Engine::builder().store(store).source(stopwatch.clone()).builder(Nothing).timing(timing);
    let builder = builder.snapshotter(Nothing).runtime(Nothing).probe(stopwatch);
    (builder.build().expect("every adapter is given"), reached)
}

/// When this is reached next.
///
/// # Panics
/// If it is not.
pub(crate) async fn next(reached: &mut Reached, wanted: At) -> Instant {
    loop {
        let (at, when) = reached.recv().await.expect("the engine works");
        if at == wanted {
            return when;
        }
    }
}
