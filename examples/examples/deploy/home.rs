use std::{env, fs, path::Path};

use ocore_core::{
    engine::{Engine, Timing},
    http_probe::{HttpPolicy, HttpProbe},
    name::EnvironmentName,
    secret::Secret,
};
use ocore_examples::Result;
use ocore_git::{Credentials, GitSource, SourcePolicy};
use ocore_local::{LocalBuilder, LocalRuntime, LocalSnapshotter, SqliteStore};

use crate::arguments::Place;

/// The variable that holds a token for https: never an argument, which everybody on the machine can see.
const TOKEN: &str = "OCORE_GIT_TOKEN";

/// The state directory, with an engine on it.
pub(crate) struct Home {
    pub(crate) directory: std::path::PathBuf,
    pub(crate) environment: EnvironmentName,
    pub(crate) engine: Engine,
    pub(crate) runtime: LocalRuntime,
}

impl Home {
    /// Opens the state directory; makes it only if `make` says so.
    pub(crate) async fn open(place: &Place, make: bool) -> Result<Self> {
        let environment = EnvironmentName::new(&place.name)?;
        let directory = std::path::absolute(&place.state)?;
        let store = directory.join("ocore.sqlite");
        if make {
            let data = directory.join("data");
            fs::create_dir_all(&data).map_err(|error| unusable(&directory, &error))?;
        } else if !store.exists() {
            let shown = directory.display();
            return Err(format!(
                "nothing was deployed with the state directory {shown}: give --state, or deploy first"
            )
            .into());
        }
        let local = directory.join("local");
        let runtime = LocalRuntime::new(&local);
        let mut source =
            GitSource::new(directory.join("git"))?.policy(SourcePolicy::default().allow_local_paths());
        let mut engine = Engine::builder();
        if let Some(token) = env::var(TOKEN).ok().filter(|token| !token.is_empty()) {
            let token = Secret::new(token);
            engine = engine.secret(&token);
            source = source.credentials(&environment, Credentials::token("x-access-token", token));
        }
        let engine = engine
            .store(SqliteStore::open(store).await?)
            .source(source)
            .builder(LocalBuilder::new(&local))
            .snapshotter(LocalSnapshotter::new(&local))
            .runtime(runtime.clone())
            .probe(HttpProbe::new(HttpPolicy::default()))
            .timing(Timing::foreground())
            .build()?;
        Ok(Self { directory, environment, engine, runtime })
    }

    pub(crate) fn name(&self) -> &str {
        self.environment.as_str()
    }
}

fn unusable(directory: &Path, error: &std::io::Error) -> String {
    format!(
        "the state directory {} cannot be made: {error}: give another one with --state",
        directory.display()
    )
}
