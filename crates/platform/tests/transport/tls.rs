//! Handshakes, and what is spoken after them.

use std::time::Duration;

use platform::serve::tls::Tls;
use reqwest::Certificate;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::host::{Files, GET, Host, ask};

async fn host(files: &Files) -> Host {
    Host::by_tls(Tls::new(files.open()).unwrap()).await
}

#[tokio::test]
async fn clients_choose_http2_or_http1_and_either_version_of_tls() {
    let files = Files::new();
    let host = host(&files).await;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let root = Certificate::from_pem(files.authority.certificate().as_bytes()).unwrap();
    let client = || {
        reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([root.clone()])
    };
    let url = format!("https://localhost:{}/", host.address.port());

    for (client, answer) in [
        (client(), "HTTP/2.0 secure=true."),
        (client().http1_only(), "HTTP/1.1 secure=true."),
        (
            client().max_tls_version(reqwest::tls::Version::TLS_1_2),
            "HTTP/2.0 secure=true.",
        ),
        (
            client().min_tls_version(reqwest::tls::Version::TLS_1_3),
            "HTTP/2.0 secure=true.",
        ),
    ] {
        let client = client.build().unwrap();
        for _ in 0..2 {
            let reply = client.get(&url).send().await.unwrap();
            assert_eq!(reply.text().await.unwrap(), answer);
        }
    }
}

#[tokio::test]
async fn a_client_without_protocols_speaks_http1_and_one_of_others_is_refused() {
    let files = Files::new();
    let host = host(&files).await;

    let mut silent = host.shake(files.client(&[])).await.unwrap();
    let answer = ask(&mut silent, GET).await;
    assert!(answer.ends_with("HTTP/1.1 secure=true."), "{answer}");

    host.shake(files.client(&["spdy/3"])).await.unwrap_err();
}

#[tokio::test]
async fn a_client_that_trusts_another_authority_gets_no_word() {
    let host = host(&Files::new()).await;

    let error = host.shake(Files::new().client(&[])).await.unwrap_err();

    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test]
async fn silence_and_noise_in_the_handshake_end_it() {
    let files = Files::new();
    let host = host(&files).await;

    let ends = ["", "\u{16}\u{3}\u{1}", GET].map(async |sent| {
        let mut stream = host.connect().await;
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut read = Vec::new();
        let end = timeout(Duration::from_secs(120), stream.read_to_end(&mut read)).await;
        // A reset is an end, too.
        let _ = end.unwrap_or_else(|_| panic!("{sent:?} is still listened to"));
        assert!(!read.starts_with(b"HTTP"), "{sent:?}");
    });
    futures::future::join_all(ends).await;

    assert_eq!(host.drain.finish(Duration::from_secs(30)).await, 0);
}

#[tokio::test]
async fn a_connection_that_was_just_agreed_on_is_served_though_the_server_leaves() {
    let files = Files::new();
    let host = host(&files).await;
    let mut fresh = host.shake(files.client(&["http/1.1"])).await.unwrap();

    let leaving = host.drain.finish(Duration::from_secs(30));
    let asking = ask(&mut fresh, GET);
    let (cut, answer) = tokio::join!(leaving, asking);

    assert!(answer.contains("connection: close"), "{answer}");
    assert_eq!(cut, 0);
}
