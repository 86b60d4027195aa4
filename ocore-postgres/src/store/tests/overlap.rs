//! Clients that call at the same time: for each lane there is an order of the calls, which keeps calls that followed each other
//! in their order, and in which the in-memory model gives every answer that the server gave.
//!
//! `OCORE_CASES` says how many cases are run, `OCORE_SEED` where the seeds begin. The same seed gives the same wishes; which
//! calls meet is the machine's business, so that a failure prints what happened.

mod order;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use ocore_core::{
    environment::Environment,
    id::{DeploymentId, WorkerId},
    name::{EnvironmentName, PoolName},
    port::{
        Claim, Claimed, Commit, Committed, EnvironmentStore as _, Finish, LogLimit, Next, Store, StoreResult,
        Worker,
    },
    request::{NewDeployment, Trigger},
    testing::{
        clock::ManualClock,
        laws::store::{Fixture as _, lab},
        memory::MemoryStore,
    },
};

use self::order::explain;
use super::InSchema;
use crate::store::PostgresStore;

const LANES: u64 = 4;
const CLIENTS: u64 = 3;
/// Between two rounds nobody calls, and time passes.
const ROUNDS: u64 = 3;
const CALLS: u64 = 5;
const LEASE: Duration = Duration::from_secs(5);

/// A call of one lane.
#[derive(Debug, Clone)]
enum Call {
    Enqueue(NewDeployment),
    Beat(Worker),
    Claim(Worker),
    Commit(Box<Commit>),
    Cancel(DeploymentId),
    Append(Box<Claim>),
    Retire(WorkerId),
    Pause(EnvironmentName, bool),
    Look(EnvironmentName),
    LookAt(DeploymentId),
}

/// What a claim answers that has found nothing; how long to wait is a hint.
const NOTHING: &str = "Idle";

impl Call {
    /// The answer, and what the client goes on with.
    async fn make(&self, store: &dyn Store) -> StoreResult<(String, Option<Claim>)> {
        let at = lab::at(1);
        let mut goes_on = None;
        let answer = match self {
            Self::Enqueue(new) => format!("{:?}", store.enqueue(new.clone(), at).await?),
            Self::Beat(worker) => format!("{:?}", store.heartbeat(worker).await?),
            Self::Claim(worker) => match store.claim(worker, &[]).await? {
                Claimed::Idle { .. } => NOTHING.to_owned(),
                claimed => {
                    let answer = format!("{claimed:?}");
                    if let Claimed::Work(claim) = claimed {
                        goes_on = Some(*claim);
                    }
                    answer
                }
            },
            Self::Commit(commit) => {
                let committed = store.commit(commit).await?;
                let answer = format!("{committed:?}");
                if let Committed::Finished { successor: Some(successor) } = committed {
                    goes_on = Some(*successor);
                }
                answer
            }
            Self::Cancel(id) => format!("{:?}", store.request_cancel(*id, "ada", at).await?),
            Self::Append(claim) => {
                let (lane, id) = (&claim.deployment.environment, claim.deployment.id);
                let lines = vec![lab::line("appended")];
                format!("{:?}", store.append(lane, id, claim.fence, lines, LogLimit::DEFAULT).await?)
            }
            Self::Retire(worker) => format!("{:?}", store.retire(*worker).await?),
            Self::Pause(lane, paused) => {
                format!("{:?}", store.set_paused(lane, paused.then(|| "ada".to_owned())).await?)
            }
            // The history has no lock: it is asked for at the end, when nobody writes.
            Self::Look(lane) => format!("{:?}", store.lane(lane).await?),
            Self::LookAt(id) => format!("{:?}", store.deployment(*id).await?),
        };
        Ok((answer, goes_on))
    }
}

impl Call {
    const fn asks_for(&self) -> Option<DeploymentId> {
        match self {
            Self::Enqueue(new) => Some(new.id),
            _ => None,
        }
    }
}

/// A call that was made. Moments are numbers that only grow.
#[derive(Debug, Clone)]
struct Made {
    client: u64,
    round: u64,
    began: u64,
    ended: u64,
    call: Call,
    answer: String,
}

/// Splitmix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// One of a lane's clients: it makes its calls one after the other.
struct Client {
    number: u64,
    lane: EnvironmentName,
    worker: Worker,
    store: PostgresStore,
    chance: Chance,
    claim: Option<Claim>,
    /// The lane's deployments have the ids from here on.
    ids: u64,
    moments: Arc<AtomicU64>,
    made: Vec<Made>,
}

