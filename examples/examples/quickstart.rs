//! ocore in one program: a git repository, five deployments of its application, and the history that they leave.
//!
//! `cargo run --release --example quickstart [-- --keep DIRECTORY]`

use std::{env, fs, path::Path, process::ExitCode, time::Duration};

use ocore_core::{
    deployment::Deployment,
    engine::{Engine, RollbackRequest, Timing},
    environment::{EnvironmentSpec, InstanceSpec},
    event::EventKind,
    http_probe::{HttpPolicy, HttpProbe},
    machine::{Status, Step},
    request::DeployRequest,
};
use ocore_examples::{
    Result, history, http,
    progress::{Lines, follow, follow_with, say},
    sample_app::{self, DEPLOYMENT_HEADER, Manifest},
    sample_repository::SampleRepository,
    teardown,
    work::{self, Ended},
};
use ocore_git::{GitSource, SourcePolicy};
use ocore_local::{LocalBuilder, LocalRuntime, LocalSnapshotter, SqliteStore};
use serde_json::Value;

async fn quickstart(home: &Path) -> Result<Ended<()>> {
    let repository = SampleRepository::create(home.join("repository"))?;
    let local = home.join("local");
    let runtime = LocalRuntime::new(&local);
    let engine = Engine::builder()
        .store(SqliteStore::open(home.join("ocore.sqlite")).await?)
        .source(GitSource::new(home.join("git"))?.policy(SourcePolicy::default().allow_local_paths_below(home)))
        .builder(LocalBuilder::new(&local))
        .snapshotter(LocalSnapshotter::new(&local))
        .runtime(runtime.clone())
        .probe(HttpProbe::new(HttpPolicy::default().deployment_header(DEPLOYMENT_HEADER)))
        .timing(Timing::tight())
        .build()?;

    let port = http::free_port()?;
    let instance = InstanceSpec::new("web").port(port).data_directory(home.join("data"));
    let environment = EnvironmentSpec::new("production", repository.path().to_string_lossy()).instance(instance);
    engine.save_environment(environment.policy(|policy| policy.health.deadline = Duration::from_secs(2))).await?;

    let ended = work::until_done(&engine, story(&engine, &repository, port)).await;
    teardown::stop_everything(&engine, &runtime).await?;
    if let Ok(Ended::Done(())) = ended {
        say(format!("\n{}", history::table(&engine, "production").await?));
    }
    ended
}

async fn story(engine: &Engine, repository: &SampleRepository, port: u16) -> Result<()> {
    let shop = Shop { engine, port };
    say("1. The first version is deployed.");
    repository.commit(&Manifest::new("1.0", 1), "A list of persons")?;
    let first = shop.deploy().await?;
    shop.expect(&first, Status::Running, "1.0", &[WHOLE[0], WHOLE[1]])?;
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
    let rollback = follow(engine, rollback.id, Lines::None).await?;
    shop.expect(&rollback, Status::Running, "1.0", &WHOLE)?;

    say("\n5. Somebody cancels a deployment in the middle of its migration.");
    repository.commit(&Manifest::new("3.1", 3).slow_migration(1000), "Greetings, slowly")?;
    shop.expect(&shop.deploy_and_cancel_at(Step::Update).await?, Status::Cancelled, "1.0", &WHOLE)
}

const WHOLE: [&str; 3] = [
    r#"{"name":"Ada Lovelace","schema":1}"#,
    r#"{"name":"Alan Turing","schema":1}"#,
    r#"{"name":"Grace Hopper","schema":1}"#,
];
const SPLIT: [&str; 3] = [
    r#"{"first":"Ada","last":"Lovelace","schema":2}"#,
    r#"{"first":"Alan","last":"Turing","schema":2}"#,
    r#"{"first":"Grace","last":"Hopper","schema":2}"#,
];

/// The environment of the story, and the port that its application serves on.
struct Shop<'a> {
    engine: &'a Engine,
    port: u16,
}

impl Shop<'_> {
    async fn deploy(&self) -> Result<Deployment> {
        let accepted = self.engine.deploy(DeployRequest::manual("production").actor("ada")).await?;
        follow(self.engine, accepted.id, Lines::None).await
    }

    async fn deploy_and_cancel_at(&self, wanted: Step) -> Result<Deployment> {
        let id = self.engine.deploy(DeployRequest::manual("production").actor("ada")).await?.id;
        follow_with(self.engine, id, Lines::None, async |event| {
            if matches!(event.kind, EventKind::Began { step } if step == wanted) {
                self.engine.cancel(id, "grace").await?;
            }
            Ok(())
        })
        .await
    }

    /// What the deployment says is not enough: the application itself is asked what it serves.
    fn expect(&self, deployment: &Deployment, status: Status, version: &str, rows: &[&str]) -> Result<()> {
        let served: (String, Value) =
            (http::get(self.port, "/version")?, http::get(self.port, "/rows")?.parse()?);
        let wanted = (version.to_owned(), format!("[{}]", rows.join(",")).parse()?);
        if deployment.status() != status || served != wanted {
            let found = deployment.status();
            return Err(format!("expected {status} and {wanted:?}, found {found} and {served:?}").into());
        }
        say(format!("  checked: version {version} serves, and its {} rows are as they must be", rows.len()));
        Ok(())
    }
}

fn main() -> ExitCode {
    // The application that is deployed is this very program, started by the Procfile of the repository.
    if let Some(code) = sample_app::run_if_asked() {
        return code;
    }
    match story_in_a_directory() {
        Ok(Ended::Done(())) => ExitCode::SUCCESS,
        Ok(Ended::Interrupted) => {
            say("Interrupted; everything is stopped.");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("quickstart: {error}");
            ExitCode::FAILURE
        }
    }
}

fn story_in_a_directory() -> Result<Ended<()>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [] => runtime.block_on(quickstart(tempfile::tempdir()?.path())),
        [option, directory] if option == "--keep" => {
            let directory = std::path::absolute(directory)?;
            fs::create_dir_all(&directory)?;
            if fs::read_dir(&directory)?.next().is_some() {
                return Err(format!("{} is not empty: give a new directory", directory.display()).into());
            }
            runtime.block_on(quickstart(&directory))
        }
        _ => Err("usage: quickstart [--keep DIRECTORY]".into()),
    }
}
