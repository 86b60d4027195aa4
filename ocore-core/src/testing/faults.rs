//! Faults: a wrapper for every port, the store included, whose calls fail as calls do.
//!
//! Each call passes an await before its effect and, if it has one, one after it: points at which a simulated process
//! can die.
//! In between, it does what it should, or what its [`Fault`] says. Faults are planned by the number of the call, for
//! sweeps over all of them, or drawn from a seed.
//!
//! ```
//! use std::sync::Arc;
//! use ocore_core::{executor::TokioExecutor, testing::{fakes::World, faults::{Fault, Faults}}};
//!
//! let world = World::new();
//! let faults = Faults::new(Arc::new(TokioExecutor::new()));
//! faults.plan(3, Fault::NoAnswer); // the fourth call has its effect, and its answer is lost
//! let (builder, runtime) = (faults.wrap(world.builder()), faults.wrap(world.runtime()));
//! ```

mod ports;
mod store;

use std::{
    collections::BTreeMap,
    fmt,
    future::{Future, pending},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::Poll,
    time::Duration,
};

use futures::future::BoxFuture;

use super::sim::{Chance, SimExecutor, yield_now};
use crate::executor::Executor;

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// It is refused: no effect, and it may be tried again.
    Refused,
    /// It has its effect, and the answer is lost.
    NoAnswer,
    /// It has no effect, and never will.
    Permanent,
    /// It never returns, and has no effect.
    Hang,
    /// It has its effect, and never returns.
    HangAfter,
    /// It never returns, and has its effect a little later, while its caller waits for it.
    Late,
    /// The same, but just after its caller has given it up: while the step is tried again under the next fence.
    LateAfterDeadline,
    /// The same, but so late that another worker may have taken over, or another deployment been started.
    LateAfterLease,
    /// Its answer is lost at once, and it has its effect later: some at once, some after a moment, some much later.
    LostThenLate,
    /// It stops in the middle, and the answer is lost. Of the store: it has no effect, and nobody knows.
    HalfDone,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 10] = [
        Self::Refused,
        Self::NoAnswer,
        Self::Permanent,
        Self::Hang,
        Self::HangAfter,
        Self::Late,
        Self::LateAfterDeadline,
        Self::LateAfterLease,
        Self::LostThenLate,
        Self::HalfDone,
    ];

    /// Whether the effect comes later than the call.
    #[must_use]
    pub const fn is_late(self) -> bool {
        matches!(self, Self::Late | Self::LateAfterDeadline | Self::LateAfterLease | Self::LostThenLate)
    }

    /// How long after the call a late effect comes.
    fn delay(self, call: Call, chance: &mut Chance) -> Duration {
        let (from, to) = match self {
            Self::LateAfterDeadline if call.port == "store" => (STORE_PATIENCE, 8_000),
            Self::LateAfterDeadline => (PATIENCE, 20_000),
            Self::LateAfterLease => (25_000, LATE_MAX.as_millis() as u64),
            Self::LostThenLate => (0, [100, 3_000, LATE_MAX.as_millis() as u64][chance.below(3) as usize]),
            _ => (0, 4_000),
        };
        Duration::from_millis(from + chance.below(to - from))
    }
}

/// When a caller has given up a call of the store, in milliseconds: [`Timing::store_call`](crate::engine::Timing).
const STORE_PATIENCE: u64 = 5_000;

/// The same for the other ports, whose deadlines the simulation sets to 12 s, with the engine's 5 s of grace.
const PATIENCE: u64 = 17_000;

/// How likely faults are, and how long calls take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Odds {
    /// Of 10,000 calls of the store, so many fail.
    pub store: u32,
    /// Of 10,000 calls of other ports, so many fail.
    pub ports: u32,
    /// Each call takes up to this long.
    pub latency_max: Duration,
    /// Of 10,000 calls, so many take up to [`SLOW_MAX`] instead.
    pub slow: u32,
}

impl Odds {
    /// No faults, no latency.
    pub const NONE: Self = Self { store: 0, ports: 0, latency_max: Duration::ZERO, slow: 0 };

    /// So many of 10,000 calls of the store, and of the other ports, fail.
    #[must_use]
    pub const fn new(store: u32, ports: u32) -> Self {
        Self { store, ports, latency_max: Duration::ZERO, slow: 0 }
    }

    /// The same odds, with calls that take up to `latency_max`, and `slow` of 10,000 up to [`SLOW_MAX`].
    #[must_use]
    pub const fn latency(mut self, latency_max: Duration, slow: u32) -> Self {
        self.latency_max = latency_max;
        self.slow = slow;
        self
    }
}

