//! Heads of requests that are larger than anybody needs.

use contracts::Service;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::Backend;
use crate::door::Door;

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_with_a_reason() {
    let backend = Backend::echo("a").await;
    let door = Door::to(Service::Users, &[backend.upstream()]).await;
    let ask = async |path: &str, fields: Vec<(String, String)>| {
        let mut request = door.request("GET", path);
        for (name, value) in fields {
            request = request.header(name, value);
        }
        door.send(request.body(axum::body::Body::empty()).unwrap())
            .await
    };
    let many = |count: usize| (0..count).map(|n| (format!("x-{n}"), "1".to_owned()));
    let large = |size: usize| vec![("x-large".to_owned(), "y".repeat(size))];

    let long = format!("/users?{}", "q".repeat(9000));
    let reply = ask(&long, Vec::new()).await;
    reply.expect_problem(414, "URI_TOO_LONG");
    let reply = ask("/users", large(25 * 1024)).await;
    reply.expect_problem(431, "HEADERS_TOO_LARGE");
    let reply = ask("/users", many(85).collect()).await;
    reply.expect_problem(431, "HEADERS_TOO_LARGE");
    assert_eq!(backend.hits(), 0);

    // What is allowed here is allowed at the instance too, with what the door adds.
    assert_eq!(ask("/users", many(75).collect()).await.status, 200);
    assert_eq!(ask("/users", large(23 * 1024)).await.status, 200);
    assert_eq!(ask(&long[..8000], Vec::new()).await.status, 200);
}

#[tokio::test]
async fn a_head_beyond_all_bounds_is_refused_by_the_server() {
    let door = Door::to(Service::Users, &[]).await;

    for (head, status) in [
        (
            format!("GET /{} HTTP/1.1\r\nhost: x\r\n", "q".repeat(40_000)),
            "431",
        ),
        (
            format!("GET / HTTP/1.1\r\nx: {}\r\n", "y".repeat(40_000)),
            "431",
        ),
        (
            format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(200)),
            "431",
        ),
    ] {
        let mut client = TcpStream::connect(door.address).await.unwrap();
        client.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[9..], *status.as_bytes());
    }
}
