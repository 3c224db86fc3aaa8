//! What is tried again, what is not, and what the client learns.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use contracts::Service;
use futures::future::join_all;
use gateway::front::{FrontConfig, Keyed};
use http::Method;
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::backend::{Backend, echo, nobody};
use crate::door::{Door, directory, eventually};

fn impatient() -> FrontConfig {
    FrontConfig {
        reply_within: Duration::from_millis(600),
        try_within: Duration::from_millis(200),
        ..FrontConfig::default()
    }
}

#[tokio::test]
async fn a_refused_connection_is_tried_elsewhere_whatever_the_method() {
    let backend = Backend::echo("a").await;
    let door = Door::to(
        Service::Users,
        &[nobody("x").await, backend.upstream(), nobody("y").await],
    )
    .await;

    for round in 0..40 {
        let body = format!("body {round}");
        assert_eq!(
            door.post("/users", body.clone()).await.json()["body"],
            body.as_str()
        );
    }
    let big = "b".repeat(900_000);
    assert_eq!(
        door.post("/users", big.clone()).await.json()["body"],
        big.as_str()
    );
    assert_eq!(backend.hits(), 41);
}

#[tokio::test]
async fn where_another_service_has_the_address_nothing_was_done_and_any_request_goes_elsewhere() {
    let answer = b"HTTP/1.1 421 Misdirected Request\r\ncontent-length: 0\r\n\r\n";
    let (other, meant) = (
        Backend::saying("other", answer).await,
        Backend::echo("meant").await,
    );
    let door = Door::to(Service::Users, &[other.upstream(), meant.upstream()]).await;

    for round in 0..20 {
        let body = format!("body {round}");
        assert_eq!(
            door.post("/users", body.clone()).await.json()["body"],
            body.as_str()
        );
    }
    assert_eq!(meant.hits(), 20);
    // It is left alone like one that refuses connections.
    assert!((1..20).contains(&other.hits()), "{}", other.hits());
}

#[tokio::test]
async fn a_request_for_another_service_is_not_passed_on_once_more() {
    let backend = Backend::echo("a").await;
    let door = Door::to(Service::Users, &[backend.upstream()]).await;

    let request = door
        .request("GET", "/users")
        .header("x-cloudphone-addressee", "users")
        .body(Body::empty());
    let reply = door.send(request.unwrap()).await;

    reply.expect_problem(421, "MISDIRECTED");
    assert_eq!(backend.hits(), 0);
}

#[tokio::test]
async fn a_post_that_was_sent_is_never_sent_again() {
    let (a, b) = (Backend::breaking("a").await, Backend::breaking("b").await);
    let door = Door::to(Service::Users, &[a.upstream(), b.upstream()]).await;

    for sent in 1..=4 {
        door.post("/users", "x")
            .await
            .expect_problem(502, "UPSTREAM_DOWN");
        assert_eq!(a.hits() + b.hits(), sent);
    }
}

#[tokio::test]
async fn a_ticket_that_was_sent_is_never_sent_again() {
    let (a, b) = (Backend::breaking("a").await, Backend::breaking("b").await);
    let door = Door::to(Service::Devices, &[a.upstream(), b.upstream()]).await;

    for (sent, path) in ["/devices/7/adb?ticket=x", "/api/devices/7/stream/?ticket=x"]
        .into_iter()
        .enumerate()
    {
        door.get(path).await.expect_problem(502, "UPSTREAM_DOWN");
        assert_eq!(a.hits() + b.hits(), sent + 1, "{path}");
    }
}

#[tokio::test]
async fn a_safe_or_keyed_request_is_sent_again_with_its_body() {
    let (bad, good) = (Backend::breaking("bad").await, Backend::echo("good").await);
    let config = FrontConfig {
        keyed: Keyed::new([(Method::POST, "/users/{id}/keyed".to_owned())]),
        ..FrontConfig::default()
    };
    let instances = directory(Service::Users, &[bad.upstream(), good.upstream()]);
    let door = Door::before(config, instances, None).await;

    for _ in 0..10 {
        let keyed = door
            .request("POST", "/api/users/7/keyed")
            .header("idempotency-key", "k")
            .body(Body::from("pay"))
            .unwrap();
        let reply = door.send(keyed).await;
        assert_eq!(
            (reply.json()["by"].as_str(), reply.json()["body"].as_str()),
            (Some("good"), Some("pay"))
        );
        assert_eq!(door.get("/users").await.json()["by"], "good");
    }
    assert!(bad.hits() > 0);
}

