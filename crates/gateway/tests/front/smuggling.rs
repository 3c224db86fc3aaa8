//! Requests that two readers could take for different ones: refused, or made plain before an instance sees them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use contracts::Service;
use gateway::front::FrontConfig;
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::Backend;
use crate::door::{Door, directory};

/// What an instance read to its end.
#[derive(Clone, Debug)]
struct Read {
    method: Method,
    target: String,
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

impl Read {
    fn header(&self, name: &str) -> Vec<&str> {
        let values = self.headers.get_all(name).iter();
        values.map(|value| value.to_str().unwrap()).collect()
    }
}

/// A door before an instance that notes what it reads.
struct Watched {
    door: Door,
    read: Arc<Mutex<Vec<Read>>>,
    _backend: Backend,
}

impl Watched {
    async fn new() -> Self {
        let read = Arc::new(Mutex::new(Vec::new()));
        let noting = read.clone();
        let note = move |request: Request| {
            let noting = noting.clone();
            async move {
                let (parts, body) = request.into_parts();
                let Ok(body) = body.collect().await else {
                    return "broken";
                };
                let read = Read {
                    method: parts.method,
                    target: parts.uri.to_string(),
                    headers: parts.headers,
                    trailers: body.trailers().cloned(),
                    body: body.to_bytes().to_vec(),
                };
                noting.lock().unwrap().push(read);
                "read"
            }
        };
        let backend = Backend::serve("a", Router::new().fallback(note)).await;
        // Some of these are taken for beginnings of what never comes.
        let config = FrontConfig {
            reply_within: Duration::from_millis(500),
            ..FrontConfig::default()
        };
        let services = directory(Service::Users, &[backend.upstream()]);
        let door = Door::before(config, services, None).await;
        Self {
            door,
            read,
            _backend: backend,
        }
    }

    /// Everything that comes back for these bytes until the front door closes.
    async fn told(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = TcpStream::connect(self.door.address).await.unwrap();
        stream.write_all(bytes.as_ref()).await.unwrap();
        let mut told = Vec::new();
        let read = stream.read_to_end(&mut told);
        let read = tokio::time::timeout(Duration::from_secs(20), read).await;
        // What it closes with unread bytes is reset, after the answer.
        assert!(
            read.is_ok(),
            "the front door does not close after {}",
            String::from_utf8_lossy(&told)
        );
        String::from_utf8_lossy(&told).into_owned()
    }

    /// What the instance has read since the last time.
    fn read(&self) -> Vec<Read> {
        std::mem::take(&mut *self.read.lock().unwrap())
    }

    /// Refuses these bytes, so that the instance reads nothing whole.
    async fn refuses(&self, bytes: impl AsRef<[u8]>, why: &str) {
        let told = self.told(bytes).await;
        let answers = told.matches("HTTP/1.1 ").count();
        assert!(answers <= 1, "{why}: {told}");
        assert!(
            told.is_empty() || told.starts_with("HTTP/1.1 4"),
            "{why}: {told}"
        );
        let read = self.read();
        assert!(read.is_empty(), "{why}: {read:#?}");
    }
}

const HIDDEN: &str = "GET /users/hidden HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn where_a_length_and_chunks_disagree_the_chunks_count_and_nothing_is_read_after_them() {
    let watched = Watched::new().await;
    for lengths in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
    ] {
        let request =
            format!("POST /users/open HTTP/1.1\r\nHost: a\r\n{lengths}\r\n\r\n0\r\n\r\n{HIDDEN}");

        let told = watched.told(request).await;

        assert!(told.starts_with("HTTP/1.1 200"), "{told}");
        assert_eq!(told.matches("HTTP/1.1 ").count(), 1, "{told}");
        let read = watched.read();
        assert_eq!(read.len(), 1, "{read:#?}");
        assert_eq!(
            (read[0].target.as_str(), read[0].body.len()),
            ("/users/open", 0)
        );
        assert_ne!(read[0].header("content-length"), ["5"]);
    }
}

