//! What is told of a request afterwards: the decision log, `Server-Timing` and the access log.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use contracts::Service;
use coordination::Limit;
use gateway::front::record::{End, Outcome, Record};
use gateway::front::{AccessLog, FrontConfig, RateLimits, Upstream};
use http_body_util::BodyExt;
use serde_json::Value;
use testkit::Lines;

use crate::backend::{Backend, nobody};
use crate::door::{Door, directory, eventually, redis};

impl Door {
    /// The record of a request, once it has ended.
    async fn record(&self, id: &str) -> Record {
        eventually("the request is recorded", || async {
            !self.decisions.find(id).is_empty()
        })
        .await;
        self.decisions.find(id).remove(0)
    }

    async fn get_as(&self, id: &str, path: &str) -> crate::door::Reply {
        let request = self.request("GET", path).header("x-request-id", id);
        self.send(request.body(Body::empty()).unwrap()).await
    }
}

#[tokio::test]
async fn a_retried_request_tells_both_instances_and_what_came_of_each() {
    let (gone, well) = (nobody("gone").await, Backend::echo("well").await);
    let last = Upstream {
        draining: true,
        ..well.upstream()
    };
    let door = Door::to(Service::Devices, &[gone.clone(), last]).await;

    let reply = door.get_as("r-1", "/api/devices/7?token=secret").await;

    let record = door.record("r-1").await;
    assert_eq!(record.status, Some(200));
    assert_eq!(record.end, End::Whole);
    assert_eq!(record.service, Some(Service::Devices));
    assert_eq!((&*record.method, &*record.path), ("GET", "/api/devices/7"));
    assert_eq!(record.client, "127.0.0.1".parse().ok());
    assert_eq!(record.bytes_sent, reply.body.len() as u64);
    let [first, second] = record.tries.as_slice() else {
        panic!("{record:?}")
    };
    assert_eq!(
        (&*first.instance, &*first.address),
        ("gone", &*gone.address)
    );
    assert_eq!((first.outcome, first.status), (Outcome::Unreached, None));
    assert!(
        first.error.as_ref().unwrap().contains("refused"),
        "{first:?}"
    );
    assert_eq!(&*second.instance, "well");
    assert_eq!(
        (second.outcome, second.status, &second.error),
        (Outcome::Answered, Some(200), &None)
    );
    assert!(second.began_ms >= first.began_ms + first.took_ms);
    assert!(record.total_ms >= record.head_ms && record.head_ms >= record.upstream_ms);
    assert!(!serde_json::to_string(&record).unwrap().contains("secret"));
}

#[tokio::test]
async fn a_refusal_of_the_gateways_own_routes_tells_its_reason() {
    let door = Door::to(Service::Devices, &[]).await;

    let reply = door.get_as("r-own", "/api/gateway/secret").await;

    let record = door.record("r-own").await;
    let refused = record.refusal.unwrap();
    assert_eq!((reply.status.as_u16(), record.status), (403, Some(403)));
    assert_eq!(
        (&*refused.reason, &*refused.message),
        ("forbidden", "the role admin is required")
    );
}

#[tokio::test]
async fn every_answer_tells_where_its_time_went() {
    let backend = Backend::echo("a").await;
    let door = Door::to(Service::Users, &[backend.upstream()]).await;

    let proxied = door.get("/users").await;
    let told = proxied.headers["server-timing"].to_str().unwrap();
    let (gateway, upstream) = told.split_once(", ").unwrap();
    for (told, name) in [(gateway, "gateway;dur="), (upstream, "upstream;dur=")] {
        let spent: f64 = told.strip_prefix(name).unwrap().parse().unwrap();
        assert!(spent > 0.0, "{told}");
    }

    for path in ["/gateway/ping", "/nothing"] {
        let own = door.get(path).await;
        let told = own.headers["server-timing"].to_str().unwrap();
        assert!(
            told.starts_with("gateway;dur=") && !told.contains("upstream"),
            "{told}"
        );
    }
}