#[tokio::test]
async fn a_key_repeats_nothing_on_a_route_that_does_not_honour_it() {
    let (a, b) = (Backend::breaking("a").await, Backend::breaking("b").await);
    let config = FrontConfig {
        keyed: Keyed::new([(Method::POST, "/users".to_owned())]),
        ..FrontConfig::default()
    };
    let instances = directory(Service::Users, &[a.upstream(), b.upstream()]);
    let door = Door::before(config, instances, None).await;

    for sent in 1..=4 {
        let keyed = door.request("POST", "/users/7/act");
        let keyed = keyed.header("idempotency-key", "k");
        let reply = door.send(keyed.body(Body::from("x")).unwrap()).await;
        reply.expect_problem(502, "UPSTREAM_DOWN");
        assert_eq!(a.hits() + b.hits(), sent);
    }
}

#[tokio::test]
async fn retries_have_a_budget() {
    let (a, b) = (Backend::breaking("a").await, Backend::breaking("b").await);
    let door = Door::to(Service::Users, &[a.upstream(), b.upstream()]).await;

    // The breaker opens after 20 failures; the budget of 20 and what was earned is gone before.
    for _ in 0..20 {
        door.get("/users")
            .await
            .expect_problem(502, "UPSTREAM_DOWN");
    }

    let sent = a.hits() + b.hits();
    assert!((40..=44).contains(&sent), "{sent} sent for 20 requests");
}

#[tokio::test]
async fn garbage_is_a_bad_gateway_and_another_instance_is_asked() {
    let bad = Backend::saying("bad", b"SSH-2.0-OpenSSH\r\n").await;
    let door = Door::to(Service::Users, &[bad.upstream()]).await;
    door.post("/users", "x")
        .await
        .expect_problem(502, "UPSTREAM_DOWN");

    let good = Backend::echo("good").await;
    door.register(Service::Users, &[bad.upstream(), good.upstream()]);
    eventually("both are known", || async {
        door.report(Service::Users)["stats"]["instances"] == 2
    })
    .await;
    for _ in 0..10 {
        assert_eq!(door.get("/users").await.json()["by"], "good");
    }
}

#[tokio::test]
async fn one_that_hangs_is_a_timeout_and_a_safe_request_goes_elsewhere_in_time() {
    let hanging = Backend::hanging("hanging").await;
    let door = Door::before(
        impatient(),
        directory(Service::Users, &[hanging.upstream()]),
        None,
    )
    .await;
    door.get("/users")
        .await
        .expect_problem(504, "UPSTREAM_TIMEOUT");
    door.post("/users", "x")
        .await
        .expect_problem(504, "UPSTREAM_TIMEOUT");

    let good = Backend::echo("good").await;
    door.register(Service::Users, &[hanging.upstream(), good.upstream()]);
    eventually("both are known", || async {
        door.report(Service::Users)["stats"]["instances"] == 2
    })
    .await;
    for _ in 0..10 {
        assert_eq!(door.get("/users").await.json()["by"], "good");
    }
}

#[tokio::test]
async fn one_that_is_not_ready_passes_a_safe_request_on_and_its_refusal_of_others_stays() {
    let bad = Backend::saying(
        "bad",
        b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    let door = Door::to(Service::Users, &[bad.upstream()]).await;
    let reply = door.get("/users").await;
    assert_eq!(
        (
            reply.status.as_u16(),
            reply.headers["retry-after"].as_bytes()
        ),
        (503, &b"7"[..])
    );

    let good = Backend::echo("good").await;
    door.register(Service::Users, &[bad.upstream(), good.upstream()]);
    eventually("both are known", || async {
        door.report(Service::Users)["stats"]["instances"] == 2
    })
    .await;
    for _ in 0..10 {
        assert_eq!(door.get("/users").await.json()["by"], "good");
    }
}

#[tokio::test]
async fn a_reply_that_breaks_off_breaks_off_for_the_client_too() {
    for reply in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nonly this"[..],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let bad = Backend::saying("bad", reply).await;
        let door = Door::to(Service::Users, &[bad.upstream()]).await;
        let request = door.request("GET", "/users").body(Body::empty()).unwrap();
        let response = door.client.request(request).await;
        let whole = match response {
            Ok(response) => response.into_body().collect().await.is_ok(),
            Err(_) => false,
        };
        assert!(!whole, "a part must not look like the whole");
    }
}

