//! Payments at providers: begun, asked about, closed, and given back. The providers are stand-ins with the shapes that
//! their documents show.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::join_all;
use http::{HeaderMap, Method, StatusCode, Uri, header};
use ring::signature::{KeyPair, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::sync::Mutex;

use crate::app::{Client, TestApp};

/// A key that nobody else has ever used.
const KEY: &str = include_str!("provider_key.pem");

/// A call as the provider saw it.
#[derive(Clone, Debug)]
struct Call {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: String,
}

/// What a stand-in answers: the status and the body, by the call.
type Answers = Box<dyn FnMut(&Call) -> (u16, Value) + Send>;

#[derive(Clone)]
struct StandIn {
    calls: Arc<Mutex<Vec<Call>>>,
    answers: Arc<Mutex<Answers>>,
    url: String,
}

impl StandIn {
    #[expect(
        clippy::disallowed_methods,
        reason = "the stand-in of a provider ends with its test"
    )]
    async fn new(answers: impl FnMut(&Call) -> (u16, Value) + Send + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stand_in = Self {
            calls: Arc::default(),
            answers: Arc::new(Mutex::new(Box::new(answers))),
            url: format!("http://{}", listener.local_addr().unwrap()),
        };
        let router = Router::new().fallback(answer).with_state(stand_in.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        stand_in
    }

    async fn answer_with(&self, answers: impl FnMut(&Call) -> (u16, Value) + Send + 'static) {
        *self.answers.lock().await = Box::new(answers);
    }

    async fn calls(&self) -> Vec<Call> {
        self.calls.lock().await.clone()
    }

    async fn count(&self, method: Method, path: &str) -> usize {
        let calls = self.calls().await;
        let fits = |call: &&Call| call.method == method && call.path.contains(path);
        calls.iter().filter(fits).count()
    }
}

async fn answer(
    State(stand_in): State<StandIn>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: String,
) -> Response {
    let path = uri.path_and_query().unwrap().to_string();
    let call = Call {
        method,
        path,
        headers,
        body,
    };
    let (status, body) = (stand_in.answers.lock().await)(&call);
    stand_in.calls.lock().await.push(call);
    let status = StatusCode::from_u16(status).unwrap();
    if body.is_null() {
        return status.into_response();
    }
    (status, axum::Json(body)).into_response()
}

