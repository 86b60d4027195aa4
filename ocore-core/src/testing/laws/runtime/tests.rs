//! Every law is seen to fail, against a runtime that breaks exactly it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use chrono::DateTime;
use tokio::time::sleep;

use super::*;
use crate::{
    environment::{EnvironmentSpec, Instance, InstanceSpec},
    event::Stream,
    id::{DeploymentId, Fence},
    port::{Context, Error, Result},
    release::{Commit, Image},
    testing::laws::run,
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    SaysItIsDown,
    StartsTwice,
    StopsNothing,
    CannotStopTwice,
    RevivesNothing,
    RevivesTwice,
    WithdrawsItsOwnFenceOnly,
    CannotWithdrawNothing,
    RevivesForTheUndone,
    OverlooksExits,
    HasNoTail,
    SwallowsOutput,
    CallsFailedUpdatesTransient,
    HidesWhyUpdatesFail,
    LeavesCancelledUpdates,
    LeavesDroppedUpdates,
    WithdrawsNoUpdates,
    StartsWhenCancelled,
    ForgetsFences,
}

/// Something that runs, or has run.
struct Copy {
    deployment: DeploymentId,
    fence: Fence,
    reference: String,
    up: bool,
}

#[derive(Default)]
struct World {
    copies: Vec<Copy>,
    updates: BTreeMap<u64, (DeploymentId, Fence)>,
    fence: Fence,
    counter: u64,
}

struct Fake {
    bug: Bug,
    world: Arc<Mutex<World>>,
}

fn fake(bug: Bug) -> Fake {
    Fake { bug, world: Arc::default() }
}

struct Updating {
    world: Arc<Mutex<World>>,
    number: u64,
    leaves: bool,
}

impl Drop for Updating {
    fn drop(&mut self) {
        if !self.leaves {
            self.world.lock().unwrap_or_else(PoisonError::into_inner).updates.remove(&self.number);
        }
    }
}

impl Fake {
    fn enter(&self, context: &Context) -> Result<()> {
        let mut world = self.world.lock().unwrap();
        if context.fence() < world.fence && self.bug != Bug::ForgetsFences {
            return Err(Error::fenced());
        }
        world.fence = context.fence().max(world.fence);
        Ok(())
    }

