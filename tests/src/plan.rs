//! What one schedule is: everything that happens in it follows from its plan.

use std::{fmt, time::Duration};

use ocore_core::testing::{
    fakes::Behaviour,
    faults::{Fault, Odds},
    mutants::Mutant,
    sim::{Chance, Order},
};

/// One schedule.
#[derive(Debug, Clone)]
#[expect(clippy::exhaustive_structs, reason = "plans are varied field by field, here and in the binary")]
pub struct Plan {
    /// The scenario's name; random ones are named after their seed.
    pub scenario: &'static str,
    /// For what the plan leaves open.
    pub seed: u64,
    /// How many environments there are: one or two.
    pub environments: usize,
    /// How many instances an environment has.
    pub instances: usize,
    /// Whether snapshots are taken after the stop.
    pub after_stop: bool,
    /// How many workers there are.
    pub workers: usize,
    /// In which order tasks are polled.
    pub order: Order,
    /// What is asked for, in order.
    pub script: Vec<Act>,
    /// Calls that fail, by their number.
    pub faults: Vec<(u64, Fault)>,
    /// A port's method that fails whenever it is called, until the outage ends or everything is healed.
    pub always: Option<(&'static str, &'static str, Fault)>,
    /// What becomes of the store's hints that something has changed: all come at once and without cause (`Refused`),
    /// or never (`Hang`).
    pub hints: Option<Fault>,
    /// Whether only what is needed is kept of snapshots and images.
    pub small_retention: bool,
    /// How likely other calls fail.
    pub odds: Odds,
    /// What befalls workers: which one, before which of its polls.
    pub blows: Vec<(usize, u64, Blow)>,
    /// Of 100 workers that are started again, so many are struck again.
    pub further_blows: u64,
    /// Cancels the deployment of an act, so many polls of the whole simulation after it was accepted.
    pub cancel: Option<(usize, u64)>,
    /// A bug that is planted.
    pub mutant: Option<Mutant>,
    /// Whether the trace is kept as text.
    pub keep_trace: bool,
}

/// What befalls a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Blow {
    /// kill -9.
    Kill,
    /// It is not scheduled for this long.
    Freeze(Duration),
}

/// One thing that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Act {
    /// A person deploys a new commit.
    Deploy(Kind),
    /// A person deploys a new commit in the second environment, and waits until that is done.
    Elsewhere(Kind),
    /// A new commit is pushed.
    Push(Kind),
    /// A rollback to the deployment of an earlier act.
    RollBack {
        /// The act's number.
        to: usize,
        /// Without the data.
        code_only: bool,
    },
    /// The deployment of an earlier act is cancelled.
    Cancel(usize),
    /// The snapshot that the deployment of an earlier act took is pinned, if it is there.
    Pin(usize),
    /// Nothing is asked until the environment is quiet, or some time has passed.
    Settle,
    /// Nothing is asked for so many milliseconds.
    Wait(u64),
    /// All images are lost.
    LoseImages,
    /// A worker is asked to shut down.
    Shutdown(usize),
    /// The deployment of an earlier act is tried again.
    Retry(usize),
    /// Nothing is started any more.
    Pause,
    /// The end of a pause.
    Unpause,
    /// What has always failed works again.
    EndOutage,
    /// A person lets the undo of what is stranded be finished.
    Resume,
    /// A person says that what is stranded has been looked after.
    Acknowledge,
}

impl Act {
    /// Whether it asks for a deployment.
    #[must_use]
    pub const fn is_request(&self) -> bool {
        matches!(self, Self::Deploy(_) | Self::Push(_) | Self::RollBack { .. } | Self::Retry(_))
    }
}

/// What a commit does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Works.
    Good,
    /// Works, and migrates.
    Updates,
    /// Its migration fails.
    UpdateFails,
    /// Never becomes healthy.
    Unhealthy,
    /// Migrates, and then never becomes healthy.
    UpdatesThenUnhealthy,
    /// Exits while it is probed.
    Exits,
    /// Cannot be built.
    Unbuildable,
    /// Works, and takes a while to be healthy.
    Slow,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Good,
        Self::Updates,
        Self::UpdateFails,
        Self::Unhealthy,
        Self::UpdatesThenUnhealthy,
        Self::Exits,
        Self::Unbuildable,
        Self::Slow,
    ];

    pub(crate) fn behaviour(self) -> Behaviour {
        let good = Behaviour::good();
        match self {
            Self::Good => good,
            Self::Updates => good.updates(),
            Self::UpdateFails => good.update_fails(),
            Self::Unhealthy => good.unhealthy(),
            Self::UpdatesThenUnhealthy => good.updates().unhealthy(),
            Self::Exits => good.exits_after(1),
            Self::Unbuildable => good.unbuildable(),
            Self::Slow => good.updates().healthy_after(3).takes(Duration::from_secs(4)).stumbles(),
        }
    }
}

