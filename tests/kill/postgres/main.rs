//! Workers on the store in PostgreSQL are killed, and frozen until their lease is over; the server is restarted and its
//! connections are cut, at random moments. Afterwards nothing is lost, nothing was done twice, every lane was in order.
//!
//! `OCORE_DEPLOYMENTS=N` asks for N deployments instead of 200, `OCORE_SEED=S` chooses other moments and requests.

#[path = "../chance.rs"]
mod chance;
mod check;
mod crew;
mod failover;
mod sites;
mod switch;
mod world;

use std::{
    collections::BTreeSet,
    env,
    time::{Duration, Instant},
};

use ocore_core::{
    engine::{Engine, EngineError, RollbackRequest, Timing},
    id::DeploymentId,
    machine::Status,
    port::Filter,
    request::DeployRequest,
};
use ocore_postgres::store::PostgresStore;
use ocore_test_postgres::{Cluster, Stop};
use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinHandle;

use crate::{
    chance::Chance,
    crew::{Crew, DEFAULT_LEASE, TIGHT_LEASE, taken_over},
    sites::{TABLES, site},
    world::{BAD, engine},
};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const DEPLOYMENTS: usize = 200;
const SITES: usize = 20;
const WORKERS: usize = 3;
/// How many deployments of a site are under way or wait, at most.
const OPEN_MAX: usize = 4;
/// After the last disturbance, everything must have come to rest within this time.
const HEAL_MAX: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_disturbed_nothing_is_lost_or_done_twice_or_out_of_order() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("OCORE_SEED").unwrap_or_else(|| u64::from(std::process::id()) ^ 0x7067_6f63_6f72_6500);
    let deployments =
        number("OCORE_DEPLOYMENTS").map_or(DEPLOYMENTS, |it| usize::try_from(it).expect("a number"));
    eprintln!("OCORE_SEED={seed} OCORE_DEPLOYMENTS={deployments}");
    let mut test = Test::create(seed).await.expect("the test can be set up");
    if let Err(error) = test.run(deployments).await {
        panic!("OCORE_SEED={seed} OCORE_DEPLOYMENTS={deployments}: {error}");
    }
}

/// How often a worker is killed until what it held is taken over in time: a busy machine only ever makes it later.
const TRIES: usize = 5;