/// How long a slow call takes at most: longer than a lease.
pub const SLOW_MAX: Duration = Duration::from_secs(15);

/// How much later the effect of a late call lands, at most: after timeouts and takeovers.
pub const LATE_MAX: Duration = Duration::from_secs(60);

/// A call that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Call {
    /// The port.
    pub port: &'static str,
    /// The method.
    pub method: &'static str,
}

impl Call {
    /// The faults of this method that differ. Left out is only what nobody could tell from a fault that is listed:
    ///
    /// * A call that only reads leaves nothing behind, so that it makes no difference whether it was carried out when
    ///   its answer is lost, or when it hangs. (A health check is counted by the fakes, and by nobody else.)
    #[must_use]
    pub fn faults(&self) -> &'static [Fault] {
        const OF_READS: [Fault; 4] = [Fault::Refused, Fault::NoAnswer, Fault::Permanent, Fault::Hang];
        if self.only_reads() { &OF_READS } else { &Fault::ALL }
    }

    /// Whether it changes nothing.
    fn only_reads(&self) -> bool {
        match self.port {
            "store" => matches!(
                self.method,
                "lane" | "environment" | "environments" | "deployment" | "history" | "events" | "snapshots"
            ),
            _ => matches!(self.method, "fetch" | "locate" | "changed_since" | "inspect" | "tail" | "check"),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.port, self.method)
    }
}

/// Decides which calls fail. Clones are one plan.
#[derive(Clone)]
pub struct Faults {
    shared: Arc<Shared>,
}

struct Shared {
    executor: Arc<dyn Executor>,
    sim: Option<Arc<SimExecutor>>,
    state: Mutex<State>,
    observer: OnceLock<Box<dyn Fn(Issued) + Send + Sync>>,
}

struct State {
    seed: u64,
    chance: Chance,
    odds: Odds,
    planned: BTreeMap<u64, Fault>,
    always: BTreeMap<(String, String), Fault>,
    stopped: bool,
    calls: Vec<Call>,
    hits: BTreeMap<(Call, Fault), u64>,
}

/// A call that is being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Issued {
    /// Who makes it: what was given to [`Faults::wrap_for`].
    pub caller: usize,
    /// Its number.
    pub index: u64,
    /// What is called.
    pub call: Call,
    /// How it fails.
    pub fault: Option<Fault>,
    /// Whether it was made earlier, and its late effect is about to land.
    pub lands: bool,
}

/// What is to happen to one call.
struct Fate {
    issued: Issued,
    latency: Duration,
    /// When its effect comes, if that is late.
    delay: Duration,
}

/// What becomes of a wish to hear of changes.
enum Hint {
    Heard,
    /// The next change is not heard of.
    Lost,
    /// It is told of a change that did not happen.
    Spurious,
    Never,
}

impl Faults {
    /// No faults so far. Late effects run on `executor`: give it a process that is never killed.
    #[must_use]
    pub fn new(executor: Arc<dyn Executor>) -> Self {
        Self::with(executor, None)
    }

    /// The same in a simulation: calls and faults are noted in its trace.
    #[must_use]
    pub fn in_sim(executor: Arc<SimExecutor>) -> Self {
        Self::with(executor.clone(), Some(executor))
    }

    fn with(executor: Arc<dyn Executor>, sim: Option<Arc<SimExecutor>>) -> Self {
        let state = State {
            seed: 0,
            chance: Chance::new(0),
            odds: Odds::NONE,
            planned: BTreeMap::new(),
            always: BTreeMap::new(),
            stopped: false,
            calls: Vec::new(),
            hits: BTreeMap::new(),
        };
        let (state, observer) = (Mutex::new(state), OnceLock::new());
        Self { shared: Arc::new(Shared { executor, sim, state, observer }) }
    }

    /// Lets the call number `call`, counted from zero over all wrapped ports, fail in this way.
    pub fn plan(&self, call: u64, fault: Fault) {
        self.lock().planned.insert(call, fault);
    }

    /// Lets every call of this method fail in this way.
    pub fn plan_always(&self, port: &str, method: &str, fault: Fault) {
        self.lock().always.insert((port.to_owned(), method.to_owned()), fault);
    }

    /// From now on only some calls of this method fail again.
    pub fn end_always(&self, port: &str, method: &str) {
        self.lock().always.remove(&(port.to_owned(), method.to_owned()));
    }