impl Call {
    /// A field of a form.
    fn field(&self, name: &str) -> Option<String> {
        let mut fields = form_urlencoded::parse(self.body.as_bytes());
        fields
            .find(|(field, _)| field == name)
            .map(|(_, value)| value.into_owned())
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

fn key_pair() -> RsaKeyPair {
    let bare: String = KEY.lines().filter(|line| !line.starts_with('-')).collect();
    RsaKeyPair::from_pkcs8(&STANDARD.decode(bare).unwrap()).unwrap()
}

#[track_caller]
fn assert_signed(text: &str, signature: &str) {
    let pair = key_pair();
    let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, pair.public_key());
    let signature = STANDARD.decode(signature).unwrap();
    key.verify(text.as_bytes(), &signature).unwrap();
}

async fn with_stripe(db: PgPool, stripe: &StandIn) -> TestApp {
    TestApp::with(
        db,
        &[
            ("STRIPE_API_KEY", "sk_test_0123456789abcdef"),
            ("STRIPE_API_URL", &stripe.url),
            (
                "PAYMENT_RETURN_URL",
                "https://shop.example/orders/{orderId}?p={paymentNo}",
            ),
        ],
    )
    .await
}

async fn with_alipay(db: PgPool, alipay: &StandIn) -> TestApp {
    TestApp::with(
        db,
        &[
            ("ALIPAY_APP_ID", "2021000000000001"),
            ("ALIPAY_PRIVATE_KEY", KEY),
            ("ALIPAY_API_URL", &format!("{}/gateway.do", alipay.url)),
            ("PAYMENT_NOTIFY_URL", "https://api.example/api/"),
        ],
    )
    .await
}

async fn with_wechat(db: PgPool, wechat: &StandIn) -> TestApp {
    TestApp::with(
        db,
        &[
            ("WECHATPAY_APP_ID", "wxd678efh567hg6787"),
            ("WECHATPAY_MCH_ID", "1900007291"),
            ("WECHATPAY_PRIVATE_KEY", KEY),
            (
                "WECHATPAY_KEY_SERIAL",
                "408B07E79B8269FEC3D5D3E6AB8ED163A6A380DB",
            ),
            ("WECHATPAY_API_URL", &wechat.url),
            ("PAYMENT_NOTIFY_URL", "https://api.example/api"),
        ],
    )
    .await
}

fn session(number: &str, status: &str, paid: &str) -> Value {
    json!({
        "id": "cs_test_1", "object": "checkout.session", "amount_total": 9900, "currency": "cny",
        "client_reference_id": "o", "metadata": { "payment_no": number },
        "payment_intent": if paid == "paid" { json!("pi_1") } else { Value::Null },
        "payment_status": paid, "status": status, "url": "https://checkout.stripe.com/c/pay/cs_test_1",
    })
}

/// A Stripe whose sessions stand as told.
fn stripe(status: &'static str, paid: &'static str) -> impl FnMut(&Call) -> (u16, Value) + Send {
    move |call| {
        let number = call.field("metadata[payment_no]").unwrap_or_default();
        if call.path.contains("/v1/refunds") {
            let number = call.field("metadata[refund_no]").unwrap_or_default();
            return (
                200,
                json!({ "id": format!("re_{number}"), "object": "refund", "status": "pending", "metadata": { "refund_no": number } }),
            );
        }
        (200, session(&number, status, paid))
    }
}

async fn begin(user: &Client, order: &str, method: &str) -> Value {
    let body = json!({ "orderId": order, "method": method });
    user.post("/payments", body).await.is(201)
}

/// Lets the cron ask about everything that is open, however short ago it was asked.
async fn ask(app: &TestApp) {
    for table in ["payments", "refunds"] {
        let sql = format!(
            "update billing.{table} set ask_at = now() - interval '1 day' where ask_at is not null"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .execute(&app.platform.db)
            .await
            .unwrap();
    }
    app.run_job("ask-payment-providers").await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn stripe_is_told_of_a_payment_and_its_payer_where_to_go_on(db: PgPool) {
    let provider = StandIn::new(stripe("open", "unpaid")).await;
    let app = with_stripe(db, &provider).await;
    let alice = app.user("alice").await;
    let order = alice.order("basic").await;
    let body = json!({ "orderId": order, "method": "stripe" });

    let payment = alice
        .post_once("/payments", "k", body.clone())
        .await
        .is(201);
    let again = alice.post_once("/payments", "k", body).await;

    assert_eq!(
        payment["paymentUrl"],
        "https://checkout.stripe.com/c/pay/cs_test_1"
    );
    assert_eq!(payment["status"], "pending");
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(again.is(201), payment);
    let calls = provider.calls().await;
    assert_eq!(calls.len(), 1, "{calls:?}");
    let call = &calls[0];
    let number = payment["paymentNo"].as_str().unwrap();
    assert_eq!(call.path, "/v1/checkout/sessions");
    assert_eq!(call.headers["idempotency-key"], number);
    assert_eq!(
        call.headers[header::AUTHORIZATION],
        "Bearer sk_test_0123456789abcdef"
    );
    for (name, value) in [
        ("mode", "payment"),
        ("client_reference_id", &order),
        ("line_items[0][price_data][currency]", "cny"),
        ("line_items[0][price_data][unit_amount]", "9900"),
        ("payment_intent_data[metadata][payment_no]", number),
        ("metadata[order_id]", &order),
        (
            "success_url",
            &format!("https://shop.example/orders/{order}?p={number}"),
        ),
    ] {
        assert_eq!(call.field(name).as_deref(), Some(value), "{name}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_request_whose_provider_did_not_answer_goes_on_when_it_comes_again(db: PgPool) {
    let provider = StandIn::new(|_| (503, json!({ "error": { "message": "busy" } }))).await;
    let app = with_stripe(db, &provider).await;
    let alice = app.user("alice").await;
    let body = json!({ "orderId": alice.order("basic").await, "method": "stripe" });

    alice
        .post_once("/payments", "k", body.clone())
        .await
        .refused(504, "UPSTREAM_TIMEOUT");
    provider.answer_with(stripe("open", "unpaid")).await;
    let payment = alice.post_once("/payments", "k", body).await.is(201);

    assert!(payment["paymentUrl"].is_string(), "{payment}");
    assert_eq!(app.count("select count(*) from billing.payments").await, 1);
    let keys: Vec<_> = provider
        .calls()
        .await
        .into_iter()
        .map(|call| call.headers["idempotency-key"].clone())
        .collect();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[0], keys[1]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_provider_that_refuses_ends_the_payment_and_the_order_waits_for_another(db: PgPool) {
    let provider = StandIn::new(|_| {
        (
            400,
            json!({ "error": { "type": "invalid_request_error", "message": "amount too small" } }),
        )
    })
    .await;
    let app = with_stripe(db, &provider).await;
    let alice = app.user("alice").await;
    let order = alice.order("basic").await;

    let refusal = alice
        .post("/payments", json!({ "orderId": order, "method": "stripe" }))
        .await
        .refused(502, "UPSTREAM_DOWN");

    // The payer is told that it was refused, an admin by which words.
    let said = refusal["message"].as_str().unwrap();
    assert!(
        said.contains("stripe refused the payment") && !said.contains("too small"),
        "{said}"
    );
    let payment = &alice.get("/payments").await.is(200)["data"][0];
    assert_eq!(payment["status"], "failed");
    assert_eq!(payment["failureReason"], "the provider refused it");
    let path = format!("/admin/payments/{}", payment["id"].as_str().unwrap());
    let shown = app.admin().await.get(&path).await.is(200);
    let words = shown["lastAnswer"].as_str().unwrap();
    assert!(
        words.contains("amount too small") && !words.contains("sk_test"),
        "{words}"
    );
    provider.answer_with(stripe("open", "unpaid")).await;
    begin(&alice, &order, "stripe").await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_payment_whose_notice_was_lost_is_found_by_asking_on_any_replica_once(db: PgPool) {
    let provider = StandIn::new(stripe("open", "unpaid")).await;
    let app = with_stripe(db.clone(), &provider).await;
    let other = with_stripe(db, &provider).await;
    let alice = app.user("alice").await;
    let order = alice.order("basic").await;
    begin(&alice, &order, "stripe").await;

    ask(&app).await;
    assert_eq!(
        alice.get(&format!("/orders/{order}")).await.is(200)["status"],
        "PENDING"
    );
    provider.answer_with(stripe("complete", "paid")).await;
    join_all([ask(&app), ask(&other), ask(&app), ask(&other)]).await;

    let shown = alice.get(&format!("/orders/{order}")).await.is(200);
    assert_eq!(shown["status"], "PAID");
    assert_eq!(shown["transactionId"], "pi_1");
    assert_eq!(app.events("order.paid").await, 1);
    assert_eq!(
        app.count("select count(*) from billing.payments where provider_open")
            .await,
        0
    );
    assert_eq!(
        app.count("select sum(amount)::bigint from billing.postings where account_id = 'revenue'")
            .await,
        9_900
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_was_cancelled_is_closed_at_its_provider_and_money_that_came_first_is_given_back(
    db: PgPool,
) {
    let provider = StandIn::new(stripe("open", "unpaid")).await;
    let app = with_stripe(db, &provider).await;
    let alice = app.user("alice").await;
    let (closed, paid) = (alice.order("basic").await, alice.order("basic").await);
    for order in [&closed, &paid] {
        begin(&alice, order, "stripe").await;
    }
    alice
        .post(&format!("/orders/{closed}/cancel"), json!({}))
        .await
        .is(200);

    ask(&app).await;
    assert_eq!(provider.count(Method::POST, "/expire").await, 1);
    assert_eq!(
        app.count("select count(*) from billing.payments where provider_open")
            .await,
        1
    );

    alice
        .post(&format!("/orders/{paid}/cancel"), json!({}))
        .await
        .is(200);
    provider.answer_with(stripe("complete", "paid")).await;
    ask(&app).await;

    assert_eq!(
        alice.get("/balance/user/alice").await.is(200)["balance"],
        99
    );
    assert_eq!(
        alice.get(&format!("/orders/{paid}")).await.is(200)["status"],
        "CANCELLED"
    );
    assert_eq!(
        app.count("select count(*) from billing.payments where provider_open")
            .await,
        0
    );
}

/// A paid order of Alice's and its payment.
async fn paid(app: &TestApp, provider: &StandIn) -> (Client, String, String) {
    let alice = app.user("alice").await;
    let order = alice.order("basic").await;
    let payment = begin(&alice, &order, "stripe").await;
    provider.answer_with(stripe("complete", "paid")).await;
    ask(app).await;
    let id = payment["id"].as_str().unwrap().to_owned();
    (alice, order, id)
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_refund_to_its_source_is_booked_when_the_provider_has_made_it(db: PgPool) {
    let provider = StandIn::new(stripe("open", "unpaid")).await;
    let app = with_stripe(db, &provider).await;
    let (alice, order, id) = paid(&app, &provider).await;
    let admin = app.admin().await;

    let part = admin
        .post(&format!("/payments/{id}/refund"), json!({ "amount": 9 }))
        .await
        .is(200);
    assert_eq!(
        (&part["status"], &part["refundAmount"]),
        (&json!("success"), &json!(9))
    );
    let whole = admin
        .post(
            &format!("/payments/{id}/refund"),
            json!({ "reason": "broken" }),
        )
        .await
        .is(200);
    assert_eq!(whole["status"], "refunding");
    assert_eq!(
        alice.get(&format!("/orders/{order}")).await.is(200)["status"],
        "REFUNDING"
    );
    let shown = admin.get("/admin/payments/statistics").await.is(200);
    assert_eq!(
        json!([shown["totalAmount"], shown["refundedAmount"]]),
        json!([99, 0])
    );
    let open = admin.get("/admin/payments/refunds/pending").await.is(200);
    assert_eq!(open["total"], 2);
    assert_eq!(open["data"][0]["state"], "processing");
    assert_eq!(
        app.count("select count(*) from billing.transactions where type = 'payout'")
            .await,
        0
    );

    provider
        .answer_with(|call| {
            assert!(call.method == Method::GET, "{call:?}");
            let id = call.path.rsplit('/').next();
            (200, json!({ "id": id, "status": "succeeded" }))
        })
        .await;
    ask(&app).await;

    let shown = alice.get(&format!("/orders/{order}")).await.is(200);
    assert_eq!(
        (&shown["status"], &shown["refundAmount"]),
        (&json!("REFUNDED"), &json!(99))
    );
    assert_eq!(app.events("order.refunded").await, 1);
    assert_eq!(
        app.count("select sum(amount)::bigint from billing.postings where account_id = 'refunds'")
            .await,
        -9_900
    );
    assert_eq!(
        app.count("select sum(amount)::bigint from billing.postings where account_id = 'cash_in'")
            .await,
        0
    );
    assert_eq!(alice.get("/balance/user/alice").await.is(200)["balance"], 0);
    assert_eq!(
        alice.get("/transactions/user/alice").await.is(200),
        json!([])
    );
    assert_eq!(admin.get("/admin/ledger/verify").await.is(200)["ok"], true);
    let shown = admin.get("/admin/payments/statistics").await.is(200);
    assert_eq!(
        json!([
            shown["totalAmount"],
            shown["refundedAmount"],
            shown["netAmount"]
        ]),
        json!([99, 99, 0])
    );
    let shown = admin.get(&format!("/admin/payments/{id}")).await.is(200);
    assert_eq!(shown["status"], "refunded");
    assert_eq!(shown["refunds"].as_array().unwrap().len(), 2);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_refund_whose_answer_was_lost_is_found_and_not_made_again(db: PgPool) {
    let provider = StandIn::new(stripe("open", "unpaid")).await;
    let app = with_stripe(db, &provider).await;
    let (_, _, id) = paid(&app, &provider).await;
    let made = Arc::new(Mutex::new(String::new()));
    let keep = made.clone();
    provider
        .answer_with(move |call| {
            *keep.try_lock().unwrap() = call.field("metadata[refund_no]").unwrap();
            (500, json!({}))
        })
        .await;

    let shown = app
        .admin()
        .await
        .post(&format!("/payments/{id}/refund"), json!({}))
        .await
        .is(200);
    assert_eq!(shown["status"], "refunding");
    let number = made.lock().await.clone();
    provider
        .answer_with(move |call| {
            assert!(call.path.contains("payment_intent=pi_1"), "{call:?}");
            let refund =
                json!({ "id": "re_7", "status": "succeeded", "metadata": { "refund_no": number } });
            (200, json!({ "data": [refund] }))
        })
        .await;
    ask(&app).await;

    assert_eq!(
        app.count("select count(*) from billing.refunds where state = 'succeeded' and provider_reference = 're_7'")
            .await,
        1
    );
    assert_eq!(provider.count(Method::POST, "/v1/refunds").await, 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_refused_question_does_not_make_a_refund_that_was_made_fail(db: PgPool) {
    let provider = StandIn::new(stripe("open", "unpaid")).await;
    let app = with_stripe(db, &provider).await;
    let (_, _, id) = paid(&app, &provider).await;
    provider.answer_with(|_| (500, json!({}))).await;
    app.admin()
        .await
        .post(&format!("/payments/{id}/refund"), json!({}))
        .await
        .is(200);

    provider
        .answer_with(|_| (401, json!({ "error": { "message": "Invalid API Key" } })))
        .await;
    ask(&app).await;

    let open = "select count(*) from billing.refunds where state = 'pending'";
    assert_eq!(app.count(open).await, 1);
    assert_eq!(provider.count(Method::POST, "/v1/refunds").await, 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_refund_that_the_provider_refuses_can_be_asked_for_again(db: PgPool) {
    let provider = StandIn::new(stripe("open", "unpaid")).await;
    let app = with_stripe(db, &provider).await;
    let (alice, order, id) = paid(&app, &provider).await;
    let admin = app.admin().await;
    provider
        .answer_with(|_| (400, json!({ "error": { "message": "charge is disputed" } })))
        .await;

    let shown = admin
        .post(&format!("/admin/payments/{id}/refund"), json!({}))
        .await
        .is(200);

    assert_eq!(shown["status"], "success");
    assert!(shown.get("refundAmount").is_none(), "{shown}");
    assert_eq!(
        alice.get(&format!("/orders/{order}")).await.is(200)["status"],
        "PAID"
    );
    let refunds = &admin.get(&format!("/admin/payments/{id}")).await.is(200)["refunds"];
    assert_eq!(refunds[0]["state"], "failed");
    assert!(
        refunds[0]["failureReason"]
            .as_str()
            .unwrap()
            .contains("disputed")
    );
    provider.answer_with(stripe("complete", "paid")).await;
    let shown = admin
        .post(&format!("/admin/payments/{id}/refund"), json!({}))
        .await
        .is(200);
    assert_eq!(shown["status"], "refunding");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_completed_order_whose_refund_fails_is_completed_and_not_completed_again(db: PgPool) {
    let provider = StandIn::new(stripe("open", "unpaid")).await;
    let app = with_stripe(db, &provider).await;
    let (alice, order, id) = paid(&app, &provider).await;
    let admin = app.admin().await;
    sqlx::query("update billing.orders set paid_at = paid_at - interval '1 year'")
        .execute(&app.platform.db)
        .await
        .unwrap();
    app.run_job("complete-orders").await;
    provider
        .answer_with(|_| (400, json!({ "error": { "message": "charge is disputed" } })))
        .await;

    let refund = format!("/admin/payments/{id}/refund");
    admin.post(&refund, json!({})).await.is(200);
    app.run_job("complete-orders").await;

    let refunds = &admin.get(&format!("/admin/payments/{id}")).await.is(200)["refunds"];
    assert_eq!(refunds[0]["state"], "failed");
    let shown = alice.get(&format!("/orders/{order}")).await.is(200);
    assert_eq!(shown["status"], "COMPLETED");
    assert_eq!(app.events("order.completed").await, 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn never_more_than_was_paid_is_on_its_way_back(db: PgPool) {
    let provider = StandIn::new(stripe("open", "unpaid")).await;
    let replicas = [
        with_stripe(db.clone(), &provider).await,
        with_stripe(db, &provider).await,
    ];
    let (_, order, id) = paid(&replicas[0], &provider).await;
    let admins = [replicas[0].admin().await, replicas[1].admin().await];
    let sent = AtomicUsize::new(0);

    // Ten to the source and ten to the balance, each of 20 of the 99.
    let replies = join_all((0..20).map(|turn| {
        let admin = &admins[turn % 2];
        let (path, sent) = if turn < 10 {
            (format!("/payments/{id}/refund"), &sent)
        } else {
            (format!("/orders/{order}/refund"), &sent)
        };
        async move {
            let reply = admin.post(&path, json!({ "amount": 20 })).await;
            if reply.status == 200 {
                sent.fetch_add(1, Ordering::Relaxed);
            }
            reply.status.as_u16()
        }
    }))
    .await;

    assert_eq!(sent.into_inner(), 4, "{replies:?}");
    assert!(
        replies.iter().all(|status| matches!(status, 200 | 409)),
        "{replies:?}"
    );
    assert_eq!(
        replicas[0]
            .count("select sum(amount)::bigint from billing.refunds")
            .await,
        8_000
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_large_refund_waits_for_the_word_of_another_admin(db: PgPool) {
    let provider = StandIn::new(stripe("open", "unpaid")).await;
    let app = TestApp::with(
        db,
        &[
            ("STRIPE_API_KEY", "sk_test_0123456789abcdef"),
            ("STRIPE_API_URL", &provider.url),
            ("PAYMENT_RETURN_URL", "https://shop.example/"),
            ("PAYMENT_REFUND_APPROVAL_ABOVE", "50.00"),
        ],
    )
    .await;
    let (_, order, id) = paid(&app, &provider).await;
    let (asking, other) = (app.admin().await, app.admin_named("second").await);
    let refund = |open: Value| open["data"][0]["id"].as_str().unwrap().to_owned();
    let pending = "/admin/payments/refunds/pending";

    asking
        .post(&format!("/payments/{id}/refund"), json!({ "amount": 60 }))
        .await
        .is(200);
    assert_eq!(provider.count(Method::POST, "/v1/refunds").await, 0);
    let first = refund(other.get(pending).await.is(200));
    let approve = format!("/admin/payments/refunds/{first}/approve");
    asking
        .post(&approve, json!({}))
        .await
        .refused(403, "FORBIDDEN");
    other
        .post(
            &format!("/admin/payments/refunds/{first}/reject"),
            json!({ "reason": "no" }),
        )
        .await
        .is(200);
    other
        .post(&approve, json!({}))
        .await
        .refused(409, "CONFLICT");

    asking
        .post(&format!("/payments/{id}/refund"), json!({}))
        .await
        .is(200);
    let second = refund(other.get(pending).await.is(200));
    let shown = other
        .post(
            &format!("/admin/payments/refunds/{second}/approve"),
            json!({}),
        )
        .await
        .is(200);

    assert_eq!(
        (&shown["state"], &shown["amount"]),
        (&json!("processing"), &json!(99))
    );
    assert_eq!(shown["decidedBy"], "second");
    assert_eq!(provider.count(Method::POST, "/v1/refunds").await, 1);
    let order = asking.get(&format!("/orders/{order}")).await.is(200);
    assert_eq!(order["status"], "REFUNDING");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn alipay_is_called_with_its_signature_and_understood(db: PgPool) {
    let provider = StandIn::new(|call| {
        let method = call.field("method").unwrap();
        let said = match &*method {
            "alipay.trade.precreate" => {
                json!({ "code": "10000", "msg": "Success", "qr_code": "https://qr.alipay.com/bax1" })
            }
            "alipay.trade.query" => json!({
                "code": "10000", "msg": "Success", "trade_no": "2013112011001004330000121536",
                "trade_status": "TRADE_SUCCESS", "total_amount": "99.00", "buyer_logon_id": "159****5620",
            }),
            "alipay.trade.refund" => {
                json!({ "code": "10000", "fund_change": "Y", "refund_fee": "99.00", "trade_no": "2013112011001004330000121536" })
            }
            other => panic!("{other}"),
        };
        let name = format!("{}_response", method.replace('.', "_"));
        (200, json!({ name: said, "sign": "ERITJKEIJKJHKKKKKKKHJEREEEEEEEEEEE" }))
    })
    .await;
    let app = with_alipay(db, &provider).await;
    let alice = app.user("alice").await;
    let order = alice.order("basic").await;

    let payment = begin(&alice, &order, "alipay").await;
    ask(&app).await;
    let id = payment["id"].as_str().unwrap();
    let refunded = app
        .admin()
        .await
        .post(&format!("/payments/{id}/refund"), json!({}))
        .await
        .is(200);

    assert_eq!(payment["qrCode"], "https://qr.alipay.com/bax1");
    assert_eq!(refunded["status"], "refunded");
    let calls = provider.calls().await;
    for call in &calls {
        let mut fields: Vec<_> = form_urlencoded::parse(call.body.as_bytes())
            .filter(|(name, _)| name != "sign")
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        fields.sort();
        assert_signed(&fields.join("&"), &call.field("sign").unwrap());
    }
    let content: Value = serde_json::from_str(&calls[0].field("biz_content").unwrap()).unwrap();
    assert_eq!(content["total_amount"], "99.00");
    assert_eq!(content["out_trade_no"], payment["paymentNo"]);
    assert_eq!(
        calls[0].field("notify_url").unwrap(),
        "https://api.example/api/webhooks/alipay"
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_code_of_alipay_that_nobody_scanned_is_asked_about_until_its_time_is_over(db: PgPool) {
    let provider = StandIn::new(|call| {
        let method = call.field("method").unwrap();
        let said = match &*method {
            "alipay.trade.precreate" => json!({ "code": "10000", "qr_code": "https://qr.alipay.com/bax1" }),
            _ => json!({ "code": "40004", "sub_code": "ACQ.TRADE_NOT_EXIST", "sub_msg": "交易不存在" }),
        };
        (200, json!({ format!("{}_response", method.replace('.', "_")): said }))
    })
    .await;
    let app = with_alipay(db, &provider).await;
    let alice = app.user("alice").await;
    let order = alice.order("basic").await;
    begin(&alice, &order, "alipay").await;
    let open = "select count(*) from billing.payments where provider_open";

    ask(&app).await;
    assert_eq!(app.count(open).await, 1);
    alice
        .post(&format!("/orders/{order}/cancel"), json!({}))
        .await
        .is(200);
    ask(&app).await;
    assert_eq!(app.count(open).await, 1, "somebody may still scan it");
    app.platform.clock.advance(chrono::TimeDelta::minutes(20));
    ask(&app).await;
    assert_eq!(app.count(open).await, 0);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn wechat_pay_is_called_with_its_signature_and_understood(db: PgPool) {
    let provider = StandIn::new(|call| match (&call.method, &*call.path) {
        (&Method::POST, "/v3/pay/transactions/native") => (
            200,
            json!({ "code_url": "weixin://wxpay/bizpayurl?pr=qnZDTZm" }),
        ),
        (&Method::GET, path) if path.starts_with("/v3/pay/transactions/out-trade-no/PAY") => (
            200,
            json!({
                "trade_state": "SUCCESS", "transaction_id": "1217752501201407033233368018",
                "amount": { "total": 9900, "currency": "CNY", "payer_total": 9900 },
            }),
        ),
        (&Method::POST, "/v3/refund/domestic/refunds") => (
            200,
            json!({ "refund_id": "50000000382019052709732678859", "status": "PROCESSING" }),
        ),
        (&Method::GET, path) if path.starts_with("/v3/refund/domestic/refunds/REF") => (
            200,
            json!({ "refund_id": "50000000382019052709732678859", "status": "SUCCESS" }),
        ),
        other => panic!("{other:?}"),
    })
    .await;
    let app = with_wechat(db, &provider).await;
    let alice = app.user("alice").await;
    let order = alice.order("basic").await;

    let payment = begin(&alice, &order, "wechat").await;
    ask(&app).await;
    let id = payment["id"].as_str().unwrap();
    let admin = app.admin().await;
    let refunding = admin
        .post(&format!("/payments/{id}/refund"), json!({}))
        .await
        .is(200);
    ask(&app).await;

    assert_eq!(payment["qrCode"], "weixin://wxpay/bizpayurl?pr=qnZDTZm");
    assert_eq!(refunding["status"], "refunding");
    let shown = alice.get(&format!("/payments/{id}")).await.is(200);
    assert_eq!(shown["status"], "refunded");
    let calls = provider.calls().await;
    let asked = calls[0].json();
    assert_eq!(asked["amount"], json!({ "total": 9900, "currency": "CNY" }));
    assert_eq!(asked["mchid"], "1900007291");
    for call in &calls {
        let credential = call.headers[header::AUTHORIZATION].to_str().unwrap();
        let part = |name: &str| {
            let (_, rest) = credential.split_once(&format!("{name}=\"")).unwrap();
            rest.split_once('"').unwrap().0
        };
        let signed = format!(
            "{}\n{}\n{}\n{}\n{}\n",
            call.method,
            call.path,
            part("timestamp"),
            part("nonce_str"),
            call.body
        );
        assert!(credential.starts_with("WECHATPAY2-SHA256-RSA2048 "));
        assert_signed(&signed, part("signature"));
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn settings_of_providers_are_shown_without_their_secrets(db: PgPool) {
    let provider = StandIn::new(stripe("open", "unpaid")).await;
    let app = with_stripe(db, &provider).await;

    let shown = app
        .admin()
        .await
        .get("/admin/payments/providers/config")
        .await
        .is(200);

    let text = shown.to_string();
    assert!(text.contains("…cdef") && !text.contains("0123"), "{text}");
    app.user("alice")
        .await
        .get("/admin/payments/providers/config")
        .await
        .refused(403, "FORBIDDEN");
}
