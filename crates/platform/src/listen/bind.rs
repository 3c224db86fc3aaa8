//! Binding a listening socket that replicas of this machine can have side by side, and saying why it failed.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait to be accepted.
pub const BACKLOG: i32 = 1024;

/// Why a port cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another program, another user's replica or another cluster listens there.
    #[error(
        "port {port} of {service} is in use by a program that is no replica of this cluster: stop it, or set \
         {setting} to another port",
        port = address.port(),
        setting = setting(service)
    )]
    InUse {
        /// The service whose port it is.
        service: String,
        /// Where it should listen.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// This machine does not have the address.
    #[error("this machine has no address {}, where {service} should listen: set LISTEN_ADDRESS to one of its own", address.ip())]
    NoSuchAddress {
        /// The service.
        service: String,
        /// Where it should listen.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused for another reason.
    #[error("could not listen on {address} for {service} (set by {setting} and LISTEN_ADDRESS)", setting = setting(service))]
    Refused {
        /// The service.
        service: String,
        /// Where it should listen.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    fn new(service: &str, address: SocketAddr, source: io::Error) -> Self {
        let service = service.to_owned();
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse {
                service,
                address,
                source,
            },
            io::ErrorKind::AddrNotAvailable => Self::NoSuchAddress {
                service,
                address,
                source,
            },
            _ => Self::Refused {
                service,
                address,
                source,
            },
        }
    }
}

/// The setting that moves the port of a service.
fn setting(service: &str) -> String {
    format!("{}_PORT", service.to_uppercase().replace('-', "_"))
}

/// Whether other replicas may already listen on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// A replica of this cluster may have it too.
    Expected,
    /// No replica has it, so whoever listens there is a stranger: even one that would share the port with us.
    Stranger,
}

/// Binds and listens on a well-known port, beside other replicas.
pub fn shared(service: &str, address: SocketAddr, company: Company) -> Result<TcpListener, Error> {
    let bind = || {
        if company == Company::Stranger && address.port() != 0 {
            // Without `SO_REUSEPORT` this fails where anyone listens. It is not listening yet, so no client sees it.
            drop(bound(address, false)?);
        }
        listening(bound(address, true)?)
    };
    bind().map_err(|source| Error::new(service, address, source))
}

/// Whether a well-known port is free, or another replica has it.
pub fn free(service: &str, address: SocketAddr) -> Result<(), Error> {
    let socket = bound(address, true);
    socket
        .map(drop)
        .map_err(|source| Error::new(service, address, source))
}

/// Binds and listens on a port of our own.
pub fn alone(service: &str, address: SocketAddr) -> Result<TcpListener, Error> {
    let bind = || listening(bound(address, false)?);
    bind().map_err(|source| Error::new(service, address, source))
}

fn bound(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.ip() == IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listening(socket: Socket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    #[test]
    fn replicas_share_a_port() {
        let first = shared("users", ANY, Company::Stranger).unwrap();
        let address = first.local_addr().unwrap();

        let second = shared("users", address, Company::Expected).unwrap();

        assert_eq!(second.local_addr().unwrap(), address);
    }

    #[test]
    fn a_stranger_on_the_port_is_named_with_the_setting_that_moves_it() {
        let stranger = TcpListener::bind(ANY).unwrap();
        let address = stranger.local_addr().unwrap();

        let error = shared("users", address, Company::Expected)
            .unwrap_err()
            .to_string();

        assert!(error.contains(&address.port().to_string()), "{error}");
        assert!(error.contains("USERS_PORT"), "{error}");
    }

    #[test]
    fn a_stranger_that_would_share_the_port_is_refused_too() {
        let stranger = shared("users", ANY, Company::Stranger).unwrap();
        let address = stranger.local_addr().unwrap();

        let error = shared("users", address, Company::Stranger).unwrap_err();

        assert!(matches!(error, Error::InUse { .. }), "{error}");
    }

    #[test]
    fn an_address_of_another_machine_is_named() {
        let error = shared("users", "192.0.2.1:0".parse().unwrap(), Company::Expected).unwrap_err();

        assert!(error.to_string().contains("192.0.2.1"), "{error}");
        assert!(error.to_string().contains("LISTEN_ADDRESS"), "{error}");
    }
}
