//! Looking at instances that were started, until they are healthy or never will be.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;

use super::call::Caller;
use crate::{
    environment::Instance,
    failure::{Failure, FailureClass},
    health::{HealthWatch, Verdict},
    machine::Job,
    name::InstanceName,
    port::{Check, Observation},
    release::Started,
};

/// How many lines of an instance's own log join a failure.
const LOG_TAIL_LINES: usize = 50;

/// Why an instance is not healthy.
pub(super) enum Sick {
    /// It has ended.
    Ended(Failure),
    /// It runs, but does not answer as it should.
    NotHealthy(Failure),
}

impl Sick {
    pub(super) fn failure(self) -> Failure {
        let (Self::Ended(failure) | Self::NotHealthy(failure)) = self;
        failure
    }
}

/// Waits until all of these are healthy, and returns those that are not. One deadline for everything: all are watched
/// at the same time, however many they are.
pub(super) async fn sick(
    caller: &Caller,
    job: &Job,
    started: &[(&Instance, &Started)],
) -> BTreeMap<InstanceName, Sick> {
    let began = caller.shared.executor.now();
    let watched = started.iter().map(async |(instance, started)| {
        (instance.name.clone(), healthy(caller, job, instance, started, began).await.err())
    });
    let sick = found(join_all(watched).await);
    if !sick.is_empty() {
        return sick;
    }
    // The first to be healthy may have gone while the last was waited for: what is claimed is looked at once more, all
    // at one time.
    let looked = started.iter().map(async |(instance, started)| {
        (instance.name.clone(), still_up(caller, job, instance, started).await.err())
    });
    found(join_all(looked).await)
}

fn found(looked: Vec<(InstanceName, Option<Sick>)>) -> BTreeMap<InstanceName, Sick> {
    looked.into_iter().filter_map(|(name, sick)| Some((name, sick?))).collect()
}

/// Checks one instance until the verdict. A verdict against it is permanent: another attempt is another deployment.
async fn healthy(
    caller: &Caller,
    job: &Job,
    instance: &Instance,
    started: &Started,
    began: Duration,
) -> Result<(), Sick> {
    let policy = &Caller::policy(job).health;
    let executor = &caller.shared.executor;
    let mut watch = HealthWatch::default();
    let mut answer = Vec::new();
    loop {
        still_up(caller, job, instance, started).await?;
        let context = caller.context(job).for_instance(&instance.name);
        let left = policy.deadline.saturating_sub(executor.now() - began);
        let timeout = policy.check_timeout.min(left.max(Duration::from_millis(1)));
        let check = caller.shared.probe.check(&context, instance, started);
        let passed = match caller.answer(&context, timeout, check).await {
            Ok(Check::Passed) => true,
            Ok(Check::Failed { reason, body }) => {
                answer = std::iter::once(reason).chain(body).collect();
                false
            }
            Err(failure) if failure.class == FailureClass::Permanent => {
                return Err(Sick::NotHealthy(failure));
            }
            // A check that the deadline has cut short says less than the answer before it.
            Err(_) if timeout < policy.check_timeout && !answer.is_empty() => false,
            Err(failure) => {
                answer = vec![failure.message];
                false
            }
        };
        match watch.observe(passed, executor.now() - began, policy) {
            Verdict::Healthy => return Ok(()),
            Verdict::Wait(wait) => executor.sleep(wait).await,
            Verdict::TimedOut => {
                let message = format!("not healthy within {} s", policy.deadline.as_secs_f64());
                let last =
                    answer.first().map_or(String::new(), |reason| format!("; the last answer: {reason}"));
                let detail = [answer, tail(caller, job, instance, started).await].concat();
                let failure = caller.fail(FailureClass::Permanent, message + &last, detail);
                return Err(Sick::NotHealthy(failure));
            }
        }
    }
}

/// An instance that has ended will not become healthy. One that cannot be looked at may.
async fn still_up(caller: &Caller, job: &Job, instance: &Instance, started: &Started) -> Result<(), Sick> {
    match look(caller, job, instance, started).await {
        Ok(Observation::Down { reason, log_tail }) => Err(Sick::Ended(caller.fail(
            FailureClass::Permanent,
            format!("it ended while it was probed: {reason}"),
            log_tail,
        ))),
        Ok(Observation::Up) | Err(_) => Ok(()),
    }
}

pub(super) async fn is_seen_up(
    caller: &Caller,
    job: &Job,
    started: &[(&Instance, &Started)],
    name: &InstanceName,
) -> bool {
    match started.iter().find(|(instance, _)| instance.name == *name) {
        Some((instance, started)) => {
            matches!(look(caller, job, instance, started).await, Ok(Observation::Up))
        }
        None => false,
    }
}

async fn look(
    caller: &Caller,
    job: &Job,
    instance: &Instance,
    started: &Started,
) -> Result<Observation, Failure> {
    let context = caller.context(job).for_instance(&instance.name);
    let timeout = Caller::policy(job).health.check_timeout;
    let inspect = caller.shared.runtime.inspect(&context, instance, started);
    caller.answer(&context, timeout, inspect).await
}

/// The last lines of the instance's own log; empty if they cannot be had.
async fn tail(caller: &Caller, job: &Job, instance: &Instance, started: &Started) -> Vec<String> {
    let context = caller.context(job).for_instance(&instance.name);
    let timeout = Caller::policy(job).health.check_timeout;
    let tail = caller.shared.runtime.tail(&context, instance, started, LOG_TAIL_LINES);
    caller.answer(&context, timeout, tail).await.unwrap_or_default()
}
