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
    handshakes_per_address: usize,
    certificates: Arc<Certificates>,
}

impl SecurePort {
    /// Reads the certificate of a port, where there is one.
    pub fn open(port: Option<&TlsPort>) -> Result<Option<Self>, ConfigError> {
        let Some(port) = port else { return Ok(None) };
        let certificates = Certificates::open(port.files.clone(), Clock::system());
        Ok(Some(Self {
            address: port.address,
            handshakes_per_address: port.handshakes_per_address,
            certificates: certificates.map_err(|error| {
                let all = faults(port);
                let some = all.is_empty().then(|| fault(port, error));
                ConfigError(all.into_iter().chain(some).collect())
            })?,
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
        let tls = Tls::new(self.certificates.clone())?;
        Ok(tls.with_handshakes_of_address(self.handshakes_per_address))
    }
}

/// All for which clients would not accept the certificate of a port, as far as its files tell.
pub fn faults(port: &TlsPort) -> Vec<Fault> {
    let now = Clock::system().now().utc();
    let faults = Pair::faults(&port.files, now).into_iter();
    faults.map(|error| fault(port, error)).collect()
}

fn fault(port: &TlsPort, error: PairError) -> Fault {
    let variable = match error.is_of_key(&port.files) {
        true => "GATEWAY_TLS_KEY",
        false => "GATEWAY_TLS_CERT",
    };
    Fault {
        variable: variable.to_owned(),
        message: format!("{:#}", anyhow::Error::new(error)),
    }
}
