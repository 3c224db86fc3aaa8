//! The certificate that clients are shown: what its files hold, as long as that can be used, else what they held before.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use super::{Pair, PairError, PairFiles};
use crate::Clock;

/// The certificate in use.
pub struct Certificates {
    files: PairFiles,
    clock: Clock,
    current: ArcSwap<CertifiedKey>,
    fault: Mutex<Fault>,
}

/// What is wrong with the files, seen for the first time or told already. Files are written one after the other: what is
/// wrong only once is no fault.
#[derive(Default)]
enum Fault {
    #[default]
    None,
    Seen(String),
    Told(String),
}

impl Certificates {
    /// Reads the files for the first time. A certificate whose time is not now is used for want of a better one.
    ///
    /// # Errors
    /// With the file at fault, and what is wrong with it. It blocks.
    pub fn open(files: PairFiles, clock: Clock) -> Result<Arc<Self>, PairError> {
        let pair = Pair::read(&files)?;
        if let Err(fault) = pair.check(&files, clock.now().utc()) {
            error!("clients will refuse TLS: {fault}");
        }
        tell(&pair);
        Ok(Arc::new(Self {
            files,
            clock,
            current: ArcSwap::new(pair.certified),
            fault: Mutex::default(),
        }))
    }

    /// Looks whether the files hold another certificate, and shows it from then on; connections that are there keep the
    /// old one. A pair that cannot be used changes nothing, and is told of once.
    ///
    /// # Errors
    /// Where the process has no thread left to read with.
    pub async fn look(&self) -> anyhow::Result<()> {
        let files = self.files.clone();
        let read = spawn_blocking(move || Pair::read(&files)).await?;
        let current = self.current.load();
        match read {
            Ok(pair) if pair.certified.cert == current.cert => {
                *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Fault::None;
            }
            Ok(pair) => match pair.check(&self.files, self.clock.now().utc()) {
                Ok(()) => self.change(pair),
                Err(fault) => self.keep(&fault),
            },
            Err(fault) => self.keep(&fault),
        }
        Ok(())
    }

    fn change(&self, pair: Pair) {
        tell(&pair);
        self.current.store(pair.certified);
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Fault::None;
        metrics::counter!("gateway_tls_reloads_total", "outcome" => "loaded").increment(1);
        let path = self.files.certificate.display();
        info!(
            "the certificate in {path} is new, and holds until {}",
            pair.until
        );
    }

    fn keep(&self, fault: &PairError) {
        let text = chain(fault);
        let mut known = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        *known = match std::mem::take(&mut *known) {
            Fault::Told(before) if before == text => Fault::Told(before),
            Fault::Seen(before) if before == text => {
                warn!("the certificate stays the old one: {text}");
                metrics::counter!("gateway_tls_reloads_total", "outcome" => "refused").increment(1);
                Fault::Told(text)
            }
            _ => Fault::Seen(text),
        };
    }
}

fn tell(pair: &Pair) {
    let until = pair.until.timestamp() as f64;
    metrics::gauge!("gateway_tls_certificate_expiry_timestamp_seconds").set(until);
}

fn chain(fault: &PairError) -> String {
    let mut text = fault.to_string();
    let mut cause = fault.source();
    while let Some(one) = cause {
        text = format!("{text}: {one}");
        cause = one.source();
    }
    text
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}
