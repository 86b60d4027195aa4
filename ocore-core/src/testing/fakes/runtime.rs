use async_trait::async_trait;

use super::{
    Data, Running, Schema, World,
    world::{Inner, Place, Update, fake},
};
use crate::{
    environment::Instance,
    event::Stream,
    port::{Context, Error, Observation, Result, Runtime},
    release::{LiveInstance, Release, Started},
    testing::sim::yield_now,
};

fake! {
    /// Runs processes that are entries in the world.
    FakeRuntime
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn stop(&self, context: &Context, live: &LiveInstance) -> Result<()> {
        let mut inner = self.world.lock();
        let place = inner.place(context, &live.instance.name);
        place.admit(context)?;
        // What was stopped for an earlier deployment is not needed any more.
        place
            .processes
            .retain(|process| process.down.is_none() || process.reference == live.started.reference);
        for process in &mut place.processes {
            if process.reference == live.started.reference {
                process.down.get_or_insert_with(|| "stopped".to_owned());
            }
        }
        Ok(())
    }

    async fn update(&self, context: &Context, instance: &Instance, release: &Release) -> Result<()> {
        let behaviour = self.world.lock().behaviour(&release.commit.sha);
        let session = begin_update(&mut self.world.lock(), context, instance)?;
        let leaked = self.world.leaked(context);
        context.output(Stream::Stdout, leaked.as_deref().unwrap_or("migrating"));
        let worked = self.world.work(context, behaviour.takes).await;
        let mut inner = self.world.lock();
        let place = inner.place(context, &instance.name);
        if place.update != Some(session) {
            return Err(Error::unanswered("the migration was ended from outside"));
        }
        place.update = None;
        worked?;
        if behaviour.update == Update::Fails {
            let lines = ["psycopg2.errors.UndefinedColumn".to_owned()].into_iter().chain(leaked);
            return Err(Error::permanent("the migration exited with status 1").with_detail(lines));
        }
        let data = place.data.get_or_insert_default();
        data.half_written = false;
        data.schema.push(Schema::Updated(context.deployment()));
        Ok(())
    }

    async fn start(&self, context: &Context, instance: &Instance, release: &Release) -> Result<Started> {
        let started = begin_start(&mut self.world.lock(), context, instance, release)?;
        // In the middle: the process is there, and has not opened its data.
        yield_now().await;
        let mut inner = self.world.lock();
        let place = inner.place(context, &instance.name);
        if !place.up().any(|process| process.reference == started.reference) {
            return Err(Error::unanswered("the process was ended from outside"));
        }
        open_data(&mut inner, context, instance);
        Ok(started)
    }

    async fn withdraw(&self, context: &Context, instance: &Instance) -> Result<()> {
        self.world.lock().place(context, &instance.name).admit(context)?;
        let deployment = context.deployment();
        {
            let mut inner = self.world.lock();
            let processes = &mut inner.place(context, &instance.name).processes;
            for process in processes.iter_mut().filter(|process| process.deployment == deployment) {
                process.down.get_or_insert_with(|| "withdrawn".to_owned());
            }
        }
        // In the middle: nothing runs any more, and is not removed yet.
        yield_now().await;
        let mut inner = self.world.lock();
        let place = inner.place(context, &instance.name);
        place.admit(context)?;
        place.processes.retain(|process| process.deployment != deployment);
        place.update = None;
        Ok(())
    }

    async fn revive(&self, context: &Context, live: &LiveInstance, release: &Release) -> Result<Started> {
        let mut inner = self.world.lock();
        let place = inner.place(context, &live.instance.name);
        place.admit(context)?;
        let of_live = |process: &&Running| process.is_of(&live.started.reference);
        if let Some(other) = place.up().find(|process| !of_live(process)) {
            let what = format!("revive the instance: {} uses the port; stop it first", other.reference);
            return Err(Error::permanent(what));
        }
        let kept = place.processes.iter().any(|process| of_live(&process));
        let half_written = place.data.as_ref().is_some_and(|data| data.half_written);
        if !kept {
            image_exists(&inner, release)?;
        }
        if half_written {
            inner.blame(context, "the previous release was revived on half-written data");
        }
        let (number, stumbles) = (inner.next(), inner.behaviour(&release.commit.sha).stumbles);
        let place = inner.place(context, &live.instance.name);
        let started = revive_in(place, context, live, release, number);
        let revived = place.processes.iter_mut().find(|process| process.reference == started.reference);
        if let Some(process) = revived.filter(|process| stumbles && !process.stumbled) {
            process.stumbled = true;
            process.down = Some("exited with status 1".to_owned());
        }
        Ok(started)
    }

    async fn tail(
        &self,
        context: &Context,
        instance: &Instance,
        started: &Started,
        lines: usize,
    ) -> Result<Vec<String>> {
        let leaked = self.world.leaked(context);
        let mut inner = self.world.lock();
        let processes = &inner.place(context, &instance.name).processes;
        let process = processes.iter().find(|process| process.reference == started.reference);
        let log = process.map(|process| format!("{} answered {} checks", process.reference, process.checks));
        Ok(log.into_iter().chain(leaked).take(lines).collect())
    }

    async fn inspect(
        &self,
        context: &Context,
        instance: &Instance,
        started: &Started,
    ) -> Result<Observation> {
        let leaked = self.world.leaked(context);
        let mut inner = self.world.lock();
        let place = inner.place(context, &instance.name);
        let process = place.processes.iter().find(|process| process.reference == started.reference);
        let reason = process.map_or(Some("it is not there"), |process| process.down.as_deref());
        Ok(reason.map_or(Observation::Up, |reason| Observation::Down {
            reason: reason.to_owned(),
            log_tail: std::iter::once(format!("{}: {reason}", started.reference)).chain(leaked).collect(),
        }))
    }
}

