//! Which request goes where, and with which headers.

use axum::body::Body;
use contracts::Service;
use gateway::front::{Directory, FrontConfig};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use crate::backend::Backend;
use crate::door::Door;

const TABLE: [(Service, &[&str]); 6] = [
    (
        Service::Users,
        &[
            "auth",
            "users",
            "roles",
            "permissions",
            "menu-permissions",
            "quotas",
            "api-keys",
            "audit-logs",
        ],
    ),
    (
        Service::Devices,
        &[
            "devices",
            "snapshots",
            "templates",
            "lifecycle",
            "ports",
            "nodes",
        ],
    ),
    (Service::Apps, &["apps"]),
    (
        Service::Billing,
        &[
            "plans",
            "orders",
            "payments",
            "billing",
            "balance",
            "transactions",
            "usage",
            "metering",
            "invoices",
            "coupons",
            "stats",
            "reports",
            "webhooks",
            "admin/payments",
            "admin/ledger",
        ],
    ),
    (
        Service::Notifications,
        &["notifications", "notification-templates", "ws", "socket.io"],
    ),
    (Service::Media, &["media"]),
];

async fn door_to_all() -> (Door, Vec<Backend>) {
    let mut backends = Vec::new();
    let mut directory = Directory::new();
    for (service, _) in TABLE {
        let backend = Backend::echo(service.name()).await;
        directory.insert(service, vec![backend.upstream()]);
        backends.push(backend);
    }
    (
        Door::before(FrontConfig::default(), directory, None).await,
        backends,
    )
}

#[tokio::test]
async fn every_prefix_reaches_its_service_with_and_without_api() {
    let (door, _backends) = door_to_all().await;

    for (service, prefixes) in TABLE {
        for prefix in prefixes {
            for (asked, path) in [
                (format!("/{prefix}"), format!("/{prefix}")),
                (format!("/api/{prefix}"), format!("/{prefix}")),
                (format!("/{prefix}/x/y"), format!("/{prefix}/x/y")),
                (
                    format!("/api/{prefix}/x%20y/?a=1&b=/api/"),
                    format!("/{prefix}/x%20y"),
                ),
            ] {
                let told = door.get(&asked).await.json();
                assert_eq!(told["by"], service.name(), "{asked}");
                assert_eq!(told["path"], path.as_str(), "{asked}");
                assert_eq!(
                    told["query"].as_str(),
                    asked.split_once('?').map(|(_, query)| query)
                );
            }
        }
    }
    let told = door.get("/?EIO=4&transport=websocket").await.json();
    assert_eq!(
        (told["by"].as_str(), told["path"].as_str()),
        (Some("notifications"), Some("/"))
    );
}

#[tokio::test]
async fn what_is_not_for_the_outside_is_not_found() {
    let (door, backends) = door_to_all().await;

    for path in [
        "/internal/x",
        "/api/internal/x",
        "/api/api/users",
        "/nothing",
        "/",
        "/admin/users",
        "/users/../internal",
        "//users",
        "/metrics/x",
    ] {
        door.get(path).await.expect_problem(404, "NOT_FOUND");
    }
    assert_eq!(backends.iter().map(Backend::hits).sum::<usize>(), 0);
}

#[tokio::test]
async fn own_paths_are_served_by_the_gateway_itself() {
    let (door, _backends) = door_to_all().await;

    for (path, body) in [
        ("/gateway/ping", "pong"),
        ("/api/gateway/ping/", "pong"),
        ("/health", "well"),
        ("/metrics", "numbers 1"),
    ] {
        assert_eq!(door.get(path).await.body, body, "{path}");
    }
    for path in ["/health/nothing", "/gateway/nothing", "/docs"] {
        door.get(path).await.expect_problem(404, "NOT_FOUND");
    }
}

