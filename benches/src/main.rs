//! Benchmarks: ours beside a peer or a limit, interleaved in one run, with medians, extremes and ratios.

mod account;
mod cron;
mod devices;
mod front_door;
mod load;
mod locks;
mod logins;
mod payments;
mod peers;
mod port_leases;
mod process;
mod renewals;
mod report;
mod stores;
mod uploads;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

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
        /// How many leases a turn takes, in batches of forty.
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        leases: u32,
    },
    /// A lease and a Redlock acquired and released per second, beside bare commands and Node's `redlock`.
    Locks {
        /// How often each of the rivals has its turn.
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
        rounds: u32,
        /// How many locks a turn takes.
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=10_000))]
        locks: u32,
    },
    /// What it costs to hold many leases: processor time of one core in per cent.
    Renewals {
        /// How many leases.
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        leases: u32,
        /// How long a lease lives; it is renewed at a third of that.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(3..=600))]
        ttl_seconds: u32,
        /// How many times a third of that is measured.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
        rounds: u32,
    },
    /// What it costs to wait for many jobs that are not due: processor time of one core in per cent.
    Cron {
        /// How many jobs.
        #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        jobs: u32,
        /// How long a round takes.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
        seconds: u32,
        /// How many rounds.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
        rounds: u32,
    },
    /// The front door beside nginx, haproxy and Express under PM2, one worker and one core each, before the same upstream.
    ///
    /// Needs nginx, haproxy, wrk, h2load (Debian: nghttp2-client), Node, `npm ci` in benches/peers, and the gateway:
    /// cargo build --release -p gateway
    FrontDoor {
        /// How often each of the rivals has its turn.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
        rounds: u32,
        /// How long a turn takes.
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=60))]
        seconds: u32,
        /// The numbers of connections.
        #[arg(long, value_delimiter = ',', default_values_t = [64, 256])]
        connections: Vec<u32>,
        /// Parts of the names of those to measure; all without it.
        #[arg(long, value_delimiter = ',')]
        rivals: Vec<String>,
    },
    /// Devices created to running per second beside `docker run -d` in a shell loop, the latency of `POST /devices` at a rate,
    /// and of lists of 10,000 devices.
    ///
    /// Needs root, dockerd, docker and rustc (Debian: docker.io), and the gateway: cargo build --release -p gateway
    Devices {
        /// How often each of the rivals has its turn.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
        rounds: u32,
        /// How many devices a turn creates as fast as it can.
        #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=900))]
        devices: u32,
        /// How many of them at once.
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
        parallel: u32,
        /// How many creations are asked for in a second where their latency is measured.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        rate: u32,
        /// For how long.
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=60))]
        seconds: u32,
        /// How often each list is asked for in a turn.
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        lists: u32,
    },
    /// Payments by signed notices over HTTP with one and three replicas, beside the same statements in pgbench and a handler
    /// of Express and pg.
    ///
    /// Needs pgbench (Debian: postgresql), Node, `npm ci` in benches/peers, and the gateway: cargo build --release -p gateway
    Payments {
        /// How often each of the rivals has its turn.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
        rounds: u32,
        /// How many payments a turn makes.
        #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
        payments: u32,
        /// The numbers of clients.
        #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
        clients: Vec<u16>,
    },
    /// Sign-ins per second beside what the library of the password hash does by itself on all cores, and how long other
    /// requests take meanwhile.
    ///
    /// Needs the gateway: cargo build --release -p gateway
    Logins {
        /// How often each of the rivals has its turn.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
        rounds: u32,
        /// How long a turn takes.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=60))]
        seconds: u32,
        /// How many clients sign in at once.
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=60))]
        clients: u32,
        /// How many other requests are asked for in a second meanwhile.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        rate: u32,
    },
    /// Packages uploaded through a replica, in MiB a second, beside `cp` and nginx's `WebDAV` `PUT` to the same disk, and the memory
    /// that the servers take for it.
    ///
    /// Needs nginx, and the gateway: cargo build --release -p gateway
    Uploads {
        /// How often each of the rivals has its turn.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
        rounds: u32,
        /// Of how many mebibytes a package is.
        #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_024))]
        mebibytes: u32,
        /// The numbers of packages at once.
        #[arg(long, value_delimiter = ',', default_values_t = [1, 4])]
        at_once: Vec<u16>,
        /// On which disk everything is written; that of temporary files by default.
        #[arg(long)]
        folder: Option<PathBuf>,
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
    // Another one may be there already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new()?;
    let figures = runtime.block_on(async {
        match arguments.bench {
            Bench::PortLeases { rounds, leases } => port_leases::run(rounds, leases).await,
            Bench::Locks { rounds, locks } => locks::run(rounds, locks).await,
            Bench::Renewals {
                leases,
                ttl_seconds,
                rounds,
            } => renewals::run(leases, ttl_seconds, rounds).await,
            Bench::Cron {
                jobs,
                seconds,
                rounds,
            } => cron::run(jobs, seconds, rounds).await,
            Bench::FrontDoor {
                rounds,
                seconds,
                connections,
                rivals,
            } => {
                let turn = Duration::from_secs(seconds.into());
                let plan = front_door::Plan {
                    rounds,
                    turn,
                    connections,
                    rivals,
                };
                front_door::run(&plan).await
            }
            Bench::Devices {
                rounds,
                devices,
                parallel,
                rate,
                seconds,
                lists,
            } => {
                let plan = devices::Plan {
                    rounds,
                    devices: usize::try_from(devices)?,
                    parallel: usize::try_from(parallel)?,
                    rate,
                    seconds,
                    lists: usize::try_from(lists)?,
                };
                devices::run(&plan).await
            }
            Bench::Payments {
                rounds,
                payments,
                clients,
            } => {
                let plan = payments::Plan {
                    rounds,
                    payments: usize::try_from(payments)?,
                    clients: clients
                        .into_iter()
                        .map(|count| usize::from(count).max(1))
                        .collect(),
                };
                payments::run(&plan).await
            }
            Bench::Logins {
                rounds,
                seconds,
                clients,
                rate,
            } => {
                let plan = logins::Plan {
                    rounds,
                    turn: Duration::from_secs(seconds.into()),
                    clients: usize::try_from(clients)?,
                    rate,
                };
                logins::run(&plan).await
            }
            Bench::Uploads {
                rounds,
                mebibytes,
                at_once,
                folder,
            } => {
                let at_once = at_once.into_iter().map(|count| usize::from(count).max(1));
                let plan = uploads::Plan {
                    rounds,
                    mebibytes,
                    at_once: at_once.collect(),
                    folder,
                };
                uploads::run(&plan).await
            }
            Bench::Supervise { .. } => Ok(Vec::new()),
        }
    })?;
    report::print(&figures, arguments.json)?;
    Ok(ExitCode::SUCCESS)
}
