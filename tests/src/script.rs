//! The requests of a plan, as a client makes them: again and again until they are answered.

use std::{sync::Arc, time::Duration};

use futures::future::{Either, select};
use ocore_core::{
    engine::{Engine, EngineError, PinRequest, Resolution, RetryRequest, RollbackRequest},
    executor::Executor,
    id::DeploymentId,
    name::EnvironmentName,
    port::EnvironmentStore as _,
    request::{DeployRequest, Push},
};

use crate::{
    cluster::{Cluster, ELSEWHERE, ENVIRONMENT, REPOSITORY},
    plan::{Act, Kind},
    verdict::now,
};

/// How long a client waits for an answer before it asks again.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long a client waits for the environment to come to rest before it asks for more.
const SETTLE_MAX: Duration = Duration::from_secs(120);

/// Asks for everything in the script.
pub(crate) async fn run(cluster: Arc<Cluster>, client: Engine) {
    for (number, act) in cluster.plan.script.clone().into_iter().enumerate() {
        match act {
            Act::Deploy(kind) => deploy(&cluster, &client, number, kind).await,
            Act::Push(kind) => push(&cluster, &client, number, kind).await,
            Act::RollBack { to, code_only } => roll_back(&cluster, &client, number, to, code_only).await,
            Act::Cancel(of) => cancel(&cluster, &client, of).await,
            Act::Pin(of) => pin(&cluster, &client, of).await,
            Act::Elsewhere(kind) => elsewhere(&cluster, &client, number, kind).await,
            Act::Settle => settle(&cluster).await,
            Act::Wait(millis) => cluster.clock.sleep(Duration::from_millis(millis)).await,
            Act::LoseImages => cluster.world.lose_images(),
            Act::Shutdown(worker) => cluster.shut_down(worker),
            Act::Retry(of) => retry(&cluster, &client, number, of).await,
            Act::Pause => drop(insist(&cluster, || client.pause(ENVIRONMENT, "ada")).await),
            Act::Unpause => drop(insist(&cluster, || client.resume(ENVIRONMENT)).await),
            Act::EndOutage => cluster.end_outage(),
            Act::Resume => resolve(&cluster, &client, Resolution::Resume).await,
            Act::Acknowledge => resolve(&cluster, &client, Resolution::Acknowledge).await,
        }
    }
}

async fn deploy(cluster: &Arc<Cluster>, client: &Engine, number: usize, kind: Kind) {
    let sha = cluster.world.push("main", "a commit", kind.behaviour());
    let accepted = insist(cluster, || {
        let request = DeployRequest::manual(ENVIRONMENT).commit(&sha).actor("ada");
        client.deploy(request.idempotency_key(format!("act-{number}")))
    });
    if let Some(Ok(accepted)) = accepted.await {
        cluster.asked(client, number, accepted.id);
    }
}

async fn push(cluster: &Arc<Cluster>, client: &Engine, number: usize, kind: Kind) {
    let sha = cluster.world.push("main", "a commit", kind.behaviour());
    let accepted = insist(cluster, || {
        let push = Push::new(REPOSITORY, "main", &sha, format!("delivery-{number}")).actor("git");
        async { client.push(push).await?.all() }
    });
    if let Some(Ok(accepted)) = accepted.await {
        for accepted in accepted {
            cluster.asked(client, number, accepted.id);
        }
    }
}

async fn retry(cluster: &Arc<Cluster>, client: &Engine, number: usize, of: usize) {
    let Some(of) = cluster.id_of(of) else { return };
    let accepted = insist(cluster, || {
        client.retry(RetryRequest::of(of).idempotency_key(format!("act-{number}")).actor("ada"))
    });
    if let Some(Ok(accepted)) = accepted.await {
        cluster.asked(client, number, accepted.id);
    }
}

/// If there is something to resolve; otherwise this is refused.
async fn resolve(cluster: &Cluster, client: &Engine, resolution: Resolution) {
    let _answer = insist(cluster, || client.resolve(ENVIRONMENT, resolution, "operator")).await;
}

async fn roll_back(cluster: &Arc<Cluster>, client: &Engine, number: usize, to: usize, code_only: bool) {
    let Some(to) = cluster.id_of(to) else { return };
    let accepted = insist(cluster, || {
        let request = RollbackRequest::to(to).idempotency_key(format!("act-{number}")).actor("ada");
        client.roll_back(if code_only { request.code_only() } else { request })
    });
    if let Some(Ok((accepted, _))) = accepted.await {
        cluster.asked(client, number, accepted.id);
    }
}

pub(crate) async fn cancel(cluster: &Cluster, client: &Engine, of: usize) {
    if let Some(id) = cluster.id_of(of) {
        cancel_deployment(cluster, client, id).await;
    }
}

