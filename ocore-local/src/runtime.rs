//! Instances as processes of this machine.

mod launch;
mod log;
mod network;
mod occupants;
mod preflight;
mod record;
mod update;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, ExitStatus},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use ocore_core::{
    environment::Instance,
    name::EnvironmentName,
    port::{Classify, Context, Error, Observation, Result, Runtime},
    release::{LiveInstance, Release, Started},
    secret::Secret,
};
use tokio::time::{Instant, sleep};

use self::{
    launch::Launch,
    occupants::Place,
    record::{Kind, Name, Record, Records},
};
pub(crate) use self::{occupants::refuse_sharing, preflight::refuse_unstartable, record::INSTANCES};
use crate::process::Identity;

/// How many of the last lines of a log are evidence.
const TAIL_LINES: usize = 50;
/// How long an observation waits for the end of a log, and for the exit code, of a process that has just ended.
const LAST_WORDS_MAX: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(10);

/// Runs releases of a [`LocalBuilder`](crate::LocalBuilder) as processes that outlive the worker.
///
/// **What a process gets.** The command of the `Procfile`, without a shell; the release's tree as its working
/// directory; a process group of its own; nothing on standard input. Of the worker's environment it gets `PATH` alone,
/// and besides `LANG`, `HOME`, the instance's variables, `PORT`, `DATA_DIR`, `RELEASE_DIR`, `OCORE_ENVIRONMENT`,
/// `OCORE_INSTANCE`, `OCORE_DEPLOYMENT`, and the [secrets](Self::secret), which are never written to a file. The data
/// directory is made if it is not there; what is above it must be.
///
/// **How it is found again.** By a new worker as well as by the one that started it: a record holds its number
/// together with the moment of its start and of the machine's. The variable `OCORE_PROCESS` in its environment names
/// instance, deployment and fence, so that it is also found where the worker was killed before it could write the
/// record: a worker holds the instance's lock while it starts a process, and the lock is not free before the process
/// carries that mark. Its children are found by the same mark, by its process group, by the log that they write to,
/// and by their parents. A process that has left all of this behind is not found: one that cleared its environment,
/// left the group, writes elsewhere, and whose parent has ended.
///
/// **Its log.** Standard output and error go through a pipe to a small process (`/bin/sh` with `dd`), which outlives
/// the worker too, ends with the application, and keeps the last of it: at most twice [the limit](Self::log_size) and
/// 4 MiB each. Whoever kills that process breaks the application's output.
///
/// **Its end.** [`stop`](Runtime::stop) asks every process of the instance to end (SIGTERM), waits for the
/// [grace period](Self::grace), then kills. A start does the same to processes of other deployments that it finds in the
/// instance: when the store's file was lost, nobody knows of them any more. Nothing starts it again by itself, the machine's restart neither. A worker
/// that is a systemd service needs `KillMode=process`: otherwise its instances are killed with it.
///
/// ```
/// use std::time::Duration;
/// let runtime = ocore_local::LocalRuntime::new("/var/lib/ocore").grace(Duration::from_secs(30));
/// ```
#[derive(Debug, Clone)]
pub struct LocalRuntime {
    root: PathBuf,
    grace: Duration,
    log_bytes: u64,
    secrets: BTreeMap<EnvironmentName, BTreeMap<String, Secret>>,
}