impl Client {
    async fn round(&mut self, round: u64) {
        for _ in 0..CALLS {
            let call = self.next();
            self.make(round, call).await;
        }
    }

    async fn make(&mut self, round: u64, call: Call) {
        let began = self.moments.fetch_add(1, Ordering::SeqCst);
        let made = call.make(&self.store).await;
        let ended = self.moments.fetch_add(1, Ordering::SeqCst);
        let (answer, goes_on) = made.unwrap_or_else(|error| (format!("an error: {error:?}"), None));
        if goes_on.is_some() {
            self.claim = goes_on;
        }
        if answer == "Expired" {
            let id = WorkerId::from_u128(self.worker.id.as_u128() + (1 << 64));
            self.worker = Worker::new(id, self.worker.pools.clone(), LEASE);
        }
        self.made.push(Made { client: self.number, round, began, ended, call, answer });
    }

    fn next(&mut self) -> Call {
        let claim = self.claim.clone().map(Box::new);
        match (self.chance.below(20), claim) {
            (0..4, _) => self.enqueue(),
            (4, _) => Call::Beat(self.worker.clone()),
            (5, _) => Call::Cancel(lab::id(self.ids + self.chance.below(CLIENTS * CALLS))),
            (6, _) => Call::Retire(self.worker.id),
            (7, _) => Call::Pause(self.lane.clone(), self.chance.below(3) == 0),
            (8, _) => Call::Look(self.lane.clone()),
            (9, Some(claim)) => Call::Append(claim),
            (10..17, Some(claim)) => Call::Commit(Box::new(self.commit(&claim))),
            _ => Call::Claim(self.worker.clone()),
        }
    }

    fn enqueue(&mut self) -> Call {
        let trigger = if self.chance.below(2) == 0 { Trigger::Push } else { Trigger::Manual };
        // Sometimes another client asks for the same, or has done so.
        let number = self.ids + self.chance.below(CLIENTS * CALLS * ROUNDS);
        let mut new = lab::new_deployment(number, &self.lane, trigger);
        new.request.key = (self.chance.below(4) == 0).then(|| format!("key {}", number % 3));
        Call::Enqueue(new)
    }

    /// The claim is used again until another comes: late workers and commits that are made again are among the calls.
    fn commit(&mut self, claim: &Claim) -> Commit {
        let mut finish = Finish::default();
        finish.claim_next = self.chance.below(2) == 0;
        let mut commit = match self.chance.below(6) {
            0 | 1 => lab::go_on(&self.worker, claim),
            2 => lab::release(&self.worker, claim, Duration::from_secs(self.chance.below(3))),
            3 => lab::succeed(&self.worker, claim, &lab::live(&claim.environment, claim.deployment.id)),
            _ => lab::fail(&self.worker, claim, finish),
        };
        if let Next::Continue { fresh_fence } = &mut commit.next {
            *fresh_fence = self.chance.below(3) == 0;
        }
        commit.events = vec![lab::line("committed")];
        commit
    }
}

fn lane_settings(lane: &EnvironmentName, pool: &PoolName) -> Environment {
    lab::environment(lane.as_str(), |spec| {
        spec.pool(pool.to_string()).policy(|policy| (policy.supersede, policy.queue_length_max) = (true, 4))
    })
}

/// The server, and what was done there.
struct Play {
    server: InSchema,
    stores: Vec<PostgresStore>,
    case: u64,
}

impl Play {
    async fn new() -> Self {
        let server = InSchema::new().await;
        let stores = vec![server.open().await, server.open().await];
        Self { server, stores, case: 0 }
    }