    /// Lets calls fail at random.
    pub fn draw(&self, seed: u64, odds: Odds) {
        let mut state = self.lock();
        state.seed = seed;
        state.chance = Chance::new(seed);
        state.odds = odds;
    }

    /// From now on nothing fails any more. Calls that hang stay so; late effects still land.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        state.odds.store = 0;
        state.odds.ports = 0;
        state.odds.slow = 0;
    }

    /// The calls that were made so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// How many calls were made so far.
    #[must_use]
    pub fn call_count(&self) -> u64 {
        self.lock().calls.len() as u64
    }

    /// How often each call failed in each way.
    #[must_use]
    pub fn hits(&self) -> BTreeMap<(Call, Fault), u64> {
        self.lock().hits.clone()
    }

    /// From now on `observer` is told of every call, before its effect, and of every late effect, before it lands.
    ///
    /// # Panics
    /// If there is an observer already.
    pub fn watch(&self, observer: impl Fn(Issued) + Send + Sync + 'static) {
        let first = self.shared.observer.set(Box::new(observer)).is_ok();
        assert!(first, "there is an observer already");
    }

    /// The adapter, with these faults.
    #[must_use]
    pub fn wrap<T>(&self, adapter: T) -> Faulty<T> {
        self.wrap_for(0, adapter)
    }

    /// The same, for one of several callers: the observer is told which.
    #[must_use]
    pub fn wrap_for<T>(&self, caller: usize, adapter: T) -> Faulty<T> {
        Faulty { inner: Arc::new(adapter), faults: self.clone(), caller }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, caller: usize, call: Call) -> Fate {
        let mut state = self.lock();
        let index = state.calls.len() as u64;
        state.calls.push(call);
        let fault = state.fault(index, call);
        let (mut latency, mut delay) = (state.latency(), Duration::ZERO);
        if let Some(fault) = fault {
            *state.hits.entry((call, fault)).or_default() += 1;
            // Drawn apart, so that the sweeps see all of them.
            let mut chance = Chance::new(state.seed ^ index << 8 ^ fault as u64);
            if fault.is_late() {
                delay = fault.delay(call, &mut chance);
                latency = latency.min(delay);
                delay -= latency;
            }
        }
        let issued = Issued { caller, index, call, fault, lands: false };
        drop(state);
        self.tell(issued);
        if let Some(sim) = &self.shared.sim {
            let code = index << 8 | fault.map_or(0, |fault| fault as u64 + 1);
            sim.note(code, || match fault {
                Some(fault) => format!("call {index} {call}: {fault:?}"),
                None => format!("call {index} {call}"),
            });
        }
        Fate { issued, latency, delay }
    }

    fn tell(&self, issued: Issued) {
        if let Some(observer) = self.shared.observer.get() {
            observer(issued);
        }
    }

    /// What becomes of a wish to hear of changes. It is no numbered call: it has no answer that could be wrong.
    fn hint(&self) -> Hint {
        let mut state = self.lock();
        match state.always("store", "changed") {
            _ if state.stopped => Hint::Heard,
            Some(Fault::Hang) => Hint::Never,
            Some(Fault::Refused) => Hint::Spurious,
            Some(_) => Hint::Lost,
            None if state.odds.store == 0 => Hint::Heard,
            None => match state.chance.below(16) {
                0 => Hint::Spurious,
                1 => Hint::Lost,
                _ => Hint::Heard,
            },
        }
    }

    /// Makes a call: `effect` is the call itself, `late` the same call on its own.
    async fn run<R, E: Answer>(
        &self,
        caller: usize,
        call: Call,
        effect: impl Future<Output = Result<R, E>> + Send,
        late: impl FnOnce() -> BoxFuture<'static, ()> + Send,
    ) -> Result<R, E> {
        let fate = self.begin(caller, call);
        self.pass(fate.latency).await;
        match fate.issued.fault {
            None => {
                let answer = effect.await;
                // To die before a call that only reads and to die after it is the same.
                if !call.only_reads() {
                    yield_now().await;
                }
                answer
            }
            Some(Fault::Refused) => Err(E::refused(call)),
            Some(Fault::Permanent) => Err(E::permanent(call)),
            Some(Fault::NoAnswer) => {
                let _lost = effect.await;
                yield_now().await;
                Err(E::unanswered(call))
            }
            Some(Fault::Hang) => pending().await,
            Some(Fault::HangAfter) => {
                let _lost = effect.await;
                pending().await
            }
            Some(Fault::Late | Fault::LateAfterDeadline | Fault::LateAfterLease) => {
                self.later(&fate, late());
                pending().await
            }
            Some(Fault::LostThenLate) => {
                self.later(&fate, late());
                Err(E::unanswered(call))
            }
            Some(Fault::HalfDone) => {
                E::half(effect).await;
                Err(E::unanswered(call))
            }
        }
    }

    async fn pass(&self, latency: Duration) {
        if latency.is_zero() {
            yield_now().await;
        } else {
            self.shared.executor.sleep(latency).await;
        }
    }

    /// Lets an effect land after a while, whatever has become of its caller.
    fn later(&self, fate: &Fate, effect: BoxFuture<'static, ()>) {
        let (faults, issued) = (self.clone(), fate.issued);
        let sleep = self.shared.executor.sleep(fate.delay);
        self.shared.executor.spawn(Box::pin(async move {
            sleep.await;
            if let Some(sim) = &faults.shared.sim {
                sim.note(4 << 40, || format!("the late effect of call {} lands", issued.index));
            }
            faults.tell(Issued { lands: true, ..issued });
            effect.await;
        }));
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Faults")
            .field("odds", &state.odds)
            .field("planned", &state.planned)
            .finish_non_exhaustive()
    }
}