async fn pin(cluster: &Cluster, client: &Engine, of: usize) {
    if let Some(id) = cluster.id_of(of) {
        // If it is gone this is refused.
        let _answer = insist(cluster, || client.pin_snapshot(PinRequest::of(id).actor("ada"))).await;
    }
}

async fn cancel_deployment(cluster: &Cluster, client: &Engine, id: DeploymentId) {
    // Refusals are answers too.
    let _answer = insist(cluster, || client.cancel(id, "ada")).await;
}

/// Deploys in the second environment, which nothing that is wrong with the first one may delay (L2).
async fn elsewhere(cluster: &Arc<Cluster>, client: &Engine, number: usize, kind: Kind) {
    let sha = cluster.world.push(ELSEWHERE, "a commit", kind.behaviour());
    let accepted = insist(cluster, || {
        let request = DeployRequest::manual(ELSEWHERE).commit(&sha).actor("ada");
        client.deploy(request.idempotency_key(format!("act-{number}")))
    });
    if let Some(Ok(accepted)) = accepted.await {
        cluster.asked(client, number, accepted.id);
        if !wait_until(cluster, || is_quiet(cluster, ELSEWHERE)).await {
            cluster.journal().lock().blame(format!("L2: {ELSEWHERE} waits for another environment"));
        }
    }
}

/// Waits until nothing is under way, for a while.
pub(crate) async fn settle(cluster: &Cluster) {
    let quiet = || cluster.journals.all().all(|journal| is_quiet(cluster, journal.environment().as_str()));
    let _in_time = wait_until(cluster, quiet).await;
}

fn is_quiet(cluster: &Cluster, environment: &str) -> bool {
    let mut journals = cluster.journals.all();
    let journal = journals.find(|journal| journal.environment().as_str() == environment);
    let record = journal.and_then(|journal| now(cluster.store.environment(journal.environment())));
    record.is_none_or(|it| {
        let waits = it.paused || it.attention.is_some();
        it.active.is_none() && (it.queued == 0 || waits)
    })
}

/// Waits for a while; whether it has come true.
async fn wait_until(cluster: &Cluster, quiet: impl Fn() -> bool) -> bool {
    let mut patience = cluster.clock.sleep(SETTLE_MAX);
    loop {
        // Made before the look, so that nothing that happens after it is missed.
        let ended = std::pin::pin!(cluster.journals.ended());
        if quiet() {
            return true;
        }
        match select(ended, patience).await {
            Either::Left(((), rest)) => patience = rest,
            Either::Right(_) => return false,
        }
    }
}

/// Asks until there is an answer that is not the store's failure; not for ever.
async fn insist<T, F: Future<Output = Result<T, EngineError>>>(
    cluster: &Cluster,
    ask: impl Fn() -> F,
) -> Option<Result<T, EngineError>> {
    for _ in 0..20 {
        let asked = std::pin::pin!(ask());
        match select(asked, cluster.clock.sleep(PATIENCE)).await {
            Either::Left((Err(EngineError::Store(_)), _)) | Either::Right(_) => {
                cluster.clock.sleep(Duration::from_millis(300)).await;
            }
            Either::Left((answer, _)) => return Some(answer),
        }
    }
    None
}

/// Deploys once more in each environment, when nothing fails any more.
pub(crate) async fn deploy_once_more(cluster: Arc<Cluster>, client: Engine) {
    for journal in cluster.journals.all() {
        let sha = cluster.world.push("main", "a commit", Kind::Good.behaviour());
        let accepted = client.deploy(DeployRequest::manual(journal.environment().as_str()).commit(&sha));
        if let Err(refused) = accepted.await {
            journal.lock().blame(format!("L1: refused after the end: {refused}"));
        }
    }
    settle(&cluster).await;
    cluster.rest();
}

/// Ends pauses and resolves what needs attention, until all environments are quiet.
pub(crate) async fn heal(cluster: Arc<Cluster>, client: Engine) {
    for journal in cluster.journals.all() {
        heal_environment(&cluster, &client, journal.environment()).await;
    }
    cluster.rest();
}

async fn heal_environment(cluster: &Cluster, client: &Engine, name: &EnvironmentName) {
    loop {
        let Some(record) = now(cluster.store.environment(name)) else { return };
        if record.paused {
            let _resumed = client.resume(name.as_str()).await;
        }
        if record.attention.is_some() && record.active.is_none() {
            // Its recovery may wait already; then this is refused.
            let _answer = client.resolve(name.as_str(), Resolution::Resume, "operator").await;
        } else if record.active.is_none() && record.queued == 0 {
            return;
        }
        cluster.clock.sleep(Duration::from_secs(1)).await;
    }
}
