//! ocore as a command for your own repository, on nothing but this machine.
//!
//! ```text
//! deploy --repository PATH-OR-URL --ref REF     deploys; again and again on top of what is there
//! deploy history | status | logs ID | rollback ID | cancel ID | stop
//! ```
//!
//! All state is in one directory. A call that is interrupted, or killed, leaves nothing half done: the next one
//! finishes or undoes it.

mod arguments;
mod commands;
mod home;

use std::process::ExitCode;

use clap::Parser as _;
use ocore_core::{deployment::Deployment, machine::Status};
use ocore_examples::{Result, progress::say, sample_app, work::Ended};

use crate::{
    arguments::{Arguments, Command, Deploy},
    home::Home,
};

/// The exit code of a deployment that did not end as was asked for.
const FAILED: u8 = 1;
/// The exit code of a request that was refused.
const REFUSED: u8 = 2;
/// The exit code after Ctrl-C.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    // For the tests: this program is the sample application too.
    if let Some(code) = sample_app::run_if_asked() {
        return code;
    }
    let arguments = Arguments::parse();
    let done = tokio::runtime::Runtime::new()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(run(arguments)));
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(REFUSED)
        }
    }
}

async fn run(arguments: Arguments) -> Result<u8> {
    let Arguments { place, deploy, command } = arguments;
    if command.is_some() && deploy != Deploy::default() {
        return Err(
            "what says how to deploy does not belong to a subcommand; only --state and --name do".into()
        );
    }
    let home = Home::open(&place, command.is_none()).await?;
    tokio::spawn(end_at_the_second_interrupt());
    let ended = match command {
        None => commands::deploy(&home, &deploy).await?,
        Some(Command::Rollback { id, code_only }) => commands::roll_back(&home, &id, code_only).await?,
        Some(Command::Cancel { id }) => return commands::cancel(&home, &id).await,
        Some(Command::History) => return commands::history(&home).await.map(|()| 0),
        Some(Command::Logs { id, follow }) => return commands::logs(&home, &id, follow).await,
        Some(Command::Status) => return commands::status(&home).await.map(|()| 0),
        Some(Command::Stop) => return commands::stop(&home).await.map(|()| 0),
        Some(Command::Resolve { acknowledge }) => commands::resolve(&home, acknowledge).await?,
    };
    Ok(exit_code(ended))
}

/// The first Ctrl-C waits until the step is interrupted; the second ends this program as a crash would, which leaves
/// nothing half done either.
async fn end_at_the_second_interrupt() {
    for _ in 0..2 {
        if tokio::signal::ctrl_c().await.is_err() {
            return;
        }
    }
    eprintln!("stopped at once; the next call finishes or undoes what was begun");
    std::process::exit(INTERRUPTED.into());
}

fn exit_code(ended: Ended<Option<Deployment>>) -> u8 {
    match ended {
        Ended::Done(Some(deployment)) if deployment.status() != Status::Running => FAILED,
        Ended::Done(_) => 0,
        Ended::Interrupted => {
            say("interrupted; the next call finishes or undoes what was begun");
            INTERRUPTED
        }
    }
}
