//! The release's own migration: a process that this call waits for.

use std::time::Duration;

use ocore_core::{
    environment::Instance,
    port::{Classify, Context, Error, Result},
    program::{Ended, Program},
};

use super::{
    describe,
    launch::{self, Launch},
    occupants::Place,
    record::{Name, Record},
};
use crate::process::Identity;

pub(super) async fn run(
    context: &Context,
    place: &Place,
    instance: &Instance,
    launch: &Launch,
    name: Name,
    grace: Duration,
) -> Result<()> {
    let held = place.fenced.enter(context).await?;
    place.end_others(context, name.deployment, grace).await?;
    // What an earlier call started, of a worker that is dead or has lost the lane: it must not write any more.
    place.end(|found| found.deployment == name.deployment, Duration::ZERO).await?;
    if context.is_cancelled() {
        return Err(Error::cancelled());
    }
    launch::prepare_data(instance)?;
    let running = Running::start(place, launch, name)?;
    // Free again while the migration runs: a call with a higher fence must be able to end it.
    drop(held);
    let ended = running.follow(context).await;
    place.records.remove(name)?;
    let ended = ended?;
    if ended.status.success() {
        return Ok(());
    }
    place.refuse_overtaken(context)?;
    let what = format!("the update of {} failed: {}", instance.name, describe(ended.status));
    Err(Error::permanent(what).with_detail(ended.tail))
}

/// A migration that is running. It is killed with all its children when this is dropped.
struct Running {
    place: Place,
    name: Name,
    program: Program,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.place.kill(|name| name == self.name);
    }
}

impl Running {
    fn start(place: &Place, launch: &Launch, name: Name) -> Result<Self> {
        let program = launch.started(Program::start(launch.command(place, name)))?;
        let running = Self { place: place.clone(), name, program };
        let process = Identity::of(running.program.id()).transient("find the new process")?;
        place.records.write(&Record {
            deployment: name.deployment,
            fence: name.fence,
            kind: name.kind,
            log_keeper: None,
            pipe: None,
            digest: launch.digest.clone(),
            process,
        })?;
        Ok(running)
    }

    async fn follow(mut self, context: &Context) -> Result<Ended> {
        let ended = self.program.follow(context).await;
        // Children that have left its group could write data.
        self.end().await?;
        ended
    }

    async fn end(&self) -> Result<()> {
        let name = self.name;
        self.place.end(move |found| found == name, Duration::ZERO).await
    }
}
