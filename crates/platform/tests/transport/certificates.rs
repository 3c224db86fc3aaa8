//! Certificates that are renewed while connections are open, and files that cannot be used.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use metrics_exporter_prometheus::PrometheusBuilder;
use platform::Clock;
use platform::serve::tls::{Certificates, Pair, PairError, PairFiles, Tls};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::host::{Files, GET, Host, ask};

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn open(files: &Files) -> (Arc<Certificates>, Host) {
    let certificates = files.open();
    let host = Host::by_tls(Tls::new(certificates.clone()).unwrap()).await;
    (certificates, host)
}

/// What a server showed of itself.
fn shown(connection: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    connection.get_ref().1.peer_certificates().unwrap()[0].clone()
}

/// What is there at two looks in a row is believed.
async fn look_twice(certificates: &Certificates) {
    for _ in 0..2 {
        certificates.look().await.unwrap();
    }
}

/// A fresh connection, which is no session that goes on.
async fn fresh(files: &Files, host: &Host) -> TlsStream<TcpStream> {
    host.shake(files.client(&["http/1.1"])).await.unwrap()
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_new_connections_and_old_ones_go_on() {
    let files = Files::new();
    let (certificates, host) = open(&files).await;
    let mut old = fresh(&files, &host).await;
    assert!(ask(&mut old, GET).await.ends_with("secure=true."));

    files.issue().write(files.folder.path()).unwrap();
    look_twice(&certificates).await;

    let mut new = fresh(&files, &host).await;
    assert_ne!(shown(&new), shown(&old));
    assert!(ask(&mut old, GET).await.ends_with("secure=true."));
    assert!(ask(&mut new, GET).await.ends_with("secure=true."));
}

#[tokio::test]
async fn a_secret_that_kubernetes_swaps_is_read_anew() {
    // As a mounted secret is: names that lead through a link to the folder of the hour.
    let files = Files::new();
    let folder = files.folder.path().to_owned();
    let publish = |name: &str| {
        fs::create_dir(folder.join(name)).unwrap();
        files.issue().write(&folder.join(name)).unwrap();
        std::os::unix::fs::symlink(name, folder.join("..data.new")).unwrap();
        fs::rename(folder.join("..data.new"), folder.join("..data")).unwrap();
    };
    publish("monday");
    for name in ["tls.crt", "tls.key"] {
        fs::remove_file(folder.join(name)).unwrap();
        std::os::unix::fs::symlink(format!("..data/{name}"), folder.join(name)).unwrap();
    }
    let certificates = Certificates::open(files.files.clone(), Clock::system()).unwrap();
    let host = Host::by_tls(Tls::new(certificates.clone()).unwrap()).await;
    let before = shown(&fresh(&files, &host).await);

    publish("tuesday");
    fs::remove_dir_all(folder.join("monday")).unwrap();
    look_twice(&certificates).await;

    assert_ne!(shown(&fresh(&files, &host).await), before);
}

#[tokio::test]
async fn a_chain_that_is_written_piece_by_piece_is_shown_as_a_whole() {
    let files = Files::new();
    let (certificates, host) = open(&files).await;
    let before = shown(&fresh(&files, &host).await);
    let issued = files.issue();
    fs::write(&files.files.key, &issued.key).unwrap();
    fs::write(&files.files.certificate, &issued.certificate).unwrap();
    certificates.look().await.unwrap();
    assert_eq!(shown(&fresh(&files, &host).await), before);

    let whole = format!("{}{}", issued.certificate, files.authority.certificate());
    fs::write(&files.files.certificate, whole).unwrap();
    certificates.look().await.unwrap();
    assert_eq!(shown(&fresh(&files, &host).await), before);
    certificates.look().await.unwrap();

    let connection = fresh(&files, &host).await;
    assert_eq!(connection.get_ref().1.peer_certificates().unwrap().len(), 2);
}

#[test]
fn what_is_wrong_with_a_key_is_told_without_the_key() {
    let files = Files::new();
    let secret = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg";
    let texts = [
        format!("-----BEGIN PRIVATE KEY-----{secret}-----END PRIVATE KEY-----"),
        format!("-----BEGIN PRIVATE KEY-----\n{secret}\n"),
        format!("-----BEGIN {secret}\n"),
        format!("-----BEGIN PRIVATE KEY-----\n{secret}!\n-----END PRIVATE KEY-----\n"),
    ];
    for text in texts {
        fs::write(&files.files.key, &text).unwrap();
        let error = Pair::read(&files.files).unwrap_err();

        assert!(error.is_of_key(&files.files), "{error}");
        let told = format!("{error} {error:?} {:?}", std::error::Error::source(&error));
        let bytes: Vec<String> = secret
            .bytes()
            .take(6)
            .map(|byte| byte.to_string())
            .collect();
        assert!(!told.contains(&secret[..6]), "{told}");
        assert!(!told.contains(&bytes.join(", ")), "{told}");
    }
}

#[tokio::test]
async fn a_pair_that_cannot_be_used_changes_nothing_and_is_counted_once() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let files = Files::new();
    let (certificates, host) = open(&files).await;
    let before = shown(&fresh(&files, &host).await);
    let (own, other) = (files.issue(), files.issue());
    let now = SystemTime::now();
    let issue = |from, until| files.authority.issue_for(&["localhost"], from, until);
    let expired = issue(now - 2 * DAY, now - DAY).unwrap();
    let early = issue(now + DAY, now + 2 * DAY).unwrap();
    let half = &own.certificate[..own.certificate.len() / 2];
    let faults = [
        (half, &*own.key),
        (&*own.certificate, &*other.key),
        (&*own.certificate, ""),
        ("", &*own.key),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            &*own.key,
        ),
        (&*expired.certificate, &*expired.key),
        (&*early.certificate, &*early.key),
    ];

    for (number, (certificate, key)) in faults.iter().enumerate() {
        fs::write(&files.files.certificate, certificate).unwrap();
        fs::write(&files.files.key, key).unwrap();
        for _ in 0..4 {
            certificates.look().await.unwrap();
        }

        let told = format!(
            "gateway_tls_reloads_total{{outcome=\"refused\"}} {}",
            number + 1
        );
        assert!(
            metrics.render().contains(&told),
            "{told}: {}",
            metrics.render()
        );
    }
    fs::remove_file(&files.files.key).unwrap();
    certificates.look().await.unwrap();

    assert_eq!(shown(&fresh(&files, &host).await), before);
    // What is put right is taken.
    own.write(files.folder.path()).unwrap();
    look_twice(&certificates).await;
    let text = metrics.render();
    assert!(
        text.contains("gateway_tls_reloads_total{outcome=\"loaded\"} 1"),
        "{text}"
    );
    assert!(
        text.contains("gateway_tls_certificate_expiry_timestamp_seconds 1"),
        "{text}"
    );
}

