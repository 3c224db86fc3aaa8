//! Notices of Stripe, Alipay and WeChat Pay: believed when signed, each with one outcome, however often and in whatever
//! order they come.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::join_all;
use http::{Request, header};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{Client, Reply, TestApp};

const KEY: &str = include_str!("provider_key.pem");
const PUBLIC_KEY: &str = include_str!("provider_public_key.pem");
const STRIPE_SECRET: &str = "whsec_test_0123456789abcdef";
const API_KEY: &str = "0123456789abcdef0123456789abcdef";

/// A provider whose notices the tests write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Provider {
    Stripe,
    Alipay,
    WechatPay,
}

/// A notice ready to be sent.
#[derive(Clone)]
struct Sent {
    path: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

/// What a notice tells.
#[derive(Clone)]
struct Told<'a> {
    event: &'a str,
    payment_no: &'a str,
    transaction: &'a str,
    fen: i64,
    refund: Option<&'a str>,
}

async fn app(db: PgPool) -> TestApp {
    with(db, "2021000000000001").await
}

async fn with(db: PgPool, app_id: &str) -> TestApp {
    let wechat_key = format!("PUB_KEY_ID_1={PUBLIC_KEY}");
    TestApp::with(
        db,
        &[
            (
                "STRIPE_WEBHOOK_SECRETS",
                &format!("whsec_of_before_0123456789,{STRIPE_SECRET}"),
            ),
            ("ALIPAY_PUBLIC_KEYS", PUBLIC_KEY),
            ("ALIPAY_APP_ID", app_id),
            ("ALIPAY_SELLER_ID", "2088101122136241"),
            ("WECHATPAY_PUBLIC_KEYS", &wechat_key),
            (
                "WECHATPAY_API_V3_KEYS",
                &format!("abcdef0123456789abcdef0123456789,{API_KEY}"),
            ),
            ("WECHATPAY_MCH_ID", "1900007291"),
            ("WECHATPAY_APP_ID", "wxd678efh567hg6787"),
        ],
    )
    .await
}

fn rsa(text: &[u8]) -> String {
    let bare: String = KEY.lines().filter(|line| !line.starts_with('-')).collect();
    let pair = RsaKeyPair::from_pkcs8(&STANDARD.decode(bare).unwrap()).unwrap();
    let mut signature = vec![0; pair.public().modulus_len()];
    let random = SystemRandom::new();
    pair.sign(&RSA_PKCS1_SHA256, &random, text, &mut signature)
        .unwrap();
    STANDARD.encode(signature)
}

fn now() -> i64 {
    platform::Clock::system().now().utc().timestamp()
}

fn stripe(event: &Value, seconds: i64) -> Sent {
    let body = event.to_string();
    let key = hmac::Key::new(hmac::HMAC_SHA256, STRIPE_SECRET.as_bytes());
    let code = hmac::sign(&key, format!("{seconds}.{body}").as_bytes());
    let hex: String = code
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Sent {
        path: "/webhooks/stripe",
        headers: vec![(
            "stripe-signature",
            format!("t={seconds},v1=00{},v1={hex},v0=6ffbb59b", &hex[2..]),
        )],
        body: body.into_bytes(),
    }
}

fn alipay(fields: &[(&str, &str)]) -> Sent {
    let mut signed: Vec<_> = fields
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    signed.sort();
    let sign = rsa(signed.join("&").as_bytes());
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(fields);
    form.append_pair("sign_type", "RSA2")
        .append_pair("sign", &sign);
    Sent {
        path: "/webhooks/alipay",
        headers: vec![(
            "content-type",
            "application/x-www-form-urlencoded; charset=utf-8".to_owned(),
        )],
        body: form.finish().into_bytes(),
    }
}

