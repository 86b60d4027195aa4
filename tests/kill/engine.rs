//! The engine that the test and its workers run on one directory.

use std::path::Path;

use ocore_core::{
    engine::{Engine, Timing},
    http_probe::{HttpPolicy, HttpProbe},
    secret::Secret,
};
use ocore_examples::{Result, sample_app::DEPLOYMENT_HEADER};
use ocore_git::{GitSource, SourcePolicy};
use ocore_local::{LocalBuilder, LocalRuntime, LocalSnapshotter, SqliteStore};

pub(crate) const ENVIRONMENTS: [&str; 3] = ["north", "south", "west"];

/// A secret of every application, which no file may hold.
pub(crate) const CANARY: &str = "canary-2c41f0de9b";

pub(crate) async fn open(home: &Path) -> Result<(Engine, LocalRuntime)> {
    let local = home.join("local");
    let mut runtime = LocalRuntime::new(&local);
    for name in ENVIRONMENTS {
        runtime = runtime.secret(name.parse()?, "TOKEN", Secret::new(CANARY));
    }
    let engine = Engine::builder()
        .store(SqliteStore::open(home.join("ocore.sqlite")).await?)
        .source(
            GitSource::new(home.join("git"))?.policy(SourcePolicy::default().allow_local_paths_below(home)),
        )
        .builder(LocalBuilder::new(&local))
        .snapshotter(LocalSnapshotter::new(&local))
        .runtime(runtime.clone())
        .probe(HttpProbe::new(HttpPolicy::default().deployment_header(DEPLOYMENT_HEADER)))
        .timing(Timing::tight())
        .build()?;
    Ok((engine, runtime))
}
