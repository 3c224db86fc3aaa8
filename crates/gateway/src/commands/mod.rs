//! What the binary does beside serving.

mod admin;
mod cron;
mod database;
mod explain;
mod status;
mod stores;
mod table;

use std::io::Write;

use clap::Subcommand;
use platform::Env;

use crate::serve::Config;

pub use admin::create_admin;
pub use cron::cron;
pub use database::migrate;
pub use explain::explain;
pub use status::status;

/// What can be done with cron jobs.
#[derive(Subcommand)]
pub enum CronCommand {
    /// Shows every job: schedule and zone, policies, how the last run went, when the next ones come (UTC).
    List {
        /// How many of the next runs are shown.
        #[arg(long, default_value_t = 1, value_name = "COUNT")]
        next: usize,
        /// JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Shows the runs of a job, newest first.
    ///
    /// STATE is requested (by hand, nobody took it yet), running, succeeded, failed, abandoned (its holder vanished or
    /// left; the next replica takes it over), cancelled (a later slot came first) or skipped (an earlier run still went
    /// on). LAG is how long after its slot it began. ATTEMPT above 1: an earlier holder was lost.
    History {
        /// The name of the job.
        job: String,
        /// How many runs.
        #[arg(long, default_value_t = 20, value_name = "COUNT")]
        limit: i64,
        /// JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Asks for a run now, on whichever replica takes it; of a paused job, too.
    Trigger {
        /// The name of the job.
        job: String,
    },
    /// Stops the schedule of a job on all replicas; a run that goes on is not disturbed.
    Pause {
        /// The name of the job.
        job: String,
        /// Why, for the others.
        #[arg(long, default_value = "by hand", value_name = "TEXT")]
        reason: String,
    },
    /// Lets a paused job go on with its next slot. Slots of the pause are not made good.
    Resume {
        /// The name of the job.
        job: String,
    },
}

/// Lists every fault of the configuration; none is told, too.
pub fn check_config(env: Env) -> anyhow::Result<i32> {
    let config = Config::from_env(env)?;
    say(&format!(
        "the configuration is right, for the profile {}",
        config.settings.profile.name()
    ))?;
    Ok(0)
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
