//! Server-Sent Events.

use http::{Request, StatusCode};
use serde_json::Value;
use sqlx::PgPool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::app::{Cluster, FAR, SOON, with_sweep};

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_stream_goes_on_after_the_last_event_seen(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    for n in 1..=3 {
        cluster.first.send("alice", &format!("m{n}")).await;
    }

    let mut stream = TcpStream::connect(cluster.second.address).await.unwrap();
    let head = format!(
        "GET /notifications/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {alice}\r\nLast-Event-ID: 2\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    let reading = async {
        while !seen.contains("\nid: 4") {
            if seen.contains("\nid: 3") && !seen.contains("m4") {
                cluster.first.send("alice", "m4").await;
            }
            let read = stream.read(&mut buffer).await.unwrap();
            seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
    };
    tokio::time::timeout(SOON, reading).await.unwrap();

    assert!(seen.contains("text/event-stream") && seen.contains("event: welcome"));
    assert!(seen.contains(r#""message":"m3""#) && !seen.contains(r#""message":"m2""#));
    cluster.second.state.close_sockets().await;
    let mut rest = String::new();
    let telling = async {
        while !rest.contains("\n\n") {
            let read = stream.read(&mut buffer).await.unwrap();
            assert_ne!(read, 0, "it ended after {rest}");
            rest.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
    };
    tokio::time::timeout(SOON, telling).await.unwrap();
    // A browser obeys the field by itself.
    assert!(
        rest.contains("event: server:restarting") && rest.contains("\nretry: "),
        "{rest}"
    );
}

/// Reads a stream from its beginning until it holds a text.
async fn read_until(cluster: &Cluster, token: &str, header: &str, wanted: &str) -> String {
    let mut stream = TcpStream::connect(cluster.second.address).await.unwrap();
    let head = format!(
        "GET /notifications/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{header}\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    let reading = async {
        while !seen.contains(wanted) {
            let read = stream.read(&mut buffer).await.unwrap();
            assert_ne!(read, 0, "it ended after {seen}");
            seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
    };
    tokio::time::timeout(SOON, reading).await.unwrap();
    seen
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_client_that_never_had_a_notification_misses_none_while_it_is_away(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    cluster.first.send("alice", "m1").await;
    let greeted = read_until(&cluster, &alice, "", "event: unread-count").await;
    assert!(
        greeted.contains("\nid: 1") && greeted.contains(r#""seq":1"#),
        "{greeted}"
    );

    cluster.first.send("alice", "m2").await;

    let header = "Last-Event-ID: 1\r\n";
    let again = read_until(&cluster, &alice, header, r#""message":"m2""#).await;
    assert!(again.contains(r#""recovered":true"#), "{again}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_stream_wants_a_token(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;

    let request = Request::builder().uri("/notifications/stream");
    let reply = cluster.first.call(request, Value::Null, FAR).await;

    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
}
