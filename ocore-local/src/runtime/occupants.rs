//! The processes of one instance: found whatever happened to the worker that started them, and ended.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    time::Duration,
};

use ocore_core::{
    environment::Instance,
    id::{DeploymentId, Fence},
    port::{Classify, Context, Error, Result},
};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::record::{Kind, Name, Record, Records};
use crate::{
    fenced::Fenced,
    process::{Process, descendants},
};

/// The variable that marks a process and its children: `PLACE:DEPLOYMENT:FENCE:KIND`.
pub(super) const MARK: &str = "OCORE_PROCESS";

const POLL: Duration = Duration::from_millis(10);
/// How long killed processes may take to disappear.
const KILL_MAX: Duration = Duration::from_secs(20);

/// One instance on this machine.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) fenced: Fenced,
    pub(super) records: Records,
    /// Tells this instance of this root from all others of the machine.
    id: String,
}

impl Place {
    pub(super) fn new(directory: PathBuf) -> Self {
        let digest = blake3::hash(directory.as_os_str().as_encoded_bytes()).to_hex();
        Self {
            id: digest.as_str()[..16].to_owned(),
            fenced: Fenced::new(directory.clone()),
            records: Records::new(directory),
        }
    }

    pub(super) fn mark(&self, name: Name) -> String {
        format!("{}:{}:{}:{}", self.id, name.deployment, name.fence, name.kind.as_str())
    }

    /// Every process of the instance, and which started process it belongs to. It is found by any of:
    /// * the mark in the environment it was started with: also where the worker died before it wrote a record;
    /// * the record of the started process, or that one's process group: where the environment was overwritten;
    /// * the log that it writes to: where it has left group and session, and cleared its environment;
    /// * its parent, if that is one.
    ///
    /// What has done all of that and lost its parent is found no more.
    pub(super) fn occupants(&self) -> Result<Vec<(Name, Process)>> {
        let all = Process::all().transient("read /proc")?;
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let mut owners: HashMap<i32, Name> = HashMap::new();
        // Whoever is marked as somebody else's is nobody's child here: a worker may itself be an instance.
        let mut foreign: HashSet<i32> = HashSet::from([0, 1, own]);
        for process in &all {
            match process.variable(MARK).transient("look for the processes of the instance")? {
                None => {}
                Some(mark) => match self.parse_mark(&mark) {
                    Some(name) => drop(owners.insert(process.pid, name)),
                    None => drop(foreign.insert(process.pid)),
                },
            }
        }
        for record in self.records.all()? {
            for process in all.iter().filter(|process| belongs_to(process, &record)) {
                owners.entry(process.pid).or_insert(record.name());
            }
        }
        owners.retain(|pid, _| !foreign.contains(pid));
        let free: Vec<Process> =
            all.iter().filter(|process| !foreign.contains(&process.pid)).cloned().collect();
        let roots: Vec<(i32, Name)> = owners.iter().map(|(pid, name)| (*pid, *name)).collect();
        for (root, name) in roots {
            for pid in descendants(&free, HashSet::from([root])) {
                owners.entry(pid).or_insert(name);
            }
        }
        Ok(free.into_iter().filter_map(|process| Some((*owners.get(&process.pid)?, process))).collect())
    }

    fn parse_mark(&self, mark: &str) -> Option<Name> {
        let mut parts = mark.strip_prefix(&self.id)?.strip_prefix(':')?.split(':');
        let deployment: DeploymentId = parts.next()?.parse().ok()?;
        let fence = Fence::new(parts.next()?.parse().ok()?);
        let kind = match parts.next()? {
            kind if kind == Kind::Web.as_str() => Kind::Web,
            kind if kind == Kind::Release.as_str() => Kind::Release,
            _ => return None,
        };
        Some(Name { deployment, fence, kind })
    }

