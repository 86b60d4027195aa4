//! The application that the examples and tests deploy: a small HTTP server over a file store with a schema version.
//!
//! It has no program of its own. Whoever calls [`run_if_asked`] first thing in `main` is the application when it is
//! started as `PROGRAM sample-app serve` or `PROGRAM sample-app migrate`. What makes one release differ from another
//! is the file `app.json` of its repository: a [`Manifest`].
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | 200, or 503 where the manifest says `healthy: false` |
//! | `GET /version` | the manifest's version, as plain text |
//! | `GET /rows` | all rows, as a list in JSON |
//! | `POST /rows` | adds the person whose full name is the body |
//!
//! Every answer names the deployment that gives it, in the header [`DEPLOYMENT_HEADER`].

mod server;
mod store;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use self::store::{FIRST_ROWS, Store};
use crate::Result;

/// The argument that makes a program the sample application.
pub const SUBCOMMAND: &str = "sample-app";

/// The file of the repository that says what the release is.
pub const MANIFEST: &str = "app.json";

/// The header of every answer that names the deployment.
pub const DEPLOYMENT_HEADER: &str = "X-Deployment";

/// What a release of the sample application is: the content of `app.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Manifest {
    /// Its version, as `/version` tells it.
    pub version: String,
    /// The schema of the data that it works with. 1 or more.
    pub schema: u32,
    /// Whether its health check passes.
    #[serde(default = "yes")]
    pub healthy: bool,
    /// How long its migration takes per row and schema, in milliseconds.
    #[serde(default)]
    pub migration_millis: u64,
}

const fn yes() -> bool {
    true
}

impl Manifest {
    /// A healthy release whose migration is quick.
    #[must_use]
    pub fn new(version: impl Into<String>, schema: u32) -> Self {
        Self { version: version.into(), schema, healthy: true, migration_millis: 0 }
    }

    /// The same release, but its health check fails.
    #[must_use]
    pub const fn unhealthy(mut self) -> Self {
        self.healthy = false;
        self
    }

    /// The same release with a migration that takes this long per row and schema.
    #[must_use]
    pub const fn slow_migration(mut self, millis: u64) -> Self {
        self.migration_millis = millis;
        self
    }
}

/// Runs the sample application and returns its exit code, if the program was started as one.
#[must_use]
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next()? != SUBCOMMAND {
        return None;
    }
    let what = arguments.next().unwrap_or_default();
    let result = match what.to_str() {
        Some("serve") => serve(),
        Some("migrate") => migrate(),
        _ => Err(format!("start it as `{SUBCOMMAND} serve` or `{SUBCOMMAND} migrate`").into()),
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sample application: {error}");
            ExitCode::FAILURE
        }
    })
}

/// Where the application runs: what its runtime tells it by environment variables.
struct Place {
    manifest: Manifest,
    store: Store,
    deployment: String,
}

impl Place {
    fn find() -> Result<Self> {
        let text = fs::read_to_string(MANIFEST).map_err(|error| format!("{MANIFEST}: {error}"))?;
        let manifest: Manifest =
            serde_json::from_str(&text).map_err(|error| format!("{MANIFEST}: {error}"))?;
        let data = env::var_os("DATA_DIR").map(PathBuf::from).ok_or("DATA_DIR is not set")?;
        let deployment = env::var("OCORE_DEPLOYMENT").unwrap_or_default();
        Ok(Self { manifest, store: Store::new(data), deployment })
    }
}

fn serve() -> Result<()> {
    let Place { manifest, store, deployment } = Place::find()?;
    let found = store.schema()?;
    if found != Some(manifest.schema) {
        let found =
            found.map_or_else(|| "there is none".to_owned(), |found| format!("it has schema {found}"));
        return Err(format!(
            "version {} needs data of schema {}, but {found}",
            manifest.version, manifest.schema
        )
        .into());
    }
    store.note_release(&deployment)?;
    let port: u16 = env::var("PORT")?.parse()?;
    eprintln!("version {} serves on port {port}, schema {}", manifest.version, manifest.schema);
    server::serve(port, server::App { manifest, store, deployment })
}

fn migrate() -> Result<()> {
    let Place { manifest, store, deployment } = Place::find()?;
    let pause = Duration::from_millis(manifest.migration_millis);
    let from = store.migrate(manifest.schema, &deployment, || thread::sleep(pause))?;
    eprintln!("data migrated from schema {from} to {}", manifest.schema);
    Ok(())
}

/// The `Procfile` of a repository whose application is `program`, started as the sample application.
///
/// # Errors
/// The path of the program is no UTF-8 text.
pub fn procfile(program: &Path) -> Result<String> {
    let path = program.to_str().ok_or_else(|| format!("{} is no UTF-8 text", program.display()))?;
    let quoted: String =
        path.chars().flat_map(|c| ["\"\\$`".contains(c).then_some('\\'), Some(c)]).flatten().collect();
    Ok(format!("web: \"{quoted}\" {SUBCOMMAND} serve\nrelease: \"{quoted}\" {SUBCOMMAND} migrate\n"))
}
