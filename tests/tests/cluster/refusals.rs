//! What is refused, and how.

use cluster_tests::{BILLING, GATEWAY, NOTIFICATIONS, call};
use reqwest::Method;
use serde_json::{Value, json};
use testkit::Cluster;

fn fields(problem: &Value) -> Vec<&str> {
    let details = problem["details"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let mut fields: Vec<_> = details
        .iter()
        .filter_map(|fault| fault["field"].as_str())
        .collect();
    fields.sort_unstable();
    fields
}

#[tokio::test]
async fn without_the_sandbox_its_conveniences_are_closed() -> anyhow::Result<()> {
    let cluster = Cluster::builder(1).env("SANDBOX", "false").start().await?;
    let post = |url: String, body: Value| call(Method::POST, url, Some(body));

    let device = post(
        cluster.url(GATEWAY, "/api/devices"),
        json!({ "userId": "user1", "name": "device1" }),
    )
    .await?;
    let order = post(
        cluster.url(GATEWAY, "/api/billing/orders"),
        json!({ "userId": "test", "planId": "basic" }),
    )
    .await?;
    let notice = post(
        cluster.url(BILLING, "/webhooks/payment"),
        json!({ "orderId": "x", "status": "paid" }),
    )
    .await?;
    let message = post(
        cluster.url(NOTIFICATIONS, "/notifications/send"),
        json!({ "userId": "test", "message": "Hello" }),
    )
    .await?;

    for (reply, code) in [
        (device, "UNAUTHENTICATED"),
        (order, "UNAUTHENTICATED"),
        (notice, "BAD_SIGNATURE"),
        (message, "UNAUTHENTICATED"),
    ] {
        assert_eq!(reply.expect(401)["error"], code);
    }
    let socket =
        tokio_tungstenite::connect_async(cluster.websocket_url(NOTIFICATIONS, "/notifications"))
            .await;
    let Err(tokio_tungstenite::tungstenite::Error::Http(refusal)) = socket else {
        panic!("{socket:?}")
    };
    assert_eq!(refusal.status(), 401);
    assert_eq!(
        call(Method::GET, cluster.url(GATEWAY, "/health"), None)
            .await?
            .expect(200)["status"],
        "ok"
    );
    Ok(())
}

#[tokio::test]
async fn bad_input_is_refused_with_every_field_at_fault_and_nothing_is_stored() -> anyhow::Result<()>
{
    let cluster = Cluster::start(1).await?;
    let post = |path: &str, body: Value| call(Method::POST, cluster.url(GATEWAY, path), Some(body));

    let user = post(
        "/api/auth/register",
        json!({ "username": "a", "email": "nobody", "password": 5 }),
    )
    .await?
    .expect(400);
    let device = post(
        "/api/devices",
        json!({ "userId": "user1", "name": "", "cpuCores": 99, "resolution": "wide" }),
    )
    .await?
    .expect(400);
    let order = post("/api/billing/orders", json!({ "userId": "not an id" }))
        .await?
        .expect(400);
    let message = post("/api/notifications/send", json!({ "userId": "test" }))
        .await?
        .expect(400);

    assert_eq!(fields(&user), ["email", "password", "username"], "{user:#}");
    assert_eq!(
        fields(&device),
        ["cpuCores", "name", "resolution"],
        "{device:#}"
    );
    assert_eq!(fields(&order), ["planId", "userId"], "{order:#}");
    assert_eq!(fields(&message), ["message"], "{message:#}");
    for problem in [&user, &device, &order, &message] {
        assert_eq!(problem["error"], "VALIDATION_FAILED");
        assert!(
            [
                "type",
                "title",
                "detail",
                "message",
                "requestId",
                "timestamp",
                "path"
            ]
            .iter()
            .all(|member| problem[member].is_string()),
            "{problem:#}"
        );
    }
    let db = cluster.database().await?;
    let rows: i64 = sqlx::query_scalar(
        "select (select count(*) from users.accounts) + (select count(*) from devices.devices) + (select count(*) from billing.orders) + (select count(*) from notifications.notifications)",
    )
    .fetch_one(&db)
    .await?;
    assert_eq!(rows, 0);
    Ok(())
}

#[tokio::test]
async fn what_is_not_for_the_world_is_not_behind_the_gateway() -> anyhow::Result<()> {
    let cluster = Cluster::start(1).await?;

    for path in [
        "/internal/anything",
        "/api/internal/x",
        "/nothing",
        "/api/users-other",
    ] {
        let reply = call(Method::GET, cluster.url(GATEWAY, path), None).await?;
        assert_eq!(reply.expect(404)["error"], "NOT_FOUND", "{path}");
    }
    let document = call(Method::GET, cluster.url(GATEWAY, "/api/openapi.json"), None)
        .await?
        .expect(200);
    for path in [
        "/auth/login",
        "/devices",
        "/apps/upload",
        "/media/tasks",
        "/orders",
        "/webhooks/payment",
        "/notifications/send",
    ] {
        assert!(
            document["paths"][path].is_object(),
            "{path} is not described"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_session_that_ended_is_refused_by_every_service() -> anyhow::Result<()> {
    let cluster = Cluster::start(2).await?;
    let token = cluster_tests::register(&cluster, "alice").await?;
    let client = testkit::fresh();
    let paths = [
        "/api/auth/me",
        "/api/devices",
        "/api/apps",
        "/api/orders",
        "/api/notifications",
        "/api/media/tasks",
    ];
    for path in paths {
        assert_eq!(
            client
                .get(cluster.url(GATEWAY, path))
                .bearer_auth(&token)
                .send()
                .await?
                .status(),
            200,
            "{path}"
        );
    }

    let out = client
        .post(cluster.url(GATEWAY, "/api/auth/logout"))
        .bearer_auth(&token)
        .send()
        .await?;

    assert_eq!(out.status(), 200);
    for path in paths {
        assert_eq!(
            client
                .get(cluster.url(GATEWAY, path))
                .bearer_auth(&token)
                .send()
                .await?
                .status(),
            401,
            "{path}"
        );
    }
    Ok(())
}
