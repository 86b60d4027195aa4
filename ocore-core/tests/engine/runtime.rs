use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use ocore_core::{
    environment::Instance,
    port::{Check, Context, Error, HealthProbe, Observation, Result, Runtime},
    release::{LiveInstance, Release, Started},
    testing::fakes::{FakeProbe, FakeRuntime},
};

/// The fake runtime, which refuses the calls that a test names, for good and for as long as they are named.
#[derive(Clone)]
pub(crate) struct Refusing {
    inner: FakeRuntime,
    refused: Arc<Mutex<BTreeSet<&'static str>>>,
    hindered: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Refusing {
    pub(crate) fn new(inner: FakeRuntime) -> Self {
        Self { inner, refused: Arc::default(), hindered: Arc::default() }
    }

    pub(crate) fn refuse(&self, calls: &[&'static str]) {
        *self.refused.lock().unwrap() = calls.iter().copied().collect();
    }

    /// From now on these fail, but may work when they are tried again.
    pub(crate) fn hinder(&self, calls: &[&'static str]) {
        *self.hindered.lock().unwrap() = calls.iter().copied().collect();
    }

    fn admit(&self, call: &str) -> Result<()> {
        if self.hindered.lock().unwrap().contains(call) {
            return Err(Error::transient(format!("{call} does not work now")));
        }
        let refused = self.refused.lock().unwrap().contains(call);
        if refused { Err(Error::permanent(format!("{call} is refused"))) } else { Ok(()) }
    }
}

#[async_trait]
impl Runtime for Refusing {
    async fn stop(&self, context: &Context, live: &LiveInstance) -> Result<()> {
        self.admit("stop")?;
        self.inner.stop(context, live).await
    }
    async fn update(&self, context: &Context, instance: &Instance, release: &Release) -> Result<()> {
        self.admit("update")?;
        self.inner.update(context, instance, release).await
    }
    async fn start(&self, context: &Context, instance: &Instance, release: &Release) -> Result<Started> {
        self.admit("start")?;
        self.inner.start(context, instance, release).await
    }
    async fn withdraw(&self, context: &Context, instance: &Instance) -> Result<()> {
        self.admit("withdraw")?;
        self.inner.withdraw(context, instance).await
    }
    async fn revive(&self, context: &Context, live: &LiveInstance, release: &Release) -> Result<Started> {
        self.admit(&format!("revive {}", live.instance.name))?;
        self.inner.revive(context, live, release).await
    }
    async fn inspect(
        &self,
        context: &Context,
        instance: &Instance,
        started: &Started,
    ) -> Result<Observation> {
        self.inner.inspect(context, instance, started).await
    }
    async fn tail(
        &self,
        context: &Context,
        instance: &Instance,
        started: &Started,
        lines: usize,
    ) -> Result<Vec<String>> {
        self.inner.tail(context, instance, started, lines).await
    }
}

/// The fake probe, of which every check fails for as long as the test says.
#[derive(Clone)]
pub(crate) struct Sulking {
    inner: FakeProbe,
    sulks: Arc<AtomicBool>,
}

impl Sulking {
    pub(crate) fn new(inner: FakeProbe) -> Self {
        Self { inner, sulks: Arc::default() }
    }

    pub(crate) fn sulk(&self) {
        self.sulks.store(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl HealthProbe for Sulking {
    async fn check(&self, context: &Context, instance: &Instance, started: &Started) -> Result<Check> {
        if self.sulks.load(Ordering::Relaxed) {
            return Ok(Check::Failed { reason: "HTTP 503 Service Unavailable".to_owned(), body: None });
        }
        self.inner.check(context, instance, started).await
    }
}
