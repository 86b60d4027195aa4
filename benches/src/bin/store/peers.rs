//! The peers: a program of its own, with a lock file of its own, that prints one JSON line for each measurement.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::place::Place;

/// The peers, and how they are set up: as their own documentation says for speed, and as they come.
pub(crate) const PEERS: [&str; 6] =
    ["graphile_worker", "apalis-postgres", "sqlxmq", "awa", "fang", "underway"];
pub(crate) const CONFIGS: [&str; 2] = ["tuned", "default"];

pub(crate) struct Peers {
    program: PathBuf,
}

/// What a peer has shown.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) peer: String,
    pub(crate) value: Value,
}

impl Shown {
    pub(crate) fn number(&self, field: &str) -> Option<f64> {
        self.value[field].as_f64()
    }
}

impl Peers {
    /// Builds the program.
    ///
    /// # Errors
    /// Why it cannot be built.
    pub(crate) fn build() -> Result<Self, String> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        let target = package.join("target");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--release", "--locked", "--manifest-path"]).arg(package.join("Cargo.toml"));
        cargo.arg("--target-dir").arg(&target);
        match cargo.status() {
            Ok(status) if status.success() => Ok(Self { program: target.join("release/ocore-bench-peers") }),
            Ok(status) => Err(format!("the peers cannot be built: cargo ended with {status}")),
            Err(error) => Err(format!("the peers cannot be built: {error}")),
        }
    }

    /// Lets one peer do one measurement, in a database of its own. One that cannot do it says why.
    ///
    /// # Errors
    /// Why there is no result.
    pub(crate) async fn show(
        &self,
        place: &Place,
        measure: &[&str],
        peer: &str,
        config: &str,
    ) -> Result<Shown, String> {
        let (url, name) = place.database().await;
        let mut program = tokio::process::Command::new(&self.program);
        program.arg(measure[0]).args([peer, config]).args(&measure[1..]).env("DATABASE_URL", &url);
        program.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let output = program.output().await.map_err(|error| format!("{peer}: {error}"))?;
        place.drop_database(&name).await;
        let last = String::from_utf8_lossy(&output.stdout);
        let last = last.lines().last().unwrap_or_default();
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{peer} {config}: {}: {}", output.status, words.trim()));
        }
        let value: Value = serde_json::from_str(last).map_err(|error| format!("{peer}: {error}: {last}"))?;
        if let Some(why) = value["unsupported"].as_str() {
            return Err(format!("{peer}: {why}"));
        }
        let version = value["version"].as_str().unwrap_or("?");
        Ok(Shown { peer: format!("{peer} {version} {config}"), value })
    }
}