#[tokio::test]
async fn the_instance_learns_who_asked_and_the_reply_names_the_request() {
    let backend = Backend::echo("a").await;
    let door = Door::to(Service::Users, &[backend.upstream()]).await;

    let request = door
        .request("POST", "/users")
        .header("x-forwarded-for", "198.51.100.7")
        .header("x-forwarded-proto", "https")
        .header("x-request-id", "ask-1")
        .header("authorization", "Bearer token")
        .header("connection", "keep-alive, x-hop")
        .header("x-hop", "1")
        .header("te", "trailers")
        .body(Body::from("hello"));
    let reply = door.send(request.unwrap()).await;
    let told = reply.json();

    assert_eq!(told["body"], "hello");
    assert_eq!(
        told["headers"]["x-forwarded-for"],
        "198.51.100.7, 127.0.0.1"
    );
    assert_eq!(told["headers"]["x-forwarded-proto"], "http");
    assert_eq!(
        told["headers"]["x-forwarded-host"],
        door.address.to_string()
    );
    assert_eq!(told["headers"]["host"], door.address.to_string());
    assert_eq!(told["headers"]["x-request-id"], "ask-1");
    assert_eq!(told["headers"]["x-cloudphone-addressee"], "users");
    assert_eq!(told["headers"]["authorization"], "Bearer token");
    for gone in ["connection", "x-hop", "te", "transfer-encoding"] {
        assert!(told["headers"].get(gone).is_none(), "{gone}");
    }
    assert_eq!(reply.headers["x-request-id"], "ask-1");
    assert_eq!(reply.headers["x-served-by"], "echo");
    assert!(!reply.headers.contains_key("keep-alive"));

    let reply = door.get("/users").await;
    assert_eq!(
        reply.json()["headers"]["x-request-id"].as_str(),
        reply.headers["x-request-id"].to_str().ok()
    );
    assert_eq!(reply.headers["x-request-id"].len(), 32);
}

#[tokio::test]
async fn http_2_comes_in_and_http_1_goes_on() {
    let backend = Backend::echo("a").await;
    let mut door = Door::to(Service::Users, &[backend.upstream()]).await;
    door.client = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http();

    let request = door
        .request("POST", "/api/users")
        .header("cookie", "a=1")
        .header("cookie", "b=2");
    let reply = door.send(request.body(Body::from("hello")).unwrap()).await;

    assert_eq!(reply.json()["body"], "hello");
    assert_eq!(reply.json()["headers"]["host"], door.address.to_string());
    assert_eq!(reply.json()["headers"]["cookie"], "a=1; b=2");
    door.get("/nothing").await.expect_problem(404, "NOT_FOUND");
    door.post("/users", vec![b'x'; 2 * 1024 * 1024])
        .await
        .expect_problem(413, "TOO_LARGE");
}

#[tokio::test]
async fn a_head_request_keeps_the_length_it_asks_for() {
    let backend = Backend::echo("a").await;
    let door = Door::to(Service::Users, &[backend.upstream()]).await;

    let length = door
        .get("/users")
        .await
        .headers
        .contains_key("content-length");
    let reply = door
        .send(door.request("HEAD", "/users").body(Body::empty()).unwrap())
        .await;

    assert!(length && reply.body.is_empty());
    assert_ne!(reply.headers["content-length"], "0");
}

#[tokio::test]
async fn a_page_of_this_machine_may_call_and_another_may_not() {
    let backend = Backend::echo("a").await;
    let door = Door::to(Service::Users, &[backend.upstream()]).await;

    let ask = |method: &str, origin: &str| {
        let request = door.request(method, "/api/users").header("origin", origin);
        request
            .header("access-control-request-method", "POST")
            .body(Body::empty())
            .unwrap()
    };
    let preflight = door.send(ask("OPTIONS", "http://localhost:5173")).await;
    assert_eq!(preflight.status, 204);
    assert_eq!(
        preflight.headers["access-control-allow-origin"],
        "http://localhost:5173"
    );
    assert_eq!(
        preflight.headers["access-control-allow-credentials"],
        "true"
    );
    for header in [
        "Content-Type",
        "Authorization",
        "X-Request-ID",
        "X-API-Key",
        "Idempotency-Key",
    ] {
        assert!(
            preflight.headers["access-control-allow-headers"]
                .to_str()
                .unwrap()
                .contains(header)
        );
    }
    assert_eq!(backend.hits(), 0);

    let reply = door.send(ask("GET", "http://localhost:5173")).await;
    assert_eq!(
        reply.headers["access-control-allow-origin"],
        "http://localhost:5173"
    );
    let exposed = reply.headers["access-control-expose-headers"]
        .to_str()
        .unwrap();
    for header in ["X-Request-ID", "Retry-After", "RateLimit-Remaining"] {
        assert!(exposed.contains(header), "{header}");
    }

    for method in ["OPTIONS", "GET"] {
        let reply = door.send(ask(method, "https://evil.example")).await;
        assert!(!reply.headers.contains_key("access-control-allow-origin"));
    }
}
