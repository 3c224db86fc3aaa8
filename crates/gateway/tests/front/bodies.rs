//! Bodies in both directions: limits, and streams.

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
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::backend::Backend;
use crate::door::{Door, directory};

const PIECE: usize = 64 * 1024;
/// Of a download, 256 MiB; and of an upload, 2 GiB.
const PIECES: usize = 4096;
const UPLOADED: usize = 8 * PIECES;

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
    let pieces = |count: usize| {
        Body::from_stream(stream::iter(
            (0..count).map(|_| Ok::<_, std::io::Error>(endless())),
        ))
    };
    let pour = move || async move { pieces(PIECES) };
    let router = Router::new()
        .route("/apps/upload", post(count))
        .route("/apps/download", any(pour));
    let backend = Backend::serve("a", router).await;
    let door = Door::to(Service::Apps, &[backend.upstream()]).await;
    let before = peak();

    assert_eq!(
        door.post("/api/apps/upload", pieces(UPLOADED)).await.body,
        (PIECE * UPLOADED).to_string()
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
        PIECE * UPLOADED / 1024
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
async fn events_arrive_one_by_one_until_the_door_leaves() {
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
    let config = FrontConfig {
        drain_within: Duration::from_millis(100),
        ..FrontConfig::default()
    };
    let directory = directory(Service::Notifications, &[backend.upstream()]);
    let door = Door::before(config, directory, None).await;
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

    // One that leaves does not cut it off.
    door.drain.cancel();
    assert!(body.frame().await.is_none());
}