#[tokio::test]
async fn a_reply_that_stands_still_is_given_up() {
    let config = FrontConfig {
        stream_idle: Duration::from_millis(100),
        ..FrontConfig::default()
    };
    let still = Backend::raw("still", |mut stream| async move {
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nonly this";
        stream.write_all(head).await.ok();
        std::future::pending::<()>().await;
    })
    .await;
    let door = Door::before(config, directory(Service::Users, &[still.upstream()]), None).await;

    let request = door.request("GET", "/users").body(Body::empty()).unwrap();
    let response = door.client.request(request).await.unwrap();
    assert!(response.into_body().collect().await.is_err());
    eventually("it is not counted as busy", || async {
        door.report(Service::Users)["stats"]["outstanding"] == 0
    })
    .await;
}

#[tokio::test]
async fn one_that_dies_and_comes_back_serves_again() {
    let first = Backend::echo("a").await;
    let door = Door::to(Service::Users, &[first.upstream()]).await;
    assert_eq!(door.post("/users", "x").await.status, 200);

    first.kill().await;
    eventually("it is gone", || async {
        door.get("/users").await.status == 503
    })
    .await;
    let second = Backend::serve_at("a", first.address, echo("a")).await;

    eventually("it serves again", || async {
        door.get("/users").await.status == 200
    })
    .await;
    assert_eq!(door.post("/users", "x").await.status, 200);
    assert!(second.hits() > 1);
}

#[tokio::test]
async fn a_client_that_goes_away_frees_the_instance() {
    let hanging = Backend::hanging("a").await;
    let door = Door::to(Service::Users, &[hanging.upstream()]).await;
    let asked = door.get("/users");
    let reached = eventually("it was asked", || async { hanging.hits() == 1 });
    tokio::select! { _ = asked => panic!("it never answers"), () = reached => {} }

    // The request and its connection are gone with the future.
    eventually("nothing is outstanding", || async {
        door.report(Service::Users)["stats"]["outstanding"] == 0
    })
    .await;
    assert_eq!(door.report(Service::Users)["stats"]["failures"], 0);
}

#[tokio::test]
async fn an_instance_is_told_how_long_it_is_waited_for() {
    let (a, b) = (Backend::echo("a").await, Backend::echo("b").await);
    let config = FrontConfig {
        reply_within: Duration::from_secs(60),
        try_within: Duration::from_secs(30),
        deadlines: "/users/quick=5".parse().unwrap(),
        ..FrontConfig::default()
    };
    let door = Door::before(
        config,
        directory(Service::Users, &[a.upstream(), b.upstream()]),
        None,
    )
    .await;
    let told = async |method: &str, path: &str| {
        let request = door
            .request(method, path)
            .header("x-cloudphone-deadline-ms", "77777")
            .body(Body::empty());
        let reply = door.send(request.unwrap()).await;
        let told = &reply.json()["headers"]["x-cloudphone-deadline-ms"];
        told.as_str().unwrap().parse::<u64>().unwrap()
    };

    let whole = told("POST", "/users").await;
    assert!((30_001..=60_000).contains(&whole), "{whole}");
    let one_try_of_several = told("GET", "/users").await;
    assert!(
        (5_001..=30_000).contains(&one_try_of_several),
        "{one_try_of_several}"
    );
    let of_the_route = told("POST", "/api/users/quick/").await;
    assert!((1..=5_000).contains(&of_the_route), "{of_the_route}");
}

#[tokio::test]
async fn an_upload_has_no_deadline() {
    let backend = Backend::echo("a").await;
    let door = Door::to(Service::Apps, &[backend.upstream()]).await;

    let upload = door
        .request("POST", "/apps/upload")
        .header("x-cloudphone-deadline-ms", "1")
        .body(Body::from("apk"));
    let reply = door.send(upload.unwrap()).await;

    let headers = &reply.json()["headers"];
    assert!(
        headers.get("x-cloudphone-deadline-ms").is_none(),
        "{headers}"
    );
}