#[test]
fn what_is_wrong_with_the_files_is_told_with_their_names() {
    let files = Files::new();
    let (certificate, key) = (files.files.certificate.clone(), files.files.key.clone());
    let open = |certificate: &std::path::Path, key: &std::path::Path| {
        let files = PairFiles {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        };
        let error = Certificates::open(files, Clock::system()).unwrap_err();
        (error.to_string(), error)
    };
    let absent = files.folder.path().join("absent.pem");
    let another = files.folder.path().join("another.pem");
    fs::write(&another, files.issue().key).unwrap();

    let (text, error) = open(&absent, &key);
    assert!(matches!(error, PairError::Unreadable { .. }), "{text}");
    assert!(text.contains("absent.pem"), "{text}");
    let (text, error) = open(&certificate, &certificate);
    assert!(matches!(error, PairError::NoKey { .. }), "{text}");
    assert!(text.contains("tls.crt"), "{text}");
    let (text, error) = open(&key, &key);
    assert!(matches!(error, PairError::NoCertificate { .. }), "{text}");
    let (text, error) = open(files.folder.path(), &key);
    assert!(matches!(error, PairError::NoFile { .. }), "{text}");
    let (text, error) = open(&certificate, &another);
    assert!(matches!(error, PairError::Strangers { .. }), "{text}");
    assert!(
        text.contains("tls.crt") && text.contains("another.pem"),
        "{text}"
    );
}

#[test]
fn keys_of_every_usual_kind_are_read() {
    let files = Files::new();
    let path = |name: &str| files.folder.path().join(name).display().to_string();
    let openssl = |arguments: &str| {
        let made = Command::new("openssl").args(arguments.split(' ')).output();
        let made = made.expect("openssl starts: tests/install installs it");
        assert!(made.status.success(), "{made:?}");
    };
    let pkcs8 = path("pkcs8.key");
    openssl(&format!(
        "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out {pkcs8}"
    ));
    let pkcs1 = path("pkcs1.key");
    openssl(&format!("rsa -in {pkcs8} -traditional -out {pkcs1}"));
    let sec1 = path("sec1.key");
    openssl(&format!("ecparam -name prime256v1 -genkey -out {sec1}"));

    for (key, header) in [
        (&pkcs8, "BEGIN PRIVATE KEY"),
        (&pkcs1, "BEGIN RSA PRIVATE KEY"),
        (&sec1, "BEGIN EC PRIVATE KEY"),
    ] {
        assert!(fs::read_to_string(key).unwrap().contains(header));
        let certificate = path("self.crt");
        openssl(&format!(
            "req -x509 -new -key {key} -days 2 -subj /CN=x -out {certificate}"
        ));
        let files = PairFiles {
            certificate: certificate.into(),
            key: key.into(),
        };
        Pair::read(&files).unwrap_or_else(|error| panic!("{key}: {error}"));
    }
}
