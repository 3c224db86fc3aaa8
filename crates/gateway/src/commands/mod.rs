//! What the binary does beside serving.

mod admin;
mod client;
mod cron;
mod database;
mod doctor;
mod explain;
mod healthcheck;
mod nodes;
mod reload;
mod status;
mod stores;
mod table;
mod tunnel;

use std::io::Write;

use clap::{Args, Subcommand};
use platform::Env;
use platform::config::EXIT_CONFIG;
use serde_json::{Value, json};

use crate::serve::Config;

use client::Asking;

pub use admin::create_admin;
pub use cron::cron;
pub use database::migrate;
pub use doctor::doctor;
pub use explain::explain;
pub use healthcheck::healthcheck;
pub use nodes::nodes;
pub use reload::{Reload, reload};
pub use status::status;
pub use tunnel::{Tunnel, tunnel};

/// What can be done with cron jobs.
#[derive(Subcommand)]
pub enum CronCommand {
    /// Shows every job: schedule and zone, policies, how the last run went, when the next ones come (UTC).
    ///
    /// JITTER is by how much a slot is delayed at most, so that not all jobs begin at once; NEXT and the LAG of `cron
    /// history` have it in them. CATCH-UP says what becomes of slots that passed while no replica ran: none of them is
    /// made good, the last one, or all(Ns) of the last N seconds; the others are left out and have no row in the
    /// history. OVERLAP says what becomes of a slot that falls due while the job runs: skip, queue-one (it waits),
    /// cancel-other (it ends the earlier run) or allow. STATE is ok, so many failures in a row, paused, or that no
    /// replica runs the job. LAST is when the latest run ended, or began where it goes on; WENT is its state, as `cron
    /// history` has it.
    List {
        /// How many of the next runs are shown, 50 at most.
        #[arg(long, default_value_t = 1, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(..=50))]
        next: u8,
        /// JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Shows the runs of a job, newest first.
    ///
    /// STATE is requested (by hand, nobody took it yet), running, succeeded, failed, abandoned (its holder vanished or
    /// left; the next replica takes it over), cancelled (a later slot came first) or skipped (an earlier run still went
    /// on). LAG is how long after its slot it began, the job's jitter included. ATTEMPT above 1: an earlier holder was
    /// lost. PROCESS is HOST:PID of who ran it; `gateway status` has both of the instances that are alive.
    History {
        /// The name of the job.
        job: String,
        /// How many runs, 500 at most.
        #[arg(long, default_value_t = 20, value_name = "COUNT", value_parser = clap::value_parser!(i64).range(1..=500))]
        limit: i64,
        /// JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Asks for a run now, on whichever replica takes it; of a paused job, too.
    ///
    /// Who asks again before a replica took it asks for the same run: the slot that is told says so.
    Trigger {
        /// The name of the job.
        job: String,
        /// JSON instead of a sentence.
        #[arg(long)]
        json: bool,
    },
    /// Stops the schedule of a job on all replicas; a run that goes on is not disturbed.
    Pause {
        /// The name of the job.
        job: String,
        /// Why, for the others; who paused it from where, unless told.
        #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
        reason: Option<String>,
        /// JSON instead of a sentence.
        #[arg(long)]
        json: bool,
    },
    /// Lets a paused job go on with its next slot. Slots of the pause are not made good.
    Resume {
        /// The name of the job.
        job: String,
        /// JSON instead of a sentence.
        #[arg(long)]
        json: bool,
    },
}

/// What can be done with nodes. All but `check` ask a gateway and take an administrator's token.
#[derive(Subcommand)]
pub enum NodesCommand {
    /// Shows the nodes: what they run, whether devices may come to them, and how much of them is promised.
    ///
    /// STATUS is ready, cordoned (no further devices), draining (those it has leave as well) or down (no replica
    /// reaches its engine), SINCE when, and REASON why.
    List {
        #[command(flatten)]
        asking: Asking,
        /// JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Lets no further devices onto a node; those it has stay, and can be started and stopped.
    Cordon(Closing),
    /// Lets devices onto a node again.
    Uncordon {
        /// The name of the node.
        node: String,
        #[command(flatten)]
        asking: Asking,
        /// JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Lets no further devices onto a node, and has those it has go to other nodes. DEVICES of `nodes list` counts them down;
    /// `/api/nodes/{name}` tells why one could not go.
    Drain(Closing),
    /// Shows what nodes need so that devices do well on them, and what to do where it is missing: binder, inotify and file
    /// limits, disk, cgroups, memory. What the kernel has is seen of nodes on this machine alone; exit code 1 where a node
    /// fails.
    Check {
        /// Only this node.
        node: Option<String>,
        /// JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
}

/// A node that is closed, and why.
#[derive(Args)]
pub struct Closing {
    /// The name of the node.
    node: String,
    /// Why, for the others.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    asking: Asking,
    /// JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Lists every fault of the configuration; none is told, too.
pub fn check_config(env: Env, as_json: bool) -> anyhow::Result<i32> {
    match Config::checked(env) {
        Ok(config) => {
            let profile = config.settings.profile.name();
            let told = json!({ "right": true, "profile": profile, "faults": [] });
            let line = format!("the configuration is right, for the profile {profile}");
            tell(as_json, &told, &line)?;
            Ok(0)
        }
        Err(error) if as_json => {
            let faults = error.0.iter();
            let faults =
                faults.map(|fault| json!({ "variable": fault.variable, "message": fault.message }));
            let told = json!({ "right": false, "faults": faults.collect::<Vec<_>>() });
            say(&serde_json::to_string_pretty(&told)?)?;
            Ok(EXIT_CONFIG)
        }
        Err(error) => Err(error.into()),
    }
}

/// Prints a document, or a line in place of it.
fn tell(as_json: bool, document: &Value, line: &str) -> anyhow::Result<()> {
    match as_json {
        true => say(&serde_json::to_string_pretty(document)?),
        false => say(line),
    }
}

/// Prints the OpenAPI document of all services.
pub fn openapi() -> anyhow::Result<i32> {
    say(&serde_json::to_string_pretty(&crate::docs::document())?)?;
    Ok(0)
}

/// Prints a line; a reader that went away is no failure.
fn say(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        outcome => Ok(outcome?),
    }
}