fn wechat_pay(event: &str, kind: &str, resource: &Value, seconds: i64) -> Sent {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, API_KEY.as_bytes()).unwrap());
    let nonce = Nonce::assume_unique_for_key(*b"fdasfjihihi1");
    let mut sealed = resource.to_string().into_bytes();
    key.seal_in_place_append_tag(nonce, Aad::from(b"transaction"), &mut sealed)
        .unwrap();
    let body = json!({
        "id": event, "create_time": "2015-05-20T13:29:35+08:00", "resource_type": "encrypt-resource",
        "event_type": kind, "summary": "支付成功",
        "resource": {
            "original_type": "transaction", "algorithm": "AEAD_AES_256_GCM", "ciphertext": STANDARD.encode(sealed),
            "associated_data": "transaction", "nonce": "fdasfjihihi1",
        },
    })
    .to_string();
    let nonce = "d824f2e086d3c1df967785d13fcd22ef";
    Sent {
        path: "/webhooks/wechatpay",
        headers: vec![
            ("wechatpay-timestamp", seconds.to_string()),
            ("wechatpay-nonce", nonce.to_owned()),
            ("wechatpay-serial", "PUB_KEY_ID_1".to_owned()),
            (
                "wechatpay-signature",
                rsa(format!("{seconds}\n{nonce}\n{body}\n").as_bytes()),
            ),
        ],
        body: body.into_bytes(),
    }
}

impl Provider {
    const ALL: [Self; 3] = [Self::Stripe, Self::Alipay, Self::WechatPay];

    fn method(self) -> &'static str {
        match self {
            Self::Stripe => "stripe",
            Self::Alipay => "alipay",
            Self::WechatPay => "wechat",
        }
    }

    fn sent(self, told: &Told<'_>) -> Sent {
        let Told {
            event,
            payment_no,
            transaction,
            fen,
            refund,
        } = *told;
        let yuan = format!("{}.{:02}", fen / 100, fen % 100);
        match (self, refund) {
            (Self::Stripe, None) => stripe(
                &json!({
                    "id": event, "object": "event", "type": "payment_intent.succeeded", "livemode": false,
                    "data": { "object": {
                        "id": transaction, "amount_received": fen, "currency": "cny",
                        "metadata": { "payment_no": payment_no },
                    } },
                }),
                now(),
            ),
            (Self::Stripe, Some(number)) => stripe(
                &json!({
                    "id": event, "object": "event", "type": "refund.updated", "livemode": false,
                    "data": { "object": {
                        "id": format!("re_{number}"), "amount": fen, "currency": "cny", "status": "succeeded",
                        "payment_intent": transaction, "metadata": { "refund_no": number },
                    } },
                }),
                now(),
            ),
            (Self::Alipay, refund) => {
                let mut fields = vec![
                    ("notify_id", event),
                    ("notify_type", "trade_status_sync"),
                    ("app_id", "2021000000000001"),
                    ("seller_id", "2088101122136241"),
                    ("charset", "utf-8"),
                    ("subject", "云手机"),
                    ("out_trade_no", payment_no),
                    ("trade_no", transaction),
                    ("trade_status", "TRADE_SUCCESS"),
                    ("total_amount", &yuan),
                ];
                if let Some(number) = refund {
                    fields.retain(|(name, _)| *name != "total_amount");
                    fields.extend([("total_amount", "99.00"), ("refund_fee", &*yuan)]);
                    fields.push(("out_biz_no", number));
                }
                alipay(&fields)
            }
            (Self::WechatPay, None) => wechat_pay(
                event,
                "TRANSACTION.SUCCESS",
                &json!({
                    "mchid": "1900007291", "appid": "wxd678efh567hg6787", "out_trade_no": payment_no,
                    "transaction_id": transaction, "trade_state": "SUCCESS",
                    "amount": { "total": fen, "payer_total": fen, "currency": "CNY" },
                }),
                now(),
            ),
            (Self::WechatPay, Some(number)) => wechat_pay(
                event,
                "REFUND.SUCCESS",
                &json!({
                    "mchid": "1900007291", "out_trade_no": payment_no, "transaction_id": transaction,
                    "out_refund_no": number, "refund_id": format!("50{number}"), "refund_status": "SUCCESS",
                    "amount": { "total": 9900, "refund": fen },
                }),
                now(),
            ),
        }
    }

    /// Whether an answer is the one after which the provider is content.
    fn is_content(self, reply: &Reply) -> bool {
        match self {
            Self::Stripe => reply.status == 200 && reply.body == json!({ "received": true }),
            Self::Alipay => reply.status == 200 && reply.text == "success",
            Self::WechatPay => reply.status == 200 && reply.body["code"] == "SUCCESS",
        }
    }
}

