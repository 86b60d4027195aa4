use std::{env, path::Path, time::Duration};

use ocore_core::{
    deployment::Deployment,
    engine::{EngineError, Resolution, RollbackRequest},
    environment::{Environment, EnvironmentSpec, InstanceSpec},
    event::{EventKind, LogLine},
    id::{DeploymentId, EventSeq},
    machine::Status,
    name::EnvironmentName,
    port::EnvironmentRecord,
    request::{DeployRequest, Revision},
};
use ocore_examples::{
    Result, history as shown, http,
    progress::{Lines, follow, say},
    teardown,
    work::{Ended, until_done},
};

use crate::{arguments::Deploy, home::Home};

const INSTANCE: &str = "web";
const HEALTH_SECONDS: u64 = 60;

type Done = Result<Ended<Option<Deployment>>>;

pub(crate) async fn deploy(home: &Home, asked: &Deploy) -> Done {
    work(home, async {
        finish_what_was_left(home).await?;
        let record = existing(home).await?;
        let environment = home.engine.save_environment(specify(home, asked, record.as_ref())?).await?;
        let deployed = deploy_to(home, asked, &environment).await;
        if let Some(record) = &record
            && !deployed.as_ref().is_ok_and(|it| it.status() == Status::Running)
        {
            // Later calls, and rollbacks, go by what has worked.
            home.engine.save_environment(specify(home, &Deploy::default(), Some(record))?).await?;
        }
        deployed.map(Some)
    })
    .await
}

async fn deploy_to(home: &Home, asked: &Deploy, environment: &Environment) -> Result<Deployment> {
    let mut request = DeployRequest::manual(home.name()).actor(user());
    if let Some(text) = &asked.reference {
        request = request.revision(revision(environment.repository(), text)?);
    }
    let accepted = home.engine.deploy(request).await?;
    say(format!("deployment {} of {}", accepted.id.short(), environment.repository()));
    let deployment = follow(&home.engine, accepted.id, Lines::Programs).await?;
    if let Some(port) = environment.instances().first().and_then(|instance| instance.port)
        && deployment.live().is_some()
    {
        say(format!("  http://127.0.0.1:{port}{}", environment.policy().health.path));
    }
    Ok(deployment)
}

pub(crate) async fn roll_back(home: &Home, id: &str, code_only: bool) -> Done {
    let id = shown::find(&home.engine, home.name(), id).await?;
    work(home, async {
        finish_what_was_left(home).await?;
        let mut request = RollbackRequest::to(id).actor(user());
        if code_only {
            request = request.code_only();
        }
        let (accepted, preview) = home.engine.roll_back(request).await?;
        say(format!(
            "deployment {}: rollback to {} ({})",
            accepted.id.short(),
            id.short(),
            preview.commit.short()
        ));
        say(format!("  {}", shown::loss(&preview.loss)));
        follow(&home.engine, accepted.id, Lines::Programs).await.map(Some)
    })
    .await
}

/// Exit code 0 if it ended by the cancel.
pub(crate) async fn cancel(home: &Home, id: &str) -> Result<u8> {
    let id = shown::find(&home.engine, home.name(), id).await?;
    home.engine.cancel(id, user()).await?;
    let ended = work(home, follow(&home.engine, id, Lines::None)).await?;
    Ok(match ended {
        Ended::Done(deployment) if deployment.live().is_some() => crate::FAILED,
        Ended::Done(_) => 0,
        Ended::Interrupted => crate::INTERRUPTED,
    })
}

pub(crate) async fn resolve(home: &Home, acknowledge: bool) -> Done {
    let resolution = if acknowledge { Resolution::Acknowledge } else { Resolution::Resume };
    let Some(accepted) = home.engine.resolve(home.name(), resolution, user()).await? else {
        say("noted: the environment goes on as it is");
        return Ok(Ended::Done(None));
    };
    let recovery = work(home, follow(&home.engine, accepted.id, Lines::Programs)).await?;
    Ok(match recovery {
        // A recovery never ends Running: it has done its work when nothing needs attention any more.
        Ended::Done(_) if home.engine.environment(home.name()).await?.attention.is_none() => {
            Ended::Done(None)
        }
        Ended::Done(deployment) => Ended::Done(Some(deployment)),
        Ended::Interrupted => Ended::Interrupted,
    })
}