    /// Ends the chosen processes: gracefully, and after `grace` by force. Returns when all are gone.
    pub(super) async fn end(&self, which: impl Fn(Name) -> bool + Send, grace: Duration) -> Result<()> {
        let began = Instant::now();
        let mut asked: HashSet<(i32, u64)> = HashSet::new();
        loop {
            let found = self.chosen(&which)?;
            let Some((_, first)) = found.first() else { return Ok(()) };
            if began.elapsed() > grace + KILL_MAX {
                let what = format!("end process {} ({}): it is still there", first.pid, first.name);
                return Err(Error::unanswered(what));
            }
            let force = began.elapsed() >= grace;
            for (_, process) in &found {
                if force || asked.insert((process.pid, process.started)) {
                    let signal = if force { Signal::KILL } else { Signal::TERM };
                    let doing = format!("end process {} ({})", process.pid, process.name);
                    process.signal(signal).permanent(doing)?;
                }
            }
            wait_for(&found, grace.saturating_sub(began.elapsed()).max(POLL)).await;
        }
    }

    fn chosen(&self, which: &impl Fn(Name) -> bool) -> Result<Vec<(Name, Process)>> {
        Ok(self.occupants()?.into_iter().filter(|(name, _)| which(*name)).collect())
    }

    /// Kills the chosen processes at once, without waiting: for a call that is dropped.
    pub(super) fn kill(&self, which: impl Fn(Name) -> bool) {
        // Twice: what is forked while the first round goes on.
        for _ in 0..2 {
            for (_, process) in self.chosen(&which).unwrap_or_default() {
                drop(process.signal(Signal::KILL));
            }
        }
    }

    /// Ends what other deployments have running in the instance: two versions must never work on its data. Whoever
    /// calls has stopped the one that was live; what is left is known to no store any more, as when its file was lost.
    pub(super) async fn end_others(
        &self,
        context: &Context,
        deployment: DeploymentId,
        grace: Duration,
    ) -> Result<()> {
        let others = |name: Name| name.deployment != deployment;
        for (name, process) in self.chosen(&others)? {
            let (pid, program) = (process.pid, process.name);
            context.log(format!("process {pid} ({program}) of deployment {} is ended", name.deployment));
        }
        self.end(others, grace).await
    }

    /// Refuses a call that was overtaken by one with a higher fence.
    pub(super) fn refuse_overtaken(&self, context: &Context) -> Result<()> {
        if self.fenced.overtaken(context.fence()) { Err(Error::fenced()) } else { Ok(()) }
    }
}

/// Refuses a data directory that a process of another instance works on, be it of another root.
pub(crate) fn refuse_sharing(root: &Path, context: &Context, instance: &Instance, data: &Path) -> Result<()> {
    let own = Place::new(Records::directory(root, context, instance));
    for process in Process::all().transient("read /proc")? {
        let variable = |name| process.variable(name).transient("look for the processes on the data");
        let Some(mark) = variable(MARK)? else { continue };
        if own.parse_mark(&mark).is_some() {
            continue;
        }
        let works_on = variable("DATA_DIR")?.and_then(|text| Path::new(&text).canonicalize().ok());
        if works_on.is_some_and(|directory| directory == data) {
            let environment = variable("OCORE_ENVIRONMENT")?.unwrap_or_default();
            return Err(Error::permanent(format!(
                "process {} ({}) of environment {environment} works on the data directory {}, known to it by another \
                 path or to another state directory: give one of them another",
                process.pid,
                process.name,
                data.display()
            )));
        }
    }
    Ok(())
}

fn belongs_to(process: &Process, record: &Record) -> bool {
    if record.process.is_of_another_boot() {
        return false;
    }
    // The number of a group is given out again only when nobody is in it: it counts while its leader is there.
    let leads = |leader: Process| leader.pid == process.pid || leader.pid == process.group;
    record.process.process().is_some_and(leads) || record.pipe.is_some_and(|pipe| process.writes_to(pipe))
}

/// Waits until none of the processes is there any more, or until the time is over.
async fn wait_for(processes: &[(Name, Process)], limit: Duration) {
    let began = Instant::now();
    let there = |process: &Process| {
        Process::read(process.pid).is_some_and(|now| now.started == process.started && !now.ended)
    };
    while began.elapsed() < limit && processes.iter().any(|(_, process)| there(process)) {
        sleep(POLL).await;
    }
}
