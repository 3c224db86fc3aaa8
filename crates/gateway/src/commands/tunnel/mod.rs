//! `gateway tunnel`: a port on the user's own machine that leads to a device's ADB port, through a gateway.

mod api;
mod link;
mod told;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use platform::Env;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

use super::client::{Asking, Refusal};
use api::Api;
use told::Told;

/// Connections at a time; a gateway allows no more to a device.
const MOST: usize = 16;
/// How long one connection tries to get through: gateways restart.
const OPEN_WITHIN: Duration = Duration::from_secs(30);
/// How long after a failure it is tried again, longer each time.
const PAUSE: Duration = Duration::from_millis(300);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// How often it is looked whether the device is still there.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long a ticket and the tunnel that it opens may take together.
const ASK: Duration = Duration::from_secs(10);

/// Which device, and how.
#[derive(Args)]
pub struct Tunnel {
    /// The id of the device; it must run.
    device: String,
    #[command(flatten)]
    asking: Asking,
    /// The port of 127.0.0.1 to listen on; default any free one.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// JSON, one event a line.
    #[arg(long)]
    json: bool,
}

/// What became of a connection, and whether it is of use to go on.
enum Outcome {
    /// It ended; the next one may get through.
    Over(String),
    /// Nothing will get through any more.
    Final(String),
}

/// Carries connections until the device is gone, the token is no longer good, or a signal comes.
pub async fn tunnel(env: Env, options: Tunnel) -> anyhow::Result<i32> {
    let api = Api::new(options.asking.client(env)?, &options.device)?;
    let told = Told::new(options.json);
    let name = match api.device().await {
        Ok(name) => name,
        Err(refusal) => bail!("{refusal}"),
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, options.port.unwrap_or_default()));
    let listener = TcpListener::bind(address);
    let listener = listener
        .await
        .with_context(|| format!("listening on {address}"))?;
    told.listening(&options.device, &name, listener.local_addr()?)?;
    let end = run(&api, &listener, &told).await?;
    told.ended(&end)?;
    match end {
        Outcome::Over(_) => Ok(0),
        Outcome::Final(_) if options.json => Ok(1),
        Outcome::Final(why) => bail!("{why}"),
    }
}

async fn run(api: &Api, listener: &TcpListener, told: &Told) -> anyhow::Result<Outcome> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let mut connections = JoinSet::new();
    let mut look = interval(LOOK_EVERY);
    look.reset();
    let mut number = 0_u64;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(Outcome::Over("SIGTERM".to_owned())),
            _ = interrupt.recv() => return Ok(Outcome::Over("interrupted".to_owned())),
            accepted = listener.accept(), if connections.len() < MOST => {
                let (stream, _) = accepted.context("accepting a connection")?;
                number += 1;
                let api = api.clone();
                connections.spawn(async move { (number, carry(api, stream).await) });
                told.connection("opened", number, None)?;
            }
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                let (number, outcome) = ended?;
                match outcome {
                    Outcome::Over(why) => told.connection("closed", number, Some(&why))?,
                    Outcome::Final(why) => return Ok(Outcome::Final(why)),
                }
            }
            _ = look.tick() => {
                if let Err(refusal) = api.device().await
                    && refusal.is_final()
                {
                    return Ok(Outcome::Final(refusal.to_string()));
                }
            }
        }
    }
}

/// Carries one connection of the local adb.
async fn carry(api: Api, stream: TcpStream) -> Outcome {
    // Without it, what is typed comes late.
    let _ = stream.set_nodelay(true);
    match open(&api).await {
        Ok(socket) => link::carry(socket, stream).await,
        Err(refusal) if refusal.is_final() => Outcome::Final(refusal.to_string()),
        Err(refusal) => Outcome::Over(refusal.to_string()),
    }
}

/// Gets a ticket and opens a tunnel by it, again and again while that may help.
async fn open(api: &Api) -> Result<link::Socket, Refusal> {
    let until = Instant::now() + OPEN_WITHIN;
    let mut pause = PAUSE;
    loop {
        let opening = async {
            let url = api.ticket().await?;
            api.open(&url).await
        };
        let opened = timeout(ASK, opening)
            .await
            .unwrap_or_else(|_| Err(api.silent()));
        match opened {
            Err(refusal) if refusal.passes() && Instant::now() + pause < until => {
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            opened => return opened,
        }
    }
}
