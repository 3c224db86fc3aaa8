//! The binary: every service of Cloudphone, in as many replicas as are started.

mod cluster;
mod commands;
mod docs;
mod explain;
mod local;
mod metric_help;
#[cfg(test)]
mod scopes;
mod secure;
mod serve;
mod traffic;
mod turns;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use commands::{CronCommand, NodesCommand, Reload, Tunnel};
use contracts::Service;
use mimalloc::MiMalloc;
use platform::config::{ConfigError, EXIT_CONFIG, LogFormat};
use platform::{Env, telemetry};
use tracing::error;

/// Cloudphone: the control plane of a cloud-phone platform, made to run as many replicas.
///
/// Without a command it serves every service on ports 30000 to 30006, with a private Redis and PostgreSQL under
/// .cloudphone/. Run it again in another terminal and there are two replicas. Settings are environment variables;
/// `gateway config check` lists what is wrong with them.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    common: Common,
}

/// What every command takes.
#[derive(Args, Clone)]
struct Common {
    /// A file of NAME=value lines; variables of the environment win over it.
    #[arg(long, global = true, value_name = "FILE")]
    env_file: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Serves until SIGTERM or Ctrl-C, then leaves without losing a request.
    Serve {
        /// Only these services, comma-separated: gateway, users, devices, apps, media, billing, notifications.
        #[arg(long, value_delimiter = ',', value_name = "NAMES")]
        services: Vec<Service>,
    },
    /// Shows every instance of every service in the cluster, on all machines.
    Status {
        /// JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Replaces the replicas of this machine one by one, by new processes of this very program, and fails no request.
    ///
    /// Each successor gets the arguments, the environment, the folder and the outputs of its predecessor (variables stay
    /// as they were, an --env-file is read anew). When it is ready the predecessor hands its sockets over, finishes what
    /// it has and leaves. A successor that does not become ready is ended, its predecessor goes on, and the exit code is
    /// 1. A replica that was started in a terminal is no longer ended by Ctrl-C there once it is replaced.
    ///
    /// Where a supervisor starts the replicas it has to replace them: `pm2 reload`, `systemctl restart` for one unit after
    /// the other, `kubectl rollout restart`. This command sees that and says so; with --signal-only it does the rest.
    #[command(after_help = "Examples:\n  \
        gateway reload --dry-run                  what would be replaced, and whether it may be\n  \
        /opt/cloudphone/2.0/gateway reload        replicas of 2.0 in place of whatever runs\n  \
        gateway reload --min-healthy 2            goes on while two of each service are well\n  \
        gateway reload --signal-only --json       for replicas that a supervisor starts again")]
    Reload(Reload),
    /// Examines configuration, stores, objects, cluster, this machine and the nodes of devices, and says what to do about
    /// what is wrong or soon will be.
    ///
    /// Nothing is changed but for one small object that is written and deleted again. The exit code is 1 where something
    /// fails, and 78 where the configuration does.
    #[command(after_help = "Examples:\n  \
        gateway doctor                                     before the first replica, and when something is odd\n  \
        gateway --env-file production.env doctor --json    for a program")]
    Doctor {
        /// JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Asks the replica in this container whether it can take requests; exit code 1 where it cannot, or does not say so in 3 s.
    ///
    /// It is found by its process and asked at an address that it shares with no other replica. No settings are needed.
    Healthcheck {
        /// Its process; the first one of a container is it.
        #[arg(long, default_value_t = 1)]
        pid: u32,
    },
    /// Shows what became of a request: which gateway and which instances had it, retries, limits, why it was refused.
    ///
    /// Every answer of the gateway names its request in the header `X-Request-ID`. Gateways remember the latest requests
    /// (`DECISION_LOG_REQUESTS`) for a while (`DECISION_LOG_SECONDS`); all of them are asked.
    Explain {
        /// The id of the request.
        request_id: String,
        /// JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Opens a port on this machine that leads to a device's ADB port, through a gateway.
    ///
    /// No port of the device need be reachable from here, and no settings or stores of the cluster are used: only a gateway
    /// and a token (from `POST /auth/login`) or an API key. Each connection gets a ticket of its own, which opens one tunnel
    /// by WebSocket. When a replica restarts, adb connects again by itself. The command ends with exit code 1 when the device
    /// is deleted or is another's, when access by ADB is disabled, or when the token is no longer good; while the device is
    /// stopped, it waits for it to run again.
    #[command(after_help = "Examples:\n  \
        export CLOUDPHONE_URL=https://phones.example.com\n  \
        gateway tunnel 0198f3c2-7d1e-7c4a-9b1d-6f2f3a9c1e55 --token-file ~/.cloudphone-token\n  \
        adb connect 127.0.0.1:PORT               as it says, in another terminal\n  \
        gateway tunnel DEVICE --port 5555 --json  always the same port, events for a program")]
    Tunnel(Tunnel),
    /// Brings the database up to date, then ends. Serving does it too; replicas may do it at once.
    Migrate {
        /// JSON instead of a sentence.
        #[arg(long)]
        json: bool,
    },
    /// Prints the OpenAPI document of all services.
    Openapi,
    /// Checks the configuration.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Shows the cron jobs of the cluster and takes them in hand.
    ///
    /// Each slot of a job's schedule is run once in the whole cluster, whichever replicas are alive. A job with
    /// `CRON_PAUSE_AFTER` failures in a row pauses itself; the metric `cron_job_paused` and an error in the log tell.
    #[command(after_help = "Examples:\n  \
        gateway cron list --next 3\n  \
        gateway cron history cancel-expired-orders --limit 5\n  \
        gateway cron pause media-cleanup --reason 'moving the disk'\n  \
        gateway cron trigger media-cleanup\n  \
        gateway cron resume media-cleanup")]
    Cron {
        #[command(subcommand)]
        command: CronCommand,
    },
    /// Shows the nodes that devices run on, closes and opens them, and checks how they are equipped.
    #[command(after_help = "Examples:\n  \
        export CLOUDPHONE_URL=https://phones.example.com\n  \
        gateway nodes list --token-file ~/.cloudphone-token\n  \
        gateway nodes cordon node-1 --reason 'a new disk' --token-file ~/.cloudphone-token\n  \
        gateway nodes check node-1                from this machine, with the settings of the cluster")]
    Nodes {
        #[command(subcommand)]
        command: NodesCommand,
    },
    /// Manages administrators.
    Admin {
        #[command(subcommand)]
        command: AdminCommand,
    },
    /// Keeps the private stores; replicas start it by themselves.
    #[command(hide = true)]
    Stores {
        /// The folder of the stores.
        #[arg(long)]
        dir: PathBuf,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Lists every missing or wrong setting; exit code 78 where there is one.
    Check {
        /// JSON instead of a list.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum AdminCommand {
    /// Makes an account with the role `super_admin`. The password is read from the standard input: 8 to 100 characters, with a
    /// letter and a digit.
    #[command(after_help = "Example:\n  \
        echo 'a long passphrase 1' | gateway admin create --username root --email root@example.com")]
    Create {
        /// The name to sign in with.
        #[arg(long)]
        username: String,
        /// The mail address.
        #[arg(long)]
        email: String,
        /// JSON instead of a sentence.
        #[arg(long)]
        json: bool,
    },
}

/// A request allocates some kilobytes in pieces of every size; the system's allocator took a fifth of its time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Stores { dir }) = arguments.command {
        telemetry::start_logging(LogFormat::Text);
        return told(embedded::supervise(&dir).map(|()| 0));
    }
    // One provider for all TLS of the process.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        return told(Err(anyhow::anyhow!("another TLS provider is installed")));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return told(Err(error.into())),
    };
    let serves = matches!(arguments.command, None | Some(Command::Serve { .. }));
    let code = runtime.block_on(run(arguments.command, arguments.common));
    let code = match code {
        Err(error) if serves => logged(error),
        code => code,
    };
    if let Ok(code) = code {
        // Dropping the runtime would wait for blocking work that nobody waits for any more.
        std::process::exit(code);
    }
    runtime.shutdown_background();
    told(code)
}

async fn run(command: Option<Command>, common: Common) -> anyhow::Result<i32> {
    let mut env = Env::load(common.env_file.as_deref())?;
    match command.unwrap_or(Command::Serve {
        services: Vec::new(),
    }) {
        Command::Serve { services } => {
            // Before anything can be wrong; what is wrong with this very setting is told with the others.
            let format = env.text("LOG_FORMAT").and_then(|text| text.parse().ok());
            telemetry::start_logging(format.unwrap_or(LogFormat::Auto));
            serve::serve(env, &services).await
        }
        Command::Status { json } => commands::status(env, json).await,
        Command::Doctor { json } => commands::doctor(env, json).await,
        Command::Healthcheck { pid } => commands::healthcheck(pid).await,
        Command::Explain { request_id, json } => commands::explain(env, &request_id, json).await,
        Command::Reload(options) => commands::reload(env, options).await,
        Command::Tunnel(options) => commands::tunnel(env, options).await,
        Command::Migrate { json } => commands::migrate(env, json).await,
        Command::Cron { command } => commands::cron(env, command).await,
        Command::Nodes { command } => commands::nodes(env, command).await,
        Command::Openapi => commands::openapi(),
        Command::Config {
            command: ConfigCommand::Check { json },
        } => commands::check_config(env, json),
        Command::Admin {
            command:
                AdminCommand::Create {
                    username,
                    email,
                    json,
                },
        } => commands::create_admin(env, (&username, &email), json).await,
        Command::Stores { .. } => Ok(0),
    }
}

/// Tells why a replica could not start as it tells everything else, where that is read by programs.
fn logged(error: anyhow::Error) -> anyhow::Result<i32> {
    telemetry::start_logging(LogFormat::Auto);
    if !telemetry::is_json_logged() {
        return Err(error);
    }
    error!("{error:#}");
    Ok(code_of(&error))
}

fn code_of(error: &anyhow::Error) -> i32 {
    match error.chain().any(|cause| cause.is::<ConfigError>()) {
        true => EXIT_CONFIG,
        false => 1,
    }
}

/// Tells a failure in one line on standard error: what failed, and why.
#[expect(
    clippy::print_stderr,
    reason = "the last word of a process that could not start"
)]
fn told(outcome: anyhow::Result<i32>) -> ExitCode {
    match outcome {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(u8::try_from(code_of(&error)).unwrap_or(1))
        }
    }
}
