//! The URL of Redis: which servers, who we are there, and whom we trust.

use std::path::Path;

use anyhow::Context;
use fred::types::config::{Config, TlsConnector};
use reqwest::Url;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// The parameter that names a file of authorities, as in the URLs of PostgreSQL.
const AUTHORITIES: &str = "sslrootcert";

/// Reads a URL.
pub fn read(url: &str) -> anyhow::Result<Config> {
    let unreadable = || {
        anyhow::anyhow!(
            "REDIS_URL cannot be read: it looks like redis://user:password@host:6379, \
             redis-sentinel://host:26379?node=other:26379&sentinelServiceName=main or redis-cluster://host:6379?node=other:6379"
        )
    };
    let (url, authorities) = without_authorities(url).ok_or_else(unreadable)?;
    // What the client says of a URL shows the URL, and so the password.
    let mut config = Config::from_url(url.as_str()).map_err(|_| unreadable())?;
    if let Some(file) = authorities {
        anyhow::ensure!(
            config.tls.is_some(),
            "REDIS_URL names authorities by {AUTHORITIES} but does not begin with rediss"
        );
        config.tls = Some(trusting(Path::new(&file))?.into());
    }
    Ok(config)
}

/// The URL as the client understands it, and the file of authorities.
fn without_authorities(url: &str) -> Option<(Url, Option<String>)> {
    let mut url = Url::parse(url).ok()?;
    let mut file = None;
    let mut others = Vec::new();
    for (name, value) in url.query_pairs() {
        if name == AUTHORITIES {
            file = Some(value.into_owned());
        } else {
            others.push((name.into_owned(), value.into_owned()));
        }
    }
    if file.is_some() {
        url.set_query(None);
        if !others.is_empty() {
            url.query_pairs_mut().extend_pairs(others);
        }
    }
    Some((url, file))
}

fn trusting(file: &Path) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(file)
        .with_context(|| format!("reading the authorities in {}", file.display()))?;
    for certificate in certificates {
        let certificate = certificate
            .with_context(|| format!("reading the authorities in {}", file.display()))?;
        roots
            .add(certificate)
            .with_context(|| format!("an authority in {} cannot be trusted", file.display()))?;
    }
    anyhow::ensure!(
        !roots.is_empty(),
        "there is no certificate in {}",
        file.display()
    );
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config.into())
}

/// Host and port of the first server of a URL, and nothing else of it.
pub fn place(url: &str) -> String {
    let Ok(url) = Url::parse(url) else {
        return "an unreadable URL".to_owned();
    };
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_ours_and_the_rest_is_the_clients() {
        let (url, file) = without_authorities(
            "rediss-sentinel://u:p@h:1/0?node=h:2&sslrootcert=%2Fetc%2Fca.pem&sentinelServiceName=main",
        )
        .expect("a URL");

        assert_eq!(
            url.as_str(),
            "rediss-sentinel://u:p@h:1/0?node=h%3A2&sentinelServiceName=main"
        );
        assert_eq!(file.as_deref(), Some("/etc/ca.pem"));
        assert_eq!(
            without_authorities("redis://h:1")
                .expect("a URL")
                .0
                .as_str(),
            "redis://h:1"
        );
    }

    #[test]
    fn no_error_shows_a_password() {
        for url in [
            "redis://user:secret@host:port",
            "secret",
            "redis://:secret@h?sslrootcert=/ca",
        ] {
            let error = read(url).expect_err("a wrong URL");
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
        assert_eq!(place("rediss://user:secret@host:6379/0"), "host:6379");
        let url = "redis-sentinel://u:p@host:1?sentinelPassword=se@cret";
        assert_eq!(place(url), "host:1");
        assert_eq!(place("secret"), "an unreadable URL");
    }
}
