//! Snapshots side by side with PostgreSQL's own programs: `cargo xtask bench snapshot`.

mod broken;
mod cost;
mod exchange;
mod generate;
mod measures;
mod site;

use std::process::{Command, ExitCode, Stdio};

use clap::Parser;
use ocore_benches::table;

use crate::{measures::Bench, site::Site};

/// Measures snapshots and their peers in one run, against a PostgreSQL server that it starts, and prints one Markdown
/// table.
#[derive(Debug, Parser)]
pub(crate) struct Arguments {
    /// Only these measurements.
    #[arg(long, value_delimiter = ',', value_parser = measures::NAMES)]
    only: Vec<String>,
    /// How often everything is repeated; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How many exchanges are watched.
    #[arg(long, default_value_t = 20)]
    exchanges: usize,
    /// How large the large database is: 1 for two gigabytes.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// One round, with a large database of 300 MB: to see that it works.
    #[arg(long)]
    quick: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    if broken::is_worker() {
        return broken::work().await;
    }
    let mut arguments = Arguments::parse();
    if arguments.quick {
        (arguments.rounds, arguments.exchanges, arguments.scale) = (1, 5, 0.12);
    }
    let zstd = Command::new("zstd").arg("--version").stdout(Stdio::null()).status();
    if !zstd.is_ok_and(|status| status.success()) {
        eprintln!(
            "bench snapshot: there is no zstd, which a peer needs: `apt-get install zstd` or `dnf install zstd`"
        );
        return ExitCode::FAILURE;
    }
    let bench = Bench::prepare(Site::start().await, arguments).await;
    let measure = async |name: &str| {
        let rows = bench.measure(name).await;
        bench.site.tidy().await;
        rows
    };
    table::print(&measures::NAMES, &bench.arguments.only, measure).await;
    ExitCode::SUCCESS
}