impl LocalRuntime {
    /// A runtime that keeps its state below `root`, the root of the builder whose releases it runs. 10 seconds of
    /// grace, logs of 16 MiB.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: crate::absolute(root.into()),
            grace: Duration::from_secs(10),
            log_bytes: 16 << 20,
            secrets: BTreeMap::new(),
        }
    }

    /// The same runtime with another grace period: how long processes may take to end before they are killed. It must
    /// fit into the environment's deadline for the step, with a few seconds to spare.
    #[must_use]
    pub const fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// The same runtime with another size of logs, in bytes: past it a log is begun anew, and the one before is kept.
    #[must_use]
    pub const fn log_size(mut self, bytes: u64) -> Self {
        self.log_bytes = bytes;
        self
    }

    /// The same runtime with a secret for an environment: an environment variable of each of its processes, which
    /// takes precedence over an instance's variable of the same name.
    #[must_use]
    pub fn secret(mut self, environment: EnvironmentName, name: impl Into<String>, value: Secret) -> Self {
        self.secrets.entry(environment).or_default().insert(name.into(), value);
        self
    }

    fn place(&self, context: &Context, instance: &Instance) -> Place {
        for secret in self.secrets_of(context).values() {
            context.hide(secret);
        }
        Place::new(Records::directory(&self.root, context, instance))
    }

    fn secrets_of(&self, context: &Context) -> BTreeMap<String, Secret> {
        self.secrets.get(context.environment().name()).cloned().unwrap_or_default()
    }

    fn launch(
        &self,
        context: &Context,
        instance: &Instance,
        release: &Release,
        name: Name,
    ) -> Result<Launch> {
        Launch::new(&self.root, context, instance, release, name, &self.secrets_of(context))
    }

    /// Starts the process, or finds it running; the caller holds the place. `taken` is the error where another program
    /// has the port.
    async fn run(
        &self,
        context: &Context,
        place: &Place,
        instance: &Instance,
        release: &Release,
        name: Name,
        taken: fn(String) -> Error,
    ) -> Result<Started> {
        let launch = self.launch(context, instance, release, name)?;
        place.end_others(context, name.deployment, self.grace).await?;
        let running = place.records.all()?.into_iter().find(|record| {
            record.kind == Kind::Web
                && record.deployment == name.deployment
                && record.digest == launch.digest
                && record.process.process().is_some()
        });
        let kept = running.as_ref().map(Record::name);
        place.end(|found| found.deployment == name.deployment && Some(found) != kept, self.grace).await?;
        if let Some(name) = kept {
            context.log(format!("{} is running already", instance.name));
            return Ok(name.started());
        }
        if context.is_cancelled() {
            return Err(Error::cancelled());
        }
        network::refuse_taken(instance, &[], taken)?;
        launch::prepare_data(instance)?;
        place.records.prune()?;
        // Nothing is awaited between the start and the record: a call that is dropped leaves none without the other.
        self.spawn(context, place, &launch, name)?;
        Ok(name.started())
    }

    fn spawn(&self, context: &Context, place: &Place, launch: &Launch, name: Name) -> Result<()> {
        let log = place.records.log(name);
        let (mut keeper, output, pipe) = log::keep(&log, self.log_bytes)?;
        let error = output.try_clone().transient("share the pipe to the log");
        let started = error.and_then(|error| {
            launch.started(launch.command(place, name).stdout(output).stderr(error).spawn())
        });
        let mut child = match started {
            Ok(child) => child,
            Err(error) => {
                // Nobody writes into its pipe: it ends.
                drop(keeper.wait());
                return Err(error);
            }
        };
        let recorded = Identity::of(child.id()).transient("find the new process").and_then(|process| {
            context.log(format!("process {} started; its log: {}", process.pid, log.display()));
            place.records.write(&Record {
                deployment: name.deployment,
                fence: name.fence,
                kind: name.kind,
                log_keeper: Identity::of(keeper.id()).ok(),
                pipe: Some(pipe),
                digest: launch.digest.clone(),
                process,
            })
        });
        if let Err(error) = recorded {
            place.kill(|found| found == name);
            drop(child.wait());
            drop(reap(child, keeper, place.records.ended(name)));
            return Err(error);
        }
        reap(child, keeper, place.records.ended(name))
    }
}

#[async_trait]
impl Runtime for LocalRuntime {
    async fn stop(&self, context: &Context, live: &LiveInstance) -> Result<()> {
        let owner = Name::parse(&live.started)?.deployment;
        let place = self.place(context, &live.instance);
        let _held = place.fenced.enter(context).await?;
        not_cancelled(context)?;
        place.end(|name| name.deployment == owner, self.grace).await
    }

    async fn update(&self, context: &Context, instance: &Instance, release: &Release) -> Result<()> {
        let name = Name { deployment: context.deployment(), fence: context.fence(), kind: Kind::Release };
        let place = self.place(context, instance);
        let launch = self.launch(context, instance, release, name)?;
        update::run(context, &place, instance, &launch, name, self.grace).await
    }

