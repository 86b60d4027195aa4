//! What the quickstart does again and again: deploy, and check what is served.

use std::{env, fs, future::Future, path::PathBuf, process::ExitCode};

use ocore_core::{
    deployment::Deployment,
    engine::Engine,
    event::EventKind,
    id::DeploymentId,
    machine::{Status, Step},
    request::DeployRequest,
};
use serde_json::Value;

use crate::{
    Result, http,
    progress::{Lines, follow, follow_with, say},
    work::Ended,
};

/// The rows of schema 1.
pub const WHOLE: [&str; 3] = [
    r#"{"name":"Ada Lovelace","schema":1}"#,
    r#"{"name":"Alan Turing","schema":1}"#,
    r#"{"name":"Grace Hopper","schema":1}"#,
];
/// The same rows in schema 2.
pub const SPLIT: [&str; 3] = [
    r#"{"first":"Ada","last":"Lovelace","schema":2}"#,
    r#"{"first":"Alan","last":"Turing","schema":2}"#,
    r#"{"first":"Grace","last":"Hopper","schema":2}"#,
];

/// The environment of the story, and the port that its application serves on.
#[derive(Debug, Clone, Copy)]
pub struct Shop<'a> {
    engine: &'a Engine,
    environment: &'a str,
    port: u16,
}

impl<'a> Shop<'a> {
    /// The shop of this environment, on this port.
    #[must_use]
    pub const fn new(engine: &'a Engine, environment: &'a str, port: u16) -> Self {
        Self { engine, environment, port }
    }

    /// Deploys the head of the environment's branch, and shows how it goes.
    ///
    /// # Errors
    /// The deployment is refused, or the store fails.
    pub async fn deploy(&self) -> Result<Deployment> {
        let accepted = self.engine.deploy(DeployRequest::manual(self.environment).actor("ada")).await?;
        self.follow(accepted.id).await
    }

    /// Shows how a deployment goes.
    ///
    /// # Errors
    /// There is no such deployment, or the store fails.
    pub async fn follow(&self, id: DeploymentId) -> Result<Deployment> {
        follow(self.engine, id, Lines::None).await
    }

    /// Deploys the head of the environment's branch, and cancels that when it comes to a step.
    ///
    /// # Errors
    /// The deployment is refused, or the store fails.
    pub async fn deploy_and_cancel_at(&self, wanted: Step) -> Result<Deployment> {
        let id = self.engine.deploy(DeployRequest::manual(self.environment).actor("ada")).await?.id;
        follow_with(self.engine, id, Lines::None, async |event| {
            if matches!(event.kind, EventKind::Began { step } if step == wanted) {
                self.engine.cancel(id, "grace").await?;
            }
            Ok(())
        })
        .await
    }

    /// What the deployment says is not enough: the application itself is asked what it serves.
    ///
    /// # Errors
    /// It is anything else than this.
    pub fn expect(
        &self,
        deployment: &Deployment,
        status: Status,
        version: &str,
        rows: &[&str],
    ) -> Result<()> {
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

/// Runs the story in a temporary directory, or in the one of `--keep DIRECTORY`, which stays.
///
/// # Errors
/// The arguments are wrong, or the story's own.
pub fn in_a_directory<F: Future<Output = Result<Ended<()>>>>(
    story: impl FnOnce(PathBuf) -> F,
) -> Result<Ended<()>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [] => {
            let directory = tempfile::tempdir()?;
            runtime.block_on(story(directory.path().to_owned()))
        }
        [option, directory] if option == "--keep" => {
            let directory = std::path::absolute(directory)?;
            fs::create_dir_all(&directory)?;
            if fs::read_dir(&directory)?.next().is_some() {
                return Err(format!("{} is not empty: give a new directory", directory.display()).into());
            }
            runtime.block_on(story(directory))
        }
        _ => Err("usage: quickstart [--keep DIRECTORY]".into()),
    }
}

/// 0 if the story has come to its end as it must, 130 after Ctrl-C, else 1.
#[must_use]
pub fn exit_code(ended: Result<Ended<()>>) -> ExitCode {
    match ended {
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
