//! Doing a step, for all instances of the environment at the same time, up to the environment's limit.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};

use super::{
    call::Caller,
    healthy::{Sick, is_seen_up, sick},
};
use crate::{
    deployment::{Deployment, between},
    environment::{Instance, Policy},
    failure::{Failure, FailureClass},
    machine::{
        Aim, Build, Fetch, Fold, Job, Locate, Located, Probe, Report, Restore, Revive, Snapshot, Start, Stop,
        Stopped, Update, Withdraw,
    },
    name::InstanceName,
    port::SnapshotRecord,
    release::{Commit, Image, LiveInstance, Window},
};

/// A step that the engine knows how to do.
pub(super) trait Perform: Fold {
    /// One attempt.
    fn perform(&self, caller: &Caller) -> impl Future<Output = Report<Self::Evidence, Self::Kept>> + Send;

    /// Writes what was found into the record, for its readers. Returns the instances whose snapshot, or its window, is
    /// new.
    fn record(
        &self,
        _report: &Report<Self::Evidence, Self::Kept>,
        _deployment: &mut Deployment,
    ) -> Vec<InstanceName> {
        Vec::new()
    }
}

impl Caller {
    pub(super) fn policy(job: &Job) -> &Policy {
        job.environment.policy()
    }

    /// Works on several instances at the same time; gathers what was done and what failed.
    async fn each<T: Send>(
        &self,
        job: &Job,
        work: Vec<BoxFuture<'_, (InstanceName, Result<T, Failure>)>>,
    ) -> (BTreeMap<InstanceName, T>, Vec<Failure>) {
        let limit = Self::policy(job).parallel_instances;
        let mut results = stream::iter(work).buffer_unordered(limit);
        let (mut done, mut failures) = (BTreeMap::new(), Vec::new());
        while let Some((name, result)) = results.next().await {
            match result {
                Ok(evidence) => drop(done.insert(name, evidence)),
                Err(failure) => failures.push(failure.of(&name)),
            }
        }
        (done, failures)
    }
}

/// One instance's part of a step.
fn part<'a, T>(
    name: &InstanceName,
    call: impl Future<Output = Result<T, Failure>> + Send + 'a,
) -> BoxFuture<'a, (InstanceName, Result<T, Failure>)> {
    let name = name.clone();
    call.map(|result| (name, result)).boxed()
}

fn report<Evidence, Kept>(
    done: BTreeMap<InstanceName, Evidence>,
    failures: Vec<Failure>,
    finish: impl FnOnce(BTreeMap<InstanceName, Evidence>) -> Kept,
) -> Report<Kept, Kept> {
    let kept = finish(done);
    if failures.is_empty() { Report::Done(kept) } else { Report::Failed { kept, failures } }
}

fn single<Evidence>(result: Result<Evidence, Failure>) -> Report<Evidence> {
    match result {
        Ok(evidence) => Report::Done(evidence),
        Err(failure) => Report::Failed { kept: (), failures: vec![failure] },
    }
}

/// For steps whose success needs no evidence, but whose failure keeps the names of what was done.
fn names(done: BTreeMap<InstanceName, ()>, mut failures: Vec<Failure>) -> Report<(), BTreeSet<InstanceName>> {
    if planted!(SwallowUnanswered) {
        failures.retain(|failure| failure.class != FailureClass::Unanswered);
    }
    if failures.is_empty() {
        Report::Done(())
    } else {
        Report::Failed { kept: done.into_keys().collect(), failures }
    }
}

fn all_or_nothing(failures: Vec<Failure>) -> Report<()> {
    if failures.is_empty() { Report::Done(()) } else { Report::Failed { kept: (), failures } }
}

impl Perform for Locate {
    async fn perform(&self, caller: &Caller) -> Report<Located> {
        single(locate(self, caller).await)
    }

    fn record(&self, report: &Report<Located>, deployment: &mut Deployment) -> Vec<InstanceName> {
        if let Report::Done(found) = report {
            deployment.commit = Some(found.release.commit.clone());
            if found.image_present {
                deployment.image = Some(found.release.image.clone());
            }
        }
        Vec::new()
    }
}

