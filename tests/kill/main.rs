//! Real workers, on real files and processes, are killed with SIGKILL at random moments; afterwards nothing is lost,
//! nothing is half done, and nothing is left over.
//!
//! `OCORE_KILLS=N` kills N times instead of 60, `OCORE_SEED=S` chooses other moments and requests. The seed is printed.
//! What a seed fixes is what is asked for and when, not how fast this machine is: a run is not repeated exactly.

mod chance;
mod check;
mod engine;
mod model;
mod processes;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
    time::{Duration, Instant},
};

use ocore_core::{
    engine::{Engine, EngineError, RollbackRequest},
    environment::{EnvironmentSpec, InstanceSpec},
    id::DeploymentId,
    machine::Status,
    port::Filter,
    request::{DeployRequest, Push},
};
use ocore_examples::{Result, http, sample_app::Manifest, sample_repository::SampleRepository, teardown};

use crate::{chance::Chance, engine::ENVIRONMENTS, processes::Worker};

const KILLS: usize = 60;
/// Two at a time: what the killed one held, the other takes over while it is killed in its turn.
const WORKERS: usize = 2;
/// How many deployments of an environment are under way or wait, at most.
const OPEN_MAX: usize = 4;
/// How many schemas the releases of an environment have.
const SCHEMAS: u32 = 12;
/// After so many kills everything comes to rest, and users write.
const KILLS_PER_ROUND: usize = 15;
/// After the last kill, everything must have come to rest within this time.
const HEAL_MAX: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_nothing_is_lost_or_half_done_or_left_over() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse().expect("a number"));
    let seed = number("OCORE_SEED").unwrap_or_else(|| u64::from(std::process::id()) ^ 0x6f63_6f72_6500_0000);
    let kills =
        number("OCORE_KILLS").map_or(KILLS, |kills| usize::try_from(kills).expect("a number of kills"));
    eprintln!("OCORE_SEED={seed} OCORE_KILLS={kills}");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let home = directory.path().canonicalize().expect("it is there");
    let mut world = World::create(&home, seed).await.expect("the world is made");
    let tested = world.test(kills).await;
    let stopped = world.stop().await;
    if let Err(error) = tested.and(stopped) {
        let kept = directory.keep();
        panic!("OCORE_SEED={seed} OCORE_KILLS={kills}, all files are in {}: {error}", kept.display());
    }
    check::nothing_runs(&home);
}

pub(crate) struct World {
    home: std::path::PathBuf,
    engine: Engine,
    runtime: ocore_local::LocalRuntime,
    chance: Chance,
    sites: Vec<Site>,
    workers: Vec<Worker>,
    /// Everything that was accepted.
    accepted: BTreeSet<DeploymentId>,
    deliveries: u32,
    /// What users have written while a deployment was live.
    written: BTreeMap<DeploymentId, Vec<String>>,
}

/// An environment and its repository.
pub(crate) struct Site {
    name: &'static str,
    port: u16,
    repository: SampleRepository,
    /// Commits in the order of the repository.
    shas: Vec<String>,
    commits: BTreeMap<String, Manifest>,
}

impl Site {
    fn create(home: &Path, name: &'static str) -> Result<Self> {
        let program = Path::new(env!("CARGO_BIN_EXE_kill_worker"));
        let repository = SampleRepository::create_for(home.join("repositories").join(name), program)?;
        let (mut shas, mut commits) = (Vec::new(), BTreeMap::new());
        for schema in 1..=SCHEMAS {
            let release = |kind: &str| Manifest::new(format!("{schema}.{kind}"), schema).slow_migration(40);
            for release in [release("good"), release("bad").unhealthy()] {
                let sha = repository.commit(&release, &format!("Version {}", release.version))?;
                shas.push(sha.clone());
                commits.insert(sha, release);
            }
        }
        Ok(Self { name, port: http::free_port()?, repository, shas, commits })
    }

    fn specify(&self, home: &Path) -> EnvironmentSpec {
        let data = home.join("data").join(self.name);
        let instance = InstanceSpec::new("web").port(self.port).data_directory(data);
        let repository = self.repository.path().to_str().expect("the test's directory is text");
        EnvironmentSpec::new(self.name, repository).instance(instance).policy(|policy| {
            policy.health.deadline = Duration::from_millis(1500);
            policy.health.interval_min = Duration::from_millis(20);
            policy.retry.delay_min = Duration::from_millis(20);
            policy.undo_retry.delay_min = Duration::from_millis(20);
            policy.undo_retry.delay_max = Duration::from_millis(500);
            // Every kill may hit the same undo: it is given up later than the test ends.
            policy.undo_retry.attempts_max = 100;
            policy.retention.snapshots_last = 6;
            policy.retention.snapshots_age = Duration::ZERO;
            policy.retention.images_last = 4;
        })
    }
}

impl World {
    async fn create(home: &Path, seed: u64) -> Result<Self> {
        fs::create_dir_all(home.join("data"))?;
        let (engine, runtime) = engine::open(home).await?;
        let sites =
            ENVIRONMENTS.map(|name| Site::create(home, name)).into_iter().collect::<Result<Vec<_>>>()?;
        for site in &sites {
            engine.save_environment(site.specify(home)).await?;
        }
        let (chance, home) = (Chance::new(seed), home.to_owned());
        let (workers, accepted) = (Vec::new(), BTreeSet::new());
        Ok(Self {
            home,
            engine,
            runtime,
            chance,
            sites,
            workers,
            accepted,
            deliveries: 0,
            written: BTreeMap::new(),
        })
    }

