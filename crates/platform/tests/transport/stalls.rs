//! Clients that ask and then do not read.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use testkit::eventually;
use tokio::io::AsyncWriteExt;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::host::Host;

const STALL: Duration = Duration::from_millis(300);

/// Counts the answers that are under way, and what they have given so far.
#[derive(Clone, Default)]
struct Answers {
    open: Arc<AtomicUsize>,
    given: Arc<AtomicUsize>,
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Answers {
    fn router(&self) -> Router {
        let answers = self.clone();
        let endless = async move || {
            let answers = answers.clone();
            answers.open.fetch_add(1, Ordering::SeqCst);
            let open = Open(answers.open.clone());
            let pieces = stream::repeat(Bytes::from(vec![7; 1024 * 1024]));
            let given = answers.given;
            Body::from_stream(pieces.map(move |piece| {
                let _open = &open;
                given.fetch_add(piece.len(), Ordering::SeqCst);
                Ok::<_, Infallible>(piece)
            }))
        };
        Router::new()
            .route("/", get(async || "well"))
            .route("/endless", get(endless))
    }

    async fn end(&self) {
        eventually(Duration::from_secs(60), "answers given up", async || {
            let (open, given) = (
                self.open.load(Ordering::SeqCst),
                self.given.load(Ordering::SeqCst),
            );
            anyhow::ensure!(
                open == 0 && given > 0,
                "{open} are open, {given} bytes given"
            );
            Ok(())
        })
        .await;
    }
}

#[tokio::test]
async fn an_http1_client_that_does_not_read_is_given_up() {
    let answers = Answers::default();
    let host = Host::begin(answers.router(), STALL, None).await;
    let mut client = host.connect().await;

    let request = b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n";
    client.write_all(request).await.unwrap();
    answers.end().await;

    eventually(
        Duration::from_secs(60),
        "the connection's end",
        async || {
            anyhow::ensure!(host.drain.open() == 0, "it is open");
            Ok(())
        },
    )
    .await;
}

#[tokio::test]
async fn an_http2_stream_that_is_not_read_is_reset_and_the_others_go_on() {
    let answers = Answers::default();
    let host = Host::begin(answers.router(), STALL, None).await;
    let io = TokioIo::new(host.connect().await);
    let (mut client, connection) = http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), io)
        .await
        .unwrap();
    let _connection = AbortOnDropHandle::new(TaskTracker::new().spawn(connection));
    let ask = |path: &str| {
        let uri = format!("http://localhost{path}");
        Request::get(uri).body(Empty::new()).unwrap()
    };

    let stalled = client.send_request(ask("/endless")).await.unwrap();
    answers.end().await;

    let well = client.send_request(ask("/")).await.unwrap();
    assert_eq!(well.into_body().collect().await.unwrap().to_bytes(), "well");
    let error = stalled.into_body().collect().await.unwrap_err();
    assert!(format!("{error:?}").contains("Reset"), "{error:?}");
}

#[tokio::test]
async fn an_http2_client_gets_all_of_a_large_answer_piece_by_piece() {
    let size = 3 * 1024 * 1024 + 7;
    let router = Router::new().route("/", get(async move || vec![7; size]));
    let host = Host::begin(router, Duration::from_secs(60), None).await;
    let io = TokioIo::new(host.connect().await);
    let (mut client, connection) = http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), io)
        .await
        .unwrap();
    let _connection = AbortOnDropHandle::new(TaskTracker::new().spawn(connection));

    let request = Request::get("http://localhost/").body(Empty::new());
    let reply = client.send_request(request.unwrap()).await.unwrap();

    assert_eq!(reply.headers()["content-length"], size.to_string());
    let body = reply.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body.len(), size);
}