pub(crate) async fn history(home: &Home) -> Result<()> {
    say(shown::table(&home.engine, home.name()).await?.to_string());
    Ok(())
}

pub(crate) async fn status(home: &Home) -> Result<()> {
    let record = home.engine.environment(home.name()).await?;
    let environment = &record.environment;
    say(format!("{} of {}", environment.name(), environment.repository()));
    match &record.live {
        None => say("  live: nothing"),
        Some(live) => {
            let commit = &live.release.commit;
            say(format!("  live: {} ({} {})", live.deployment.short(), commit.short(), commit.summary));
            for instance in live.instances.values().filter_map(|it| it.instance.port) {
                let path = &environment.policy().health.path;
                let answer = http::get(instance, path)
                    .map_or_else(|error| error.to_string(), |_| "it answers".to_owned());
                say(format!("  http://127.0.0.1:{instance}{path}: {answer}"));
            }
        }
    }
    if let Some(active) = record.active {
        let step = home.engine.deployment(active).await?.step();
        say(format!(
            "  under way: {}{}",
            active.short(),
            step.map(|step| format!(" ({step})")).unwrap_or_default()
        ));
    }
    say(format!("  waiting: {}", record.queued));
    if let Some(stranded) = record.attention {
        say(format!("  needs attention: {} could not be undone; see `deploy logs {0}`", stranded.short()));
    }
    Ok(())
}

/// With `follow` it works as well: a deployment that nobody goes on with would never end.
pub(crate) async fn logs(home: &Home, id: &str, follow: bool) -> Result<u8> {
    let id = shown::find(&home.engine, home.name(), id).await?;
    let show = |line: &LogLine| say(format!("{:<9} {}", line.step, line.text));
    if !follow {
        home.engine.logs(id, EventSeq::default()).await?.iter().for_each(|(_, line)| show(line));
        return Ok(0);
    }
    let followed = work(home, async {
        let mut watch = home.engine.watch(id).await?;
        while let Some(event) = watch.next().await? {
            if let EventKind::Log(line) = event.kind {
                show(&line);
            }
        }
        Ok(())
    });
    Ok(if followed.await? == Ended::Interrupted { crate::INTERRUPTED } else { 0 })
}

pub(crate) async fn stop(home: &Home) -> Result<()> {
    let record = home.engine.environment(home.name()).await?;
    if let Some(active) = record.active {
        return Err(format!("deployment {} is not over: cancel it, or deploy, first", active.short()).into());
    }
    teardown::stop_environment(&record, &home.runtime).await?;
    say(format!("{} is stopped", record.environment.name()));
    Ok(())
}

/// Works until the task is done, and nothing else is under way any more: a worker takes what it finds in any
/// environment, and must not leave that half done.
async fn work<T>(home: &Home, task: impl Future<Output = Result<T>>) -> Result<Ended<T>> {
    until_done(&home.engine, async {
        let done = task.await;
        for record in home.engine.environments().await? {
            let name = record.environment.name();
            while let Some(id) = unfinished(home, name).await? {
                say(format!("deployment {} of {name} is not over; going on until it is", id.short()));
                follow(&home.engine, id, Lines::None).await?;
            }
        }
        done
    })
    .await
}

/// Follows to its end what is under way in the environment: left by a call before, or asked for in another terminal.
async fn finish_what_was_left(home: &Home) -> Result<()> {
    let Some(record) = existing(home).await? else { return Ok(()) };
    while let Some(id) = unfinished(home, &home.environment).await? {
        say(format!("deployment {} is not over; going on with it first", id.short()));
        follow(&home.engine, id, Lines::Programs).await?;
    }
    let Some(stranded) = home.engine.environment(record.environment.name().as_str()).await?.attention else {
        return Ok(());
    };
    let id = stranded.short();
    Err(format!(
        "deployment {id} could not be undone, and needs attention: see `deploy logs {id}`, then `deploy resolve`"
    )
    .into())
}