#[tokio::test]
async fn a_head_that_can_be_read_in_two_ways_is_refused() {
    let watched = Watched::new().await;
    for bad in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 0x5",
        "Content-Length: 5, 6",
        "Content-Length: 99999999999999999999",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: x-chunked",
        "Transfer-Encoding: xchunked\r\nContent-Length: 5",
        "Transfer-Encoding: \u{b}chunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        " Transfer-Encoding: chunked",
        "X: a\r\n Transfer-Encoding: chunked",
        "X: a\r\n\tb",
        "X: a\rb",
        "X: a\0b",
        "X\0: a",
        "X y: a",
        ": a",
        "no colon",
    ] {
        let request =
            format!("POST /users/open HTTP/1.1\r\nHost: a\r\n{bad}\r\n\r\n0\r\n\r\n{HIDDEN}");
        watched.refuses(request, bad).await;
    }
    for line in [
        "POST /users/open\0 HTTP/1.1",
        "POST /users/open x HTTP/1.1",
        "POST /users/open HTTP/1.1 HTTP/1.1",
        "POST /users/open HTTP/2.0",
        "PO\0ST /users/open HTTP/1.1",
        "POST /users/open HTTP/1.1\rX: y",
    ] {
        watched
            .refuses(format!("{line}\r\nHost: a\r\n\r\n{HIDDEN}"), line)
            .await;
    }
}

#[tokio::test]
async fn chunks_that_are_none_end_the_request_and_its_connection() {
    let watched = Watched::new().await;
    for bad in [
        "zz\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloworld\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\nhello\n0\n\n",
        "5\rXhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\n",
        "5\r\nhello\r\n",
    ] {
        let request = format!(
            "POST /users/open HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{bad}{HIDDEN}"
        );
        watched.refuses(request, bad).await;
    }
    let long = "x".repeat(64 * 1024);
    let request = format!(
        "POST /users/open HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;{long}\r\nhello\r\n0\r\n\r\n{HIDDEN}"
    );
    watched.refuses(request, "an endless extension").await;
}

#[tokio::test]
async fn extensions_and_trailers_do_not_become_headers() {
    let watched = Watched::new().await;
    let told = watched
        .told(
            "POST /users/open HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\
             Trailer: x-cloudphone-identity, content-length, x-request-id\r\n\r\n\
             5;a=b\r\nhello\r\n0\r\nx-cloudphone-identity: mine\r\ncontent-length: 1\r\nx-request-id: mine\r\n\r\n",
        )
        .await;

    assert!(told.starts_with("HTTP/1.1 200"), "{told}");
    let read = watched.read();
    assert_eq!(read.len(), 1, "{read:#?}");
    assert_eq!(read[0].body, b"hello");
    assert!(read[0].header("x-cloudphone-identity").is_empty());
    assert_ne!(read[0].header("content-length"), ["1"]);
    assert_ne!(read[0].header("x-request-id"), ["mine"]);
    let trailers = read[0].trailers.clone().unwrap_or_default();
    assert!(trailers.is_empty(), "{trailers:?}");
    assert!(read[0].header("trailer").is_empty());
}

#[tokio::test]
async fn an_instance_is_told_of_one_host_and_of_no_header_that_was_hidden_in_a_path() {
    let watched = Watched::new().await;
    for (request, host, target) in [
        (
            "GET http://meant/users/x?y HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n",
            "meant",
            "/users/x?y",
        ),
        (
            "GET /users/%0d%0aX-Evil:%201%0d%0a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            "a",
            "/users/%0d%0aX-Evil:%201%0d%0a",
        ),
        (
            "GET /users/x HTTP/1.1\r\nHost: a\r\nX-Forwarded-Host: evil\r\nForwarded: host=evil\r\nConnection: close\r\n\r\n",
            "a",
            "/users/x",
        ),
    ] {
        let told = watched.told(request).await;

        assert!(told.starts_with("HTTP/1.1 200"), "{request}: {told}");
        let read = watched.read();
        assert_eq!(read.len(), 1, "{read:#?}");
        assert_eq!(read[0].method, Method::GET);
        assert_eq!(read[0].target, target);
        assert_eq!(read[0].header("host"), [host]);
        assert_eq!(read[0].header("x-forwarded-host"), [host]);
        assert!(read[0].header("x-evil").is_empty());
    }
    // Two hosts are none.
    watched
        .refuses(
            "GET /users/x HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n",
            "two hosts",
        )
        .await;
}