    /// Runs a case; what was found wrong.
    async fn case(&mut self, seed: u64) -> Result<Vec<Made>, String> {
        self.case += 1;
        let mut clients = Vec::new();
        let moments = Arc::new(AtomicU64::new(0));
        for lane in 0..LANES {
            let number = self.case * LANES + lane;
            let (name, pool) =
                (lab::name(&format!("lane-{number}")), PoolName::new(format!("pool-{number}")).unwrap());
            self.stores[0].save_environment(&lane_settings(&name, &pool)).await.unwrap();
            for client in 0..CLIENTS {
                let id = WorkerId::from_u128(u128::from(number * CLIENTS + client + 1));
                clients.push(Client {
                    number: client,
                    lane: name.clone(),
                    worker: Worker::new(id, vec![pool.clone()], LEASE),
                    store: self.stores[usize::try_from(client % 2).unwrap()].clone(),
                    chance: Chance(seed ^ (lane * CLIENTS + client) << 32),
                    claim: None,
                    ids: number * 1000,
                    moments: moments.clone(),
                    made: Vec::new(),
                });
            }
        }
        for round in 0..ROUNDS {
            if round == 0 {
                for client in &mut clients {
                    let (beat, ask) = (Call::Beat(client.worker.clone()), client.enqueue());
                    client.make(0, beat).await;
                    client.make(0, ask).await;
                }
            } else {
                self.server.pass(passes()).await;
            }
            join_all(clients.iter_mut().map(|client| client.round(round))).await;
        }
        let mut all = Vec::new();
        for lane in clients.chunks_mut(usize::try_from(CLIENTS).unwrap()) {
            let made = lane.iter().flat_map(|client| &client.made);
            let asked: BTreeSet<_> = made.filter_map(|it| it.call.asks_for()).collect();
            for id in asked {
                lane[0].make(ROUNDS - 1, Call::LookAt(id)).await;
            }
            let look = Call::Look(lane[0].lane.clone());
            lane[0].make(ROUNDS - 1, look).await;
            let mut made: Vec<Made> =
                lane.iter_mut().flat_map(|client| std::mem::take(&mut client.made)).collect();
            made.sort_by_key(|made| made.began);
            if !explain(&model(&lane[0].lane, &lane[0].worker.pools[0]).await, &made) {
                return Err(format!(
                    "OCORE_SEED={seed}: no order of these calls explains the answers:\n{}",
                    told(&made)
                ));
            }
            all.extend(made);
        }
        Ok(all)
    }
}

/// Two rounds on, a lease has run out that was not extended.
const fn passes() -> Duration {
    Duration::from_secs(3)
}

/// The lane as it is when the clients begin.
async fn model(lane: &EnvironmentName, pool: &PoolName) -> MemoryStore {
    let model = MemoryStore::new(Arc::new(clock(0)));
    let store: &dyn Store = &model;
    store.save_environment(&lane_settings(lane, pool)).await.unwrap();
    model
}

fn clock(round: u64) -> ManualClock {
    let clock = ManualClock::new(1);
    clock.advance(passes() * u32::try_from(round).unwrap());
    clock
}

fn told(made: &[Made]) -> String {
    let lines = made.iter().map(|it| {
        let (call, answer) = (format!("{:?}", it.call), &it.answer);
        let (call, answer) = (&call[..call.len().min(300)], &answer[..answer.len().min(200)]);
        format!(
            "{:3}..{:3} round {} client {}: {call}\n        -> {answer}",
            it.began, it.ended, it.round, it.client
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).ok().and_then(|it| it.parse().ok()).unwrap_or(usual)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_overlap_have_an_order_in_which_the_model_answers_the_same() {
    let mut play = Play::new().await;
    let (seed, cases) = (number("OCORE_SEED", 1), number("OCORE_CASES", 16));
    let (mut calls, mut overlaps, mut work) = (0, 0, 0);
    for seed in seed..seed + cases {
        let made = play.case(seed).await.unwrap_or_else(|why| panic!("{why}"));
        calls += made.len();
        overlaps += made.windows(2).filter(|pair| pair[1].began < pair[0].ended).count();
        work += made
            .iter()
            .filter(|it| it.answer.starts_with("Work") || it.answer.starts_with("Finished"))
            .count();
    }
    println!("seeds {seed} and on: {cases} cases, {calls} calls, {overlaps} overlap, {work} claims and ends");
    assert!(overlaps * 10 > calls && work * 50 > calls, "the calls meet, and do something");
}

/// A claim that looks at a lane and takes it later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_without_the_lanes_lock_is_found() {
    let mut play = Play::new().await;
    let look = "WHERE l.pool = pools[1] AND l.next IS NOT NULL AND l.name <> ALL (skipped)
        ORDER BY l.ticket LIMIT 1";
    let changes = [
        (&*format!("{look} FOR UPDATE SKIP LOCKED"), look),
        ("answer := 'work';", "answer := 'work'; PERFORM pg_sleep(0.002);"),
    ];
    play.server.change("claim", &changes).await;
    for seed in 1..100 {
        if let Err(why) = play.case(seed).await {
            println!("{why}");
            return;
        }
    }
    panic!("nothing is found");
}
