//! Who is believed: signatures, and the sandbox.

use http::{Request, header};
use serde_json::json;
use sqlx::PgPool;
use standardwebhooks::Webhook;

use crate::app::{Client, Reply, SECRETS, TestApp};

async fn signed(client: &Client, secret: &str, id: &str, body: &str, sent: &str) -> Reply {
    let seconds = platform::Clock::system().now().utc().timestamp();
    let signature = Webhook::new(secret)
        .unwrap()
        .sign(id, seconds, body.as_bytes())
        .unwrap();
    let request = Request::post("/webhooks/payment")
        .header(header::CONTENT_TYPE, "application/json")
        .header("webhook-id", id)
        .header("webhook-timestamp", seconds)
        .header("webhook-signature", signature);
    client.send(request, sent.to_owned()).await
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn with_the_sandbox_closed_only_signed_notices_are_believed(db: PgPool) {
    let app = TestApp::closed(db).await;
    let alice = app.user("alice").await;
    let id = alice.order("basic").await;
    let sender = app.anybody().elsewhere();
    let body = json!({ "orderId": id, "status": "paid" }).to_string();
    let secrets: Vec<_> = SECRETS.split(',').collect();
    let foreign = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    app.anybody()
        .form("/webhooks/payment", &format!("orderId={id}&status=paid"))
        .await
        .refused(401, "BAD_SIGNATURE");
    signed(&sender, foreign, "m1", &body, &body)
        .await
        .refused(401, "BAD_SIGNATURE");
    signed(&sender, secrets[0], "m1", &body, &format!("{body} "))
        .await
        .refused(401, "BAD_SIGNATURE");
    assert_eq!(
        app.count("select count(*) from billing.webhook_events")
            .await,
        0
    );

    let first = signed(&sender, secrets[0], "m1", &body, &body)
        .await
        .is(200);
    let again = signed(&sender, secrets[1], "m1", &body, &body)
        .await
        .is(200);
    assert_eq!(
        (&first["status"], &first["duplicate"]),
        (&json!("PAID"), &json!(false))
    );
    assert_eq!(
        (&again["status"], &again["duplicate"]),
        (&json!("PAID"), &json!(true))
    );
    assert_eq!(
        app.count(
            "select count(*) from billing.webhook_events where signed and event_id = 'id:m1'"
        )
        .await,
        1
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_open_sandbox_believes_this_machine_only_and_no_false_signature(db: PgPool) {
    let app = TestApp::new(db).await;
    let id = app.anybody().order("basic").await;
    let body = json!({ "orderId": id, "status": "paid" }).to_string();
    let foreign = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    app.anybody()
        .elsewhere()
        .form("/webhooks/payment", &format!("orderId={id}&status=paid"))
        .await
        .refused(401, "BAD_SIGNATURE");
    let forwarded = Request::post("/webhooks/payment").header("x-forwarded-for", "203.0.113.9");
    app.anybody()
        .send(forwarded, body.clone())
        .await
        .refused(401, "BAD_SIGNATURE");
    signed(&app.anybody(), foreign, "m1", &body, &body)
        .await
        .refused(401, "BAD_SIGNATURE");

    assert_eq!(
        app.anybody().get(&format!("/orders/{id}")).await.is(200)["status"],
        "PENDING"
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_notice_that_is_too_large_is_refused_as_every_other_fault(db: PgPool) {
    let app = TestApp::new(db).await;

    app.anybody()
        .form("/webhooks/payment", &"x".repeat((1 << 20) + 1))
        .await
        .refused(413, "TOO_LARGE");
}