#[tokio::test]
async fn a_refusal_is_told_with_its_reason() {
    let (breaking, well) = (Backend::breaking("a").await, Backend::echo("b").await);
    let mut all = directory(Service::Users, &[breaking.upstream()]);
    all.insert(Service::Devices, vec![well.upstream()]);
    let door = Door::before(FrontConfig::default(), all, None).await;

    door.get_as("absent", "/internal/x")
        .await
        .expect_problem(404, "NOT_FOUND");
    let large = door
        .request("POST", "/devices")
        .header("x-request-id", "large");
    let large = large.body(Body::from(vec![b'x'; 1024 * 1024 + 1])).unwrap();
    door.send(large).await.expect_problem(413, "TOO_LARGE");
    door.get_as("none", "/media/tasks")
        .await
        .expect_problem(503, "UPSTREAM_DOWN");
    for _ in 0..20 {
        door.post("/users", "x")
            .await
            .expect_problem(502, "UPSTREAM_DOWN");
    }
    door.get_as("open", "/users")
        .await
        .expect_problem(503, "UPSTREAM_DOWN");

    for (id, status, reason) in [
        ("absent", 404, "not_found"),
        ("large", 413, "too_large"),
        ("none", 503, "no_instance"),
        ("open", 503, "circuit_open"),
    ] {
        let record = door.record(id).await;
        let refusal = record.refusal.as_ref().unwrap();
        assert_eq!((record.status, &*refusal.reason), (Some(status), reason));
        assert!(record.tries.is_empty(), "{record:?}");
    }
}

#[tokio::test]
async fn a_limited_request_tells_the_limit_and_what_was_left_of_it() {
    let (redis, keys) = redis().await;
    let backend = Backend::echo("a").await;
    let config = FrontConfig {
        limits: Some(RateLimits {
            address: Limit::per_minute(1).burst(2).tier("address"),
            ..RateLimits::of((1, 1), (1, 1))
        }),
        keys,
        ..FrontConfig::default()
    };
    let directory = directory(Service::Users, &[backend.upstream()]);
    let door = Door::before(config, directory, Some(redis)).await;

    for id in ["first", "second", "third"] {
        door.get_as(id, "/users").await;
    }

    for (id, status, left) in [("first", 200, 1), ("second", 200, 0), ("third", 429, 0)] {
        let record = door.record(id).await;
        let limit = record.limit.as_ref().unwrap();
        assert_eq!(
            (record.status, limit.remaining),
            (Some(status), left),
            "{id}"
        );
        assert_eq!((limit.allowed, &*limit.tier), (status == 200, "address"));
        assert_eq!(limit.retry_after_ms > 0, status == 429);
        assert_eq!(record.refusal.is_some(), status == 429);
    }
}

