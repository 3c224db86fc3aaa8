//! TLS on a port beside the gateway's plain one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gateway::front::TlsPort;
use platform::Clock;
use platform::config::{ConfigError, Fault};
use platform::lifecycle::{Tasks, Tick};
use platform::serve::tls::{Certificates, Pair, PairError, Tls};

/// The name of the port among those that replicas share; by it the setting is named, too.
pub const NAME: &str = "gateway-tls";

/// How often the files of the certificate are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// A port that speaks TLS, ready to be served.
pub struct SecurePort {
    /// Where it listens.
    pub address: SocketAddr,
    certificates: Arc<Certificates>,
}

impl SecurePort {
    /// Reads the certificate of a port, where there is one.
    pub fn open(port: Option<&TlsPort>) -> Result<Option<Self>, ConfigError> {
        let Some(port) = port else { return Ok(None) };
        let certificates = Certificates::open(port.files.clone(), Clock::system());
        Ok(Some(Self {
            address: port.address,
            certificates: certificates.map_err(|error| told(port, error))?,
        }))
    }

    /// Takes part in TLS from now on, with the certificate that the files hold at the time.
    pub fn begin(&self, tasks: &Tasks) -> anyhow::Result<Tls> {
        let certificates = self.certificates.clone();
        tasks.every("gateway.certificate", LOOK, move || {
            let certificates = certificates.clone();
            async move {
                certificates.look().await?;
                Ok(Tick::Idle)
            }
        });
        Ok(Tls::new(self.certificates.clone())?)
    }
}

/// Whether clients would accept the certificate of a port, as far as its files tell.
pub fn check(port: Option<&TlsPort>) -> Result<(), ConfigError> {
    let Some(port) = port else { return Ok(()) };
    let now = Clock::system().now().utc();
    Pair::read(&port.files)
        .and_then(|pair| pair.check(&port.files, now))
        .map_err(|error| told(port, error))
}

fn told(port: &TlsPort, error: PairError) -> ConfigError {
    let variable = match error.is_of_key(&port.files) {
        true => "GATEWAY_TLS_KEY",
        false => "GATEWAY_TLS_CERT",
    };
    let message = format!("{:#}", anyhow::Error::new(error));
    ConfigError(vec![Fault {
        variable: variable.to_owned(),
        message,
    }])
}
