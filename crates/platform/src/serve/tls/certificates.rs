//! The certificate that clients are shown: what its files hold, as long as that can be used, else what they held before.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
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
    found: Mutex<Found>,
}

/// What the last look found in the files. They are written one after the other, and a chain piece by piece: only what is
/// found twice in a row is believed.
#[derive(Default)]
enum Found {
    /// What is in use.
    #[default]
    Same,
    /// Another certificate that can be used.
    New(Vec<CertificateDer<'static>>),
    /// Something wrong.
    Fault(String),
    /// The same once more, which was told.
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
            found: Mutex::default(),
        }))
    }

    /// Looks whether the files hold another certificate; one that was there at the last look, too, is shown from then on.
    /// Connections that are there keep the old one. A pair that cannot be used changes nothing, and is told of once.
    ///
    /// # Errors
    /// Where the process has no thread left to read with.
    pub async fn look(&self) -> anyhow::Result<()> {
        let files = self.files.clone();
        let read = spawn_blocking(move || Pair::read(&files)).await?;
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now().utc();
        let read = read.and_then(
            |pair| match pair.certified.cert == self.current.load().cert {
                true => Ok(None),
                false => pair.check(&self.files, now).map(|()| Some(pair)),
            },
        );
        *found = match (read, std::mem::take(&mut *found)) {
            (Ok(None), _) => Found::Same,
            (Ok(Some(pair)), Found::New(before)) if pair.certified.cert == before => {
                self.change(pair);
                Found::Same
            }
            (Ok(Some(pair)), _) => Found::New(pair.certified.cert.clone()),
            (Err(fault), before) => again(chain(&fault), before),
        };
        Ok(())
    }

    fn change(&self, pair: Pair) {
        tell(&pair);
        self.current.store(pair.certified);
        metrics::counter!("gateway_tls_reloads_total", "outcome" => "loaded").increment(1);
        let path = self.files.certificate.display();
        info!(
            "the certificate in {path} is new, and holds until {}",
            pair.until
        );
    }
}

/// Tells of a fault that is found for the second time.
fn again(fault: String, before: Found) -> Found {
    match before {
        Found::Told(told) if told == fault => Found::Told(told),
        Found::Fault(seen) if seen == fault => {
            warn!("the certificate stays the old one: {fault}");
            metrics::counter!("gateway_tls_reloads_total", "outcome" => "refused").increment(1);
            Found::Told(fault)
        }
        _ => Found::Fault(fault),
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
