//! Measures one job queue on PostgreSQL, for `cargo xtask bench store`:
//! `ocore-bench-peers MEASURE PEER CONFIG [--OPTION VALUE …]` in the database of `DATABASE_URL`. The last line of the
//! output is the result, in JSON.

mod job;
mod measure;
mod peer;
mod peers;

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::{
    measure::{Measure, Options},
    peers::{apalis::Apalis, awa::Awa, fang::Fang, graphile::Graphile, sqlxmq::Sqlxmq, underway::Underway},
};

/// Why there is no result: the peer has no such thing, or it did not work.
#[derive(Debug)]
enum Refusal {
    Unsupported(&'static str),
    Failed(String),
}

impl<E: std::error::Error> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [measure, peer, config, options @ ..] = arguments.as_slice() else {
        eprintln!("usage: ocore-bench-peers MEASURE PEER default|tuned [--lanes N] [--jobs N] …");
        return ExitCode::from(2);
    };
    let result = match (Measure::named(measure), Options::read(options)) {
        (Ok(measure), Ok(options)) => run(measure, peer, config == "tuned", options).await,
        (Err(why), _) | (_, Err(why)) => Err(Refusal::Failed(why)),
    };
    let mut value = match result {
        Ok(value) => value,
        Err(Refusal::Unsupported(why)) => json!({ "unsupported": why }),
        Err(Refusal::Failed(why)) => {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    };
    value["peer"] = json!(peer);
    value["version"] = json!(version(peer));
    value["config"] = json!(config);
    println!("{value}");
    // The workers of some peers cannot be stopped; what they hold is dropped with the database.
    std::process::exit(0);
}

async fn run(measure: Measure, peer: &str, tuned: bool, options: Options) -> Result<Value, Refusal> {
    match peer {
        "apalis-postgres" => measure.run::<Apalis>(tuned, options).await,
        "awa" => measure.run::<Awa>(tuned, options).await,
        "fang" => measure.run::<Fang>(tuned, options).await,
        "graphile_worker" => measure.run::<Graphile>(tuned, options).await,
        "sqlxmq" => measure.run::<Sqlxmq>(tuned, options).await,
        "underway" => measure.run::<Underway>(tuned, options).await,
        other => Err(Refusal::Failed(format!("there is no peer {other:?}"))),
    }
}

/// As the lock file has it.
fn version(peer: &str) -> Option<&'static str> {
    let after = include_str!("../Cargo.lock").split_once(&format!("name = \"{peer}\"\nversion = \""))?.1;
    after.split_once('"').map(|(version, _)| version)
}
