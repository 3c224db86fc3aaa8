//! Providers that fail: nothing is sent to those that are down, and again when they are up.

use chrono::TimeDelta;
use http::StatusCode;
use media::job::{end_stale, roll_up};
use media::provider::health::check_all;
use serde_json::json;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::app::{TestApp, picture};
use crate::vendor::{Trick, Vendor};

const URL: &str = "https://example.com/garment.jpg";

async fn app(db: PgPool, providers: serde_json::Value) -> TestApp {
    let providers = providers.to_string();
    let settings = [
        ("MEDIA_PROVIDERS", providers.as_str()),
        ("MEDIA_FETCH_LOOPBACK", "true"),
        ("MEDIA_USER_RUNNING", "100"),
    ];
    TestApp::with(db, settings).await
}

async fn check(app: &TestApp) {
    check_all(&app.media, &CancellationToken::new())
        .await
        .unwrap();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_provider_that_is_down_is_left_alone_until_it_is_up(db: PgPool) {
    let (first, second) = (Vendor::start().await, Vendor::start().await);
    let kinds = ["video_generate"];
    let app = app(
        db,
        json!([first.entry("a", 1, &kinds), second.entry("b", 2, &kinds)]),
    )
    .await;
    let (alice, admin) = (app.user("alice").await, app.admin().await);
    alice
        .get("/media/providers")
        .await
        .refused(403, "FORBIDDEN");
    alice
        .post("/media/providers/a/check", json!({}))
        .await
        .refused(403, "FORBIDDEN");
    admin
        .post("/media/providers/c/check", json!({}))
        .await
        .refused(404, "NOT_FOUND");

    first.trick("health", [Trick::Status(500); 3]);
    for state in ["degraded", "degraded", "down"] {
        check(&app).await;
        let views = admin
            .get("/media/providers")
            .await
            .expect(StatusCode::OK)
            .body;
        assert_eq!(
            (&views[0]["ref"], &views[1]["ref"], &views[1]["state"]),
            (&json!("local"), &json!("a"), &json!(state))
        );
    }
    let view = admin.get("/media/providers").await.body[1].clone();
    assert_eq!(
        (&view["circuit"], &view["lastError"]),
        (&json!("open"), &json!("unclear: it answered 500"))
    );
    alice.make("video_generate", URL).await;
    app.media.run_jobs().await.unwrap();
    assert_eq!((first.taken().len(), second.taken().len()), (0, 1));

    for state in ["down", "up"] {
        let view = admin
            .post("/media/providers/a/check", json!({}))
            .await
            .expect(StatusCode::OK)
            .body;
        assert_eq!(view["state"], state);
    }
    let view = admin.get("/media/providers").await.body[1].clone();
    assert_eq!(view["circuit"], "closed");
    assert!(view["recoveredAt"].is_string() && view["latencyMs"].is_number());
    alice.make("video_generate", URL).await;
    app.media.run_jobs().await.unwrap();
    assert_eq!((first.taken().len(), second.taken().len()), (1, 1));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn calls_that_fail_in_a_row_open_the_circuit_on_all_replicas(db: PgPool) {
    let (first, second) = (Vendor::start().await, Vendor::start().await);
    let kinds = ["video_generate"];
    let app = app(
        db,
        json!([first.entry("a", 1, &kinds), second.entry("b", 2, &kinds)]),
    )
    .await;
    let (alice, admin) = (app.user("alice").await, app.admin().await);
    first.set(|inner| inner.always = Some(Trick::Status(429)));
    for _ in 0..5 {
        alice.make("video_generate", URL).await;
    }
    app.media.run_jobs().await.unwrap();
    assert_eq!(
        admin.get("/media/providers").await.body[1]["circuit"],
        "open"
    );

    // What was refused goes to the second one before the first has been asked often enough to be left.
    app.platform.clock.advance(TimeDelta::seconds(2));
    app.media.run_jobs().await.unwrap();
    assert_eq!((first.taken().len(), second.taken().len()), (0, 5));

    // Half a minute later one call tries, and closes it.
    first.set(|inner| inner.always = None);
    app.platform.clock.advance(TimeDelta::seconds(31));
    for _ in 0..2 {
        alice.make("video_generate", URL).await;
        app.media.run_jobs().await.unwrap();
    }
    assert_eq!(first.taken().len(), 2);
    let view = admin.get("/media/providers").await.body[1].clone();
    assert_eq!(
        (&view["circuit"], &view["consecutiveFailures"]),
        (&json!("closed"), &json!(0))
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_provider_has_no_more_than_its_limit(db: PgPool) {
    let vendor = Vendor::start().await;
    let mut entry = vendor.entry("a", 1, &["video_generate"]);
    entry["limit"] = json!(2);
    let app = app(db, json!([entry])).await;
    let alice = app.user("alice").await;
    for _ in 0..5 {
        alice.make("video_generate", URL).await;
    }

    app.media.run_jobs().await.unwrap();
    assert_eq!(vendor.taken().len(), 2);
    app.until_all_end(&[&app]).await;

    assert_eq!((vendor.taken().len(), vendor.submissions()), (5, 5));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_nobody_begins_fails_and_what_ended_is_written_up(db: PgPool) {
    let vendor = Vendor::start().await;
    vendor.set(|inner| inner.always = Some(Trick::Status(429)));
    let app = app(db, json!([vendor.entry("a", 1, &["video_generate"])])).await;
    let (alice, admin) = (app.user("alice").await, app.admin().await);
    let key = alice.upload(picture(9, 9, [1, 1, 1])).await;
    alice.stitch(&key).await;
    app.media.run_jobs().await.unwrap();
    let waiting = alice.make("video_generate", URL).await;
    let stats = admin
        .get("/media/jobs/stats")
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        (&stats["ready"], &stats["leased"], &stats["submitted"]),
        (&json!(1), &json!(0), &json!(0))
    );
    assert!(stats["oldestWaiting"].is_string());

    end_stale(&app.media).await.unwrap();
    assert_eq!(alice.task(&waiting).await["status"], "queued");
    app.platform.clock.advance(TimeDelta::minutes(11));
    end_stale(&app.media).await.unwrap();
    end_stale(&app.media).await.unwrap();
    let task = alice.task(&waiting).await;
    assert_eq!(
        (&task["status"], &task["errorCode"]),
        (&json!("failed"), &json!("STALE"))
    );
    assert_eq!(app.events(&waiting).await, ["failed"]);

    roll_up(&app.media).await.unwrap();
    roll_up(&app.media).await.unwrap();
    let stats = admin.get("/media/jobs/stats").await.body;
    let counted: Vec<_> = stats["lastDay"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (&row["type"], &row["status"], &row["tasks"]))
        .collect();
    assert_eq!(
        counted,
        [
            (&json!("image_stitch"), &json!("succeeded"), &json!(1)),
            (&json!("video_generate"), &json!("failed"), &json!(1)),
        ]
    );
    let jobs = admin
        .get("/media/jobs?state=dead")
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        (&jobs["total"], &jobs["data"][0]["taskId"]),
        (&json!(1), &json!(waiting))
    );
    alice.get("/media/jobs").await.refused(403, "FORBIDDEN");
    alice
        .get("/media/jobs/stats")
        .await
        .refused(403, "FORBIDDEN");
}
