use std::{env, fs, path::Path};

use ocore_core::{
    engine::{Engine, Timing},
    http_probe::{HttpPolicy, HttpProbe},
    name::EnvironmentName,
    secret::Secret,
};
use ocore_examples::Result;
use ocore_git::{Credentials, GitSource, HostKey, SourcePolicy};
use ocore_local::{LocalBuilder, LocalRuntime, LocalSnapshotter, SqliteStore};

use crate::arguments::Place;

/// The variable that holds a token for https: never an argument, which everybody on the machine can see.
const TOKEN: &str = "OCORE_GIT_TOKEN";
/// The variable that holds what opens a locked ssh key.
const PASSPHRASE: &str = "OCORE_GIT_SSH_PASSPHRASE";

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
        let (secrets, credentials) = credentials(place)?;
        for secret in &secrets {
            engine = engine.secret(secret);
        }
        if let Some(credentials) = credentials {
            source = source.credentials(&environment, credentials);
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

/// What opens the repository, and what of it must never be shown.
fn credentials(place: &Place) -> Result<(Vec<Secret>, Option<Credentials>)> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty()).map(Secret::new);
    if let (Some(key), Some(host_keys)) = (&place.ssh_key, &place.host_keys) {
        let (key, passphrase) = (Secret::new(read(key)?), variable(PASSPHRASE));
        let lines = read(host_keys)?;
        let lines = lines.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let host_keys = lines.map(HostKey::parse).collect::<ocore_core::port::Result<Vec<_>>>()?;
        let secrets = [Some(key.clone()), passphrase.clone()].into_iter().flatten().collect();
        return Ok((secrets, Some(Credentials::ssh_key("git", key, passphrase, host_keys))));
    }
    let token = variable(TOKEN);
    let credentials = token.clone().map(|token| Credentials::token("x-access-token", token));
    Ok((token.into_iter().collect(), credentials))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| format!("{} cannot be read: {error}", path.display()).into())
}

fn unusable(directory: &Path, error: &std::io::Error) -> String {
    format!(
        "the state directory {} cannot be made: {error}: give another one with --state",
        directory.display()
    )
}