async fn check_takeover(tight: bool, lease: Duration, most: Duration) {
    let test = Test::create(1).await.expect("the test can be set up");
    let mut crew = Crew::new(&test.url, tight);
    let mut times = Vec::new();
    while times.iter().all(|time| *time > most) {
        assert!(times.len() < TRIES, "what a killed worker held was taken over only within {times:?}");
        crew.fill(2).expect("workers can be started");
        for index in 0..SITES {
            let ask = || test.engine.deploy(DeployRequest::api(name(index)).commit(sha(index, false)));
            test.insist(ask).await.expect("the store answers");
        }
        // As soon as it works on something.
        let environments = || test.insist(|| test.engine.environments());
        while environments().await.expect("the store answers").iter().all(|it| it.active.is_none()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        crew.kill(0).expect("it works");
        times.extend(taken_over(test.url.clone(), lease).await.map(|(_, within)| within));
    }
    eprintln!("what a killed worker held was taken over within {times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_is_noticed_within_twelve_seconds_by_default() {
    check_takeover(false, DEFAULT_LEASE, Duration::from_secs(12)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_is_noticed_within_two_seconds_with_tight_settings() {
    check_takeover(true, TIGHT_LEASE, Duration::from_secs(2)).await;
}

fn name(index: usize) -> String {
    format!("site-{index}")
}

/// A commit's id: what is built of a bad one is never healthy.
fn sha(number: usize, bad: bool) -> String {
    if bad { format!("{BAD}{number:037x}") } else { format!("{number:040x}") }
}

pub(crate) struct Test {
    cluster: Cluster,
    pub(crate) url: String,
    pub(crate) engine: Engine,
    chance: Chance,
    /// Everything that was accepted.
    pub(crate) accepted: BTreeSet<DeploymentId>,
    commits: usize,
}

impl Test {
    async fn create(seed: u64) -> Result<Self> {
        let cluster = Cluster::start(&[("max_connections", "60")]);
        let url = cluster.url("postgres");
        Self::on(cluster, url, seed).await
    }

    /// On a server that is reached by this URL.
    async fn on(cluster: Cluster, url: String, seed: u64) -> Result<Self> {
        let mut db = PgConnection::connect(&url).await?;
        sqlx::raw_sql(TABLES).execute(&mut db).await?;
        PostgresStore::builder(url.parse()?).migrate().await?;
        let engine = engine(&url, Timing::default()).await?;
        for index in 0..SITES {
            engine.save_environment(site(&name(index))).await?;
            sqlx::query("INSERT INTO world.sites (name) VALUES ($1)")
                .bind(name(index))
                .execute(&mut db)
                .await?;
        }
        db.close().await?;
        Ok(Self { cluster, url, engine, chance: Chance::new(seed), accepted: BTreeSet::new(), commits: 0 })
    }

    async fn run(&mut self, deployments: usize) -> Result<()> {
        let mut crew = Crew::new(&self.url, true);
        crew.fill(WORKERS)?;
        let (mut disturbances, mut taken) = (0, Vec::new());
        let mut next = Instant::now() + Duration::from_millis(500);
        while self.accepted.len() < deployments {
            self.ask().await?;
            tokio::time::sleep(Duration::from_millis(self.chance.within(5..40))).await;
            if Instant::now() >= next {
                disturbances += 1;
                taken.extend(self.disturb(&mut crew).await?);
                next = Instant::now() + Duration::from_millis(self.chance.within(300..1200));
            }
        }
        self.come_to_rest(&mut crew).await?;
        let taken = futures::future::join_all(taken).await;
        let mut taken: Vec<_> = taken.into_iter().filter_map(|it| Some(it.ok()??.1)).collect();
        taken.sort();
        let median = taken.get(taken.len() / 2).copied().unwrap_or_default();
        eprintln!(
            "{disturbances} disturbances; {} times lanes were taken over, half of them within {median:?}",
            taken.len()
        );
        check::everything(self).await
    }

    /// The last deployments find what the others have left.
    async fn come_to_rest(&mut self, crew: &mut Crew) -> Result<()> {
        for index in 0..SITES {
            self.deploy(index, false).await?;
        }
        self.heal().await?;
        crew.shut_down()
    }

    /// Comes to rest, and checks everything.
    async fn settle(&mut self, crew: &mut Crew) -> Result<()> {
        self.come_to_rest(crew).await?;
        check::everything(self).await
    }

    /// One of what can happen; if a worker is killed, what becomes of its lanes is looked after meanwhile.
    async fn disturb(&mut self, crew: &mut Crew) -> Result<Option<JoinHandle<Option<(usize, Duration)>>>> {
        let victim = self.chance.below(WORKERS);
        match self.chance.below(8) {
            0..3 => {
                crew.kill(victim)?;
                crew.fill(WORKERS)?;
                return Ok(Some(tokio::spawn(taken_over(self.url.clone(), TIGHT_LEASE))));
            }
            3 | 4 => crew.freeze(victim, Duration::from_millis(self.chance.within(1600..3500))).await?,
            5 => {
                let how = [Stop::Fast, Stop::Immediate, Stop::Kill][self.chance.below(3)];
                tokio::task::block_in_place(|| self.cluster.restart(how));
            }
            _ => self.cut().await?,
        }
        Ok(None)
    }

    /// Ends connections of the server, each with a chance of one half.
    async fn cut(&self) -> Result<()> {
        let mut db = PgConnection::connect(&self.url).await?;
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < 0.5";
        sqlx::query(cut).execute(&mut db).await?;
        Ok(db.close().await?)
    }

    /// Asks for something: a deployment, a rollback of the code, a cancel.
    async fn ask(&mut self) -> Result<()> {
        let index = self.chance.below(SITES);
        let filter = Filter::environment(name(index).parse()?);
        let recent = self.insist(|| self.engine.history(&filter, None, 12)).await?.deployments;
        let open: Vec<_> = recent.iter().filter(|it| it.outcome().is_none()).map(|it| it.id).collect();
        let ran: Vec<_> = recent.iter().filter(|it| it.status() == Status::Running).map(|it| it.id).collect();
        if !open.is_empty() && self.chance.once_in(15) {
            let id = *self.chance.pick(&open).expect("it is not empty");
            self.answered(self.insist(|| self.engine.cancel(id, "chance")).await)?;
        } else if open.len() >= OPEN_MAX {
            return Ok(());
        } else if !ran.is_empty() && self.chance.once_in(6) {
            let to = *self.chance.pick(&ran).expect("it is not empty");
            let key = format!("rollback {}", self.commits);
            self.commits += 1;
            let ask = || {
                let request = RollbackRequest::to(to).code_only().idempotency_key(&key).actor("chance");
                self.engine.roll_back(request)
            };
            if let Some((accepted, _)) = self.answered(self.insist(ask).await)? {
                self.accepted.insert(accepted.id);
            }
        } else {
            let bad = self.chance.once_in(6);
            self.deploy(index, bad).await?;
        }
        Ok(())
    }

    async fn deploy(&mut self, index: usize, bad: bool) -> Result<()> {
        self.commits += 1;
        let (sha, key) = (sha(self.commits, bad), format!("deploy {}", self.commits));
        let ask = || {
            let request = DeployRequest::api(name(index)).commit(&sha).idempotency_key(&key).actor("chance");
            self.engine.deploy(request)
        };
        let accepted = self.insist(ask).await?;
        self.accepted.insert(accepted.id);
        Ok(())
    }

    /// What was refused, because of what has happened meanwhile, is an answer, too.
    fn answered<T>(&self, answer: Result<T, EngineError>) -> Result<Option<T>> {
        match answer {
            Err(
                EngineError::Over { .. }
                | EngineError::Undoing { .. }
                | EngineError::LiveAlready { .. }
                | EngineError::CannotRollBack { .. },
            ) => Ok(None),
            answer => Ok(Some(answer?)),
        }
    }

    /// Asks until the store answers.
    pub(crate) async fn insist<T, F: Future<Output = Result<T, EngineError>>>(
        &self,
        ask: impl Fn() -> F,
    ) -> Result<T, EngineError> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match ask().await {
                Err(EngineError::Store(error)) if Instant::now() < deadline => {
                    assert_ne!(error.kind(), ocore_core::port::StoreErrorKind::Broken, "{error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                answer => return answer,
            }
        }
    }

    /// Waits until every deployment is over.
    async fn heal(&self) -> Result<()> {
        let deadline = Instant::now() + HEAL_MAX;
        loop {
            let mut open = Vec::new();
            for record in self.insist(|| self.engine.environments()).await? {
                if record.active.is_some() || record.queued > 0 {
                    open.push(record.environment.name().clone());
                }
                if let Some(stranded) = record.attention {
                    return Err(format!("{stranded} is stranded, though nothing is broken for good").into());
                }
            }
            if open.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("not at rest {HEAL_MAX:?} after the last disturbance: {open:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