async fn locate(state: &Locate, caller: &Caller) -> Result<Located, Failure> {
    let job = state.job();
    let permanent = |message: String| caller.fail(FailureClass::Permanent, message, Vec::new());
    let Aim::Rollback { to, .. } = job.aim else {
        return Err(permanent("only a rollback locates an earlier release".to_owned()));
    };
    let live = job.previous.as_ref().is_some_and(|live| live.deployment == to);
    if live && job.acknowledged.is_empty() {
        return Err(permanent(format!("{to} is live already: there is nothing to do")));
    }
    let target = caller.read(caller.shared.store.deployment(to)).await?;
    let target = target.filter(|target| target.environment == *job.environment.name());
    let Some((target, release)) =
        target.as_ref().and_then(|it| Some((it, it.live()?.release.as_ref().clone())))
    else {
        return Err(permanent(format!("{to} was never live in this environment")));
    };
    let load = if state.with_data() {
        let data = caller.read(caller.shared.data_of(target, &job.environment, &job.acknowledged)).await?;
        Some(data.map_err(permanent)?.snapshots)
    } else {
        None
    };
    let context = caller.context(job);
    let deadline = Caller::policy(job).deadlines.start;
    let image = caller.shared.builder.locate(&context, &release.image);
    let present = caller.answer(&context, deadline, image).await?;
    Ok(Located::new(release, present, load))
}

impl Perform for Fetch {
    async fn perform(&self, caller: &Caller) -> Report<Commit> {
        let context = caller.context(self.job());
        let deadline = Caller::policy(self.job()).deadlines.fetch;
        let call = caller.shared.source.fetch(&context, self.revision());
        let commit = caller.answer(&context, deadline, call).await;
        single(commit.map(|commit| commit.printable(&caller.shared.redactor)))
    }

    fn record(&self, report: &Report<Commit>, deployment: &mut Deployment) -> Vec<InstanceName> {
        if let Report::Done(commit) = report {
            deployment.commit = Some(commit.clone());
        }
        Vec::new()
    }
}

impl Perform for Build {
    async fn perform(&self, caller: &Caller) -> Report<Image> {
        single(build(self, caller).await)
    }

    fn record(&self, report: &Report<Image>, deployment: &mut Deployment) -> Vec<InstanceName> {
        if let Report::Done(image) = report {
            deployment.image = Some(image.clone());
        }
        Vec::new()
    }
}

/// The checkout is made anew for each attempt: the worker that fetched may have been another machine's.
async fn build(state: &Build, caller: &Caller) -> Result<Image, Failure> {
    let shared = &caller.shared;
    let deadlines = &Caller::policy(state.job()).deadlines;
    let context = caller.context(state.job());
    let checkout = shared.source.checkout(&context, state.commit());
    let checkout = caller.answer(&context, deadlines.fetch, checkout).await?;
    let context = caller.context(state.job());
    let image = caller.answer(&context, deadlines.build, shared.builder.build(&context, &checkout)).await;
    let context = caller.context(state.job());
    let discard = shared.source.discard(&context, checkout);
    if let Err(failure) = caller.answer(&context, deadlines.start, discard).await {
        // What is left over is removed by the next checkout of this deployment; the image counts.
        context.log(format!("the checkout could not be removed: {}", failure.message));
    }
    image
}

impl Perform for Snapshot {
    async fn perform(&self, caller: &Caller) -> Report<Self::Evidence, Self::Kept> {
        let job = self.job();
        let deadline = Caller::policy(job).deadlines.snapshot;
        let missing = job.environment.instances().iter().filter(|it| !self.taken().contains_key(&it.name));
        let work = missing.map(|instance| {
            part(&instance.name, async move {
                let context = caller.context(job).for_instance(&instance.name);
                let take = caller.shared.snapshotter.take(&context, instance);
                caller.answer(&context, deadline, take).await
            })
        });
        let (taken, failures) = caller.each(job, work.collect()).await;
        report(taken, failures, |taken| taken)
    }

    fn record(
        &self,
        report: &Report<Self::Evidence, Self::Kept>,
        deployment: &mut Deployment,
    ) -> Vec<InstanceName> {
        let (Report::Done(taken) | Report::Failed { kept: taken, .. }) = report;
        deployment.snapshots.extend(taken.clone());
        if self.is_without_window() {
            deployment.windows.extend(taken.keys().map(|name| (name.clone(), Window::Empty)));
        }
        taken.keys().cloned().collect()
    }
}

impl Perform for Stop {
    async fn perform(&self, caller: &Caller) -> Report<Stopped, BTreeSet<InstanceName>> {
        let job = self.job();
        if planted!(StopSkipped) {
            return Report::Done(Stopped::default());
        }
        let deadline = Caller::policy(job).deadlines.stop;
        let serving = job.previous.iter().flat_map(|live| &live.instances);
        let work = serving.filter(|(name, _)| !self.stopped().contains(*name)).map(|(name, live)| {
            part(name, async move {
                let context = caller.context(job).for_instance(name);
                caller.answer(&context, deadline, caller.shared.runtime.stop(&context, live)).await
            })
        });
        let (stopped, mut failures) = caller.each(job, work.collect()).await;
        failures.extend(withdraw_acknowledged(job, caller).await);
        if failures.is_empty() {
            Report::Done(Stopped::new(windows(self, caller).await))
        } else {
            Report::Failed { kept: stopped.into_keys().collect(), failures }
        }
    }