    async fn start(&self, context: &Context, instance: &Instance, release: &Release) -> Result<Started> {
        let name = Name { deployment: context.deployment(), fence: context.fence(), kind: Kind::Web };
        let place = self.place(context, instance);
        let _held = place.fenced.enter(context).await?;
        self.run(context, &place, instance, release, name, Error::permanent).await
    }

    async fn withdraw(&self, context: &Context, instance: &Instance) -> Result<()> {
        let deployment = context.deployment();
        let place = self.place(context, instance);
        let _held = place.fenced.enter(context).await?;
        not_cancelled(context)?;
        place.end(|name| name.deployment == deployment, self.grace).await?;
        place.records.remove_all(deployment)
    }

    async fn revive(&self, context: &Context, live: &LiveInstance, release: &Release) -> Result<Started> {
        // It stays the process of the deployment that made it live: a withdrawal of the one that is undone, which may
        // be asked for again, must not reach it.
        let deployment = Name::parse(&live.started)?.deployment;
        let name = Name { deployment, fence: context.fence(), kind: Kind::Web };
        let place = self.place(context, &live.instance);
        let _held = place.fenced.enter(context).await?;
        // Whoever has the port may be gone at the next attempt; there is nothing better than to try again.
        self.run(context, &place, &live.instance, release, name, Error::transient).await
    }

    async fn inspect(
        &self,
        context: &Context,
        instance: &Instance,
        started: &Started,
    ) -> Result<Observation> {
        let name = Name::parse(started)?;
        let place = self.place(context, instance);
        let Some(record) = place.records.read(name)? else {
            return Ok(Observation::Down { reason: "it is not there".to_owned(), log_tail: Vec::new() });
        };
        if record.process.process().is_some() {
            return Ok(Observation::Up);
        }
        let reason = last_words(&place, &record).await;
        Ok(Observation::Down { reason, log_tail: log::tail(&place.records.log(name), TAIL_LINES) })
    }

    async fn tail(
        &self,
        context: &Context,
        instance: &Instance,
        started: &Started,
        lines: usize,
    ) -> Result<Vec<String>> {
        let name = Name::parse(started)?;
        Ok(log::tail(&self.place(context, instance).records.log(name), lines))
    }
}

fn not_cancelled(context: &Context) -> Result<()> {
    if context.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
}

/// How a process ended, when its log is complete.
async fn last_words(place: &Place, record: &Record) -> String {
    if record.process.is_of_another_boot() {
        return "the machine has been restarted since".to_owned();
    }
    let began = Instant::now();
    loop {
        let ended = fs::read_to_string(place.records.ended(record.name())).unwrap_or_default();
        let log_is_open = record.log_keeper.as_ref().is_some_and(|keeper| keeper.process().is_some());
        if began.elapsed() > LAST_WORDS_MAX || !(ended.is_empty() || log_is_open) {
            let unknown =
                "it has ended; its exit code is not known, because the worker that started it is gone";
            return if ended.is_empty() { unknown.to_owned() } else { ended };
        }
        sleep(POLL).await;
    }
}

/// Waits, in a thread of its own, for the process and for the keeper of its log, so that they leave nothing behind.
fn reap(mut child: Child, mut keeper: Child, ended: PathBuf) -> Result<()> {
    let wait = move || {
        if let Ok(status) = child.wait() {
            // Not made anew: it is gone if the process was withdrawn meanwhile.
            let file = fs::OpenOptions::new().write(true).open(&ended);
            drop(file.and_then(|mut file| file.write_all(describe(status).as_bytes())));
        }
        drop(keeper.wait());
    };
    let thread = thread::Builder::new().name("ocore-reaper".to_owned()).stack_size(128 * 1024).spawn(wait);
    thread.map(drop).transient("start a thread that waits for the new process")
}

/// An exit status in words.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(signal)) => format!("it was ended by signal {signal}"),
        (None, None) => "it has ended".to_owned(),
    }
}
