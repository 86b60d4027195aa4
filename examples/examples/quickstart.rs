//! ocore in one program: a git repository, five deployments of its application, and the history that they leave.
//!
//! `cargo run --release --example quickstart [-- --keep DIRECTORY]`

use std::{path::PathBuf, process::ExitCode, time::Duration};

use ocore_core::{
    engine::{Engine, RollbackRequest, Timing},
    environment::{EnvironmentSpec, InstanceSpec},
    http_probe::{HttpPolicy, HttpProbe},
    machine::{Status, Step},
};
use ocore_examples::{
    Result, history, http,
    progress::say,
    sample_app::{self, DEPLOYMENT_HEADER, Manifest},
    sample_repository::SampleRepository,
    shop::{self, SPLIT, Shop, WHOLE},
    teardown,
    work::{self, Ended},
};
use ocore_git::{GitSource, SourcePolicy};
use ocore_local::{LocalBuilder, LocalRuntime, LocalSnapshotter, SqliteStore};

async fn quickstart(home: PathBuf) -> Result<Ended<()>> {
    let repository = SampleRepository::create(home.join("repository"))?;
    let local = home.join("local");
    let runtime = LocalRuntime::new(&local);
    let engine = Engine::builder()
        .store(SqliteStore::open(home.join("ocore.sqlite")).await?)
        .source(
            GitSource::new(home.join("git"))?.policy(SourcePolicy::default().allow_local_paths_below(&home)),
        )
        .builder(LocalBuilder::new(&local))
        .snapshotter(LocalSnapshotter::new(&local))
        .runtime(runtime.clone())
        .probe(HttpProbe::new(HttpPolicy::default().deployment_header(DEPLOYMENT_HEADER)))
        .timing(Timing::foreground())
        .build()?;

    let port = http::free_port()?;
    let instance = InstanceSpec::new("web").port(port).data_directory(home.join("data"));
    let environment =
        EnvironmentSpec::new("production", repository.path().to_string_lossy()).instance(instance);
    engine
        .save_environment(environment.policy(|policy| policy.health.deadline = Duration::from_secs(2)))
        .await?;

    let ended = work::until_done(&engine, story(&engine, &repository, port)).await;
    teardown::stop_everything(&engine, &runtime).await?;
    if let Ok(Ended::Done(())) = ended {
        say(format!("\n{}", history::table(&engine, "production").await?));
    }
    ended
}

async fn story(engine: &Engine, repository: &SampleRepository, port: u16) -> Result<()> {
    let shop = Shop::new(engine, "production", port);
    say("1. The first version is deployed.");
    repository.commit(&Manifest::new("1.0", 1), "A list of persons")?;
    let first = shop.deploy().await?;
    shop.expect(&first, Status::Running, "1.0", &WHOLE[..2])?;
    http::post(port, "/rows", "Grace Hopper")?;

    say("\n2. The second version migrates the data: it splits the names.");
    repository.commit(&Manifest::new("2.0", 2), "First and last names")?;
    shop.expect(&shop.deploy().await?, Status::Running, "2.0", &SPLIT)?;

    say("\n3. The third version migrates the data too, then fails its health check: both are undone.");
    repository.commit(&Manifest::new("3.0", 3).unhealthy(), "Greetings, and a bug")?;
    shop.expect(&shop.deploy().await?, Status::RolledBack, "2.0", &SPLIT)?;

    say("\n4. Somebody rolls back to the first version, and to its data.");
    let (rollback, preview) = engine.roll_back(RollbackRequest::to(first.id).actor("ada")).await?;
    say(format!("  {}", history::loss(&preview.loss)));
    let rollback = shop.follow(rollback.id).await?;
    shop.expect(&rollback, Status::Running, "1.0", &WHOLE)?;

    say("\n5. Somebody cancels a deployment in the middle of its migration.");
    repository.commit(&Manifest::new("3.1", 3).slow_migration(1000), "Greetings, slowly")?;
    shop.expect(&shop.deploy_and_cancel_at(Step::Update).await?, Status::Cancelled, "1.0", &WHOLE)
}

fn main() -> ExitCode {
    // The application that is deployed is this very program, started by the Procfile of the repository.
    if let Some(code) = sample_app::run_if_asked() {
        return code;
    }
    shop::exit_code(shop::in_a_directory(quickstart))
}