    async fn test(&mut self, kills: usize) -> Result<()> {
        self.hire()?;
        for kill in 1..=kills {
            let until = Instant::now() + Duration::from_millis(self.chance.within(200..1800));
            while Instant::now() < until {
                self.ask().await?;
                tokio::time::sleep(Duration::from_millis(self.chance.within(10..120))).await;
            }
            let victim = self.chance.below(self.workers.len());
            self.workers.swap_remove(victim).kill()?;
            self.hire()?;
            if kill % KILLS_PER_ROUND == 0 {
                self.heal().await?;
                self.write(kill).await?;
            }
        }
        // The last deployments find what the killed ones have left.
        for index in 0..self.sites.len() {
            self.deploy(index).await?;
        }
        self.heal().await?;
        for worker in self.workers.drain(..) {
            worker.shut_down()?;
        }
        check::everything(self, kills).await
    }

    fn hire(&mut self) -> Result<()> {
        while self.workers.len() < WORKERS {
            self.workers.push(Worker::start(&self.home)?);
        }
        Ok(())
    }

    /// A user of each environment that serves writes something, and is told that it is kept.
    async fn write(&mut self, number: usize) -> Result<()> {
        for site in &self.sites {
            let Some(live) = self.engine.environment(site.name).await?.live else { continue };
            let row = format!("User {number}");
            http::post(site.port, "/rows", &row)?;
            self.written.entry(live.deployment).or_default().push(row);
        }
        Ok(())
    }

    /// Asks for something: a deployment, a rollback, a cancel.
    async fn ask(&mut self) -> Result<()> {
        let index = self.chance.below(self.sites.len());
        let filter = Filter::environment(self.sites[index].name.parse()?);
        let recent = self.engine.history(&filter, None, 20).await?.deployments;
        let open: Vec<_> = recent.iter().filter(|it| it.outcome().is_none()).map(|it| it.id).collect();
        let ran: Vec<_> = recent.iter().filter(|it| it.status() == Status::Running).map(|it| it.id).collect();
        let answer = if !open.is_empty() && self.chance.once_in(25) {
            let id = self.chance.pick(&open).copied().expect("it is not empty");
            self.engine.cancel(id, "chance").await
        } else if open.len() >= OPEN_MAX {
            return Ok(());
        } else if !ran.is_empty() && self.chance.once_in(4) {
            self.roll_back(&ran).await
        } else if self.chance.once_in(8) {
            self.push(index).await
        } else {
            self.deploy(index).await
        };
        match answer {
            // Refused, because of what has happened meanwhile: nothing was accepted.
            Err(
                EngineError::Over { .. }
                | EngineError::Undoing { .. }
                | EngineError::LiveAlready { .. }
                | EngineError::CannotRollBack { .. },
            ) => Ok(()),
            answer => Ok(answer?),
        }
    }

    async fn roll_back(&mut self, ran: &[DeploymentId]) -> Result<(), EngineError> {
        let to = RollbackRequest::to(*self.chance.pick(ran).expect("it is not empty")).actor("chance");
        let request = if self.chance.once_in(3) { to.code_only() } else { to };
        let (accepted, _) = self.engine.roll_back(request).await?;
        self.accepted.insert(accepted.id);
        Ok(())
    }

    async fn deploy(&mut self, index: usize) -> Result<(), EngineError> {
        let sha = self.release(index).await?;
        let request = DeployRequest::api(self.sites[index].name).commit(sha).actor("chance");
        let accepted = self.engine.deploy(request).await?;
        self.accepted.insert(accepted.id);
        Ok(())
    }

    /// Mostly a release that can work: a healthy one, of the schema that the data has now or of the next one.
    async fn release(&mut self, index: usize) -> Result<String, EngineError> {
        let site = &self.sites[index];
        let live = self.engine.environment(site.name).await?.live;
        let schema = live.map_or(1, |live| site.commits[&live.release.commit.sha].schema);
        let schema = if self.chance.once_in(3) { (schema + 1).min(SCHEMAS) } else { schema };
        let wanted = (schema, !self.chance.once_in(6));
        let fits = |sha: &&String| {
            let release = &site.commits[*sha];
            (release.schema, release.healthy) == wanted
        };
        let fitting = site.shas.iter().find(fits).expect("there are both of every schema");
        Ok(if self.chance.once_in(8) {
            self.chance.pick(&site.shas).expect("there are some")
        } else {
            fitting
        }
        .clone())
    }

    /// A push that is told twice is accepted once.
    async fn push(&mut self, index: usize) -> Result<(), EngineError> {
        self.deliveries += 1;
        let sha = self.release(index).await?;
        let site = &self.sites[index];
        let repository = site.repository.path().to_str().expect("the test's directory is text");
        let push = Push::new(repository, "main", sha, format!("delivery-{}", self.deliveries));
        let ids = |accepted: Vec<ocore_core::engine::Accepted>| {
            accepted.into_iter().map(|it| it.id).collect::<Vec<_>>()
        };
        let first = ids(self.engine.push(push.clone()).await?.all()?);
        let second = ids(self.engine.push(push).await?.all()?);
        assert_eq!(first, second, "a delivery that was told twice was accepted twice");
        self.accepted.extend(first);
        Ok(())
    }

    /// Waits until every deployment is over.
    async fn heal(&self) -> Result<()> {
        let deadline = Instant::now() + HEAL_MAX;
        loop {
            let mut open = Vec::new();
            for record in self.engine.environments().await? {
                open.extend(record.active);
                open.extend((record.queued > 0).then_some(DeploymentId::from_u128(0)));
                if let Some(stranded) = record.attention {
                    return Err(format!("{stranded} is stranded, though nothing is broken for good").into());
                }
            }
            if open.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("not at rest {HEAL_MAX:?} after the last kill: {open:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends every process of the test, whatever its result.
    async fn stop(&mut self) -> Result<()> {
        self.workers.clear();
        teardown::stop_everything(&self.engine, &self.runtime).await
    }
}
