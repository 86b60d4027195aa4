use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Deploys a commit of a git repository on this machine, or puts everything back as it was.
///
/// The repository's Procfile says what to run: `web: COMMAND` serves on $PORT, and `release: COMMAND`, if there is
/// one, migrates the data in $DATA_DIR. Exit codes: 0 it runs; 1 it failed, or was undone or cancelled; 2 the request
/// was refused; 130 after Ctrl-C.
#[derive(Debug, Parser)]
#[command(name = "deploy", version, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(flatten)]
    pub(crate) deploy: Deploy,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The directory that keeps all state
    #[arg(long, value_name = "DIR", default_value = ".ocore", global = true)]
    pub(crate) state: PathBuf,
    /// The environment's name
    #[arg(long, value_name = "NAME", default_value = "production", global = true)]
    pub(crate) name: String,
    /// The private key for a repository over ssh. If it is locked, the variable OCORE_GIT_SSH_PASSPHRASE opens it
    #[arg(long, value_name = "FILE", requires = "host_keys", global = true)]
    pub(crate) ssh_key: Option<PathBuf>,
    /// The public keys of the repository's ssh host, as `ssh-keyscan HOST` prints them: compare them with what the
    /// host publishes
    #[arg(long, value_name = "FILE", requires = "ssh_key", global = true)]
    pub(crate) host_keys: Option<PathBuf>,
}

#[derive(Debug, Default, PartialEq, Eq, Args)]
pub(crate) struct Deploy {
    /// The repository: a path, or a URL (https, ssh). Remembered for later calls. A token for https is read from
    /// the variable OCORE_GIT_TOKEN; ssh needs --ssh-key
    #[arg(long, value_name = "PATH-OR-URL")]
    pub(crate) repository: Option<String>,
    /// What to deploy: a branch, a commit's id (7 digits or more), or refs/tags/NAME; in a local repository a tag's
    /// name is enough [default: main]
    #[arg(long = "ref", value_name = "REF")]
    pub(crate) reference: Option<String>,
    /// The port to serve on. Remembered for later calls [default: a free one]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// The application's data. Remembered for later calls [default: a directory below the state directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_directory: Option<PathBuf>,
    /// The path that the health check asks for. Remembered for later calls [default: /]
    #[arg(long, value_name = "PATH")]
    pub(crate) health_path: Option<String>,
    /// How long a new version may take to become healthy. Remembered for later calls [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) health_seconds: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows every deployment of the environment, oldest first
    History,
    /// Shows what is live, and what goes on
    Status,
    /// Shows a deployment's output: of its build, of its migration, and after a failed health check of the instance
    Logs {
        /// The deployment's id, or the end of it
        id: String,
        /// Go on until the deployment is over; it is gone on with if nobody else does
        #[arg(long)]
        follow: bool,
    },
    /// Makes an earlier deployment's release live again, with the data that belongs to it
    Rollback {
        /// The deployment's id, or the end of it
        id: String,
        /// Leave the data as it is
        #[arg(long)]
        code_only: bool,
    },
    /// Cancels a deployment that waits or is under way, and undoes what it has done
    Cancel {
        /// The deployment's id, or the end of it
        id: String,
    },
    /// Stops the live instance. A deployment starts one again
    Stop,
    /// After a deployment that could not be undone: goes on with the undo
    Resolve {
        /// Somebody has put things right by hand: leave everything as it is
        #[arg(long)]
        acknowledge: bool,
    },
}
