//! The layers around a service's routes: every refusal is a problem, whatever goes wrong inside.

use axum::Router;
use axum::routing::{get, post};
use platform::http::{ClientAddress, FormOrJson, Json, Path, RequestId};
use platform::{Platform, Problem, testing};
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::PgPool;
use testkit::Lines;

use crate::support::App;

#[derive(Deserialize, garde::Validate)]
#[serde(rename_all = "camelCase")]
struct Ask {
    #[garde(length(min = 3))]
    user_name: String,
    #[garde(range(min = 1))]
    count: i32,
}

async fn store(
    axum::extract::State(db): axum::extract::State<PgPool>,
    Json(ask): Json<Ask>,
) -> Result<(), Problem> {
    sqlx::query("select $1::text")
        .bind(ask.user_name)
        .execute(&db)
        .await?;
    Ok(())
}

fn app(platform: &Platform) -> App {
    let routes = Router::new()
        .route(
            "/things/{id}",
            get(async |Path(id): Path<contracts::OrderId>| id.to_string()),
        )
        .route("/asks", post(store))
        .route(
            "/forms",
            post(async |FormOrJson(ask): FormOrJson<Ask>| {
                format!("{} {}", ask.user_name, ask.count)
            }),
        )
        .route("/panics", get(async || -> () { panic!("a secret") }))
        .route("/hangs", get(async || std::future::pending::<()>().await))
        .route(
            "/whoami",
            get(async |ClientAddress(address): ClientAddress| address.to_string()),
        )
        .route(
            "/request-id",
            get(async |axum::Extension(RequestId(id)): axum::Extension<RequestId>| id),
        )
        .with_state(platform.db.clone());
    App::new(platform, routes)
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_not_there_or_not_allowed_is_a_problem(db: PgPool) {
    let app = app(&testing::platform(db).await);

    let absent = app.get("/nowhere?a=b").send().await;
    absent.refused(404, "NOT_FOUND");
    assert_eq!(absent.body["path"], "/nowhere");
    assert_eq!(absent.body["type"], "urn:cloudphone:problem:not-found");
    let wrong = app.call("DELETE", "/asks").send().await;
    wrong.refused(405, "METHOD_NOT_ALLOWED");
    assert!(wrong.header("allow").contains("POST"), "{wrong:?}");
    app.call("FOO", "/asks")
        .send()
        .await
        .refused(405, "METHOD_NOT_ALLOWED");
    app.get("/things/a%20b")
        .send()
        .await
        .refused(404, "NOT_FOUND");
    app.get("/things/%ff")
        .send()
        .await
        .refused(404, "NOT_FOUND");
    assert_eq!(app.get("/things/a").send().await.text, "a");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn every_fault_of_a_body_is_told_and_large_ones_are_refused(db: PgPool) {
    let app = app(&testing::platform(db).await);

    let faults = app
        .post("/asks", r#"{"userName":"a","count":"many"}"#)
        .send()
        .await;
    faults.refused(400, "VALIDATION_FAILED");
    let fields: Vec<&Value> = faults.body["details"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fault| &fault["field"])
        .collect();
    assert_eq!(fields, ["count", "userName"]);
    for body in [
        "",
        "{}",
        "[]",
        "null",
        "{",
        "\u{1}",
        r#"{"userName":"abc","count":1e99}"#,
    ] {
        app.post("/asks", body)
            .send()
            .await
            .refused(400, "VALIDATION_FAILED");
    }
    // A character that PostgreSQL cannot store is no fault of ours.
    app.post("/asks", r#"{"userName":"a\u0000b","count":1}"#)
        .send()
        .await
        .refused(400, "VALIDATION_FAILED");
    let good = json!({ "userName": "abc", "count": 1, "more": "x".repeat((1 << 20) - 100) });
    assert_eq!(app.post("/asks", good.to_string()).send().await.status, 200);
    let large = json!({ "userName": "abc", "count": 1, "more": "x".repeat(1 << 20) });
    app.post("/asks", large.to_string())
        .send()
        .await
        .refused(413, "TOO_LARGE");
    let mut xml = app.call("POST", "/asks").header("content-type", "text/xml");
    xml = xml.body("<a/>");
    xml.send().await.refused(415, "BAD_TYPE");
    let form = app
        .call("POST", "/forms")
        .header("content-type", "application/x-www-form-urlencoded");
    assert_eq!(form.body("userName=123&count=4").send().await.text, "123 4");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_panic_is_one_request_s_and_says_nothing(db: PgPool) {
    let app = app(&testing::platform(db).await);

    let reply = app.get("/panics").send().await;

    reply.refused(500, "INTERNAL");
    assert!(!reply.text.contains("secret"));
    assert_eq!(app.get("/whoami").send().await.status, 200);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_takes_too_long_is_given_up_before_the_client_does(db: PgPool) {
    let app = app(&testing::platform(db).await);

    let reply = app.get("/hangs").send().await;

    reply.refused(503, "NOT_READY");
    assert!(!reply.header("retry-after").is_empty());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn nobody_works_for_a_caller_who_waits_no_longer(db: PgPool) {
    let app = app(&testing::platform(db).await);
    let ask = |path: &'static str, left: &'static str| {
        let call = app.get(path).header("x-cloudphone-deadline-ms", left);
        async move { call.send().await }
    };

    let ended = ask("/hangs", "50").await;
    ended.refused(503, "NOT_READY");
    assert_eq!(
        ended.body["detail"],
        "the request took longer than 50ms; try again"
    );
    let late = ask("/panics", "0").await;
    late.refused(503, "NOT_READY");
    assert_eq!(
        late.body["detail"],
        "the request came after its deadline; nothing was done"
    );
    for left in ["60000", "soon", "-1", "99999999999999999999"] {
        assert_eq!(ask("/things/a", left).await.text, "a");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_request_id_is_the_client_s_or_one_of_ours(db: PgPool) {
    let app = app(&testing::platform(db).await);

    let reply = app
        .get("/request-id")
        .header("x-request-id", "abc-1")
        .send()
        .await;
    assert_eq!(
        (reply.text.as_str(), reply.header("x-request-id")),
        ("abc-1", "abc-1")
    );
    for bad in [String::new(), "a b".to_owned(), "x".repeat(129)] {
        let reply = app
            .get("/request-id")
            .header("x-request-id", &bad)
            .send()
            .await;
        assert!(!reply.text.is_empty() && reply.text != bad);
        assert_eq!(reply.text, reply.header("x-request-id"));
    }
    let reply = app
        .get("/nowhere")
        .header("x-request-id", "abc-1")
        .send()
        .await;
    assert_eq!(reply.body["requestId"], "abc-1");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_line_in_the_log_is_found_by_the_trace_of_its_request(db: PgPool) {
    let app = app(&testing::platform(db).await);
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_writer(move || writer.clone())
        .finish();
    let _here = tracing::subscriber::set_default(subscriber);

    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let call = app.get("/panics").header("x-request-id", "abc-1");
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    call.header("traceparent", parent).send().await;
    app.get("/panics")
        .header("traceparent", "none")
        .send()
        .await;

    let lines = lines.all();
    let spans: Vec<&Value> = lines
        .iter()
        .map(|line| &line["span"])
        .filter(|span| span["name"] == "request")
        .collect();
    assert_eq!(spans.len(), 2, "{lines:?}");
    assert_eq!(
        (&spans[0]["request.id"], &spans[0]["trace.id"]),
        (&"abc-1".into(), &trace.into())
    );
    assert_eq!(
        spans[1]["trace.id"].as_str().unwrap().len(),
        32,
        "one of ours"
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_trailing_slash_is_ignored(db: PgPool) {
    let app = app(&testing::platform(db).await);

    for path in ["/things/a/", "/things/a//", "/things/a/?b=c"] {
        assert_eq!(app.get(path).send().await.text, "a", "{path}");
    }
    app.get("//").send().await.refused(404, "NOT_FOUND");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn metrics_are_for_private_peers_and_health_is_for_all(db: PgPool) {
    let platform = testing::platform(db).await;
    let app = app(&platform);

    for (peer, hops, status) in [
        ("127.0.0.1", None, 200),
        ("10.0.0.7", Some("192.168.1.1"), 200),
        ("8.8.8.8", None, 404),
        ("10.0.0.7", Some("8.8.8.8"), 404),
        ("10.0.0.7", Some("unknown"), 404),
    ] {
        let mut call = app.get("/metrics").peer(peer);
        if let Some(hops) = hops {
            call = call.header("x-forwarded-for", hops);
        }
        assert_eq!(call.send().await.status.as_u16(), status, "{peer} {hops:?}");
    }
    let health = app.get("/health").peer("8.8.8.8").send().await;
    assert_eq!(health.body["status"], "ok");
    assert_eq!(health.body["dependencies"]["redis"]["status"], "healthy");
    assert_eq!(app.get("/health/readiness").send().await.status, 200);

    platform.db.close().await;
    assert_eq!(app.get("/health").send().await.body["status"], "degraded");
    assert_eq!(app.get("/health/liveness").send().await.status, 200);
    let readiness = app.get("/health/readiness").send().await;
    assert_eq!(
        (readiness.status.as_u16(), &readiness.body["status"]),
        (503, &json!("error"))
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_client_does_not_choose_its_address(db: PgPool) {
    let app = app(&testing::platform(db).await);

    let reply = app
        .get("/whoami")
        .header("x-forwarded-for", "1.1.1.1")
        .header("x-forwarded-for", "9.9.9.9, 10.0.0.1");
    assert_eq!(reply.send().await.text, "9.9.9.9");
    assert_eq!(
        app.get("/whoami")
            .peer("8.8.8.8")
            .header("x-forwarded-for", "1.1.1.1")
            .send()
            .await
            .text,
        "8.8.8.8"
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_request_meant_for_another_service_is_not_carried_out(db: PgPool) {
    let app = app(&testing::platform(db).await);
    let addressed = |service: &'static str| {
        app.get("/request-id")
            .header(platform::http::ADDRESSEE, service)
            .send()
    };

    assert_eq!(addressed("billing").await.status, 200);
    addressed("users").await.refused(421, "MISDIRECTED");
    // Also where this service has no such route: the other one may.
    app.get("/elsewhere")
        .header(platform::http::ADDRESSEE, "users")
        .send()
        .await
        .refused(421, "MISDIRECTED");
}
