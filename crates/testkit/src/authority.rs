//! An authority of its own that signs certificates for servers of tests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

const HOUR: Duration = Duration::from_secs(3600);

/// Signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its key, PKCS#8.
    pub key: String,
}

impl Authority {
    /// A new authority.
    pub fn new() -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self(issuer))
    }

    /// A certificate for names and addresses that holds from an hour ago for a day.
    pub fn issue(&self, names: &[&str]) -> anyhow::Result<Issued> {
        let now = SystemTime::now();
        self.issue_for(names, now - HOUR, now + 24 * HOUR)
    }

    /// One that holds in another time.
    pub fn issue_for(
        &self,
        names: &[&str],
        from: SystemTime,
        until: SystemTime,
    ) -> anyhow::Result<Issued> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.not_before = from.into();
        params.not_after = until.into();
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        Ok(Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Its own certificate in PEM, for clients that are to trust it.
    pub fn certificate(&self) -> String {
        self.0.pem()
    }

    /// How a client speaks TLS that trusts this authority alone and offers these protocols (ALPN).
    pub fn client(&self, protocols: &[&str]) -> anyhow::Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.0.der().to_vec()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols
            .iter()
            .map(|protocol| protocol.as_bytes().to_vec())
            .collect();
        Ok(Arc::new(config))
    }
}

impl Issued {
    /// Writes `tls.crt` and `tls.key` into a folder, and tells where they are.
    pub fn write(&self, folder: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
        let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
        std::fs::write(&certificate, &self.certificate).context("writing the certificate")?;
        std::fs::write(&key, &self.key).context("writing the key")?;
        Ok((certificate, key))
    }
}
