//! Keeps one store running: starts it, waits until it answers, starts it again when it dies, ends it at last.

use std::cell::RefCell;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::binaries::Binaries;
use crate::lock;
use crate::news::{Message, News};
use crate::place::Place;
use crate::process::die_with_parent;
use crate::record::{Record, is_taken};

const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A store that ends this often before it ever answered will not start.
const ATTEMPTS: u32 = 5;
const POLL: Duration = Duration::from_millis(25);

/// A server that the supervisor runs.
pub trait Store {
    /// Its name for people.
    const NAME: &'static str;
    /// The signals that end it and how long each may take, the gentlest first.
    const ENDINGS: &'static [(Signal, Duration)];

    /// Puts its files in order and says how it is started.
    async fn prepare(&mut self) -> anyhow::Result<Command>;

    /// Tells whether it takes clients.
    async fn answers(&self) -> bool;
}

/// What both stores are made from.
pub struct Shared {
    pub place: Place,
    pub binaries: Binaries,
    pub record: RefCell<Record>,
    pub news: News,
}

impl Shared {
    /// Tells whether replicas hold the addresses of an earlier supervisor, which therefore must stay the same.
    pub fn is_relied_upon(&self) -> bool {
        !lock::is_free(&self.place.dir, lock::MEMBERS).unwrap_or(false)
    }

    /// The port of a store. A stranger who took it makes us choose another, unless replicas know the old one.
    pub fn port(&self, of: fn(&mut Record) -> &mut u16) -> anyhow::Result<u16> {
        let mut record = self.record.borrow_mut();
        let port = *of(&mut record);
        if is_taken(port) {
            anyhow::ensure!(
                !self.is_relied_upon(),
                "another program has taken port {port}"
            );
            record.avoid_taken(of).context("could not choose a port")?;
            record
                .save(&self.place.dir)
                .context("could not write stores.json")?;
        }
        Ok(*of(&mut record))
    }
}

/// Runs a store until told to stop. Gives up, and stops the others, only if it never answered and nobody relies on it.
pub async fn keep<S: Store>(
    mut store: S,
    shared: &Shared,
    answered: oneshot::Sender<()>,
    stop: &CancellationToken,
) {
    let mut answered = Some(answered);
    let mut pause = SHORTEST_PAUSE;
    let mut attempt = 1;
    loop {
        let Some(result) = stop.run_until_cancelled(start(&mut store)).await else {
            return;
        };
        let failure = match result {
            Ok(mut child) => match watch(&store, &mut child, &mut answered, stop).await {
                Ended::Stopped => return end::<S>(&mut child).await,
                Ended::AfterAnswering(status) => {
                    pause = SHORTEST_PAUSE;
                    anyhow::anyhow!("{} ended by itself: {status}", S::NAME)
                }
                Ended::Early(status) => {
                    anyhow::anyhow!("{} ended before it answered: {status}", S::NAME)
                }
            },
            Err(error) => error,
        };
        if answered.is_some() && attempt >= ATTEMPTS && !shared.is_relied_upon() {
            shared.news.say(Message::Failed(format!("{failure:#}")));
            stop.cancel();
            return;
        }
        warn!(
            attempt,
            "{failure:#}; starting {} again in {pause:?}",
            S::NAME
        );
        attempt += 1;
        if stop.run_until_cancelled(sleep(pause)).await.is_none() {
            return;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

enum Ended {
    Stopped,
    Early(String),
    AfterAnswering(String),
}

async fn start<S: Store>(store: &mut S) -> anyhow::Result<Child> {
    let mut command = store.prepare().await?;
    die_with_parent(&mut command, S::ENDINGS[0].0);
    // The supervisor has one thread, so that the thread that spawns is the one that lives as long as the process.
    let child = tokio::process::Command::from(command).spawn();
    child.with_context(|| format!("could not start {}", S::NAME))
}

async fn watch<S: Store>(
    store: &S,
    child: &mut Child,
    answered: &mut Option<oneshot::Sender<()>>,
    stop: &CancellationToken,
) -> Ended {
    let status = |result: std::io::Result<std::process::ExitStatus>| {
        result.map_or_else(|error| error.to_string(), |status| status.to_string())
    };
    tokio::select! {
        () = stop.cancelled() => return Ended::Stopped,
        result = child.wait() => return Ended::Early(status(result)),
        () = until_it_answers(store) => {}
    }
    info!("{} answers", S::NAME);
    if let Some(answered) = answered.take() {
        let _ = answered.send(());
    }
    tokio::select! {
        () = stop.cancelled() => Ended::Stopped,
        result = child.wait() => Ended::AfterAnswering(status(result)),
    }
}

async fn until_it_answers<S: Store>(store: &S) {
    while !timeout(Duration::from_secs(1), store.answers())
        .await
        .unwrap_or(false)
    {
        sleep(POLL).await;
    }
}

async fn end<S: Store>(child: &mut Child) {
    for (signal, patience) in S::ENDINGS {
        let Some(id) = child.id() else { return };
        let _ = kill(Pid::from_raw(id.cast_signed()), *signal);
        if timeout(*patience, child.wait()).await.is_ok() {
            info!("{} has ended", S::NAME);
            return;
        }
        warn!("{} did not end on {signal} in {patience:?}", S::NAME);
    }
}