    async fn wait_for_end(&self, context: &Context, mut updating: Updating) -> Result<()> {
        loop {
            if context.is_cancelled() {
                updating.leaves = self.bug == Bug::LeavesCancelledUpdates;
                return Err(Error::cancelled());
            }
            if !self.world.lock().unwrap().updates.contains_key(&updating.number) {
                return Err(Error::permanent("the update was ended"));
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    fn run(&self, owner: DeploymentId, fence: Fence, release: &Release, again: Bug) -> Started {
        let mut world = self.world.lock().unwrap();
        let running = world.copies.iter().find(|copy| copy.up && copy.deployment == owner);
        if let Some(running) = running.filter(|_| self.bug != again) {
            return Started::new(running.reference.clone());
        }
        world.counter += 1;
        let reference = format!("{owner}/{}", world.counter);
        let up = release.image.reference != "Ends";
        world.copies.push(Copy { deployment: owner, fence, reference: reference.clone(), up });
        Started::new(reference)
    }
}

fn owner(live: &LiveInstance) -> DeploymentId {
    live.started.reference.split('/').next().unwrap().parse().unwrap()
}

#[async_trait]
impl Runtime for Fake {
    async fn stop(&self, context: &Context, live: &LiveInstance) -> Result<()> {
        self.enter(context)?;
        let mut stopped = 0;
        for copy in &mut self.world.lock().unwrap().copies {
            if copy.deployment == owner(live) && copy.up && self.bug != Bug::StopsNothing {
                copy.up = false;
                stopped += 1;
            }
        }
        if stopped == 0 && self.bug == Bug::CannotStopTwice {
            return Err(Error::permanent("it does not run"));
        }
        Ok(())
    }

    async fn update(&self, context: &Context, _instance: &Instance, release: &Release) -> Result<()> {
        self.enter(context)?;
        let updating = {
            let mut world = self.world.lock().unwrap();
            world.counter += 1;
            let number = world.counter;
            world.updates.insert(number, (context.deployment(), context.fence()));
            Updating { world: self.world.clone(), number, leaves: self.bug == Bug::LeavesDroppedUpdates }
        };
        if self.bug != Bug::SwallowsOutput {
            context.output(Stream::Stdout, WORDS);
        }
        if release.image.reference == "UpdatesForEver" {
            return self.wait_for_end(context, updating).await;
        }
        if release.image.reference != "Ends" {
            return Ok(());
        }
        let error = match self.bug {
            Bug::CallsFailedUpdatesTransient => Error::transient("the update failed"),
            _ => Error::permanent("the update failed"),
        };
        let words = (self.bug != Bug::HidesWhyUpdatesFail).then(|| WORDS.to_owned());
        Err(error.with_detail(words))
    }

    async fn start(&self, context: &Context, _instance: &Instance, release: &Release) -> Result<Started> {
        self.enter(context)?;
        if context.is_cancelled() {
            if self.bug == Bug::StartsWhenCancelled {
                self.run(context.deployment(), context.fence(), release, Bug::None);
            }
            return Err(Error::cancelled());
        }
        Ok(self.run(context.deployment(), context.fence(), release, Bug::StartsTwice))
    }

    async fn withdraw(&self, context: &Context, _instance: &Instance) -> Result<()> {
        self.enter(context)?;
        let mut world = self.world.lock().unwrap();
        let before = world.copies.len();
        let own_fence = self.bug == Bug::WithdrawsItsOwnFenceOnly;
        world.copies.retain(|copy| {
            copy.deployment != context.deployment() || (own_fence && copy.fence != context.fence())
        });
        if self.bug != Bug::WithdrawsNoUpdates {
            world.updates.retain(|_, (deployment, _)| *deployment != context.deployment());
        }
        if world.copies.len() == before && self.bug == Bug::CannotWithdrawNothing {
            return Err(Error::permanent("there is nothing"));
        }
        Ok(())
    }

    async fn revive(&self, context: &Context, live: &LiveInstance, release: &Release) -> Result<Started> {
        self.enter(context)?;
        if self.bug == Bug::RevivesNothing {
            return Ok(live.started.clone());
        }
        let owner = if self.bug == Bug::RevivesForTheUndone { context.deployment() } else { owner(live) };
        Ok(self.run(owner, context.fence(), release, Bug::RevivesTwice))
    }

    async fn inspect(&self, _: &Context, _: &Instance, started: &Started) -> Result<Observation> {
        let world = self.world.lock().unwrap();
        let copy = world.copies.iter().find(|copy| copy.reference == started.reference);
        let up = copy.is_some_and(|copy| copy.up || self.bug == Bug::OverlooksExits);
        if up && self.bug != Bug::SaysItIsDown {
            return Ok(Observation::Up);
        }
        let log_tail = copy.map(|_| WORDS.to_owned()).into_iter().collect();
        Ok(Observation::Down { reason: "it does not run".into(), log_tail })
    }

    async fn tail(&self, _: &Context, _: &Instance, _: &Started, lines: usize) -> Result<Vec<String>> {
        let lines = if self.bug == Bug::HasNoTail { 0 } else { lines };
        Ok(std::iter::once(WORDS.to_owned()).take(lines).collect())
    }
}

#[async_trait]
impl RuntimeFixture for Fake {
    fn runtime(&self) -> &dyn Runtime {
        self
    }
    fn environment(&self) -> Arc<Environment> {
        let spec = EnvironmentSpec::new("laws", "https://git.example.org/laws.git");
        Arc::new(spec.instance(InstanceSpec::new("web")).try_into().unwrap())
    }
    async fn release(&self, program: Program) -> Release {
        let commit = Commit::new(&"a".repeat(40), "commit", "author", DateTime::UNIX_EPOCH);
        Release::new(DeploymentId::from_u128(1), commit, Image::new(format!("{program:?}")).with_update(true))
    }
    async fn serving(&self) -> usize {
        self.world.lock().unwrap().copies.iter().filter(|copy| copy.up).count()
    }
    async fn updating(&self) -> usize {
        self.world.lock().unwrap().updates.len()
    }
    fn refuses_older_fences(&self) -> bool {
        true
    }
}

mod a_good_runtime {
    use super::{Bug, fake};
    runtime_laws!(fake(Bug::None));
}

macro_rules! seen_to_fail {
    ($($bug:ident: $law:ident,)*) => {
        mod seen_to_fail {
            $(
                #[expect(non_snake_case, reason = "named after the bug")]
                mod $bug {
                    #[test]
                    #[should_panic]
                    fn $law() {
                        super::super::run(super::super::super::$law(super::super::fake(super::super::Bug::$bug)));
                    }
                }
            )*
        }
    };
}

seen_to_fail! {
    SaysItIsDown: what_is_started_is_up,
    StartsTwice: starting_twice_runs_it_once,
    StopsNothing: what_is_stopped_is_down,
    CannotStopTwice: stopping_twice_succeeds,
    RevivesNothing: what_was_stopped_can_be_revived,
    RevivesTwice: reviving_what_runs_changes_nothing,
    WithdrawsItsOwnFenceOnly: nothing_runs_after_a_withdrawal,
    CannotWithdrawNothing: withdrawing_nothing_succeeds,
    RevivesForTheUndone: a_withdrawal_spares_what_was_revived,
    OverlooksExits: an_exit_is_seen_with_its_last_words,
    HasNoTail: what_runs_has_last_words_too,
    SwallowsOutput: an_update_runs_to_its_end,
    CallsFailedUpdatesTransient: a_failed_update_is_permanent_and_shows_its_output,
    HidesWhyUpdatesFail: a_failed_update_is_permanent_and_shows_its_output,
    LeavesCancelledUpdates: a_cancelled_update_has_really_stopped,
    LeavesDroppedUpdates: a_dropped_update_stops,
    WithdrawsNoUpdates: a_withdrawal_ends_an_update,
    StartsWhenCancelled: a_cancelled_start_starts_nothing,
    ForgetsFences: an_older_fence_is_refused,
}
