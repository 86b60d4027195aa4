//! The worker process that `tests/kill` kills, and the application that it deploys: `kill_worker DIRECTORY`.
//!
//! It works until it is killed, or until its standard input ends: so none is left when the test itself dies.

mod engine;

use std::{env, io, path::PathBuf, process::ExitCode, thread};

use ocore_examples::{Result, sample_app};
use tokio::sync::oneshot;

fn main() -> ExitCode {
    if let Some(code) = sample_app::run_if_asked() {
        return code;
    }
    let done =
        tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| runtime.block_on(work()));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kill_worker: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn work() -> Result<()> {
    let home = env::args_os().nth(1).map(PathBuf::from).ok_or("usage: kill_worker DIRECTORY")?;
    let (engine, _) = engine::open(&home).await?;
    let (ended, input) = oneshot::channel::<()>();
    thread::spawn(move || {
        let _its_end_is_all_that_counts = io::copy(&mut io::stdin(), &mut io::sink());
        drop(ended);
    });
    Ok(engine.run_until(async { drop(input.await) }).await?)
}
