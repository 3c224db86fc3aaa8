//! What leaves the platform: by webhook, mail and text message, at least once and known by its id.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use http::StatusCode;
use notifications::Config;
use platform::lifecycle::Tasks;
use platform::{Platform, testing};
use serde_json::{Value, json};
use sqlx::PgPool;
use standardwebhooks::Webhook;
use testkit::MailServer;

use crate::app::{Cluster, Instance, beside, config_with, until};
use crate::sinks::{Answer, Sink, Users};

const HOOK: &str = "/notifications/webhook";

fn config(more: &[(&str, &str)]) -> Config {
    let mut settings = vec![
        ("NOTIFICATIONS_WEBHOOK_LOOPBACK", "true"),
        ("NOTIFICATIONS_RETRY_SECONDS", "0.05"),
    ];
    settings.extend_from_slice(more);
    config_with(&settings)
}

/// Sets a webhook and gives its secret.
async fn hook(instance: &Instance, token: &str, url: &str) -> String {
    let reply = instance
        .ask("PUT", HOOK, token, json!({ "url": url }))
        .await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
    reply.body["secret"].as_str().unwrap_or_default().to_owned()
}

async fn send(instance: &Instance, token: &str, user: &str, more: Value) -> Value {
    let mut body = json!({ "userId": user, "message": "Hello", "title": "Greeting" });
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let reply = instance.ask("POST", "/notifications", token, body).await;
    assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.body);
    reply.body
}