#[tokio::test]
async fn a_route_with_a_deadline_of_its_own_is_given_up_earlier() {
    let hanging = Backend::hanging("hanging").await;
    let config = FrontConfig {
        reply_within: Duration::from_secs(600),
        deadlines: "/users/quick=0.2".parse().unwrap(),
        ..FrontConfig::default()
    };
    let door = Door::before(
        config,
        directory(Service::Users, &[hanging.upstream()]),
        None,
    )
    .await;

    door.post("/users/quick", "x")
        .await
        .expect_problem(504, "UPSTREAM_TIMEOUT");
}

#[tokio::test]
async fn one_that_resets_in_its_head_or_says_too_much_there_is_a_bad_gateway() {
    let reset = Backend::raw("reset", |mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\nconten").await.ok();
        // Without a goodbye.
        socket2::SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    })
    .await;
    let endless = Backend::raw("endless", |mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\n").await.ok();
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    })
    .await;
    let lying = Backend::saying(
        "lying",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    )
    .await;
    let headless = Backend::saying("headless", b"").await;
    for bad in [reset, endless, lying, headless] {
        let door = Door::to(Service::Users, &[bad.upstream()]).await;

        door.post("/users", "x")
            .await
            .expect_problem(502, "UPSTREAM_DOWN");
        assert_eq!(bad.hits(), 1, "{}", bad.name);
    }
}

#[tokio::test]
async fn one_that_resets_in_its_body_breaks_off_for_the_client_too() {
    let reset = Backend::raw("reset", |mut stream| async move {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nonly this")
            .await
            .ok();
        socket2::SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    })
    .await;
    let door = Door::to(Service::Users, &[reset.upstream()]).await;

    let request = door.request("GET", "/users").body(Body::empty()).unwrap();
    let whole = match door.client.request(request).await {
        Ok(response) => {
            // It may have been reset before its head was read.
            response.status() == 200 && response.into_body().collect().await.is_ok()
        }
        Err(_) => false,
    };

    assert!(!whole, "a part must not look like the whole");
    eventually("nothing is outstanding", || async {
        door.report(Service::Users)["stats"]["outstanding"] == 0
    })
    .await;
}

#[tokio::test]
async fn one_that_dribbles_its_head_is_a_timeout_and_one_that_dribbles_its_body_is_heard_out() {
    let head = Backend::raw("head", |mut stream| async move {
        let dribbled = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
            .iter()
            .cycle();
        for byte in dribbled {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let door = Door::before(
        impatient(),
        directory(Service::Users, &[head.upstream()]),
        None,
    )
    .await;
    door.post("/users", "x")
        .await
        .expect_problem(504, "UPSTREAM_TIMEOUT");

    // Twice as long as its head may take.
    let body = Backend::raw("body", |mut stream| async move {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 24\r\n\r\n")
            .await
            .ok();
        for _ in 0..24 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            stream.write_all(b"x").await.ok();
        }
    })
    .await;
    let door = Door::before(
        impatient(),
        directory(Service::Users, &[body.upstream()]),
        None,
    )
    .await;
    let reply = door.post("/users", "x").await;
    assert_eq!((reply.status.as_u16(), reply.body.len()), (200, 24));
}

#[tokio::test]
async fn slow_clients_do_not_eject_an_instance_nor_open_its_breaker() {
    let instance = Backend::echo("a").await;
    let door = Door::before(
        impatient(),
        directory(Service::Users, &[instance.upstream()]),
        None,
    )
    .await;
    // More than the failures that eject an instance, and more than those that open the breaker; bodies that the door
    // holds back until they are whole, and bodies that it passes on as they come.
    let slow = async |length: Option<&str>| {
        let (_held, pieces) = mpsc::channel::<std::io::Result<Bytes>>(1);
        let mut request = door.request("POST", "/users");
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let body = Body::from_stream(ReceiverStream::new(pieces));
        door.send(request.body(body).unwrap()).await
    };
    for reply in join_all((0..60).map(|number| slow((number % 2 == 0).then_some("5")))).await {
        reply.expect_problem(408, "BODY_TIMEOUT");
    }

    let told = door.report(Service::Users);
    assert_eq!(told["state"], "CLOSED");
    assert_eq!(told["stats"]["failures"], 0);
    assert_eq!(told["stats"]["ejected"], 0);
    assert_eq!(door.post("/users", "x").await.status, 200);
}