    fn record(
        &self,
        report: &Report<Stopped, BTreeSet<InstanceName>>,
        deployment: &mut Deployment,
    ) -> Vec<InstanceName> {
        let Report::Done(stopped) = report else { return Vec::new() };
        deployment.windows.extend(stopped.windows.clone());
        stopped.windows.keys().cloned().collect()
    }
}

/// Withdraws what still runs of stranded deployments that were acknowledged, in their names.
async fn withdraw_acknowledged(job: &Job, caller: &Caller) -> Vec<Failure> {
    let mut failures = Vec::new();
    for id in &job.acknowledged {
        let stranded = match caller.read(caller.shared.stranded(*id)).await {
            Ok(stranded) => stranded,
            Err(failure) => return vec![failure],
        };
        // What cannot be found any more has no name to be withdrawn by.
        let Some(stranded) = stranded else { continue };
        let deadline = Caller::policy(job).deadlines.start;
        let work = stranded.environment.instances().iter().map(|instance| {
            let context = caller.context(&stranded).for_instance(&instance.name);
            part(&instance.name, async move {
                caller.answer(&context, deadline, caller.shared.runtime.withdraw(&context, instance)).await
            })
        });
        failures.extend(caller.each(job, work.collect()).await.1);
    }
    failures
}

/// Whether something was written between each snapshot and the stop. What cannot be told counts as written.
async fn windows(state: &Stop, caller: &Caller) -> BTreeMap<InstanceName, Window> {
    let job = state.job();
    let deadline = Caller::policy(job).deadlines.start;
    let now = caller.shared.executor.utc();
    let snapshots = state.snapshots().into_iter().flatten();
    let work = snapshots.filter_map(|(name, snapshot)| {
        let instance = instance(job, name)?;
        Some(part(name, async move {
            let context = caller.context(job).for_instance(name);
            let changed = caller.shared.snapshotter.changed_since(&context, instance, snapshot);
            let changed = caller.answer(&context, deadline, changed).await.unwrap_or(true);
            Ok(if changed && !planted!(WindowAlwaysEmpty) {
                Window::Open(between(snapshot.taken_at, now))
            } else {
                Window::Empty
            })
        }))
    });
    caller.each(job, work.collect()).await.0
}

fn instance<'a>(job: &'a Job, name: &InstanceName) -> Option<&'a Instance> {
    job.environment.instances().iter().find(|instance| instance.name == *name)
}

impl Perform for Restore {
    async fn perform(&self, caller: &Caller) -> Report<(), BTreeSet<InstanceName>> {
        let job = self.job();
        let data = self.data();
        let deadline = Caller::policy(job).deadlines.restore;
        let instances = if planted!(RestoreFirstOnly) { 1 } else { usize::MAX };
        let work = data.iter().take(instances).filter(|(name, _)| !self.restored().contains(*name));
        let work = work.filter_map(|(name, snapshot)| {
            // An instance that the environment does not have any more has no data to put back.
            let instance = instance(job, name)?;
            Some(part(name, async move {
                let context = caller.context(job).for_instance(name);
                let restore = caller.shared.snapshotter.restore(&context, instance, snapshot);
                caller.answer(&context, deadline, restore).await
            }))
        });
        let (restored, failures) = caller.each(job, work.collect()).await;
        names(restored, failures)
    }

    fn record(
        &self,
        report: &Report<(), BTreeSet<InstanceName>>,
        deployment: &mut Deployment,
    ) -> Vec<InstanceName> {
        if self.puts_back() {
            match report {
                Report::Done(()) => deployment.restored.extend(self.data().keys().cloned()),
                Report::Failed { kept, .. } => deployment.restored.extend(kept.iter().cloned()),
            }
        }
        Vec::new()
    }
}

impl Perform for Update {
    async fn perform(&self, caller: &Caller) -> Report<()> {
        let (job, release) = (self.job(), &self.cutover().release);
        let deadline = Caller::policy(job).deadlines.update;
        let work = job.environment.instances().iter().map(|instance| {
            part(&instance.name, async move {
                let context = caller.context(job).for_instance(&instance.name);
                let update = caller.shared.runtime.update(&context, instance, release);
                caller.answer(&context, deadline, update).await
            })
        });
        all_or_nothing(caller.each(job, work.collect()).await.1)
    }
}

