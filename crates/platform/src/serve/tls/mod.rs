//! TLS before HTTP: a certificate that is read anew when its files change, and handshakes that end.

mod certificates;
mod handshakes;
mod pair;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub use certificates::Certificates;
pub use handshakes::Unshaken;
pub use pair::{Pair, PairError, PairFiles};

use handshakes::Handshakes;

/// How long a client may take for its handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Handshakes under way at once. When there are more, the oldest is given up.
const HANDSHAKES: usize = 1024;
/// How many of them may be of one address, unless told.
const OF_ADDRESS: usize = 64;

/// What every request has among its extensions that came by TLS.
#[derive(Clone, Copy, Debug)]
pub struct Secure;

/// Takes connections by TLS 1.2 and 1.3, for HTTP/2 or HTTP/1.1 as the client chooses (ALPN). Clones are the same one.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    handshakes: Arc<Handshakes>,
}

impl Tls {
    /// TLS with these certificates.
    ///
    /// # Errors
    /// Where the system gives no randomness for the keys of session tickets.
    pub fn new(certificates: Arc<Certificates>) -> Result<Self, rustls::Error> {
        let provider = Arc::new(ring::default_provider());
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)?
            .with_no_client_auth()
            .with_cert_resolver(certificates);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Sessions are resumed from what clients keep: this process remembers none of them.
        config.ticketer = ring::Ticketer::new()?;
        Ok(Self {
            acceptor: Arc::new(config).into(),
            handshakes: Arc::new(Handshakes::new(HANDSHAKES, OF_ADDRESS, HANDSHAKE_WITHIN)),
        })
    }

    /// Lets one address have so many handshakes under way at once; when there are more, its oldest is given up.
    #[must_use]
    pub fn with_handshakes_of_address(mut self, most: usize) -> Self {
        let handshakes = Handshakes::new(HANDSHAKES, most, HANDSHAKE_WITHIN);
        self.handshakes = Arc::new(handshakes);
        self
    }

    /// Agrees with a client on keys and protocol.
    ///
    /// # Errors
    /// Where the client does not agree, takes too long, or too many others do.
    pub async fn shake<I>(&self, address: IpAddr, io: I) -> Result<TlsStream<I>, Unshaken>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        self.handshakes.run(address, self.acceptor.accept(io)).await
    }
}