impl Plan {
    const fn new(scenario: &'static str, script: Vec<Act>) -> Self {
        Self {
            scenario,
            seed: 0,
            environments: 1,
            instances: 1,
            after_stop: false,
            workers: 2,
            order: Order::Random,
            script,
            faults: Vec::new(),
            always: None,
            hints: None,
            small_retention: false,
            odds: Odds::NONE,
            blows: Vec::new(),
            further_blows: 0,
            cancel: None,
            mutant: None,
            keep_trace: false,
        }
    }

    const fn environments(mut self, environments: usize) -> Self {
        self.environments = environments;
        self
    }

    const fn instances(mut self, instances: usize) -> Self {
        self.instances = instances;
        self
    }

    const fn after_stop(mut self) -> Self {
        self.after_stop = true;
        self
    }

    const fn small_retention(mut self) -> Self {
        self.small_retention = true;
        self
    }

    const fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    const fn outage(mut self, port: &'static str, method: &'static str, fault: Fault) -> Self {
        self.always = Some((port, method, fault));
        self
    }

    /// The same plan with one call that fails.
    #[must_use]
    pub fn fault(mut self, call: u64, fault: Fault) -> Self {
        self.faults.push((call, fault));
        self
    }

    /// The same plan with a blow to a worker.
    #[must_use]
    pub fn blow(mut self, worker: usize, poll: u64, blow: Blow) -> Self {
        self.blows.push((worker, poll, blow));
        self
    }

    /// The named scenarios: every plan of the machine.
    #[must_use]
    pub fn scenarios() -> Vec<Self> {
        use Act::{
            Acknowledge, Cancel, Deploy, Elsewhere, EndOutage, LoseImages, Pause, Pin, Push, Resume, Retry,
            RollBack, Settle, Shutdown, Unpause, Wait,
        };
        use Kind::{Exits, Good, Slow, Unbuildable, Unhealthy, UpdateFails, Updates, UpdatesThenUnhealthy};
        let back = |to| RollBack { to, code_only: false };
        vec![
            Self::new("first", vec![Deploy(Good)]).workers(1),
            Self::new("first-fails", vec![Deploy(UpdatesThenUnhealthy)]),
            Self::new("over-a-previous", vec![Deploy(Good), Settle, Deploy(Good)]),
            Self::new("update", vec![Deploy(Good), Settle, Deploy(Updates)]),
            Self::new("update-fails", vec![Deploy(Good), Settle, Deploy(UpdateFails)]),
            Self::new("unhealthy", vec![Deploy(Updates), Settle, Deploy(UpdatesThenUnhealthy)]),
            Self::new("exits", vec![Deploy(Good), Settle, Deploy(Exits)]),
            Self::new("unbuildable", vec![Deploy(Good), Settle, Deploy(Unbuildable), Deploy(Good)]),
            Self::new("retry", vec![Deploy(Good), Settle, Deploy(UpdateFails), Settle, Retry(2)]),
            Self::new("pause", vec![Deploy(Good), Pause, Push(Updates), Push(Good), Wait(3000), Unpause]),
            Self::new(
                "cancel",
                vec![
                    Deploy(Good),
                    Settle,
                    Deploy(Slow),
                    Wait(3000),
                    Cancel(2),
                    Push(Updates),
                    Push(Good),
                    Cancel(6),
                ],
            ),
            Self::new("rollback", vec![Deploy(Updates), Settle, Deploy(Updates), Settle, back(0)]),
            Self::new(
                "rollback-code-only",
                vec![Deploy(Good), Settle, Deploy(Updates), Settle, RollBack { to: 0, code_only: true }],
            ),
            Self::new(
                "rollback-image-gone",
                vec![Deploy(Good), Settle, Deploy(Updates), Settle, LoseImages, back(0)],
            ),
            Self::new(
                "rollback-of-a-rollback",
                vec![Deploy(Good), Settle, Deploy(Updates), Settle, back(0), Settle, back(2)],
            ),
            Self::new("rollback-two-instances", vec![Deploy(Good), Settle, Deploy(Updates), Settle, back(0)])
                .instances(2),
            Self::new("two-instances", vec![Deploy(Good), Settle, Deploy(Updates)]).instances(2),
            Self::new("two-instances-unhealthy", vec![Deploy(Good), Settle, Deploy(Unhealthy)]).instances(2),
            Self::new("two-instances-after-stop", vec![Deploy(Good), Settle, Deploy(UpdatesThenUnhealthy)])
                .instances(2)
                .after_stop(),
            Self::new("supersede", vec![Deploy(Slow), Push(Good), Push(Good), Push(Updates)]).workers(3),
            Self::new("burst", vec![Push(Good), Push(Updates), Deploy(Unhealthy), Push(Good)]).workers(3),
            Self::new("after-stop", vec![Deploy(Good), Settle, Deploy(UpdatesThenUnhealthy), Deploy(Good)])
                .after_stop(),
            Self::new(
                "stranded-data",
                vec![
                    Deploy(Updates),
                    Settle,
                    Deploy(UpdatesThenUnhealthy),
                    Push(Good),
                    Settle,
                    EndOutage,
                    Resume,
                ],
            )
            .outage("snapshotter", "restore", Fault::Permanent),
            Self::new(
                "stranded-application",
                vec![Deploy(Good), Settle, Deploy(Unhealthy), Push(Good), Settle, EndOutage, Resume],
            )
            .outage("runtime", "revive", Fault::Permanent),
            Self::new(
                "stranded-twice",
                vec![
                    Deploy(Good),
                    Settle,
                    Deploy(Updates),
                    Deploy(Unhealthy),
                    Settle,
                    Resume,
                    Settle,
                    EndOutage,
                    Resume,
                ],
            )
            .outage("runtime", "withdraw", Fault::Permanent),
            Self::new(
                "stranded-elsewhere",
                vec![
                    Deploy(Good),
                    Settle,
                    Deploy(Unhealthy),
                    Settle,
                    Push(Good),
                    Elsewhere(Good),
                    Elsewhere(Updates),
                    EndOutage,
                    Resume,
                ],
            )
            .environments(2)
            .outage("runtime", "revive", Fault::Permanent),
            Self::new(
                "stranded-acknowledged",
                vec![
                    Deploy(Good),
                    Settle,
                    Deploy(Unhealthy),
                    Settle,
                    EndOutage,
                    Acknowledge,
                    Deploy(Updates),
                ],
            )
            .outage("runtime", "revive", Fault::Permanent),
            Self::new(
                "small-retention",
                vec![
                    Push(Good),
                    Settle,
                    Push(Updates),
                    Settle,
                    // This one's snapshot is being removed.
                    Pin(0),
                    Pin(2),
                    Push(Good),
                    Settle,
                    Push(Good),
                ],
            )
            .small_retention(),
            Self::new(
                "shutdown",
                vec![Deploy(Good), Settle, Deploy(Slow), Wait(4000), Shutdown(0), Shutdown(1)],
            )
            .workers(3),
        ]
    }