#[tokio::test]
async fn a_lone_line_feed_ends_a_header_for_the_instance_as_well() {
    let watched = Watched::new().await;

    let told = watched
        .told("POST /users/open HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: a\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        .await;

    let read = watched.read();
    if told.starts_with("HTTP/1.1 200") {
        assert_eq!(read.len(), 1, "{read:#?}");
        assert_eq!(
            (read[0].header("x"), read[0].body.as_slice()),
            (vec!["a"], &b"hello"[..])
        );
    } else {
        assert!(
            told.starts_with("HTTP/1.1 400") && read.is_empty(),
            "{told}"
        );
    }
}

#[tokio::test]
async fn http_2_brings_no_headers_of_a_connection_and_no_line_breaks() {
    let watched = Watched::new().await;
    let whole = http2(&[("x", "y")], true);
    assert!(
        !refused(&answered(&watched, &whole).await),
        "the frames are right but for what follows"
    );
    assert_eq!(watched.read().len(), 1);

    for (name, value) in [
        ("connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("keep-alive", "5"),
        ("proxy-connection", "close"),
        ("te", "gzip"),
        ("X-Upper", "y"),
        ("x", "y\r\nx-evil: 1"),
        ("x", "y\nx-evil: 1"),
        ("x", "y\0"),
        ("x\r\nx-evil", "1"),
        ("content-length", "5"),
        (":path", "/users/hidden"),
        (":unknown", "x"),
    ] {
        let answer = answered(&watched, &http2(&[(name, value)], true)).await;

        let read = watched.read();
        assert!(refused(&answer), "{name}: {value}: {answer:?} {read:#?}");
        assert!(read.is_empty(), "{name}: {value}: {read:#?}");
    }
}

/// A frame of HTTP/2 as far as it matters: its type and its payload.
type Frame = (u8, Vec<u8>);

/// A connection's first bytes with one request, its headers written out without any compression.
fn http2(headers: &[(&str, &str)], ends: bool) -> Vec<u8> {
    const POST: u8 = 0x83;
    const HTTP: u8 = 0x86;
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let mut block = vec![POST, HTTP];
    // Literals under the indexed names `:path` and `:authority`.
    block.extend([&[0x04], &text("/users/open")[..]].concat());
    block.extend([&[0x01], &text("a")[..]].concat());
    for (name, value) in headers {
        block.extend([&[0x00], &text(name)[..], &text(value)].concat());
    }
    let flags = 0x4 | u8::from(ends);
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, flags, 1, &block),
    ]
    .concat()
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// The frames that come back, up to the one that ends the request.
async fn answered(watched: &Watched, bytes: &[u8]) -> Vec<Frame> {
    let mut stream = TcpStream::connect(watched.door.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut frames: Vec<Frame> = Vec::new();
    let reading = async {
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).await.is_err() {
                return;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            if stream.read_exact(&mut payload).await.is_err() {
                return;
            }
            frames.push((head[3], payload));
            // A reset, a farewell, or the end of an answer.
            let ends = matches!(head[3], 0 | 1) && head[4] & 1 == 1;
            if matches!(head[3], 3 | 7) || ends {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reading)
        .await
        .expect("it is answered");
    frames
}

/// Whether the stream was reset, the connection ended, or the answer is a 400.
fn refused(frames: &[Frame]) -> bool {
    const STATUS_400: u8 = 0x8c;
    frames.iter().any(|(kind, payload)| match kind {
        3 | 7 => true,
        1 => payload.first() == Some(&STATUS_400),
        _ => false,
    }) || frames.iter().all(|(kind, _)| *kind == 4)
}