impl Sent {
    async fn to(&self, client: &Client) -> Reply {
        let mut request = Request::post(self.path);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        client.send_bytes(request, self.body.clone()).await
    }
}

/// An order, and a payment of it that was begun.
async fn begun(user: &Client, provider: Provider) -> (String, Value) {
    let order = user.order("basic").await;
    let body = json!({ "orderId": order, "method": provider.method() });
    let payment = user.post("/payments", body).await.is(201);
    (order, payment)
}

async fn state(user: &Client, order: &str) -> Value {
    user.get(&format!("/orders/{order}")).await.is(200)["status"].clone()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn twenty_deliveries_each_of_sixty_notices_over_three_replicas_pay_sixty_orders(db: PgPool) {
    let first = app(db.clone()).await;
    let replicas = [app(db.clone()).await, app(db).await];
    let alice = first.user("alice").await;
    let senders = [
        first.anybody(),
        replicas[0].anybody(),
        replicas[1].anybody(),
    ];
    let mut notices = Vec::new();
    for index in 0..60 {
        let provider = Provider::ALL[index % 3];
        let (_, payment) = begun(&alice, provider).await;
        let sent = provider.sent(&Told {
            event: &format!("evt{index}"),
            payment_no: payment["paymentNo"].as_str().unwrap(),
            transaction: &format!("t{index}"),
            fen: 9_900,
            refund: None,
        });
        notices.push((provider, sent));
    }

    // A stride that shares no factor with their number passes all of them, in no order.
    let deliveries = (0..1_200).map(|turn| (turn * 7) % 1_200);
    let sent: Vec<_> = deliveries.collect();
    for wave in sent.chunks(60) {
        let replies = wave.iter().map(|turn| {
            let (provider, sent) = &notices[turn % 60];
            let sender = senders[turn % 3].elsewhere();
            async move { (*provider, sent.to(&sender).await) }
        });
        for (provider, reply) in join_all(replies).await {
            assert!(
                provider.is_content(&reply),
                "{provider:?} {} {}",
                reply.status,
                reply.text
            );
        }
    }

    for (sql, expected) in [
        (
            "select count(*) from billing.orders where state = 'PAID'",
            60,
        ),
        ("select count(*) from billing.payments where applied", 60),
        (
            "select count(*) from billing.transactions where type = 'payment'",
            60,
        ),
        ("select count(*) from billing.webhook_events", 60),
        (
            "select sum(deliveries)::bigint from billing.webhook_events",
            1_200,
        ),
    ] {
        assert_eq!(first.count(sql).await, expected, "{sql}");
    }
    assert_eq!(first.events("order.paid").await, 60);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn each_flipped_bit_of_body_and_signature_headers_is_refused_and_nothing_is_kept(db: PgPool) {
    let app = app(db).await;
    let alice = app.user("alice").await;
    let sender = app.anybody();
    for provider in Provider::ALL {
        let (_, payment) = begun(&alice, provider).await;
        let good = provider.sent(&Told {
            event: "evt",
            payment_no: payment["paymentNo"].as_str().unwrap(),
            transaction: "t",
            fen: 9_900,
            refund: None,
        });

        for index in 0..good.body.len() {
            let mut bad = good.clone();
            bad.body[index] ^= 1 << (index % 8);
            // Escapes of a form may be written in either case.
            if bad.body.eq_ignore_ascii_case(&good.body) && provider == Provider::Alipay {
                continue;
            }
            let reply = bad.to(&sender).await;
            assert_eq!(
                reply.status, 401,
                "{provider:?} byte {index}: {}",
                reply.text
            );
        }
        for (number, (name, value)) in good.headers.iter().enumerate() {
            for index in 0..value.len() {
                let mut bytes = value.clone().into_bytes();
                bytes[index] ^= 1;
                let Ok(text) = String::from_utf8(bytes) else {
                    continue;
                };
                let is_noise = match provider {
                    Provider::Stripe => {
                        // Signatures of other schemes and those that fit nothing do not count.
                        let v1 = value.rfind("v1=").unwrap();
                        let time = value.find(',').unwrap();
                        (time..v1).contains(&index) || index >= v1 + 67
                    }
                    Provider::Alipay => true,
                    Provider::WechatPay => false,
                };
                if is_noise || header::HeaderValue::try_from(&text).is_err() {
                    continue;
                }
                let mut bad = good.clone();
                bad.headers[number].1 = text;
                let reply = bad.to(&sender).await;
                assert_eq!(
                    reply.status, 401,
                    "{provider:?} {name} {index}: {}",
                    reply.text
                );
            }
        }
        assert_eq!(
            app.count("select count(*) from billing.webhook_events")
                .await,
            0
        );
        assert!(provider.is_content(&good.to(&sender).await), "{provider:?}");
        sqlx::query("delete from billing.webhook_events")
            .execute(&app.platform.db)
            .await
            .unwrap();
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_old_notice_is_refused_where_its_provider_tells_the_time(db: PgPool) {
    let app = app(db).await;
    let event = json!({ "id": "evt", "type": "charge.succeeded", "livemode": false });
    for seconds in [now() - 301, now() + 400] {
        let old = stripe(&event, seconds).to(&app.anybody()).await;
        assert_eq!(old.status, 401, "{}", old.text);
        let old = wechat_pay("evt", "TRANSACTION.SUCCESS", &json!({}), seconds);
        assert_eq!(old.to(&app.anybody()).await.status, 401);
    }
    assert!(Provider::Stripe.is_content(&stripe(&event, now()).to(&app.anybody()).await));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_provider_without_keys_is_not_taken(db: PgPool) {
    let app = TestApp::new(db).await;
    for path in [
        "/webhooks/stripe",
        "/webhooks/alipay",
        "/webhooks/wechatpay",
    ] {
        let reply = app.anybody().post(path, json!({})).await;
        assert_eq!(reply.status, 404, "{path}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_does_not_fit_is_kept_with_its_reason_and_pays_nothing(db: PgPool) {
    let app = app(db).await;
    let alice = app.user("alice").await;
    let sender = app.anybody();
    for (index, provider) in Provider::ALL.into_iter().enumerate() {
        let (order, payment) = begun(&alice, provider).await;
        let number = payment["paymentNo"].as_str().unwrap();
        let told = |event, payment_no, fen| Told {
            event,
            payment_no,
            transaction: "t",
            fen,
            refund: None,
        };
        let events = [format!("wrong{index}"), format!("nobody{index}")];
        let cases = [
            (told(&events[0], number, 9_899), "amount_mismatch"),
            (
                told(&events[1], "PAY00000000000000000000", 9_900),
                "unknown_order",
            ),
        ];
        for (told, outcome) in &cases {
            let reply = provider.sent(told).to(&sender).await;
            assert!(
                !provider.is_content(&reply),
                "{provider:?} {outcome}: {}",
                reply.text
            );
            let kept = "select count(*) from billing.webhook_events where event_id = $1 and outcome = $2 and signed";
            let kept: i64 = sqlx::query_scalar(kept)
                .bind(format!("id:{}", told.event))
                .bind(outcome)
                .fetch_one(&app.platform.db)
                .await
                .unwrap();
            assert_eq!(kept, 1, "{provider:?} {outcome}");
        }
        assert_eq!(state(&alice, &order).await, "PENDING");
    }

    let (_, payment) = begun(&alice, Provider::Stripe).await;
    let intent = |event: &str, currency: &str, livemode: bool| {
        json!({
            "id": event, "type": "payment_intent.succeeded", "livemode": livemode,
            "data": { "object": { "id": "pi", "amount_received": 9900, "currency": currency,
                "metadata": { "payment_no": payment["paymentNo"] } } },
        })
    };
    stripe(&intent("usd", "usd", false), now())
        .to(&sender)
        .await
        .is(400);
    stripe(&intent("live", "cny", true), now())
        .to(&sender)
        .await
        .is(400);
    let merchant =
        json!({ "mchid": "1", "out_trade_no": payment["paymentNo"], "amount": { "total": 9900 } });
    wechat_pay("merchant", "TRANSACTION.SUCCESS", &merchant, now())
        .to(&sender)
        .await
        .is(400);
    wechat_pay("sealed", "TRANSACTION.SUCCESS", &json!("no object"), now())
        .to(&sender)
        .await
        .is(400);
    let logs = app
        .admin()
        .await
        .get("/admin/payments/webhooks/logs?limit=20")
        .await
        .is(200);
    let outcome = |event: &str| {
        let notices = logs["data"].as_array().unwrap();
        let notice = notices
            .iter()
            .find(|notice| notice["eventId"] == format!("id:{event}"));
        notice.unwrap()["outcome"].clone()
    };
    assert_eq!(outcome("usd"), "currency_mismatch");
    assert_eq!(outcome("live"), "merchant_mismatch");
    assert_eq!(outcome("merchant"), "merchant_mismatch");
    app.run_job("ledger-verify").await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_notice_of_another_application_pays_once_the_setting_is_mended_and_it_is_replayed(
    db: PgPool,
) {
    let mistaken = with(db.clone(), "2021000000000009").await;
    let alice = mistaken.user("alice").await;
    let (order, payment) = begun(&alice, Provider::Alipay).await;
    let sent = Provider::Alipay.sent(&Told {
        event: "n1",
        payment_no: payment["paymentNo"].as_str().unwrap(),
        transaction: "t1",
        fen: 9_900,
        refund: None,
    });
    assert_eq!(sent.to(&mistaken.anybody()).await.text, "fail");
    let mended = app(db).await;
    let admin = mended.admin().await;
    let log = admin
        .get("/admin/payments/webhooks/logs?outcome=merchant_mismatch")
        .await
        .is(200);
    let replay = format!(
        "/admin/payments/webhooks/{}/replay",
        log["data"][0]["id"].as_str().unwrap()
    );

    alice
        .post(&replay, json!({}))
        .await
        .refused(403, "FORBIDDEN");
    let replies = join_all((0..4).map(|_| admin.post(&replay, json!({})))).await;

    for reply in replies {
        let shown = reply.is(200);
        assert_eq!(
            (&shown["outcome"], &shown["replayedBy"]),
            (&json!("paid"), &json!("boss"))
        );
        assert_eq!(shown["deliveries"], 1);
    }
    assert_eq!(state(&alice, &order).await, "PAID");
    assert_eq!(mended.events("order.paid").await, 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_refund_made_in_a_providers_console_is_booked_once_though_it_comes_before_its_payment(
    db: PgPool,
) {
    let app = app(db).await;
    let alice = app.user("alice").await;
    let sender = app.anybody();
    for (index, provider) in Provider::ALL.into_iter().enumerate() {
        let (order, payment) = begun(&alice, provider).await;
        let (paid, refund) = (format!("p{index}"), format!("r{index}"));
        let (transaction, number) = (format!("t{index}"), format!("c{index}"));
        let told = |event, fen, refund| Told {
            event,
            payment_no: payment["paymentNo"].as_str().unwrap(),
            transaction: &transaction,
            fen,
            refund,
        };
        let refunded = provider.sent(&told(&refund, 900, Some(&number)));

        assert!(
            provider.is_content(&refunded.to(&sender).await),
            "{provider:?}"
        );
        assert_eq!(state(&alice, &order).await, "PENDING");
        let reply = provider.sent(&told(&paid, 9_900, None)).to(&sender).await;
        assert!(provider.is_content(&reply), "{provider:?} {}", reply.text);
        let due = "update billing.webhook_events set retry_at = now() - interval '1 day' where retry_at is not null";
        sqlx::query(due).execute(&app.platform.db).await.unwrap();
        app.run_job("retry-kept-notices").await;
        for again in [&refund, &format!("again{index}")] {
            let reply = provider
                .sent(&told(again, 900, Some(&number)))
                .to(&sender)
                .await;
            assert!(provider.is_content(&reply), "{provider:?} {}", reply.text);
        }

        let shown = alice.get(&format!("/orders/{order}")).await.is(200);
        assert_eq!(
            (&shown["status"], &shown["refundAmount"]),
            (&json!("PAID"), &json!(9)),
            "{provider:?}"
        );
    }
    assert_eq!(
        app.count("select count(*) from billing.refunds where state = 'succeeded'")
            .await,
        3
    );
    assert_eq!(
        app.count("select sum(amount)::bigint from billing.postings where account_id = 'refunds'")
            .await,
        -2_700
    );
    assert_eq!(
        app.admin().await.get("/admin/ledger/verify").await.is(200)["ok"],
        true
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_refund_of_ours_is_settled_by_the_notice_that_comes_before_the_cron(db: PgPool) {
    let app = app(db).await;
    let (alice, admin) = (app.user("alice").await, app.admin().await);
    let sender = app.anybody();
    let (order, payment) = begun(&alice, Provider::WechatPay).await;
    let number = payment["paymentNo"].as_str().unwrap();
    let page = format!("/payments/sandbox/{number}");
    sender.form(&page, "outcome=paid").await.is(200);
    let id = payment["id"].as_str().unwrap();
    admin
        .post(&format!("/admin/payments/{id}/sync"), json!({}))
        .await
        .is(200);
    admin
        .post(&format!("/payments/{id}/refund"), json!({}))
        .await
        .is(200);
    assert_eq!(state(&alice, &order).await, "REFUNDING");
    let refund = admin.get("/admin/payments/refunds/pending").await.is(200);
    let told = |event| Told {
        event,
        payment_no: number,
        transaction: "t",
        fen: 9_900,
        refund: refund["data"][0]["refundNo"].as_str(),
    };

    for event in ["r1", "r1", "r2"] {
        let reply = Provider::WechatPay.sent(&told(event)).to(&sender).await;
        assert!(Provider::WechatPay.is_content(&reply), "{}", reply.text);
    }

    assert_eq!(state(&alice, &order).await, "REFUNDED");
    assert_eq!(app.events("order.refunded").await, 1);
    assert_eq!(
        app.count("select count(*) from billing.transactions where type = 'payout'")
            .await,
        1
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_total_counts_refunds_of_ours_and_of_the_console_once_each_in_any_order(db: PgPool) {
    for (case, ours_first) in [("a", false), ("b", true)] {
        let app = app(db.clone()).await;
        let (alice, admin) = (app.user("alice").await, app.admin().await);
        let sender = app.anybody();
        let (order, payment) = begun(&alice, Provider::Alipay).await;
        let transaction = format!("t{case}");
        let send = |event: String, fen, refund: Option<String>| {
            let told = Told {
                event: &event,
                payment_no: payment["paymentNo"].as_str().unwrap(),
                transaction: &transaction,
                fen,
                refund: refund.as_deref(),
            };
            let (sent, sender) = (Provider::Alipay.sent(&told), sender.clone());
            async move { assert!(Provider::Alipay.is_content(&sent.to(&sender).await)) }
        };
        let number = payment["paymentNo"].as_str().unwrap();
        let page = format!("/payments/sandbox/{number}");
        sender.form(&page, "outcome=paid").await.is(200);
        send(format!("p{case}"), 9_900, None).await;
        let id = payment["id"].as_str().unwrap();
        let asked = json!({ "amount": 20 });
        admin
            .post(&format!("/payments/{id}/refund"), asked)
            .await
            .is(200);
        let open = "select refund_no from billing.refunds where payment_id = $1";
        let number: String = sqlx::query_scalar(open)
            .bind(id)
            .fetch_one(&db)
            .await
            .unwrap();

        // The provider has made 10 in its console and the 20 that we asked for, and tells the total so far each time.
        let (console, ours) = (Some(format!("c{case}")), Some(number));
        if ours_first {
            send(format!("o{case}"), 2_000, ours).await;
            send(format!("c{case}"), 3_000, console).await;
        } else {
            send(format!("c{case}"), 1_000, console).await;
            let held =
                app.count("select count(*) from billing.webhook_events where outcome = 'held'");
            assert_eq!(held.await, 1);
            send(format!("o{case}"), 3_000, ours).await;
        }
        let due = "update billing.webhook_events set retry_at = now() - interval '1 day' where retry_at is not null";
        sqlx::query(due).execute(&db).await.unwrap();
        app.run_job("retry-kept-notices").await;

        let shown = alice.get(&format!("/orders/{order}")).await.is(200);
        assert_eq!(shown["refundAmount"], 30, "{case}: {shown}");
        let held = app.count("select count(*) from billing.webhook_events where outcome = 'held'");
        assert_eq!(held.await, 0, "{case}");
    }
    let booked = "select sum(amount)::bigint from billing.postings where account_id = 'refunds'";
    assert_eq!(app(db).await.count(booked).await, -6_000);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn any_signed_body_has_an_outcome_and_none_is_a_fault_of_ours(db: PgPool) {
    let app = app(db).await;
    let sender = app.anybody();
    let odd = [
        json!(null),
        json!([]),
        json!("x"),
        json!({}),
        json!({ "id": "e", "type": 7 }),
        json!({ "id": "e2", "type": "payment_intent.succeeded", "data": { "object": [] } }),
        json!({ "id": "e3", "type": "payment_intent.succeeded", "livemode": false,
            "data": { "object": { "metadata": { "order_id": "o\u{0}" }, "amount_received": -1, "currency": "cny" } } }),
        json!({ "id": "e4", "type": "refund.updated", "livemode": false,
            "data": { "object": { "id": "re", "payment_intent": "pi", "amount": 1e30, "currency": "cny" } } }),
    ];
    for body in &odd {
        let reply = stripe(body, now()).to(&sender).await;
        assert!(
            matches!(reply.status.as_u16(), 200 | 400),
            "{body}: {}",
            reply.text
        );
        let reply = wechat_pay("w", "REFUND.SUCCESS", body, now())
            .to(&sender)
            .await;
        assert!(
            matches!(reply.status.as_u16(), 200 | 400),
            "{body}: {}",
            reply.text
        );
    }
    for fields in [
        vec![("a", "b")],
        vec![
            ("app_id", "2021000000000001"),
            ("trade_status", "TRADE_SUCCESS"),
        ],
        vec![("trade_status", ""), ("notify_id", "n")],
    ] {
        let reply = alipay(&fields).to(&sender).await;
        assert!(matches!(&*reply.text, "success" | "fail"), "{}", reply.text);
        assert!(
            matches!(reply.status.as_u16(), 200 | 400),
            "{fields:?}: {}",
            reply.status
        );
    }
    let mut twice = alipay(&[("notify_id", "n"), ("trade_status", "TRADE_SUCCESS")]);
    twice.body.extend_from_slice(b"&notify_id=m");
    assert_eq!(twice.to(&sender).await.status, 401);
}
