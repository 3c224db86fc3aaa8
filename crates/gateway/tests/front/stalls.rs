//! Clients that ask and then do not read: what they hold comes free.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use bytes::Bytes;
use contracts::Service;
use futures::stream;
use gateway::front::FrontConfig;
use http::Request;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::backend::Backend;
use crate::door::{Door, directory, eventually};

/// A door before an instance whose answer never ends.
async fn endless() -> (Door, Backend) {
    let pieces = || stream::repeat(Bytes::from(vec![7; 64 * 1024]));
    let answer = move || async move {
        use futures::StreamExt as _;
        Body::from_stream(pieces().map(Ok::<_, Infallible>))
    };
    let backend = Backend::serve("a", Router::new().route("/users/endless", any(answer))).await;
    let config = FrontConfig {
        stream_idle: Duration::from_millis(300),
        ..FrontConfig::default()
    };
    let all = directory(Service::Users, &[backend.upstream()]);
    (Door::before(config, all, None).await, backend)
}

async fn outstanding(door: &Door) -> u64 {
    let report = door.report(Service::Users);
    report["instances"][0]["outstanding"]
        .as_u64()
        .unwrap_or_else(|| panic!("no instance in {report}"))
}

async fn comes_free(door: &Door, backend: &Backend) {
    eventually("the request reached its instance", || async {
        backend.hits() == 1
    })
    .await;
    eventually("the instance's place came free", || async {
        outstanding(door).await == 0
    })
    .await;
}

#[tokio::test]
async fn an_http1_client_that_does_not_read_frees_the_instance() {
    let (door, backend) = endless().await;
    let mut client = TcpStream::connect(door.address).await.unwrap();

    let request = b"GET /users/endless HTTP/1.1\r\nhost: x\r\n\r\n";
    client.write_all(request).await.unwrap();

    comes_free(&door, &backend).await;
}

#[tokio::test]
async fn an_http2_stream_that_is_not_read_frees_the_instance() {
    let (door, backend) = endless().await;
    let io = TokioIo::new(TcpStream::connect(door.address).await.unwrap());
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let _connection = AbortOnDropHandle::new(TaskTracker::new().spawn(connection));

    let uri = format!("http://{}/users/endless", door.address);
    let request = Request::get(uri).body(Empty::<Bytes>::new()).unwrap();
    let _unread = client.send_request(request).await.unwrap();

    comes_free(&door, &backend).await;
}
