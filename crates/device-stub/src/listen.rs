//! The three ports of a device and the connections to them.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::device::Device;
use crate::{adb, page, scrcpy};

/// Connections to one port at a time; a further one is closed at once.
const CONNECTIONS: usize = 64;

/// Which of a device's ports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PortKind {
    Adb,
    WebRtc,
    Scrcpy,
}

/// The numbers of a device's ports; 0 takes any free one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ports {
    pub adb: u16,
    pub webrtc: u16,
    pub scrcpy: u16,
}

/// A port that could not be had.
#[derive(Debug)]
pub struct BindError {
    pub port: u16,
    pub kind: PortKind,
    pub source: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "could not listen on the {:?} port {}",
            self.kind, self.port
        )
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<BindError> for io::Error {
    fn from(error: BindError) -> Self {
        Self::new(error.source.kind(), error)
    }
}

/// A device that holds its ports; connections wait until it runs.
pub struct Bound {
    device: Device,
    adb: TcpListener,
    webrtc: TcpListener,
    scrcpy: TcpListener,
}

impl Bound {
    /// Takes the three ports, or none.
    pub async fn bind(device: Device, address: IpAddr, ports: Ports) -> Result<Self, BindError> {
        let bind = async |port, kind| {
            TcpListener::bind((address, port))
                .await
                .map_err(|source| BindError { port, kind, source })
        };
        let adb = bind(ports.adb, PortKind::Adb).await?;
        let webrtc = bind(ports.webrtc, PortKind::WebRtc).await?;
        let scrcpy = bind(ports.scrcpy, PortKind::Scrcpy).await?;
        Ok(Self {
            device,
            adb,
            webrtc,
            scrcpy,
        })
    }

    /// The ports it holds.
    pub fn ports(&self) -> io::Result<Ports> {
        let port = |listener: &TcpListener| Ok::<_, io::Error>(listener.local_addr()?.port());
        Ok(Ports {
            adb: port(&self.adb)?,
            webrtc: port(&self.webrtc)?,
            scrcpy: port(&self.scrcpy)?,
        })
    }

    /// Behaves like a device until told to stop, then closes its ports and connections.
    pub async fn run(self, stop: CancellationToken) {
        let Self {
            device,
            adb,
            webrtc,
            scrcpy,
        } = self;
        let all = async {
            tokio::join!(
                accept(&adb, |stream| adb::serve(device.clone(), stream)),
                accept(&webrtc, |stream| page::serve(device.clone(), stream)),
                accept(&scrcpy, |stream| scrcpy::serve(device.clone(), stream)),
            )
        };
        stop.run_until_cancelled(all).await;
    }
}

async fn accept<F>(listener: &TcpListener, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: some connection has to end first.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let served = serve(stream);
        connections.spawn(async move {
            // A connection that breaks is its peer's affair.
            let _ = served.await;
            drop(permit);
        });
    }
}
