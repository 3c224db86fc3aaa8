//! Whether somebody listens on a port who did not ask the pool.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpListener;

use super::{PortKind, PortSet, RestReason};

/// Binds each port of a set for a moment, and tells which cannot be bound and why. Only for sets that the caller holds:
/// it would be in the way of their owner. Run it on the node; of an address that is not this machine's nothing can be
/// said, and nothing is.
pub async fn probe(address: IpAddr, ports: PortSet) -> Vec<(PortKind, RestReason)> {
    let mut taken = Vec::new();
    for kind in PortKind::ALL {
        let bound = TcpListener::bind(SocketAddr::new(address, ports.of(kind))).await;
        match bound.map_err(|error| error.kind()) {
            Err(io::ErrorKind::AddrInUse) => taken.push((kind, RestReason::ForeignProcess)),
            Err(io::ErrorKind::PermissionDenied) => taken.push((kind, RestReason::NotPermitted)),
            Ok(_) | Err(_) => {}
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_is_found_wherever_it_listens() {
        let everywhere = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let here = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let ports = PortSet {
            adb: port(&everywhere),
            webrtc: port(&here),
            scrcpy: port(&free),
        };
        drop(free);

        let taken = probe("127.0.0.1".parse().unwrap(), ports).await;

        assert_eq!(
            taken,
            [
                (PortKind::Adb, RestReason::ForeignProcess),
                (PortKind::Webrtc, RestReason::ForeignProcess)
            ]
        );
        let elsewhere = "192.0.2.1".parse().unwrap();
        assert!(probe(elsewhere, ports).await.is_empty());
    }
}
