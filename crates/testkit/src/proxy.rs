//! A wire to a store that can be cut, stalled and slowed.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// What the wire does with what goes over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// It carries everything.
    Whole,
    /// It closes what is open and refuses what is new.
    Cut,
    /// It takes everything and carries nothing, as a network does that loses all packets.
    Stalled,
    /// It carries each piece after a delay.
    Slow(Duration),
}

/// A relay between a replica and a store, in a thread of its own. It ends with this value.
pub struct Proxy {
    address: SocketAddr,
    wire: Arc<watch::Sender<Wire>>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Proxy {
    /// Carries everything between a free port of 127.0.0.1 and a store.
    pub fn start(store: SocketAddr) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .context("no free port for a proxy")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let wire = Arc::new(watch::Sender::new(Wire::Whole));
        let (end, ended) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let states = wire.clone();
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = ended => {}
                    _ = relay(listener, store, &states) => {}
                }
            });
        });
        Ok(Self {
            address,
            wire,
            end: Some(end),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what the wire does, from the next piece on.
    pub fn set(&self, wire: Wire) {
        self.wire.send_replace(wire);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn relay(
    listener: std::net::TcpListener,
    store: SocketAddr,
    wire: &Arc<watch::Sender<Wire>>,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await?;
        let state = wire.subscribe();
        if *state.borrow() == Wire::Cut {
            continue;
        }
        while connections.try_join_next().is_some() {}
        connections.spawn(connect(client, store, state));
    }
}

/// Carries one connection until an end closes it or the wire is cut.
async fn connect(mut client: TcpStream, store: SocketAddr, state: watch::Receiver<Wire>) {
    let Ok(mut server) = TcpStream::connect(store).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let mut cut = state.clone();
    tokio::select! {
        _ = cut.wait_for(|wire| *wire == Wire::Cut) => {}
        _ = carry(from_client, to_server, state.clone()) => {}
        _ = carry(from_server, to_client, state.clone()) => {}
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<Wire>,
) -> std::io::Result<()> {
    let mut piece = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            return Ok(());
        }
        let now = *state.borrow_and_update();
        match now {
            Wire::Slow(delay) => sleep(delay).await,
            Wire::Stalled => {
                let _ = state.wait_for(|wire| *wire != Wire::Stalled).await;
            }
            Wire::Whole | Wire::Cut => {}
        }
        to.write_all(&piece[..length]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wire_carries_stalls_and_is_cut() {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = echo.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut streams = JoinSet::new();
            loop {
                let (mut stream, _) = echo.accept().await.unwrap();
                streams.spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        let proxy = Proxy::start(at).unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let mut byte = [0];
        client.write_all(b"a").await.unwrap();
        assert_eq!(client.read(&mut byte).await.unwrap(), 1);

        proxy.set(Wire::Stalled);
        client.write_all(b"b").await.unwrap();
        let silent = tokio::time::timeout(Duration::from_millis(200), client.read(&mut byte)).await;
        assert!(silent.is_err(), "a stalled wire carries nothing");
        proxy.set(Wire::Slow(Duration::from_millis(1)));
        assert_eq!((client.read(&mut byte).await.unwrap(), byte), (1, *b"b"));

        proxy.set(Wire::Cut);
        assert_eq!(client.read(&mut byte).await.unwrap_or(0), 0);
        let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(refused.read(&mut byte).await.unwrap_or(0), 0);
    }
}