impl State {
    fn fault(&mut self, index: u64, call: Call) -> Option<Fault> {
        if self.stopped {
            return None;
        }
        let odds = if call.port == "store" { self.odds.store } else { self.odds.ports };
        let drawn = if odds > 0 && self.chance.is(odds.into(), 10_000) {
            self.chance.pick(&Fault::ALL).copied()
        } else {
            None
        };
        self.planned.get(&index).copied().or_else(|| self.always(call.port, call.method)).or(drawn)
    }

    fn always(&self, port: &str, method: &str) -> Option<Fault> {
        let mut always = self.always.iter();
        Some(*always.find(|((of, name), _)| of == port && name == method)?.1)
    }

    fn latency(&mut self) -> Duration {
        let slow = self.odds.slow > 0 && self.chance.is(self.odds.slow.into(), 10_000);
        let max = if slow { SLOW_MAX } else { self.odds.latency_max };
        if max.is_zero() { max } else { Duration::from_micros(self.chance.below(max.as_micros() as u64)) }
    }
}

/// The errors that a fault becomes.
trait Answer: Send {
    fn refused(call: Call) -> Self;
    fn permanent(call: Call) -> Self;
    fn unanswered(call: Call) -> Self;
    /// Stops the call in the middle.
    fn half<R>(effect: impl Future<Output = Result<R, Self>> + Send) -> impl Future<Output = ()> + Send
    where
        Self: Sized;
}

/// Polls a call once and drops it.
async fn stop_in_the_middle(effect: impl Future) {
    let mut effect = pin!(effect);
    std::future::poll_fn(|context| {
        let _ = effect.as_mut().poll(context);
        Poll::Ready(())
    })
    .await;
}

/// An adapter whose calls fail as its [`Faults`] say.
pub struct Faulty<T> {
    inner: Arc<T>,
    faults: Faults,
    caller: usize,
}

impl<T> Faulty<T> {
    /// The adapter without its faults.
    #[must_use]
    pub fn inner(&self) -> &T {
        &self.inner
    }
}

impl<T> Clone for Faulty<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), faults: self.faults.clone(), caller: self.caller }
    }
}

impl<T: fmt::Debug> fmt::Debug for Faulty<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// Implements a port: the methods that take references, each with the call as it is, and with the call on arguments
/// of its own for an effect that lands late; and after them the methods that are written out.
macro_rules! faulty {
    (
        impl $port:ident as $name:literal {
            $(fn $method:ident(&self $(, $argument:ident: &$type:ty)*) -> $result:ty;)*
        }
        $($more:tt)*
    ) => {
        #[async_trait::async_trait]
        impl<T: $port> $port for Faulty<T> {
            $(
                async fn $method(&self $(, $argument: &$type)*) -> $result {
                    let call = $crate::testing::faults::Call { port: $name, method: stringify!($method) };
                    let late = || -> futures::future::BoxFuture<'static, ()> {
                        let inner = self.inner.clone();
                        $(let $argument = $argument.to_owned();)*
                        Box::pin(async move {
                            let _nobody_hears = inner.$method($(&$argument),*).await;
                        })
                    };
                    self.faults.run(self.caller, call, self.inner.$method($($argument),*), late).await
                }
            )*
            $($more)*
        }
    };
}
use faulty;

#[cfg(test)]
mod tests;
