//! What the front door adds to requests and answers: the trace, compression, and what browsers are told.

use std::io::Cursor;
use std::sync::{Arc, Mutex};

use async_compression::tokio::bufread::GzipDecoder;
use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use axum::routing::any;
use bytes::Bytes;
use contracts::Service;
use gateway::front::FrontConfig;
use http::{HeaderMap, Version};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::backend::Backend;
use crate::door::{Door, Reply, directory, eventually};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

impl Door {
    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut request = self.request(method, path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::empty()).unwrap()).await
    }
}

#[tokio::test]
async fn a_trace_is_gone_on_with_and_one_that_is_not_valid_begins_anew() {
    let backend = Backend::echo("a").await;
    let door = Door::to(Service::Users, &[backend.upstream()]).await;
    let came = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let ask = async |id: &str, parent: &str| {
        let headers = [
            ("x-request-id", id),
            ("traceparent", parent),
            ("tracestate", "a=1"),
        ];
        let told = door.ask("GET", "/users", &headers).await.json();
        eventually("it is recorded", || async {
            !door.decisions.find(id).is_empty()
        })
        .await;
        let record = door.decisions.find(id).remove(0);
        (told["headers"].clone(), record.trace_id.to_string())
    };

    let (told, recorded) = ask("traced", &came).await;
    let ours = told["traceparent"].as_str().unwrap();
    assert!(
        ours.starts_with(&format!("00-{TRACE}-")) && ours.ends_with("-01"),
        "{ours}"
    );
    assert_ne!(ours, came, "the step is ours");
    assert_eq!((&told["tracestate"], &*recorded), (&"a=1".into(), TRACE));

    for (id, parent) in [
        ("zero", came.replace(TRACE, &"0".repeat(32))),
        ("none", String::new()),
    ] {
        let (told, recorded) = ask(id, &parent).await;
        let ours = told["traceparent"].as_str().unwrap();
        assert_eq!(ours.len(), came.len());
        assert_eq!(&ours[3..35], recorded);
        assert_ne!(recorded, TRACE);
        assert!(
            told["tracestate"].is_null(),
            "it belongs to a trace that ended: {told}"
        );
    }
}

fn text() -> String {
    (0..1000).map(|number| format!("line {number}\n")).collect()
}

/// Instances that answer as their path says.
async fn kinds() -> (Door, Backend) {
    let plain = |kind: &'static str| any(move || async move { ([("content-type", kind)], text()) });
    let with = |name: &'static str, value: &'static str| {
        any(move || async move { ([("content-type", "text/plain"), (name, value)], text()) })
    };
    let part = any(|| async {
        let range = [
            ("content-type", "text/plain"),
            ("content-range", "bytes 0-9/20"),
        ];
        (
            http::StatusCode::PARTIAL_CONTENT,
            range,
            "0123456789".repeat(200),
        )
    });
    let router = Router::new()
        .route("/users/text", with("etag", "\"abc\""))
        .route("/users/weak", with("etag", "W/\"abc\""))
        .route("/users/json", plain("application/json"))
        .route("/users/picture", plain("image/png"))
        .route("/users/events", plain("text/event-stream"))
        .route("/users/packed", with("content-encoding", "br"))
        .route(
            "/users/fixed",
            with("cache-control", "private, No-Transform"),
        )
        .route("/users/part", part)
        .route("/users/small", any(|| async { "small" }));
    let backend = Backend::serve("a", router).await;
    let door = Door::to(Service::Users, &[backend.upstream()]).await;
    (door, backend)
}

fn varies(headers: &HeaderMap) -> bool {
    headers
        .get_all("vary")
        .iter()
        .any(|value| value == "Accept-Encoding")
}

