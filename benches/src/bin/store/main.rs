//! The stores side by side with their peers: `cargo xtask bench store`.

mod big;
mod drain;
mod fill;
mod latency;
mod measures;
mod peers;
mod place;
mod stopwatch;

use std::process::ExitCode;

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
    let bench = Bench { place: Place::start(), peers, arguments };
    let only = &bench.arguments.only;
    table::print(&measures::NAMES, only, async |name: &str| bench.measure(name).await).await;
    ExitCode::SUCCESS
}