/// The deliveries of a notification, once it is decided.
async fn decided(instance: &Instance, token: &str, sent: &Value) -> (Value, Value) {
    let path = format!("/notifications/{}", sent["id"].as_str().unwrap());
    until("the outcome", async || {
        instance.get(&path, token).await.body["deliveryStatus"] != "pending"
    })
    .await;
    let status = instance.get(&path, token).await.body["deliveryStatus"].clone();
    let deliveries = instance
        .get(&format!("{path}/deliveries"), token)
        .await
        .body;
    (status, deliveries)
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_webhook_is_called_with_a_signature_of_its_users_secret(db: PgPool) {
    let cluster = Cluster::new(db, config(&[])).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let sink = Sink::open(Answer::Status(204)).await;
    let secret = hook(&cluster.first, &alice, &sink.url()).await;

    let sent = send(&cluster.second, &alice, "alice", json!({})).await;

    assert_eq!(
        (&sent["deliveryStatus"], &sent["channels"]),
        (&json!("pending"), &json!(["websocket"]))
    );
    let (status, deliveries) = decided(&cluster.first, &alice, &sent).await;
    assert_eq!(
        (&status, &deliveries[0]["state"]),
        (&json!("sent"), &json!("sent"))
    );
    let call = &sink.after(1).await[0];
    assert_eq!(
        call.header("webhook-id"),
        deliveries[0]["id"].as_str().unwrap()
    );
    assert_eq!(call.json()["data"]["message"], "Hello");
    let time: i64 = call.header("webhook-timestamp").parse().unwrap();
    let reference = Webhook::new(&secret).unwrap();
    let expected = reference
        .sign(call.header("webhook-id"), time, &call.body)
        .unwrap();
    assert_eq!(call.header("webhook-signature"), expected);
    let shown = cluster.second.get(HOOK, &alice).await.body;
    assert!(shown.get("secret").is_none(), "{shown}");
    assert_eq!(hook(&cluster.second, &alice, &sink.url()).await, "");
    let rotated = cluster
        .first
        .ask("POST", &format!("{HOOK}/rotate"), &alice, Value::Null)
        .await;
    assert_ne!(rotated.body["secret"].as_str().unwrap(), secret);
    cluster.first.ask("DELETE", HOOK, &alice, Value::Null).await;
    assert_eq!(
        cluster.second.get(HOOK, &alice).await.status,
        StatusCode::NOT_FOUND
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_receiver_that_fails_is_called_again_with_the_same_id(db: PgPool) {
    let cluster = Cluster::new(db, config(&[])).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let sink = Sink::open(Answer::Status(500)).await;
    hook(&cluster.first, &alice, &sink.url()).await;

    let sent = send(&cluster.first, &alice, "alice", json!({})).await;
    sink.after(2).await;
    sink.answers(Answer::Status(200));

    let (status, deliveries) = decided(&cluster.second, &alice, &sent).await;
    assert_eq!(status, "sent");
    let calls = sink.calls();
    let ids: BTreeSet<_> = calls.iter().map(|call| call.header("webhook-id")).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(deliveries[0]["attempts"], calls.len());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_was_tried_for_too_long_has_failed_until_an_admin_tries_it_again(db: PgPool) {
    let patience = [("NOTIFICATIONS_DELIVERY_PATIENCE_SECONDS", "0.3")];
    let cluster = Cluster::new(db, config(&patience)).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let admin = cluster.sign_in("root", &["admin"]).await;
    let sink = Sink::open(Answer::Elsewhere).await;
    hook(&cluster.first, &alice, &sink.url()).await;

    let sent = send(&cluster.first, &alice, "alice", json!({})).await;
    let (status, deliveries) = decided(&cluster.second, &alice, &sent).await;

    assert_eq!(status, "failed");
    assert_eq!(deliveries[0]["error"], "the receiver answered 302");
    assert!(
        sink.calls().iter().all(|call| call.path == "/hook"),
        "a redirect was followed"
    );
    let failed = cluster
        .first
        .get(
            "/notifications/deliveries?state=failed&channel=webhook",
            &admin,
        )
        .await
        .body;
    assert_eq!(failed["total"], 1);
    let path = format!(
        "/notifications/deliveries/{}/retry",
        failed["data"][0]["id"].as_str().unwrap()
    );
    sink.answers(Answer::Status(200));
    let retry = async |token: &str| {
        cluster
            .second
            .ask("POST", &path, token, Value::Null)
            .await
            .status
    };
    assert_eq!(retry(&alice).await, StatusCode::FORBIDDEN);
    assert_eq!(retry(&admin).await, StatusCode::OK);
    assert_eq!(decided(&cluster.first, &alice, &sent).await.0, "sent");
    assert_eq!(retry(&admin).await, StatusCode::CONFLICT);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_a_killed_worker_held_another_one_delivers(db: PgPool) {
    let config = config(&[("NOTIFICATIONS_DELIVERY_LEASE_SECONDS", "15")]);
    let platform = testing::platform(db).await;
    let (doomed, tasks) = (Tasks::new(), Tasks::new());
    let first = Instance::start(platform.clone(), config.clone(), &doomed).await;
    let alice = testing::sign_in(&platform, &crate::app::id("alice"), &["user"]).await;
    let sink = Sink::open(Answer::Silence).await;
    hook(&first, &alice, &sink.url()).await;
    let sent = send(&first, &alice, "alice", json!({})).await;
    sink.after(1).await;

    // In the middle of the call: what waits for its answer is dropped, and nothing is written.
    doomed.stop(std::time::Duration::from_secs(4)).await;
    sink.answers(Answer::Status(200));
    let other = beside(&platform, &platform.redis_url.clone()).await;
    let second = Instance::start(other, config, &tasks).await;
    let held: String = sqlx::query_scalar("select state from notifications.deliveries")
        .fetch_one(&platform.db)
        .await
        .unwrap();
    assert_eq!(held, "running");
    // Its lease is over.
    expire_leases(&platform).await;

    let (status, deliveries) = decided(&second, &alice, &sent).await;
    assert_eq!(
        (&status, &deliveries[0]["attempts"]),
        (&json!("sent"), &json!(2))
    );
    let calls = sink.calls();
    assert_eq!(calls.len(), 2);
    assert_eq!(calls[0].header("webhook-id"), calls[1].header("webhook-id"));
}

async fn expire_leases(platform: &Platform) {
    sqlx::query("update notifications.deliveries set lease_until = clock_timestamp() - interval '1 second' where state = 'running'")
        .execute(&platform.db)
        .await
        .unwrap();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_worker_whose_lease_was_given_away_changes_nothing(db: PgPool) {
    let cluster = Cluster::new(
        db,
        config(&[("NOTIFICATIONS_DELIVERY_LEASE_SECONDS", "1.5")]),
    )
    .await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let sink = Sink::open(Answer::Silence).await;
    hook(&cluster.first, &alice, &sink.url()).await;
    let sent = send(&cluster.first, &alice, "alice", json!({})).await;
    sink.after(1).await;

    // The one that waits looks dead to the others, and comes back with a failure while the next one has it.
    sink.answers(Answer::Status(200));
    expire_leases(&cluster.first.platform).await;
    let (status, deliveries) = decided(&cluster.second, &alice, &sent).await;

    assert_eq!(
        (&status, &deliveries[0]["attempts"]),
        (&json!("sent"), &json!(2))
    );
    // The first attempt ends with a third of its lease.
    sink.after_hang_ups(1).await;
    assert_eq!(
        decided(&cluster.first, &alice, &sent).await,
        (status, deliveries)
    );
    assert_eq!(sink.calls().len(), 2);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn many_deliveries_of_two_replicas_arrive_once_each_and_in_order_for_a_user(db: PgPool) {
    let cluster = Cluster::new(db, config(&[])).await;
    let sink = Sink::open(Answer::Status(200)).await;
    let mut tokens = Vec::new();
    for user in ["a", "b", "c", "d"] {
        let token = cluster.sign_in(user, &["user"]).await;
        hook(&cluster.first, &token, &sink.url()).await;
        tokens.push((user, token));
    }

    for n in 0..10 {
        for (user, token) in &tokens {
            let instance = [&cluster.first, &cluster.second][n % 2];
            send(instance, token, user, json!({})).await;
        }
    }
    let calls = sink.after(40).await;
    until("the end", async || {
        let open = "select count(*) from notifications.deliveries where state <> 'sent'";
        let open: i64 = sqlx::query_scalar(open)
            .fetch_one(&cluster.first.platform.db)
            .await
            .unwrap();
        open == 0
    })
    .await;

    assert_eq!(sink.calls().len(), 40);
    for (user, _) in &tokens {
        let of_user = calls.iter().map(|call| call.json()["data"].clone());
        let of_user = of_user.filter(|data| data["userId"] == *user);
        let numbers: Vec<_> = of_user.map(|data| data["seq"].as_i64().unwrap()).collect();
        assert_eq!(numbers, (1..=10).collect::<Vec<_>>(), "{user}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_webhook_leads_to_public_servers_alone(db: PgPool) {
    let strict = [("NOTIFICATIONS_WEBHOOK_LOOPBACK", "false")];
    let cluster = Cluster::new(db, config(&strict)).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let sink = Sink::open(Answer::Status(200)).await;

    for url in [
        sink.url(),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "https://[::1]/".to_owned(),
        "https://10.0.0.1/".to_owned(),
        "https://user:word@example.com/".to_owned(),
        "file:///etc/passwd".to_owned(),
    ] {
        let reply = cluster
            .first
            .ask("PUT", HOOK, &alice, json!({ "url": url }))
            .await;
        assert_eq!(reply.body["details"][0]["field"], "url", "{url}");
    }
    // What its name leads to is seen when it is called.
    let by_name = format!("http://localhost:{}/hook", sink.address.port());
    hook(&cluster.first, &alice, &by_name).await;
    let sent = send(&cluster.first, &alice, "alice", json!({})).await;
    let path = format!("/notifications/{}/deliveries", sent["id"].as_str().unwrap());
    let told = async || cluster.second.get(&path, &alice).await.body[0]["error"].clone();
    until("the refusal", async || {
        told().await == "the URL leads to an address that is not public"
    })
    .await;
    assert!(sink.calls().is_empty());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn mail_and_text_messages_reach_the_addresses_that_the_users_service_knows(db: PgPool) {
    let (mail, sms) = (
        MailServer::open().await,
        Sink::open(Answer::Status(200)).await,
    );
    let (smtp, url) = (format!("smtp://{}", mail.address), sms.url());
    let secret = "c2VjcmV0IG9mIHRoZSBwcm92aWRlcg==";
    let settings = [
        ("SMTP_URL", smtp.as_str()),
        ("SMS_URL", &url),
        ("SMS_SECRET", secret),
    ];
    let cluster = Cluster::new(db, config(&settings)).await;
    let _users = Users::open(&cluster.first.platform).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let admin = cluster.sign_in("root", &["admin"]).await;

    let both = json!({ "channels": ["email", "sms", "websocket"] });
    let sent = send(&cluster.first, &admin, "alice", both.clone()).await;
    let (status, deliveries) = decided(&cluster.second, &alice, &sent).await;

    assert_eq!(status, "sent");
    assert_eq!(deliveries.as_array().unwrap().len(), 2);
    let text = &mail.after(1).await[0];
    for part in ["To: alice@example.com", "Subject: Greeting", "Hello"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(
        text.contains(&format!(
            "Message-ID: <{}@",
            deliveries[0]["id"].as_str().unwrap()
        )),
        "{text}"
    );
    let call = &sms.after(1).await[0];
    assert_eq!(call.json()["to"], "+8613800000000");
    assert_eq!(call.json()["text"], "Greeting: Hello");
    assert_eq!(
        call.header("idempotency-key"),
        deliveries[1]["id"].as_str().unwrap()
    );
    let raw = Webhook::from_bytes(secret.as_bytes().to_vec()).unwrap();
    let time = call.header("webhook-timestamp").parse().unwrap();
    let expected = raw
        .sign(call.header("webhook-id"), time, &call.body)
        .unwrap();
    assert_eq!(call.header("webhook-signature"), expected);

    for (user, why) in [
        ("nobody", "there is no such user"),
        ("mute", "the user has no phone number"),
    ] {
        let sent = send(&cluster.first, &admin, user, json!({ "channels": ["sms"] })).await;
        let (status, deliveries) = decided(&cluster.second, &admin, &sent).await;
        assert_eq!(
            (&status, &deliveries[0]["error"]),
            (&json!("failed"), &json!(why))
        );
    }
    mail.refuses(Some("550 no such mailbox"));
    let sent = send(
        &cluster.first,
        &admin,
        "alice",
        json!({ "channels": ["email"] }),
    )
    .await;
    assert_eq!(decided(&cluster.second, &alice, &sent).await.0, "failed");
    mail.refuses(Some("451 later"));
    send(
        &cluster.first,
        &admin,
        "alice",
        json!({ "channels": ["email"] }),
    )
    .await;
    mail.refuses(None);
    mail.after(2).await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_way_that_is_not_set_up_fails_at_once_and_the_socket_has_it_all_the_same(db: PgPool) {
    let cluster = Cluster::new(db, config(&[])).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let admin = cluster.sign_in("root", &["admin"]).await;
    let mut socket = cluster
        .second
        .connect(&format!("/notifications?token={alice}"))
        .await;
    socket.event("unread-count").await;

    let sent = send(
        &cluster.first,
        &admin,
        "alice",
        json!({ "channels": ["email", "webhook"] }),
    )
    .await;

    assert_eq!(socket.event("notification").await["id"], sent["id"]);
    let (status, deliveries) = decided(&cluster.first, &alice, &sent).await;
    assert_eq!(status, "failed");
    assert_eq!(deliveries[0]["error"], "no mail server is set up");
    assert_eq!(deliveries[1]["error"], "the user has no webhook");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn in_quiet_hours_only_what_is_urgent_leaves_and_the_rest_after_them(db: PgPool) {
    let cluster = Cluster::new(db, config(&[])).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let sink = Sink::open(Answer::Status(200)).await;
    hook(&cluster.first, &alice, &sink.url()).await;
    let clock = &cluster.first.platform.clock;
    let hour = |hours: i64| {
        (clock.now().utc() + TimeDelta::hours(hours))
            .format("%H:%M")
            .to_string()
    };
    let quiet = json!({ "from": hour(-1), "to": hour(2), "timeZone": "UTC" });
    let body = json!({ "preferences": { "quietHours": quiet } });
    cluster
        .first
        .ask("POST", "/notifications/preferences/batch", &alice, body)
        .await;

    let calm = send(&cluster.first, &alice, "alice", json!({})).await;
    let urgent = send(
        &cluster.second,
        &alice,
        "alice",
        json!({ "priority": "urgent" }),
    )
    .await;

    assert_eq!(sink.after(1).await[0].json()["data"]["id"], urgent["id"]);
    // The urgent one was stored later and left before: the worker passed the calm one over.
    let path = format!("/notifications/{}/deliveries", calm["id"].as_str().unwrap());
    let held = cluster.first.get(&path, &alice).await.body;
    let leaves: DateTime<Utc> = held[0]["leavesAt"].as_str().unwrap().parse().unwrap();
    assert_eq!(held[0]["state"], "queued");
    assert!(leaves > clock.now().utc(), "{held}");
    assert_eq!(sink.calls().len(), 1);
    clock.advance(TimeDelta::hours(2));
    assert_eq!(sink.after(2).await[1].json()["data"]["id"], calm["id"]);
}

/// Sets preferences of all types.
async fn prefer(cluster: &Cluster, token: &str, preferences: Value) {
    let body = json!({ "preferences": preferences });
    let path = "/notifications/preferences/batch";
    let reply = cluster.first.ask("POST", path, token, body).await;
    assert!(reply.status.is_success(), "{}", reply.body);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_waited_goes_by_what_its_user_wants_when_it_leaves(db: PgPool) {
    let mail = MailServer::open().await;
    let smtp = format!("smtp://{}", mail.address);
    let cluster = Cluster::new(db, config(&[("SMTP_URL", smtp.as_str())])).await;
    let _users = Users::open(&cluster.first.platform).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let admin = cluster.sign_in("root", &["admin"]).await;
    let sink = Sink::open(Answer::Status(200)).await;
    hook(&cluster.first, &alice, &sink.url()).await;
    let clock = &cluster.first.platform.clock;
    let at = |minutes: i64| clock.now().utc() + TimeDelta::minutes(minutes);
    let quiet = |from: i64, to: i64| {
        let time = |minutes| at(minutes).format("%H:%M").to_string();
        json!({ "quietHours": { "from": time(from), "to": time(to), "timeZone": "UTC" } })
    };
    prefer(&cluster, &alice, quiet(-60, 60)).await;
    let by = |channel: &str| json!({ "channels": [channel] });
    let mailed = send(&cluster.first, &admin, "alice", by("email")).await;
    let mut short = by("webhook");
    short["expiresAt"] = json!(at(30).to_rfc3339());
    let expired = send(&cluster.first, &admin, "alice", short).await;
    let kept = send(&cluster.second, &admin, "alice", by("webhook")).await;

    // Mail is switched off while it waits, and the quiet hours are made longer.
    prefer(&cluster, &alice, json!({ "emailEnabled": false })).await;
    prefer(&cluster, &alice, quiet(-60, 120)).await;
    clock.advance(TimeDelta::minutes(61));

    let path = format!("/notifications/{}/deliveries", kept["id"].as_str().unwrap());
    until("it waits for the later end", async || {
        let held = cluster.first.get(&path, &alice).await.body;
        let leaves = held[0]["leavesAt"].as_str().unwrap().to_owned();
        leaves.parse::<DateTime<Utc>>().unwrap() > clock.now().utc()
    })
    .await;
    assert_eq!(sink.calls().len(), 0);
    clock.advance(TimeDelta::minutes(60));
    assert_eq!(sink.after(1).await[0].json()["data"]["id"], kept["id"]);
    for (gone, why) in [(mailed, "want"), (expired, "expired")] {
        let (status, deliveries) = decided(&cluster.first, &alice, &gone).await;
        assert_eq!(status, "failed");
        let told = deliveries[0]["error"].as_str().unwrap();
        assert!(told.contains(why), "{told}");
    }
    assert_eq!((mail.mails().len(), sink.calls().len()), (0, 1));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_urgent_does_not_wait_behind_a_large_digest_that_is_refused(db: PgPool) {
    let mail = MailServer::open().await;
    let smtp = format!("smtp://{}", mail.address);
    // Nothing that failed is tried again while the test lasts.
    let settings = [
        ("SMTP_URL", smtp.as_str()),
        ("NOTIFICATIONS_RETRY_SECONDS", "3600"),
    ];
    let cluster = Cluster::new(db, config(&settings)).await;
    let _users = Users::open(&cluster.first.platform).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let admin = cluster.sign_in("root", &["admin"]).await;
    let body = json!({ "preferences": { "digest": "hourly" } });
    cluster
        .first
        .ask("POST", "/notifications/preferences/batch", &alice, body)
        .await;
    // More than one mail takes.
    for n in 0..102 {
        let more = json!({ "channels": ["email"], "message": format!("number {n}") });
        send(&cluster.first, &admin, "alice", more).await;
    }
    mail.refuses(Some("451 later"));
    cluster.first.platform.clock.advance(TimeDelta::hours(1));
    until("the digest is refused", async || {
        let tried =
            "select count(*) from notifications.deliveries where state = 'queued' and attempts > 0";
        let tried: i64 = sqlx::query_scalar(tried)
            .fetch_one(&cluster.first.platform.db)
            .await
            .unwrap();
        tried > 0
    })
    .await;
    mail.refuses(None);

    let urgent = json!({ "channels": ["email"], "message": "now", "priority": "urgent" });
    send(&cluster.first, &admin, "alice", urgent).await;

    let first = &mail.after(1).await[0];
    assert!(first.contains("now"), "{first}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_digest_is_one_mail_of_all_that_came(db: PgPool) {
    let mail = MailServer::open().await;
    let smtp = format!("smtp://{}", mail.address);
    let cluster = Cluster::new(db, config(&[("SMTP_URL", smtp.as_str())])).await;
    let _users = Users::open(&cluster.first.platform).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let admin = cluster.sign_in("root", &["admin"]).await;
    let body = json!({ "preferences": { "digest": "hourly" } });
    cluster
        .first
        .ask("POST", "/notifications/preferences/batch", &alice, body)
        .await;

    let mut sent = Vec::new();
    for n in 0..5 {
        let instance = [&cluster.first, &cluster.second][n % 2];
        let more = json!({ "channels": ["email"], "message": format!("number {n}") });
        sent.push(send(instance, &admin, "alice", more).await);
    }
    // One that does not wait leaves after them, and alone.
    let urgent = json!({ "channels": ["email"], "message": "now", "priority": "urgent" });
    send(&cluster.first, &admin, "alice", urgent).await;
    let first = &mail.after(1).await[0];
    assert!(
        first.contains("now") && !first.contains("number"),
        "{first}"
    );
    // The session ends with a day, and the digest comes within an hour.
    cluster.first.platform.clock.advance(TimeDelta::hours(1));

    let text = &mail.after(2).await[1];
    assert!(text.contains("Subject: 5 notifications"), "{text}");
    for n in 0..5 {
        assert!(text.contains(&format!("number {n}")), "{text}");
    }
    for sent in &sent {
        assert_eq!(decided(&cluster.first, &alice, sent).await.0, "sent");
    }
    assert_eq!(mail.mails().len(), 2);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn webhooks_that_never_answer_leave_the_places_of_mail_free(db: PgPool) {
    let mail = MailServer::open().await;
    let smtp = format!("smtp://{}", mail.address);
    let cluster = Cluster::new(db, config(&[("SMTP_URL", smtp.as_str())])).await;
    let _users = Users::open(&cluster.first.platform).await;
    let admin = cluster.sign_in("root", &["admin"]).await;
    let sink = Sink::open(Answer::Silence).await;
    // More than both replicas carry at a time.
    for n in 0..40 {
        let user = format!("slow-{n}");
        let token = cluster.sign_in(&user, &["user"]).await;
        hook(&cluster.first, &token, &sink.url()).await;
        send(&cluster.first, &token, &user, json!({})).await;
    }
    sink.after(16).await;

    let to_alice = json!({ "channels": ["email"] });
    send(&cluster.second, &admin, "alice", to_alice).await;

    assert!(mail.after(1).await[0].contains("To: alice@example.com"));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_urgent_takes_the_next_place_that_is_free(db: PgPool) {
    let settings = [
        ("NOTIFICATIONS_DELIVERY_LEASE_SECONDS", "9"),
        ("NOTIFICATIONS_RETRY_SECONDS", "3600"),
    ];
    let cluster = Cluster::new(db, config(&settings)).await;
    let sink = Sink::open(Answer::Silence).await;
    let mut users = Vec::new();
    for n in 0..49 {
        let user = format!("user-{n}");
        let token = cluster.sign_in(&user, &["user"]).await;
        hook(&cluster.first, &token, &sink.url()).await;
        users.push((user, token));
    }
    let (last, token) = users.pop().unwrap();

    // Three times as many as both replicas carry at a time.
    for (user, token) in &users {
        send(&cluster.first, token, user, json!({})).await;
    }
    let begun = sink.calls().len();
    let urgent = json!({ "priority": "urgent" });
    let urgent = send(&cluster.second, &token, &last, urgent).await;

    let find = || {
        let calls = sink.calls();
        let of_it = |call: &crate::sinks::Call| call.json()["data"]["id"] == urgent["id"];
        calls.iter().position(of_it)
    };
    until("the urgent call", async || find().is_some()).await;
    // What was claimed while it was stored may come before it, but not a place's next.
    let place = find().unwrap();
    assert!(place <= begun.max(16) + 16, "{place} after {begun}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_a_user_writes_leaves_by_no_address_that_nobody_verified(db: PgPool) {
    let cluster = Cluster::new(db, config(&[])).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let sink = Sink::open(Answer::Status(200)).await;
    hook(&cluster.first, &alice, &sink.url()).await;
    let path = "/notifications/preferences/system";
    let chosen = json!({ "enabledChannels": ["sms", "email"] });

    let named = json!({ "channels": ["sms", "email", "webhook"], "priority": "urgent" });
    let named = send(&cluster.first, &alice, "alice", named).await;
    cluster.first.ask("PUT", path, &alice, chosen).await;
    let by_choice = send(&cluster.second, &alice, "alice", json!({})).await;

    let (_, deliveries) = decided(&cluster.first, &alice, &named).await;
    assert_eq!(deliveries.as_array().unwrap().len(), 1, "{deliveries}");
    assert_eq!(deliveries[0]["channel"], "webhook");
    let (_, deliveries) = decided(&cluster.first, &alice, &by_choice).await;
    assert_eq!(deliveries, json!([]));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_user_gets_so_many_text_messages_a_day_of_all_replicas_and_urgent_ones_beyond(
    db: PgPool,
) {
    let sms = Sink::open(Answer::Status(200)).await;
    let url = sms.url();
    let settings = [
        ("SMS_URL", url.as_str()),
        ("SMS_SECRET", "c2VjcmV0IG9mIHRoZSBwcm92aWRlcg=="),
    ];
    let cluster = Cluster::new(db, config(&settings)).await;
    let _users = Users::open(&cluster.first.platform).await;
    let admin = cluster.sign_in("root", &["admin"]).await;
    let text = |priority: &str| json!({ "channels": ["sms"], "priority": priority });

    let mut sent = Vec::new();
    for n in 0..22 {
        let instance = [&cluster.first, &cluster.second][n % 2];
        sent.push(send(instance, &admin, "alice", text("normal")).await);
    }
    let mut outcomes = Vec::new();
    for sent in &sent {
        outcomes.push(decided(&cluster.first, &admin, sent).await);
    }
    let failed: Vec<_> = outcomes
        .iter()
        .filter(|(status, _)| status == "failed")
        .collect();
    assert_eq!(failed.len(), 2);
    assert_eq!(failed[0].1[0]["error"], "too many messages in a day");
    assert_eq!(sms.calls().len(), 20);

    let urgent = send(&cluster.first, &admin, "alice", text("urgent")).await;
    assert_eq!(decided(&cluster.second, &admin, &urgent).await.0, "sent");
}
