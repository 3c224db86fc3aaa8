//! Bodies in both directions: limits, streams, and framing that must not be misread.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::sse::{Event, Sse};
use axum::routing::{any, post};
use bytes::Bytes;
use contracts::Service;
use futures::{StreamExt, stream};
use gateway::front::FrontConfig;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::backend::Backend;
use crate::door::{Door, directory, eventually};

const PIECE: usize = 64 * 1024;
const PIECES: usize = 4096;

fn endless() -> Bytes {
    Bytes::from_static(&[b'x'; PIECE])
}

/// The most memory this process ever had, in KiB.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused_announced_or_not() {
    let backend = Backend::echo("a").await;
    let door = Door::to(Service::Users, &[backend.upstream()]).await;

    let reply = door.post("/users", vec![b'x'; 1024 * 1024 + 1]).await;
    reply.expect_problem(413, "TOO_LARGE");
    assert_eq!(backend.hits(), 0);

    let pieces = stream::iter((0..17).map(|_| Ok::<_, std::io::Error>(endless())));
    door.post("/users", Body::from_stream(pieces))
        .await
        .expect_problem(413, "TOO_LARGE");

    assert_eq!(
        door.post("/users", vec![b'x'; 1024 * 1024]).await.status,
        200
    );
    let pieces = stream::iter((0..16).map(|_| Ok::<_, std::io::Error>(endless())));
    assert_eq!(
        door.post("/users", Body::from_stream(pieces)).await.status,
        200
    );
    assert_eq!(
        door.report(Service::Users)["stats"]["failures"],
        0,
        "the instance is not to blame"
    );
}

#[tokio::test]
async fn a_big_upload_and_a_big_download_pass_in_constant_memory() {
    let count = |request: Request| async move {
        let mut body = request.into_body().into_data_stream();
        let mut total = 0;
        while let Some(piece) = body.next().await {
            total += piece.unwrap().len();
        }
        total.to_string()
    };
    let pour = || async {
        Body::from_stream(stream::iter(
            (0..PIECES).map(|_| Ok::<_, std::io::Error>(endless())),
        ))
    };
    let router = Router::new()
        .route("/apps/upload", post(count))
        .route("/apps/download", any(pour));
    let backend = Backend::serve("a", router).await;
    let door = Door::to(Service::Apps, &[backend.upstream()]).await;
    let before = peak();

    let up = pour().await;
    assert_eq!(
        door.post("/api/apps/upload", up).await.body,
        (PIECE * PIECES).to_string()
    );
    let request = door
        .request("GET", "/apps/download")
        .body(Body::empty())
        .unwrap();
    let mut down = door.client.request(request).await.unwrap().into_body();
    let mut total = 0;
    while let Some(frame) = down.frame().await {
        total += frame.unwrap().data_ref().map_or(0, Bytes::len);
    }

    assert_eq!(total, PIECE * PIECES);
    assert!(
        peak() - before < 64 * 1024,
        "{} KiB more for {} KiB",
        peak() - before,
        PIECE * PIECES / 1024
    );
}

#[tokio::test]
async fn an_upload_outlives_the_deadline_as_long_as_it_moves() {
    let backend = Backend::echo("a").await;
    let config = FrontConfig {
        reply_within: Duration::from_millis(100),
        stream_idle: Duration::from_millis(400),
        ..FrontConfig::default()
    };
    let door = Door::before(
        config,
        directory(Service::Apps, &[backend.upstream()]),
        None,
    )
    .await;
    let (pieces, body) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let trickle = async {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(30)).await;
            pieces.send(Ok(Bytes::from_static(b"x"))).await.unwrap();
        }
        drop(pieces);
    };
    let upload = door.post("/apps/upload", Body::from_stream(ReceiverStream::new(body)));
    let (reply, ()) = tokio::join!(upload, trickle);
    assert_eq!(reply.json()["body"], "xxxxxxxxxx");

    let (_held, body) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let reply = door
        .post("/apps/upload", Body::from_stream(ReceiverStream::new(body)))
        .await;
    reply.expect_problem(408, "BODY_TIMEOUT");
    let (_held, body) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let reply = door
        .post("/apps", Body::from_stream(ReceiverStream::new(body)))
        .await;
    reply.expect_problem(408, "BODY_TIMEOUT");
    assert_eq!(
        door.report(Service::Apps)["stats"]["failures"],
        0,
        "the instance is not to blame"
    );
}

#[tokio::test]
async fn events_arrive_one_by_one() {
    let (events, queue) = mpsc::channel::<Result<Event, std::io::Error>>(1);
    let queue = std::sync::Arc::new(std::sync::Mutex::new(Some(queue)));
    let router =
        Router::new().route(
            "/notifications/stream",
            any(move || async move {
                Sse::new(ReceiverStream::new(queue.lock().unwrap().take().unwrap()))
            }),
        );
    let backend = Backend::serve("a", router).await;
    let door = Door::to(Service::Notifications, &[backend.upstream()]).await;
    let request = door
        .request("GET", "/notifications/stream")
        .header("accept", "text/event-stream");

    let mut body = door
        .client
        .request(request.body(Body::empty()).unwrap())
        .await
        .unwrap()
        .into_body();
    for text in ["one", "two"] {
        events.send(Ok(Event::default().data(text))).await.unwrap();
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), format!("data: {text}\n\n"));
    }
}

#[tokio::test]
async fn a_request_with_two_lengths_cannot_smuggle_another() {
    let backend = Backend::echo("a").await;
    let door = Door::to(Service::Users, &[backend.upstream()]).await;
    let hidden = "GET /users/hidden HTTP/1.1\r\nHost: a\r\n\r\n";

    // A length and chunks: the chunks count, and the connection is not used again.
    for lengths in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
    ] {
        let before = backend.hits();
        let told = raw(
            &door,
            &format!("POST /users/open HTTP/1.1\r\nHost: a\r\n{lengths}\r\n\r\n0\r\n\r\n{hidden}"),
        )
        .await;
        assert!(told.starts_with("HTTP/1.1 200"), "{told}");
        assert!(
            told.contains(r#""body":"""#) && !told.contains("content-length\":\"5"),
            "{told}"
        );
        assert!(!told.contains("hidden"), "{told}");
        assert_eq!(backend.hits(), before + 1);
    }
    // What cannot be read in one way alone is refused.
    let before = backend.hits();
    for bad in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: +5",
        "Content-Length: 5, 6",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: x-chunked",
        "Transfer-Encoding : chunked",
        "X: a\rb",
        " Transfer-Encoding: chunked",
    ] {
        let told = raw(
            &door,
            &format!("POST /users/open HTTP/1.1\r\nHost: a\r\n{bad}\r\n\r\n0\r\n\r\n{hidden}"),
        )
        .await;
        assert!(told.starts_with("HTTP/1.1 400"), "{bad}: {told}");
    }
    let told = raw(
        &door,
        "POST /users/open HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
    )
    .await;
    assert!(!told.starts_with("HTTP/1.1 200"), "{told}");
    eventually("nothing is outstanding", || async {
        door.report(Service::Users)["stats"]["outstanding"] == 0
    })
    .await;
    assert!(
        backend.hits() - before <= 1,
        "only the one with the bad chunk may have begun, and it had no end"
    );
}

/// Everything that comes back for these bytes until the front door closes.
async fn raw(door: &Door, bytes: &str) -> String {
    let mut stream = TcpStream::connect(door.address).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut told = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut told)).await;
    read.expect("the front door closes").ok();
    String::from_utf8_lossy(&told).into_owned()
}