fn image_exists(inner: &Inner, release: &Release) -> Result<()> {
    let reference = &release.image.reference;
    if inner.images.get(reference) == Some(&true) {
        return Ok(());
    }
    Err(Error::permanent(format!("there is no image {reference}")))
}

/// Makes the process, unless it is there.
fn begin_start(
    inner: &mut Inner,
    context: &Context,
    instance: &Instance,
    release: &Release,
) -> Result<Started> {
    let (deployment, fence) = (context.deployment(), context.fence());
    image_exists(inner, release)?;
    let place = inner.place(context, &instance.name);
    place.admit(context)?;
    if let Some(other) = place.up().find(|process| process.deployment != deployment) {
        let what = format!("start the release: {} uses the port; stop it first", other.reference);
        return Err(Error::permanent(what));
    }
    if let Some(process) = place.up().next() {
        return Ok(Started::new(process.reference.clone()));
    }
    place.processes.retain(|process| process.deployment != deployment);
    let reference = format!("process-{deployment}-{}-{fence}", instance.name);
    let sha = release.commit.sha.clone();
    place.processes.push(Running::new(reference.clone(), deployment, fence, sha));
    Ok(Started::new(reference))
}

/// From now on the data is half written, until the update has come to its end.
fn begin_update(inner: &mut Inner, context: &Context, instance: &Instance) -> Result<u64> {
    let session = inner.next();
    inner.place(context, &instance.name).admit(context)?;
    if inner.place(context, &instance.name).up().next().is_some() {
        inner.blame(context, "data was migrated under a running application");
    }
    let place = inner.place(context, &instance.name);
    let data = place.data.get_or_insert_default();
    let half_written = std::mem::replace(&mut data.half_written, true);
    let twice = data.schema.contains(&Schema::Updated(context.deployment()));
    place.update = Some(session);
    if half_written {
        inner.blame(context, "half-written data was migrated");
    }
    if twice {
        inner.blame(context, "the same data was migrated twice");
    }
    Ok(session)
}

/// The application opens its data when it is started for the first time: it may change the schema.
fn open_data(inner: &mut Inner, context: &Context, instance: &Instance) {
    let mark = Schema::Started(context.deployment());
    let place = inner.place(context, &instance.name);
    let Some(process) = place.processes.iter_mut().find(|process| process.down.is_none()) else { return };
    if std::mem::replace(&mut process.opened, true) {
        return;
    }
    let data = place.data.get_or_insert_default();
    let (half_written, twice) = (data.half_written, data.schema.contains(&mark));
    data.schema.push(mark);
    if half_written {
        inner.blame(context, "the new release was started on half-written data");
    }
    if twice {
        inner.blame(context, "the release was started twice on the same data");
    }
}

/// Starts what was kept, or makes it anew; both have a name of their own, as a process that is started again has. By
/// then it belongs to no deployment that could withdraw it.
fn revive_in(
    place: &mut Place,
    context: &Context,
    live: &LiveInstance,
    release: &Release,
    number: u64,
) -> Started {
    let before = &live.started.reference;
    let reference = format!("revived-{}-{}-{number}", live.instance.name, context.fence());
    place.data.get_or_insert_with(Data::default);
    let Some(process) = place.processes.iter_mut().find(|process| process.is_of(before)) else {
        let sha = release.commit.sha.clone();
        let mut process = Running::new(reference.clone(), release.built_by, context.fence(), sha);
        process.revived_from = Some(before.clone());
        place.processes.push(process);
        return Started::new(reference);
    };
    if process.down.take().is_some() {
        process.checks = 0;
        process.revived_from = Some(before.clone());
        process.reference = reference;
    }
    Started::new(process.reference.clone())
}