impl Perform for Start {
    async fn perform(&self, caller: &Caller) -> Report<Self::Evidence, Self::Kept> {
        let (job, release) = (self.job(), &self.cutover().release);
        let deadline = Caller::policy(job).deadlines.start;
        let missing = job.environment.instances().iter().filter(|it| !self.started().contains_key(&it.name));
        let work = missing.map(|instance| {
            part(&instance.name, async move {
                let context = caller.context(job).for_instance(&instance.name);
                let start = caller.shared.runtime.start(&context, instance, release);
                caller.answer(&context, deadline, start).await
            })
        });
        let (started, failures) = caller.each(job, work.collect()).await;
        report(started, failures, |started| started)
    }
}

impl Perform for Probe {
    async fn perform(&self, caller: &Caller) -> Report<()> {
        let job = self.job();
        if planted!(RunningBeforeObserved) {
            return Report::Done(());
        }
        let instances = job.environment.instances().iter();
        let started: Vec<_> = instances.filter_map(|it| Some((it, self.started().get(&it.name)?))).collect();
        let sick = sick(caller, job, &started).await;
        if planted!(OneHealthyIsEnough) && sick.len() < started.len() {
            return Report::Done(());
        }
        all_or_nothing(sick.into_iter().map(|(name, sick)| sick.failure().of(&name)).collect())
    }
}

impl Perform for Withdraw {
    async fn perform(&self, caller: &Caller) -> Report<(), BTreeSet<InstanceName>> {
        let job = self.job();
        if planted!(WithdrawSkipped) {
            return Report::Done(());
        }
        let deadline = Caller::policy(job).deadlines.start;
        let missing = job.environment.instances().iter().filter(|it| !self.withdrawn().contains(&it.name));
        let work = missing.map(|instance| {
            part(&instance.name, async move {
                let context = caller.context(job).for_instance(&instance.name);
                caller.answer(&context, deadline, caller.shared.runtime.withdraw(&context, instance)).await
            })
        });
        let (withdrawn, failures) = caller.each(job, work.collect()).await;
        names(withdrawn, failures)
    }
}

impl Perform for Revive {
    /// Revives all instances, those too that an earlier attempt revived: what runs goes on. Then it waits until they
    /// are healthy. One that has ended is revived again by the next attempt; one that runs but does not become healthy
    /// is what there was before, and no reason to leave the environment to a person. To run it must have been seen.
    async fn perform(&self, caller: &Caller) -> Report<Self::Evidence, Self::Kept> {
        let (job, previous) = (self.job(), self.previous());
        let deadline = Caller::policy(job).deadlines.start;
        let work = previous.instances.iter().map(|(name, live): (_, &LiveInstance)| {
            part(name, async move {
                let context = caller.context(job).for_instance(name);
                let revive = caller.shared.runtime.revive(&context, live, &previous.release);
                caller.answer(&context, deadline, revive).await
            })
        });
        let (mut revived, mut failures) = caller.each(job, work.collect()).await;
        if failures.is_empty() && !planted!(RevivedUnseen) {
            let instances = previous.instances.iter();
            let started: Vec<_> =
                instances.filter_map(|(name, live)| Some((&live.instance, revived.get(name)?))).collect();
            let mut gone = Vec::new();
            for (name, sick) in sick(caller, job, &started).await {
                let is_up =
                    matches!(sick, Sick::NotHealthy(_)) && is_seen_up(caller, job, &started, &name).await;
                let failure = sick.failure();
                if is_up {
                    let context = caller.context(job).for_instance(&name);
                    context.log(format!("what served before runs again, but: {}", failure.message));
                } else {
                    gone.push((name, failure));
                }
            }
            for (name, failure) in gone {
                revived.remove(&name);
                failures.push(Failure { class: FailureClass::Transient, ..failure }.of(&name));
            }
        }
        report(revived, failures, |revived| revived)
    }
}

/// The snapshots of a map, for the store's own list.
pub(super) fn snapshot_records(deployment: &Deployment, names: Vec<InstanceName>) -> Vec<SnapshotRecord> {
    let record = |name: InstanceName| {
        let snapshot = deployment.snapshots.get(&name)?.clone();
        let window = deployment.windows.get(&name).copied();
        let environment = deployment.environment.clone();
        Some(SnapshotRecord::new(environment, deployment.id, name, snapshot, window))
    };
    names.into_iter().filter_map(record).collect()
}