async fn unpacked(packed: &[u8]) -> String {
    let mut text = String::new();
    let mut decoder = GzipDecoder::new(Cursor::new(packed));
    decoder.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn text_is_compressed_for_those_who_want_it_and_reads_the_same() {
    let (door, _backend) = kinds().await;

    for (path, tag) in [
        ("text", Some("W/\"abc\"")),
        ("weak", Some("W/\"abc\"")),
        ("json", None),
    ] {
        let path = format!("/users/{path}");
        let packed = door
            .ask("GET", &path, &[("accept-encoding", "br, gzip;q=0.8")])
            .await;
        assert_eq!(packed.headers["content-encoding"], "gzip", "{path}");
        assert!(varies(&packed.headers));
        assert!(packed.body.len() < text().len() / 2);
        assert_eq!(unpacked(&packed.body).await, text());
        let told = packed.headers.get("etag").map(|tag| tag.to_str().unwrap());
        assert_eq!(told, tag);
    }

    let plain = door.ask("GET", "/users/text", &[]).await;
    assert_eq!(
        (plain.body, &plain.headers["etag"]),
        (text().into(), &"\"abc\"".parse().unwrap())
    );
    assert!(varies(&plain.headers), "caches know of the choice");
}

#[tokio::test]
async fn over_http_2_text_is_compressed_as_well() {
    let (door, _backend) = kinds().await;
    let mut client = Client::builder(TokioExecutor::new());
    let client: Client<_, Body> = client.http2_only(true).build_http();

    let request = door.request("GET", "/users/text").version(Version::HTTP_2);
    let request = request.header("accept-encoding", "gzip");
    let answer = client.request(request.body(Body::empty()).unwrap()).await;

    let (head, body) = answer.unwrap().into_parts();
    assert_eq!(head.version, Version::HTTP_2);
    assert_eq!(head.headers["content-encoding"], "gzip");
    let packed = body.collect().await.unwrap().to_bytes();
    assert_eq!(unpacked(&packed).await, text());
}

#[tokio::test]
async fn what_must_stay_as_it_is_does() {
    let (door, _backend) = kinds().await;
    let gzip = ("accept-encoding", "gzip");

    for path in ["picture", "events", "fixed", "part", "small"] {
        let reply = door.ask("GET", &format!("/users/{path}"), &[gzip]).await;
        assert!(!reply.headers.contains_key("content-encoding"), "{path}");
        assert!(!varies(&reply.headers), "{path}");
    }
    let packed = door.ask("GET", "/users/packed", &[gzip]).await;
    assert_eq!(
        (&packed.headers["content-encoding"], packed.body),
        (&"br".parse().unwrap(), text().into())
    );
    let head = door.ask("HEAD", "/users/text", &[gzip]).await;
    assert!(!head.headers.contains_key("content-encoding"));
    assert_eq!(head.headers["content-length"], text().len().to_string());
    let ranged = door
        .ask("GET", "/users/text", &[gzip, ("range", "bytes=0-9")])
        .await;
    assert!(!ranged.headers.contains_key("content-encoding"));
    for refused in ["gzip;q=0", "identity, gzip;q=0.1", "br"] {
        let plain = door
            .ask("GET", "/users/text", &[("accept-encoding", refused)])
            .await;
        assert!(!plain.headers.contains_key("content-encoding"), "{refused}");
    }
}

#[tokio::test]
async fn a_slow_stream_is_compressed_without_being_held_back() {
    let (pieces, queue) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let queue = Arc::new(Mutex::new(Some(queue)));
    let stream = any(move || async move {
        let queue = queue.lock().unwrap().take().unwrap();
        let body = Body::from_stream(ReceiverStream::new(queue));
        ([("content-type", "application/x-ndjson")], body).into_response()
    });
    let backend = Backend::serve("a", Router::new().route("/users/feed", stream)).await;
    let door = Door::to(Service::Users, &[backend.upstream()]).await;
    let request = door
        .request("GET", "/users/feed")
        .header("accept-encoding", "gzip");
    let request = request.body(Body::empty()).unwrap();
    let mut reply = door.client.request(request).await.unwrap();
    assert_eq!(reply.headers()["content-encoding"], "gzip");

    let (mut packed, mut sent) = (Vec::new(), String::new());
    for number in 0..3 {
        let line = format!("{{\"line\":{number}}}\n");
        pieces.send(Ok(line.clone().into())).await.unwrap();
        sent.push_str(&line);
        // The next line is not sent before this one was read.
        while readable(&packed).await != sent {
            let frame = reply.frame().await.expect("the stream goes on").unwrap();
            packed.extend_from_slice(&frame.into_data().unwrap());
        }
    }
    drop(pieces);
    while let Some(frame) = reply.frame().await {
        packed.extend_from_slice(&frame.unwrap().into_data().unwrap());
    }
    assert_eq!(unpacked(&packed).await, sent);
}

/// What can be read of a compressed stream that goes on.
async fn readable(packed: &[u8]) -> String {
    let mut decoder = GzipDecoder::new(Cursor::new(packed));
    let (mut text, mut piece) = (Vec::new(), [0; 512]);
    while let Ok(read @ 1..) = decoder.read(&mut piece).await {
        text.extend_from_slice(&piece[..read]);
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_stream_that_breaks_off_breaks_off_compressed_as_well() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 400000\r\n\r\nhalf";
    let backend = Backend::saying("a", head).await;
    let door = Door::to(Service::Users, &[backend.upstream()]).await;
    let request = door
        .request("GET", "/users")
        .header("accept-encoding", "gzip");
    let reply = door
        .client
        .request(request.body(Body::empty()).unwrap())
        .await
        .unwrap();

    assert_eq!(reply.headers()["content-encoding"], "gzip");
    assert!(reply.into_body().collect().await.is_err());
}

#[tokio::test]
async fn a_short_answer_is_compressed_as_a_whole_and_tells_its_length() {
    let (door, _backend) = kinds().await;
    let gzip = ("accept-encoding", "gzip");

    let short = door.ask("GET", "/users/text", &[gzip]).await;

    let length = short.headers["content-length"].to_str().unwrap();
    assert_eq!(length, short.body.len().to_string());
    assert_eq!(unpacked(&short.body).await, text());
}

#[tokio::test]
async fn a_short_answer_that_breaks_off_breaks_off() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 4000\r\n\r\nhalf";
    let backend = Backend::saying("a", head).await;
    let door = Door::to(Service::Users, &[backend.upstream()]).await;
    let request = door
        .request("GET", "/users")
        .header("accept-encoding", "gzip");
    let request = request.body(Body::empty()).unwrap();

    // Its head may have been sent, or not.
    if let Ok(reply) = door.client.request(request).await {
        assert_eq!(reply.headers()["content-length"], "4000");
        assert!(reply.into_body().collect().await.is_err());
    }
}

#[tokio::test]
async fn an_answer_that_the_client_has_is_told_of_as_it_was_given() {
    let unchanged = any(|| async { (http::StatusCode::NOT_MODIFIED, [("etag", "\"abc\"")]) });
    let backend = Backend::serve("a", Router::new().route("/users/text", unchanged)).await;
    let door = Door::to(Service::Users, &[backend.upstream()]).await;

    for (known, tag) in [("W/\"abc\"", "W/\"abc\""), ("\"abc\"", "\"abc\"")] {
        let asked = [("accept-encoding", "gzip"), ("if-none-match", known)];
        let reply = door.ask("GET", "/users/text", &asked).await;

        assert_eq!(reply.status, 304);
        assert_eq!(reply.headers["etag"], tag);
        assert!(varies(&reply.headers));
    }
}

#[tokio::test]
async fn every_answer_tells_browsers_to_be_careful() {
    let framed = any(|| async { [("content-security-policy", "frame-ancestors 'self'")] });
    let backend = Backend::serve("a", Router::new().route("/users/framed", framed)).await;
    let config = FrontConfig {
        trust_forwarded: true,
        hsts: 600,
        ..FrontConfig::default()
    };
    let all = directory(Service::Users, &[backend.upstream()]);
    let door = Door::before(config, all.clone(), None).await;

    for path in ["/users/framed", "/gateway/ping", "/nothing", "/devices"] {
        let reply = door.ask("GET", path, &[]).await;
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
        ] {
            assert_eq!(reply.headers[name], value, "{path}");
        }
        let ancestors = if path == "/users/framed" {
            "'self'"
        } else {
            "'none'"
        };
        let policy = format!("frame-ancestors {ancestors}");
        assert_eq!(reply.headers["content-security-policy"], policy, "{path}");
        assert!(
            !reply.headers.contains_key("strict-transport-security"),
            "no TLS"
        );
    }

    let secure = [("x-forwarded-proto", "https")];
    let believed = door.ask("GET", "/users/framed", &secure).await;
    assert_eq!(believed.headers["strict-transport-security"], "max-age=600");
    let door = Door::before(FrontConfig::default(), all, None).await;
    let doubted = door.ask("GET", "/users/framed", &secure).await;
    assert!(!doubted.headers.contains_key("strict-transport-security"));
}
