//! A certificate and its key, read from two PEM files, and everything that can be wrong with them.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rustls::InconsistentKeys;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

/// A file of certificates or keys is far smaller.
const LARGEST: u64 = 1024 * 1024;

/// Where a certificate and its key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairFiles {
    /// The certificate, then those that lead to the authority, in PEM.
    pub certificate: PathBuf,
    /// Its private key in PEM: PKCS#8, SEC1 or PKCS#1 (RSA), not encrypted.
    pub key: PathBuf,
}

/// Why a pair cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// A file is not there, or may not be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is none, or far too large for what it should hold.
    #[error("{} is no regular file of at most {LARGEST} bytes", path.display())]
    NoFile {
        /// The file.
        path: PathBuf,
    },
    /// A file is cut off, or is not PEM. What the parser says is not kept: it quotes the file, which may hold a key.
    #[error("{} is not whole PEM: {what}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Where it breaks off.
        what: &'static str,
    },
    /// There is no certificate.
    #[error("{} holds no certificate (-----BEGIN CERTIFICATE-----)", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// There is no key.
    #[error("{} holds no private key that is not encrypted (-----BEGIN PRIVATE KEY-----)", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// What is called a certificate is none.
    #[error("the first certificate in {} cannot be read", path.display())]
    BadCertificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What is called a key is none, or of a kind that we cannot sign with.
    #[error("the key in {} cannot be used", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// The key is another certificate's.
    #[error("the key in {} does not belong to the first certificate in {}", files.key.display(), files.certificate.display())]
    Strangers {
        /// The two files.
        files: PairFiles,
    },
    /// Its time is over.
    #[error("the first certificate in {} expired at {until}", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// When it expired.
        until: DateTime<Utc>,
    },
    /// Its time has not come.
    #[error("the first certificate in {} is not valid before {from}; is the clock right?", path.display())]
    Early {
        /// The file.
        path: PathBuf,
        /// When it begins to hold.
        from: DateTime<Utc>,
    },
}

impl PairError {
    /// Whether it is the key's file that has to be put right.
    pub fn is_of_key(&self, files: &PairFiles) -> bool {
        match self {
            Self::NoKey { .. } | Self::BadKey { .. } | Self::Strangers { .. } => true,
            Self::Unreadable { path, .. } | Self::NoFile { path } | Self::Pem { path, .. } => {
                *path != files.certificate
            }
            Self::NoCertificate { .. }
            | Self::BadCertificate { .. }
            | Self::Expired { .. }
            | Self::Early { .. } => false,
        }
    }
}

/// A certificate and its key, which belong together.
#[derive(Clone, Debug)]
pub struct Pair {
    /// What clients are shown.
    pub certified: Arc<CertifiedKey>,
    /// From when on it holds.
    pub from: DateTime<Utc>,
    /// Until when it holds.
    pub until: DateTime<Utc>,
}

impl Pair {
    /// Reads a pair, whether its time is over or not. It blocks.
    ///
    /// # Errors
    /// With the file at fault, and what is wrong with it.
    pub fn read(files: &PairFiles) -> Result<Self, PairError> {
        Self::of(Chain::read(&files.certificate)?, key(&files.key)?, files)
    }

    /// All that is wrong with a pair at a time, of both of its files. It blocks.
    pub fn faults(files: &PairFiles, now: DateTime<Utc>) -> Vec<PairError> {
        match (Chain::read(&files.certificate), key(&files.key)) {
            (Ok(chain), Ok(key)) => Self::of(chain, key, files)
                .and_then(|pair| pair.check(files, now))
                .err()
                .into_iter()
                .collect(),
            (chain, key) => chain.err().into_iter().chain(key.err()).collect(),
        }
    }

    fn of(chain: Chain, key: PrivateKeyDer<'static>, files: &PairFiles) -> Result<Self, PairError> {
        let certified = CertifiedKey::from_der(chain.certificates, key, &ring::default_provider());
        let certified = certified.map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                PairError::Strangers {
                    files: files.clone(),
                }
            }
            rustls::Error::InvalidCertificate(reason) => PairError::BadCertificate {
                path: files.certificate.clone(),
                source: rustls::Error::InvalidCertificate(reason).into(),
            },
            source => PairError::BadKey {
                path: files.key.clone(),
                source,
            },
        })?;
        Ok(Self {
            certified: Arc::new(certified),
            from: chain.from,
            until: chain.until,
        })
    }

    /// Whether the time has come for a certificate, and is not over.
    ///
    /// # Errors
    /// With the file, and when its time is.
    pub fn check(&self, files: &PairFiles, now: DateTime<Utc>) -> Result<(), PairError> {
        let path = files.certificate.clone();
        if now >= self.until {
            let until = self.until;
            return Err(PairError::Expired { path, until });
        }
        if now < self.from {
            let from = self.from;
            return Err(PairError::Early { path, from });
        }
        Ok(())
    }
}

/// What the file of a certificate holds.
struct Chain {
    certificates: Vec<CertificateDer<'static>>,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
}

impl Chain {
    fn read(file: &Path) -> Result<Self, PairError> {
        let path = || file.to_owned();
        let content = content(file)?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
        let certificates = certificates.map_err(|error| PairError::Pem {
            path: path(),
            what: broken(&error),
        })?;
        let Some(first) = certificates.first() else {
            return Err(PairError::NoCertificate { path: path() });
        };
        let parsed = Certificate::from_der(first).map_err(|error| PairError::BadCertificate {
            path: path(),
            source: error.into(),
        })?;
        let validity = parsed.tbs_certificate().validity();
        let from = moment(validity.not_before.to_unix_duration());
        let until = moment(validity.not_after.to_unix_duration());
        Ok(Self {
            certificates,
            from,
            until,
        })
    }
}

/// The key that a file holds.
fn key(file: &Path) -> Result<PrivateKeyDer<'static>, PairError> {
    PrivateKeyDer::from_pem_slice(&content(file)?).map_err(|error| match error {
        pem::Error::NoItemsFound => PairError::NoKey {
            path: file.to_owned(),
        },
        error => PairError::Pem {
            path: file.to_owned(),
            what: broken(&error),
        },
    })
}

/// What a file holds. Whether it is one is asked first: reading a pipe would never end.
fn content(path: &Path) -> Result<Vec<u8>, PairError> {
    let unreadable = |source| PairError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let about = std::fs::metadata(path).map_err(unreadable)?;
    if !about.is_file() || about.len() > LARGEST {
        return Err(PairError::NoFile {
            path: path.to_owned(),
        });
    }
    let file = File::open(path).map_err(unreadable)?;
    let mut content = Vec::new();
    let read = file.take(LARGEST).read_to_end(&mut content);
    read.map_err(unreadable)?;
    Ok(content)
}

fn broken(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no END line",
        pem::Error::IllegalSectionStart { .. } => "a BEGIN line is not right",
        pem::Error::Base64Decode(_) => "what a section holds is not base64",
        _ => "it cannot be read",
    }
}

fn moment(since_epoch: Duration) -> DateTime<Utc> {
    let seconds = i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX);
    DateTime::from_timestamp(seconds, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
}