    /// The scenario of that name.
    #[must_use]
    pub fn scenario(name: &str) -> Option<Self> {
        Self::scenarios().into_iter().find(|plan| plan.scenario == name)
    }

    /// A plan that follows from a seed alone.
    #[must_use]
    pub fn random(seed: u64) -> Self {
        let chance = &mut Chance::new(seed);
        let workers = 1 + index(chance, 3);
        let (always, mut script) = (random_outage(chance), random_script(chance, workers));
        if always.is_some() && chance.is(1, 2) {
            let resolve = [Act::Resume, Act::Acknowledge][index(chance, 2)];
            script.extend([Act::Settle, Act::EndOutage, resolve]);
        }
        let plan = Self::new("random", script);
        let order = [Order::Random, Order::Random, Order::NewestFirst, Order::OldestFirst];
        let odds = [(0, 0), (100, 100), (200, 300), (400, 600), (50, 1500)];
        let (store, ports) = odds[index(chance, odds.len())];
        let slow = [0, 0, 100, 500][index(chance, 4)];
        let latency = if chance.is(1, 3) { Duration::from_millis(20) } else { Duration::ZERO };
        let blow_count = [0, 1, 2, 4][index(chance, 4)];
        let blows = (0..blow_count).map(|_| {
            let poll = chance.below(600);
            (index(chance, workers), poll, random_blow(chance))
        });
        Self {
            seed,
            blows: blows.collect(),
            always,
            instances: [1, 1, 2][index(chance, 3)],
            after_stop: chance.is(1, 3),
            workers,
            order: order[index(chance, order.len())],
            odds: Odds::new(store, ports).latency(latency, slow),
            further_blows: [0, 20, 50][index(chance, 3)],
            // Sometimes only what is needed is kept.
            small_retention: chance.is(1, 5),
            cancel: random_cancel(chance, &plan.script),
            ..plan
        }
    }

