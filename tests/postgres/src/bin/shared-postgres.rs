//! Starts the cluster that all tests share, and runs a command with it: `shared-postgres COMMAND [ARGUMENT …]`.

use std::{
    env,
    process::{Command, ExitCode},
};

use ocore_test_postgres::{Cluster, SHARED, SHARED_SETTINGS};

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("shared-postgres: which command? shared-postgres COMMAND [ARGUMENT …]");
        return ExitCode::from(2);
    };
    let cluster = Cluster::start(SHARED_SETTINGS);
    let url = cluster.url("");
    let status = Command::new(&program).args(arguments).env(SHARED, url.trim_end_matches('/')).status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("shared-postgres: cannot run {}: {error}", program.display());
            ExitCode::FAILURE
        }
    }
}