#[tokio::test]
async fn who_leaves_before_the_answer_is_told_and_so_is_the_instance_that_was_waited_for() {
    let hanging = Backend::hanging("a").await;
    let door = Door::to(Service::Users, &[hanging.upstream()]).await;
    let request = door.request("GET", "/users").header("x-request-id", "left");
    let asked = door.client.request(request.body(Body::empty()).unwrap());
    let reached = eventually("the instance is asked", || async { hanging.hits() == 1 });
    tokio::select! {
        answer = asked => panic!("nobody answers: {answer:?}"),
        () = reached => {}
    }

    let record = door.record("left").await;
    assert_eq!((record.status, record.end), (None, End::ClientLeft));
    assert_eq!(record.tries[0].outcome, Outcome::Abandoned);
    assert!(record.tries[0].took_ms > 0.0);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_told_as_such_and_one_that_nobody_reads_to_its_end_too() {
    let half = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";
    let broken = Backend::saying("a", half).await;
    let endless = Router::new().route(
        "/devices",
        get(|| async {
            let piece = || Ok::<_, std::io::Error>(Bytes::from_static(&[0; 4096]));
            Body::from_stream(futures::stream::repeat_with(piece))
        }),
    );
    let endless = Backend::serve("b", endless).await;
    let mut all = directory(Service::Users, &[broken.upstream()]);
    all.insert(Service::Devices, vec![endless.upstream()]);
    let door = Door::before(FrontConfig::default(), all, None).await;
    let ask = |id: &str, path: &str| {
        let request = door.request("GET", path).header("x-request-id", id);
        door.client.request(request.body(Body::empty()).unwrap())
    };

    let reply = ask("broken", "/users").await.unwrap().into_body();
    assert!(reply.collect().await.is_err());
    let mut reply = ask("endless", "/devices").await.unwrap().into_body();
    reply.frame().await.unwrap().unwrap();
    drop(reply);

    for (id, end) in [("broken", End::BrokeOff), ("endless", End::ClientLeft)] {
        let record = door.record(id).await;
        assert_eq!((record.status, record.end), (Some(200), end), "{id}");
    }
    assert_eq!(door.record("broken").await.bytes_sent, 4);
}

#[tokio::test]
async fn bodies_are_counted_and_an_answer_without_one_is_whole() {
    let backend = Backend::echo("a").await;
    let door = Door::to(Service::Apps, &[backend.upstream()]).await;
    let ask = |method: &str, id: &str, body: Body| {
        let request = door.request(method, "/apps/upload");
        door.send(request.header("x-request-id", id).body(body).unwrap())
    };

    let reply = ask("POST", "up", Body::from(vec![b'x'; 300_000])).await;
    ask("HEAD", "head", Body::empty()).await;
    ask("OPTIONS", "options", Body::empty()).await;

    let up = door.record("up").await;
    assert_eq!(up.bytes_received, 300_000);
    assert_eq!(up.bytes_sent, reply.body.len() as u64);
    for id in ["up", "head", "options"] {
        assert_eq!(door.record(id).await.end, End::Whole, "{id}");
    }
}

#[tokio::test]
async fn the_access_log_has_a_share_of_the_ordinary_and_all_that_failed_and_no_secret() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let (well, breaking) = (Backend::echo("a").await, Backend::breaking("b").await);
    let mut all = directory(Service::Media, &[well.upstream()]);
    all.insert(Service::Users, vec![breaking.upstream()]);
    let door = async |sample: f64| {
        let access = AccessLog {
            sample,
            slow: Duration::from_secs(60),
            most: 100,
        };
        let config = FrontConfig {
            access,
            ..FrontConfig::default()
        };
        Door::before(config, all.clone(), None).await
    };
    let (every, none) = (door(1.0).await, door(0.0).await);

    for (door, name) in [(&every, "every"), (&none, "none")] {
        let request = door
            .request("PUT", "/api/media/uploads/ticket-of-one?token=query")
            .header("x-request-id", format!("{name}-well"))
            .header("authorization", "Bearer of-a-token");
        door.send(request.body(Body::from("body")).unwrap()).await;
        door.get_as(&format!("{name}-failed"), "/users").await;
        door.record(&format!("{name}-well")).await;
        door.record(&format!("{name}-failed")).await;
    }

    let lines: Vec<Value> = lines.all();
    let lines: Vec<&Value> = lines
        .iter()
        .filter(|line| line["target"] == "access")
        // Other tests may log in the same process.
        .filter(|line| {
            let id = line["request.id"].as_str().unwrap_or_default();
            id.starts_with("every-") || id.starts_with("none-")
        })
        .collect();
    let ids: Vec<&str> = lines
        .iter()
        .filter_map(|line| line["request.id"].as_str())
        .collect();
    assert_eq!(ids, ["every-well", "every-failed", "none-failed"]);
    let [well, failed, _] = lines.as_slice() else {
        panic!("{lines:?}")
    };
    for (field, value) in [
        ("client.address", "127.0.0.1"),
        ("http.protocol", "HTTP/1.1"),
        ("http.method", "PUT"),
        ("http.path", "/api/media/uploads/"),
        ("service", "media"),
        ("instance", "a"),
        ("end", "whole"),
    ] {
        assert_eq!(well[field], value, "{well}");
    }
    assert_eq!(well["http.status"], 200);
    assert!(well["total_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(
        (&failed["http.status"], &failed["refusal"]),
        (&502.into(), &"broke_off".into())
    );
    let all = format!("{lines:?}");
    for secret in ["ticket-of-one", "query", "of-a-token"] {
        assert!(!all.contains(secret), "{secret} is in {all}");
    }
}