/// The first deployment of an environment that can go on.
async fn unfinished(home: &Home, name: &EnvironmentName) -> Result<Option<DeploymentId>> {
    let record = home.engine.environment(name.as_str()).await?;
    let stands = record.queued == 0 || record.paused || record.attention.is_some();
    if record.active.is_some() || stands {
        return Ok(record.active);
    }
    let deployments = shown::deployments(&home.engine, name.as_str()).await?;
    Ok(deployments.iter().find(|it| it.outcome().is_none()).map(|it| it.id))
}

async fn existing(home: &Home) -> Result<Option<EnvironmentRecord>> {
    match home.engine.environment(home.name()).await {
        Ok(record) => Ok(Some(record)),
        Err(EngineError::NoSuchEnvironment { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The environment as it is asked for, over what is remembered, over the defaults.
fn specify(home: &Home, asked: &Deploy, known: Option<&EnvironmentRecord>) -> Result<EnvironmentSpec> {
    let known = known.map(|record| &*record.environment);
    let repository = match (&asked.repository, known) {
        (Some(repository), _) => absolute(repository)?,
        (None, Some(known)) => known.repository().to_owned(),
        (None, None) => {
            return Err("give --repository: nothing was deployed to this environment so far".into());
        }
    };
    let before = known.and_then(|known| known.instances().first());
    let port = asked.port.or_else(|| before?.port).map_or_else(http::free_port, Ok)?;
    let data = asked.data_directory.as_ref().map(std::path::absolute).transpose()?;
    let data = data.or_else(|| before?.data_directory.clone());
    let data = data.unwrap_or_else(|| home.directory.join("data").join(home.name()));
    let instance = InstanceSpec::new(INSTANCE).port(port).data_directory(data);
    let spec = EnvironmentSpec::new(home.name(), repository).instance(instance);
    Ok(spec.policy(|policy| {
        match known {
            Some(known) => policy.clone_from(known.policy()),
            None => policy.health.deadline = Duration::from_secs(HEALTH_SECONDS),
        }
        if let Some(path) = &asked.health_path {
            policy.health.path.clone_from(path);
        }
        if let Some(seconds) = asked.health_seconds {
            policy.health.deadline = Duration::from_secs(seconds);
        }
    }))
}

/// A path becomes absolute, so that it means the same from everywhere; a URL stays as it is.
fn absolute(repository: &str) -> Result<String> {
    // `host:path` is git's short form of an ssh URL, unless a slash comes first.
    let is_path = !repository.split('/').next().unwrap_or_default().contains(':');
    if !is_path || repository.is_empty() {
        return Ok(repository.to_owned());
    }
    let path = std::path::absolute(repository)?;
    path.into_os_string().into_string().map_err(|path| format!("{} is no UTF-8 text", path.display()).into())
}

fn revision(repository: &str, text: &str) -> Result<Revision> {
    if let Some(tag) = text.strip_prefix("refs/tags/") {
        return Ok(Revision::Tag(tag.to_owned()));
    }
    if let Some(branch) = text.strip_prefix("refs/heads/") {
        return Ok(Revision::Branch(branch.to_owned()));
    }
    if Path::new(repository).is_dir()
        && let Ok(repository) = git2::Repository::open(repository)
    {
        let has = |prefix: &str| repository.find_reference(&format!("{prefix}{text}")).is_ok();
        if has("refs/heads/") {
            return Ok(Revision::Branch(text.to_owned()));
        }
        if has("refs/tags/") {
            return Ok(Revision::Tag(text.to_owned()));
        }
    }
    let is_id = (7..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    Ok(if is_id { Revision::Commit(text.to_owned()) } else { Revision::Branch(text.to_owned()) })
}

/// Who asks, for the history.
fn user() -> String {
    let name = env::var("USER").or_else(|_| env::var("LOGNAME")).unwrap_or_default();
    if name.is_empty() { "deploy".to_owned() } else { name.chars().take(100).collect() }
}
