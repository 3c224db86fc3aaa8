//! The URL of a lock master: where it is, who we are there, and whom we trust.

use redis::{Client, ErrorKind, RedisError, TlsCertificates, parse_redis_url};

/// The parameter that names a file of authorities, as in the URLs of PostgreSQL.
const AUTHORITIES: &str = "sslrootcert";

/// A client for `redis://` or `rediss://`, which trusts the authorities of `sslrootcert` in place of the machine's. It
/// connects when it is first used.
pub fn open(url: &str) -> Result<Client, RedisError> {
    let Some(mut parsed) = parse_redis_url(url) else {
        return Client::open(url);
    };
    let (mut file, mut others) = (None, Vec::new());
    for (name, value) in parsed.query_pairs() {
        if name == AUTHORITIES {
            file = Some(value.into_owned());
        } else {
            others.push((name.into_owned(), value.into_owned()));
        }
    }
    let Some(file) = file else {
        return Client::open(url);
    };
    parsed.set_query(None);
    if !others.is_empty() {
        parsed.query_pairs_mut().extend_pairs(others);
    }
    let certificates = TlsCertificates {
        client_tls: None,
        root_cert: Some(authorities(&file)?),
    };
    Client::build_with_tls(parsed, certificates)
}

fn authorities(file: &str) -> Result<Vec<u8>, RedisError> {
    let wrong = |what, why: String| {
        RedisError::from((
            ErrorKind::InvalidClientConfig,
            what,
            format!("{file}: {why}"),
        ))
    };
    let bytes = std::fs::read(file)
        .map_err(|error| wrong("the authorities cannot be read", error.to_string()))?;
    let begin = b"-----BEGIN CERTIFICATE-----";
    if !bytes.windows(begin.len()).any(|window| window == begin) {
        return Err(wrong(
            "there is no authority",
            "it holds no certificate".to_owned(),
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_that_cannot_be_trusted_are_told_with_their_file_and_without_the_password() {
        let missing = "rediss://:secret@127.0.0.1:1/0?sslrootcert=%2Fno%2Fsuch.pem&protocol=resp3";
        let told = open(missing).expect_err("no such file").to_string();
        assert!(told.contains("/no/such.pem"), "{told}");
        assert!(!told.contains("secret"), "{told}");

        let no_certificate = concat!(
            "rediss://h:1?sslrootcert=",
            env!("CARGO_MANIFEST_DIR"),
            "/Cargo.toml"
        );
        let told = open(no_certificate)
            .expect_err("no certificate")
            .to_string();
        assert!(told.contains("no certificate"), "{told}");
    }
}
