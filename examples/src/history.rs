//! The history as a table, and one deployment in words.

use std::{fmt::Write as _, time::Duration};

use comfy_table::{Table, presets};
use ocore_core::{
    deployment::Deployment,
    engine::{Engine, Loss},
    id::DeploymentId,
    machine::{Serving, Status},
    port::Filter,
    request::{Goal, RollbackMode},
};

use crate::Result;

/// How many deployments a table shows, and how many are looked through for the end of an id.
const LENGTH_MAX: usize = 1000;

/// An environment's deployments, oldest first; at most the 1,000 newest.
///
/// # Errors
/// There is no such environment, or the store fails.
pub async fn deployments(engine: &Engine, environment: &str) -> Result<Vec<Deployment>> {
    let record = engine.environment(environment).await?;
    let filter = Filter::environment(record.environment.name().clone());
    let mut deployments = engine.history(&filter, None, LENGTH_MAX).await?.deployments;
    deployments.reverse();
    Ok(deployments)
}

/// The history of an environment as a table, oldest first; a star marks what is live.
///
/// # Errors
/// There is no such environment, or the store fails.
pub async fn table(engine: &Engine, environment: &str) -> Result<Table> {
    let record = engine.environment(environment).await?;
    let live = record.live.filter(|_| record.attention.is_none()).map(|live| live.deployment);
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "id",
        "requested",
        "asked for",
        "by",
        "commit",
        "status",
        "serving",
        "waited",
        "build",
        "deploy",
        "downtime",
    ]);
    for it in deployments(engine, environment).await? {
        let timings = it.timings;
        let mark = if live == Some(it.id) { " *" } else { "" };
        table.add_row([
            it.id.short() + mark,
            it.requested_at.format("%m-%d %H:%M:%S").to_string(),
            asked_for(&it),
            it.request.actor.clone(),
            it.commit
                .as_ref()
                .map(|commit| format!("{} {}", commit.short(), cut(&commit.summary, 32)))
                .unwrap_or_default(),
            it.status().to_string(),
            it.serving().map(serving).unwrap_or_default().to_owned(),
            seconds(timings.queue_wait),
            seconds(timings.build),
            seconds(timings.deployment),
            seconds(timings.downtime),
        ]);
    }
    Ok(table)
}

/// The deployment with this id, or the one of the environment whose id ends so: at least four digits.
///
/// # Errors
/// There is none, or there are several.
pub async fn find(engine: &Engine, environment: &str, id: &str) -> Result<DeploymentId> {
    if let Ok(id) = id.parse::<DeploymentId>() {
        return Ok(engine.deployment(id).await?.id);
    }
    let shown: String = id.chars().take(40).collect();
    if id.len() < 4 || id.len() > 32 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(format!(
            "{shown:?} is no id: give one of the history, or the last four or more digits of one"
        )
        .into());
    }
    let end = id.to_ascii_lowercase();
    let found = deployments(engine, environment).await?.into_iter().map(|it| it.id);
    let found: Vec<_> = found.filter(|id| id.to_string().replace('-', "").ends_with(&end)).collect();
    match found[..] {
        [id] => Ok(id),
        [] => {
            Err(format!("no deployment of {environment} has an id that ends with {shown}; see the history")
                .into())
        }
        _ => Err(format!("{} ids end with {shown}: give more digits", found.len()).into()),
    }
}

/// How a deployment ended, in one line, and for one that did not end Running the reason and its evidence.
#[must_use]
pub fn outcome(deployment: &Deployment) -> String {
    let timings = deployment.timings;
    let took = timings.build + timings.deployment;
    let mut text =
        format!("{} after {}, downtime {}", deployment.status(), seconds(took), seconds(timings.downtime));
    if deployment.status() != Status::Running
        && let Some(serving) = deployment.serving()
    {
        let _infallible = write!(text, "; serving: {}", self::serving(serving));
    }
    let reasons = [("reason", deployment.failure()), ("could not be undone", deployment.undo_failure())];
    for (what, failure) in reasons.into_iter().filter_map(|(what, failure)| Some((what, failure?))) {
        let _infallible = write!(text, "\n  {what}: {failure}");
        for line in &failure.detail {
            let _infallible = write!(text, "\n    | {}", line.trim_end());
        }
    }
    for (name, window) in deployment.lost_writes() {
        let window = seconds(window);
        let _infallible =
            write!(text, "\n  lost: what {name} wrote in the {window} between snapshot and stop");
    }
    if let Some(by) = deployment.superseded_by() {
        let _infallible = write!(text, "\n  reason: superseded by {}", by.short());
    }
    text
}

/// What a rollback will lose, in one line.
#[must_use]
pub fn loss(loss: &Loss) -> String {
    match loss {
        Loss::SaidBefore => "it was accepted before: what will be lost was said then".to_owned(),
        Loss::Nothing => "nothing will be lost: the data stays as it is".to_owned(),
        Loss::Since { moments, .. } => match moments.values().min() {
            Some(moment) => {
                format!("what was written since {} will be lost", moment.format("%Y-%m-%d %H:%M:%S UTC"))
            }
            None => "nothing will be lost: there is no data".to_owned(),
        },
        _ => "what was written since the next deployment will be lost".to_owned(),
    }
}

/// A duration in seconds.
#[must_use]
pub fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

const fn serving(serving: Serving) -> &'static str {
    match serving {
        Serving::New => "this",
        Serving::Previous => "the previous",
        Serving::Unchanged => "unchanged",
        _ => "nothing",
    }
}

fn asked_for(deployment: &Deployment) -> String {
    match &deployment.request.goal {
        Goal::Deploy(revision) => revision.to_string(),
        Goal::Rollback { to, mode: RollbackMode::CodeOnly } => {
            format!("rollback to {}, code only", to.short())
        }
        Goal::Rollback { to, .. } => format!("rollback to {}", to.short()),
        _ => deployment.request.trigger.kind().to_owned(),
    }
}

fn cut(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    text.chars().take(length - 1).chain(['…']).collect()
}
