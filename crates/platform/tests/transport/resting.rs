//! HTTP/1 connections that rest between requests, and wake as if nothing had been.

use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use platform::serve::tls::Tls;
use testkit::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::host::{Files, GET, Host, ask, router};

/// The metrics of this thread, on which everything runs.
fn metrics() -> (PrometheusHandle, metrics::LocalRecorderGuard<'static>) {
    let recorder: &'static PrometheusRecorder =
        Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
    let guard = metrics::set_default_local_recorder(recorder);
    (recorder.handle(), guard)
}

async fn rests(metrics: &PrometheusHandle, count: usize) {
    let told = format!("http_connections_resting{{service=\"tests\"}} {count}\n");
    eventually(
        Duration::from_secs(60),
        "connections that rest",
        async || {
            let text = metrics.render();
            anyhow::ensure!(text.contains(&told), "{text}");
            Ok(())
        },
    )
    .await;
}

#[tokio::test]
async fn a_connection_that_rests_goes_on_where_it_was() {
    let (metrics, _guard) = metrics();
    let host = Host::plain(router()).await;
    let mut client = host.connect().await;

    for _ in 0..2 {
        assert!(ask(&mut client, GET).await.contains("200 OK"));
        rests(&metrics, 1).await;
    }
    // A head in two pieces, the first of which wakes it.
    let (first, second) = GET.split_at(1);
    client.write_all(first.as_bytes()).await.unwrap();
    rests(&metrics, 0).await;
    assert!(ask(&mut client, second).await.contains("200 OK"));
    // Two requests at once.
    rests(&metrics, 1).await;
    let both = ask(&mut client, &[GET, GET].concat()).await;
    let both = match both.matches("200 OK").count() {
        1 => both + &ask(&mut client, "").await,
        _ => both,
    };
    assert_eq!(both.matches("200 OK").count(), 2, "{both}");
}

#[tokio::test]
async fn a_connection_by_tls_rests_as_well() {
    let (metrics, _guard) = metrics();
    let files = Files::new();
    let host = Host::by_tls(Tls::new(files.open()).unwrap()).await;
    let mut client = host.shake(files.client(&["http/1.1"])).await.unwrap();

    for _ in 0..2 {
        assert!(ask(&mut client, GET).await.contains("200 OK"));
        rests(&metrics, 1).await;
    }

    assert_eq!(host.drain.finish(Duration::from_secs(30)).await, 0);
    // A goodbye, for otherwise this is an error.
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_request_that_is_not_whole_yet_keeps_its_connection_awake() {
    let (metrics, _guard) = metrics();
    let host = Host::plain(router()).await;
    let (mut whole, mut half) = (host.connect().await, host.connect().await);
    let post = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 8\r\n\r\nhalf";
    half.write_all(post.as_bytes()).await.unwrap();

    assert!(ask(&mut whole, GET).await.contains("200 OK"));
    rests(&metrics, 1).await;

    let answer = ask(&mut half, "done").await;
    assert!(answer.ends_with("halfdone."), "{answer}");
}

#[tokio::test]
async fn connections_that_rest_end_with_the_server() {
    let (metrics, _guard) = metrics();
    let host = Host::plain(router()).await;
    let mut client = host.connect().await;
    assert!(ask(&mut client, GET).await.contains("200 OK"));
    rests(&metrics, 1).await;

    assert_eq!(host.drain.finish(Duration::from_secs(30)).await, 0);

    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    rests(&metrics, 0).await;
}
