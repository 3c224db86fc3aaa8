//! Socket.IO sessions by long polling over several gateways.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use contracts::Service;
use coordination::Keys;
use fred::clients::Pool;
use fred::interfaces::KeysInterface;
use gateway::front::{FrontConfig, RateLimits};
use http::{Method, StatusCode};

use crate::backend::Backend;
use crate::door::{Door, directory, redis};

#[derive(Clone)]
struct Engine {
    name: &'static str,
    sessions: Arc<Mutex<HashSet<String>>>,
}

/// What an Engine.IO server does, as far as the front door sees it.
async fn engine(
    State(engine): State<Engine>,
    method: Method,
    RawQuery(query): RawQuery,
) -> Response {
    let query = query.unwrap_or_default();
    let sid = query.split('&').find_map(|pair| pair.strip_prefix("sid="));
    let mut sessions = engine.sessions.lock().unwrap();
    match sid {
        None => {
            let sid = format!("{}-{}", engine.name, sessions.len());
            let open = format!(
                r#"0{{"sid":"{sid}","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000}}"#
            );
            sessions.insert(sid);
            open.into_response()
        }
        Some(sid) if sessions.contains(sid) && method == Method::GET => {
            format!("4{}", engine.name).into_response()
        }
        Some(sid) if sessions.contains(sid) => "ok".into_response(),
        Some(_) => (
            StatusCode::BAD_REQUEST,
            r#"{"code":1,"message":"Session ID unknown"}"#,
        )
            .into_response(),
    }
}

async fn backend(name: &'static str) -> Backend {
    let router = Router::new().fallback(any(engine)).with_state(Engine {
        name,
        sessions: Arc::default(),
    });
    Backend::serve(name, router).await
}

async fn doors(backends: &[&Backend], redis: &Pool, keys: &Keys) -> [Door; 2] {
    let upstreams: Vec<_> = backends.iter().map(|backend| backend.upstream()).collect();
    let config = FrontConfig {
        keys: keys.clone(),
        ..FrontConfig::default()
    };
    let door = || {
        Door::before(
            config.clone(),
            directory(Service::Notifications, &upstreams),
            Some(redis.clone()),
        )
    };
    [door().await, door().await]
}

async fn open(door: &Door, path: &str) -> String {
    let reply = door.get(&format!("{path}?EIO=4&transport=polling")).await;
    let body: serde_json::Value = serde_json::from_slice(&reply.body[1..]).unwrap();
    body["sid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_polling_session_stays_on_its_instance_whichever_gateway_it_reaches() {
    let (redis, keys) = redis().await;
    let (a, b, c) = (backend("a").await, backend("b").await, backend("c").await);
    let doors = doors(&[&a, &b, &c], &redis, &keys).await;

    let mut homes = HashSet::new();
    for round in 0..30 {
        let path = ["/socket.io/", "/api/socket.io/", "/ws/", "/"][round % 4];
        let sid = open(&doors[round % 2], path).await;
        let home = sid.split('-').next().unwrap();
        homes.insert(home.to_owned());
        for door in doors.iter().chain(&doors) {
            let url = format!("{path}?EIO=4&transport=polling&sid={sid}");
            assert_eq!(door.get(&url).await.body, format!("4{home}"));
            assert_eq!(door.post(&url, "40").await.body, "ok");
        }
        let ttl: i64 = redis
            .pttl(keys.key(&format!("gateway:session:{sid}")))
            .await
            .unwrap();
        assert!(ttl > 60_000, "{ttl}");
    }
    assert!(homes.len() > 1, "sessions are spread");
}

#[tokio::test]
async fn a_session_that_nobody_has_is_answered_as_clients_expect_it() {
    let (redis, keys) = redis().await;
    let (a, b) = (backend("a").await, backend("b").await);
    let doors = doors(&[&a, &b], &redis, &keys).await;
    let unknown = async |door: &Door, sid: &str| {
        let reply = door
            .get(&format!("/socket.io/?EIO=4&transport=polling&sid={sid}"))
            .await;
        assert_eq!(reply.status, 400);
        assert_eq!(reply.body, r#"{"code":1,"message":"Session ID unknown"}"#);
    };
    for sid in ["never-heard-of", "", "%0d%0aSET", &"x".repeat(500)] {
        unknown(&doors[0], sid).await;
    }
    assert_eq!(a.hits() + b.hits(), 0);

    // Its instance dies, which the registry has yet to learn; then it learns.
    let sid = open(&doors[0], "/socket.io/").await;
    let (home, other) = if sid.starts_with('a') {
        (&a, &b)
    } else {
        (&b, &a)
    };
    home.kill().await;
    unknown(&doors[1], &sid).await;
    for door in &doors {
        door.register(Service::Notifications, &[other.upstream()]);
        unknown(door, &sid).await;
    }
    assert!(
        open(&doors[1], "/socket.io/")
            .await
            .starts_with(other.name.as_str())
    );
}

#[tokio::test]
async fn without_redis_a_gateway_keeps_the_sessions_it_opened_and_limits_nobody() {
    let (a, b) = (backend("a").await, backend("b").await);
    let gone = fred::types::Builder::from_config(
        fred::types::config::Config::from_url("redis://127.0.0.1:1").unwrap(),
    )
    .build_pool(1)
    .unwrap();
    let config = FrontConfig {
        limits: Some(RateLimits::of((1, 1), (1, 1))),
        ..FrontConfig::default()
    };
    let upstreams = [a.upstream(), b.upstream()];
    let door = Door::before(
        config,
        directory(Service::Notifications, &upstreams),
        Some(gone),
    )
    .await;

    let sid = open(&door, "/socket.io/").await;
    for _ in 0..4 {
        let reply = door
            .get(&format!("/socket.io/?EIO=4&transport=polling&sid={sid}"))
            .await;
        assert_eq!(reply.body, format!("4{}", sid.split('-').next().unwrap()));
    }
}

#[tokio::test]
async fn an_address_is_limited_over_all_gateways() {
    let (redis, keys) = redis().await;
    let a = backend("a").await;
    let config = FrontConfig {
        limits: Some(RateLimits::of((1, 10), (1, 10))),
        keys,
        ..FrontConfig::default()
    };
    let door = || {
        Door::before(
            config.clone(),
            directory(Service::Notifications, &[a.upstream()]),
            Some(redis.clone()),
        )
    };
    let doors = [door().await, door().await];

    let mut refused = 0;
    for round in 0..40 {
        let reply = doors[round % 2].get("/notifications").await;
        if reply.status == 429 {
            reply.expect_problem(429, "RATE_LIMITED");
            assert_eq!(reply.headers["retry-after"], "1");
            assert_eq!(reply.headers["ratelimit-remaining"], "0");
            refused += 1;
        }
        assert_eq!(reply.headers["ratelimit-policy"], "\"address\";q=10;w=10");
        assert_eq!(reply.headers["ratelimit-limit"], "10");
        assert_eq!(
            doors[round % 2].get("/health").await.status,
            200,
            "probes are not limited"
        );
    }
    assert!(refused >= 20, "{refused} of 40");
}