    /// Whether everything is checked afterwards, what takes longer too: secrets, and that recovery changes nothing. So
    /// it is for one plan in eight, whatever kind of sweep it belongs to.
    pub(crate) fn is_thorough(&self) -> bool {
        let faults = self.faults.iter().map(|(call, fault)| call + *fault as u64);
        let blows = self.blows.iter().map(|(_, poll, blow)| poll + u64::from(*blow != Blow::Kill));
        let moments = faults.chain(blows).chain(self.cancel.map(|(_, poll)| poll));
        (self.seed + moments.sum::<u64>()).is_multiple_of(8)
    }

    /// How to run exactly this plan again, if it comes from a seed.
    #[must_use]
    pub fn command(&self) -> String {
        let mutant = self.mutant.map_or(String::new(), |mutant| format!(" --mutant {}", mutant.as_str()));
        if self.scenario == "random" {
            return format!("cargo xtask simulate --first {} --seeds 1{mutant} --trace", self.seed);
        }
        let mut command = format!("cargo xtask simulate --scenario {}{mutant} --trace", self.scenario);
        for (call, fault) in &self.faults {
            command += &format!(" --fault {call}:{fault:?}");
        }
        for (worker, poll, blow) in &self.blows {
            match blow {
                Blow::Kill => command += &format!(" --kill {worker}:{poll}"),
                Blow::Freeze(duration) => {
                    command += &format!(" --freeze {worker}:{poll}:{}", duration.as_millis())
                }
            }
        }
        if let Some((act, poll)) = self.cancel {
            command += &format!(" --cancel {act}:{poll}");
        }
        if let Some(fault) = self.hints {
            command += &format!(" --hints {fault:?}");
        }
        command
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, seed, workers, instances, script, .. } = self;
        write!(f, "{scenario} (seed {seed}, {workers} workers, {instances} instances): {script:?}")
    }
}

fn index(chance: &mut Chance, count: usize) -> usize {
    usize::try_from(chance.below(count as u64)).unwrap_or(0)
}

/// Now and then, something that does not work at all for a while.
fn random_outage(chance: &mut Chance) -> Option<(&'static str, &'static str, Fault)> {
    const METHODS: [(&str, &str); 8] = [
        ("source", "fetch"),
        ("builder", "build"),
        ("snapshotter", "take"),
        ("runtime", "stop"),
        ("runtime", "start"),
        ("runtime", "withdraw"),
        ("snapshotter", "restore"),
        ("runtime", "revive"),
    ];
    let (port, method) = METHODS[index(chance, METHODS.len())];
    let fault = [Fault::Refused, Fault::NoAnswer, Fault::Permanent, Fault::Hang][index(chance, 4)];
    chance.is(1, 10).then_some((port, method, fault))
}

/// Now and then, a cancel of what was asked for last, at any moment.
fn random_cancel(chance: &mut Chance, script: &[Act]) -> Option<(usize, u64)> {
    let (wanted, poll) = (chance.is(1, 6), chance.below(300));
    Some((script.iter().rposition(Act::is_request)?, poll)).filter(|_| wanted)
}

/// A kill, or a freeze that is sometimes shorter and sometimes longer than a lease.
pub(crate) fn random_blow(chance: &mut Chance) -> Blow {
    if chance.is(1, 2) { Blow::Kill } else { Blow::Freeze(Duration::from_secs(1 + chance.below(30))) }
}

/// About four requests, most of them deployments.
fn random_script(chance: &mut Chance, workers: usize) -> Vec<Act> {
    let mut script = Vec::new();
    let mut asked = Vec::new();
    for _ in 0..1 + chance.below(4) {
        let kind = if chance.is(1, 2) { Kind::Updates } else { Kind::ALL[index(chance, Kind::ALL.len())] };
        let earlier = (!asked.is_empty()).then(|| asked[index(chance, asked.len().max(1))]);
        let act = match (chance.below(25), earlier) {
            (0..=9, _) | (_, None) => Act::Deploy(kind),
            (10..=14, _) => Act::Push(kind),
            (15..=18, Some(to)) => Act::RollBack { to, code_only: chance.is(1, 4) },
            (19, Some(of)) => Act::Retry(of),
            (20, Some(of)) => Act::Cancel(of),
            (21, Some(_)) => [Act::EndOutage, Act::Resume, Act::Acknowledge][index(chance, 3)],
            (22, Some(_)) => [Act::LoseImages, Act::Pause, Act::Unpause][index(chance, 3)],
            (23, Some(of)) => Act::Pin(of),
            _ => Act::Shutdown(index(chance, workers)),
        };
        if act.is_request() {
            asked.push(script.len());
        }
        script.push(act);
        match chance.below(3) {
            0 => script.push(Act::Settle),
            1 => script.push(Act::Wait(chance.below(5000))),
            _ => {}
        }
    }
    script
}
