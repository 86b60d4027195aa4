//! The stores side by side with their peers: `cargo xtask bench store`.

mod big;
mod cpu;
mod drain;
mod fill;
mod latency;
mod measures;
mod peers;
mod place;
mod stopwatch;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser;
use ocore_benches::table;

use crate::{measures::Bench, peers::Peers, place::Place};

/// Measures the stores and their peers in one run, against a PostgreSQL server that it starts, and prints one Markdown
/// table.
#[derive(Debug, Parser)]
pub(crate) struct Arguments {
    /// Only these measurements.
    #[arg(long, value_delimiter = ',', value_parser = measures::NAMES)]
    only: Vec<String>,
    /// Our own figures alone.
    #[arg(long)]
    no_peers: bool,
    /// How often drains are repeated; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How many samples latencies have.
    #[arg(long, default_value_t = 300)]
    samples: usize,
    /// How many deployments wait in the big store.
    #[arg(long, default_value_t = 1_000_000)]
    waiting: u64,
    /// How many deployments are over in the big store.
    #[arg(long, default_value_t = 10_000_000)]
    over: u64,
    /// A tenth of everything: to see that it works.
    #[arg(long)]
    quick: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    if arguments.quick {
        arguments.rounds = 1;
        arguments.samples /= 10;
        arguments.waiting /= 10;
        arguments.over /= 10;
    }
    let peers = match (!arguments.no_peers).then(Peers::build).transpose() {
        Ok(peers) => peers,
        Err(reason) => {
            eprintln!("bench store: {reason}");
            return ExitCode::FAILURE;
        }
    };
    let names: Vec<&str> = measures::NAMES
        .into_iter()
        .filter(|name| arguments.only.is_empty() || arguments.only.iter().any(|only| only == name))
        .collect();
    let bench = Bench { place: Place::start(), peers, arguments };
    let mut rows = Vec::new();
    for name in names {
        eprintln!("━━ {name}");
        let measured = bench.measure(name).await;
        for row in &measured {
            eprintln!("{}: {} {}", row.what, row.ours, row.peer);
        }
        rows.extend(measured);
    }
    // A reader that went away is no failure.
    drop(io::stdout().write_all(table::markdown(&rows).as_bytes()));
    ExitCode::SUCCESS
}
