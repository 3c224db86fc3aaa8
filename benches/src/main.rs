//! Benchmarks: ours beside a peer or a limit, interleaved in one run, with medians, extremes and ratios.

mod port_leases;
mod report;
mod stores;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures Cloudphone beside its limits. Run it optimised: cargo run --release -p benches -- port-leases
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
    /// JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Bench {
    /// Whole port sets leased per second, beside one bare `SET NX EX` round trip and the seed's linear scan.
    PortLeases {
        /// How often each of the rivals has its turn.
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
        rounds: u32,
        /// How many leases a turn takes.
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=900))]
        leases: u32,
    },
    /// Keeps the private stores; the other commands start it by themselves.
    #[command(hide = true)]
    Supervise {
        /// The folder of the stores.
        dir: PathBuf,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Bench::Supervise { dir } = arguments.bench {
        return embedded::supervise(&dir).map(|()| ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let figures = runtime.block_on(async {
        match arguments.bench {
            Bench::PortLeases { rounds, leases } => port_leases::run(rounds, leases).await,
            Bench::Supervise { .. } => Ok(Vec::new()),
        }
    })?;
    report::print(&figures, arguments.json)?;
    Ok(ExitCode::SUCCESS)
}
