//! Answers the peers that give or claim sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::fds;
use super::peers::{self, Door, Offer, PATIENCE, Request, Taken};
use super::state::State;

/// How often adopted sockets are looked through.
const LOOK: Duration = Duration::from_secs(1);

/// How long an adopted socket waits for a successor. A restart takes seconds.
const ADOPTED_FOR: Duration = Duration::from_secs(30);

/// Answers peers until this replica is `closed`.
pub async fn answer(state: Arc<State>, door: Door, closed: CancellationToken) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = closed.cancelled() => return,
            _ = look.tick() => {
                let retired = state.retire_unclaimed(ADOPTED_FOR);
                if retired > 0 {
                    info!("closed {retired} adopted sockets that no successor claimed");
                }
            }
            knock = door.listener.accept() => match knock {
                Ok((stream, _)) => {
                    let exchange = exchange(state.clone(), stream);
                    state.exchanges.spawn(exchange);
                }
                Err(error) => {
                    warn!("could not answer a peer: {error}");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

async fn exchange(state: Arc<State>, stream: UnixStream) {
    let request = match timeout(PATIENCE, fds::read::<Request>(&stream)).await {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => return debug!("could not understand a peer: {error}"),
        Err(_) => return debug!("a peer knocked and said nothing"),
    };
    let result = match request {
        (Request::Claim(wanted), _) => offer(&state, &stream, &wanted).await,
        (Request::Give(names), sockets) => adopt(&state, &stream, names, sockets).await,
    };
    if let Err(error) = result {
        debug!("an exchange with a peer ended early: {error}");
    }
}

async fn offer(
    state: &State,
    stream: &UnixStream,
    wanted: &BTreeMap<String, SocketAddr>,
) -> io::Result<()> {
    let mut offered = state.offer(wanted);
    let rest = offered.split_off(offered.len().min(fds::MOST));
    state.end_offer(&rest, &BTreeSet::new());
    let exchange = async {
        use std::os::fd::AsFd;
        let message = Offer {
            serves: state.services(),
            sockets: offered
                .iter()
                .map(|(_, (service, ..))| service.clone())
                .collect(),
        };
        let sockets: Vec<_> = offered
            .iter()
            .map(|(_, (_, _, listener))| listener.as_fd())
            .collect();
        fds::write(stream, &message, &sockets).await?;
        let (Taken(taken), _) = fds::read(stream).await?;
        Ok(taken)
    };
    let taken = match timeout(PATIENCE, exchange).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    let ids = taken
        .iter()
        .flatten()
        .filter_map(|place| Some(offered.get(*place)?.0))
        .collect();
    state.end_offer(&offered, &ids);
    taken.map(|_| ())
}

async fn adopt(
    state: &State,
    stream: &UnixStream,
    names: Vec<(String, SocketAddr)>,
    sockets: Vec<OwnedFd>,
) -> io::Result<()> {
    let mut taken = Vec::new();
    for (place, ((service, address), socket)) in names.into_iter().zip(sockets).enumerate() {
        if let Some(listener) = peers::listener(socket, address)
            && state.adopt(&service, address, listener)
        {
            taken.push(place);
        }
    }
    if !taken.is_empty() {
        info!("adopted {} sockets of a replica that leaves", taken.len());
    }
    // What was taken stays even when the giver is gone before it hears this: then nobody else has it.
    timeout(PATIENCE, fds::write(stream, &Taken(taken), &[])).await?
}
