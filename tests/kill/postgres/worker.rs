//! A worker on the store in PostgreSQL, for `tests/kill`: `kill_worker_postgres`, with the database's URL in `WORLD` and the
//! timing in `TIMING`: `tight`, or the default.
//!
//! It works until it is killed, or until its standard input ends: so none is left when the test itself dies.

mod world;

use std::{env, io, process::ExitCode, thread};

use ocore_core::engine::Timing;
use tokio::sync::oneshot;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    match runtime.block_on(work()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kill_worker_postgres: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn work() -> Result<(), Box<dyn std::error::Error>> {
    let (ended, input) = oneshot::channel::<()>();
    thread::spawn(move || {
        let _its_end_is_all_that_counts = io::copy(&mut io::stdin(), &mut io::sink());
        drop(ended);
    });
    let tight = env::var("TIMING").as_deref() == Ok("tight");
    let timing = if tight { Timing::tight() } else { Timing::default() };
    let engine = world::engine(&env::var("WORLD")?, timing).await?;
    Ok(engine.run_until(async { drop(input.await) }).await?)
}
