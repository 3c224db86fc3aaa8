//! What is made elsewhere: taken once, asked about, reported, and ended once, whatever a provider does.

use std::time::Duration;

use axum::body::Body;
use chrono::TimeDelta;
use futures::future::{join, join_all};
use http::{Request, StatusCode};
use media::job::{claim, poll};
use platform::lifecycle::Tasks;
use serde_json::json;
use sqlx::PgPool;

use crate::app::{TestApp, picture};
use crate::vendor::{Trick, Vendor};

/// How long what must come is waited for.
const SOON: Duration = Duration::from_secs(30);
const URL: &str = "https://example.com/garment.jpg";

async fn app(db: PgPool, providers: serde_json::Value) -> TestApp {
    TestApp::with(db, settings(&providers.to_string())).await
}

fn settings(providers: &str) -> [(&str, &str); 5] {
    [
        ("MEDIA_PROVIDERS", providers),
        ("MEDIA_FETCH_LOOPBACK", "true"),
        ("MEDIA_PUBLIC_URL", "https://api.example.com/api"),
        ("MEDIA_USER_RUNNING", "100"),
        ("MEDIA_LEASE_SECONDS", "2"),
    ]
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_step_goes_to_a_provider_and_what_it_makes_comes_back(db: PgPool) {
    let vendor = Vendor::start().await;
    let app = app(db, json!([vendor.entry("a", 1, &["basic_clean"])])).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [9, 9, 9])).await;
    let id = alice.make("basic_clean", &key).await;
    assert_eq!(alice.task(&id).await["status"], "queued");

    app.media.run_jobs().await.unwrap();
    let task = alice.task(&id).await;
    assert_eq!(task["status"], "submitted", "{task}");
    assert_eq!(
        (
            &task["steps"][0]["provider"],
            &task["steps"][0]["providerRef"]
        ),
        (&json!("a"), &json!("v-0"))
    );
    app.platform.clock.advance(TimeDelta::seconds(3));
    app.media.run_jobs().await.unwrap();
    let task = alice.task(&id).await;
    assert_eq!(
        (&task["status"], &task["progress"]),
        (&json!("running"), &json!(40))
    );
    app.platform.clock.advance(TimeDelta::seconds(3));
    app.media.run_jobs().await.unwrap();

    let task = alice.task(&id).await;
    assert_eq!(task["status"], "succeeded", "{task}");
    let result = alice.get(task["resultUrls"][0].as_str().unwrap()).await;
    assert_eq!(result.bytes, picture(7, 7, [1, 2, 3]));
    assert_eq!(result.headers["content-type"], "image/png");
    assert_eq!(app.events(&id).await, ["succeeded"]);
    let told = "select string_agg(event #>> '{data,status}', ' ' order by id) from platform.outbox
        where kind = 'task.progressed' and event #>> '{data,taskId}' = $1";
    assert_eq!(app.scalar::<String>(told, &id).await, "submitted running");
    // The provider was told where to report, and given an address that gives out the upload for a while.
    let message = vendor.taken()[0].message.clone();
    assert_eq!(
        message["callbackUrl"],
        format!("https://api.example.com/api/media/callbacks/{id}/0")
    );
    let link = message["inputUrls"][0].as_str().unwrap();
    let link = link
        .strip_prefix("https://api.example.com/api")
        .unwrap()
        .to_owned();
    let fetch = || app.call(Request::get(&link).body(Body::empty()).unwrap());
    assert_eq!(
        fetch().await.expect(StatusCode::OK).bytes,
        picture(9, 9, [9, 9, 9])
    );
    app.platform.clock.advance(TimeDelta::hours(3));
    fetch().await.refused(404, "NOT_FOUND");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn whatever_a_provider_does_each_task_is_taken_once_and_ends_once(db: PgPool) {
    let vendor = Vendor::start().await;
    let providers = json!([vendor.entry("a", 1, &["model_pose12"])]).to_string();
    let app = TestApp::with(db, settings(&providers)).await;
    let other = app.replica(settings(&providers)).await;
    let alice = app.user("alice").await;
    let ids = join_all((0..12).map(|_| alice.make("model_pose12", URL))).await;
    use Trick::{Garbage, Hang, LoseAnswer, Status};
    vendor.trick(
        "submit",
        [
            LoseAnswer,
            Status(500),
            Status(429),
            Garbage,
            LoseAnswer,
            Hang,
            Status(503),
        ],
    );
    vendor.trick("find", [Status(500), Garbage]);
    vendor.trick(
        "query",
        [Hang, Garbage, Status(500), LoseAnswer, Status(429)],
    );

    let took = app.until_all_end(&[&app, &other]).await;

    assert!(took < TimeDelta::minutes(10), "{took}");
    for id in &ids {
        let task = alice.task(id).await;
        assert_eq!(task["status"], "succeeded", "{task}");
        assert_eq!(app.events(id).await, ["succeeded"]);
    }
    assert_eq!(
        (vendor.taken().len(), vendor.submissions()),
        (12, 12),
        "none was sent again that had been taken"
    );
    assert_eq!(app.files("output"), 12);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_report_and_questions_at_the_same_moment_end_a_task_once(db: PgPool) {
    let vendor = Vendor::start().await;
    let providers = json!([vendor.entry("a", 1, &["video_generate"])]).to_string();
    let app = TestApp::with(db, settings(&providers)).await;
    let other = app.replica(settings(&providers)).await;
    let alice = app.user("alice").await;
    let id = alice.make("video_generate", URL).await;
    app.media.run_jobs().await.unwrap();
    vendor.set(|inner| inner.done_after = 1);
    app.platform.clock.advance(TimeDelta::seconds(15));

    let report = json!({ "status": "succeeded", "outputUrls": [vendor.output()] });
    let reports = join_all((0..10).map(|n| {
        let to = if n % 2 == 0 { &app } else { &other };
        vendor.report(to, &id, report.clone())
    }));
    let asked = join(poll::poll(&app.media), poll::poll(&other.media));
    let (replies, (one, two)) = join(reports, asked).await;
    one.unwrap();
    two.unwrap();
    let (one, two) = join(app.media.run_jobs(), other.media.run_jobs()).await;
    one.unwrap();
    two.unwrap();

    let first = replies
        .iter()
        .filter(|reply| reply.body["duplicate"] == false)
        .count();
    assert!(first <= 1 && replies.iter().all(|reply| reply.body["received"] == true));
    assert_eq!(alice.task(&id).await["status"], "succeeded");
    assert_eq!(app.events(&id).await, ["succeeded"]);
    assert_eq!(app.files("output"), 1);
    let failed = json!({ "status": "failed" });
    let late = vendor
        .report(&other, &id, failed)
        .await
        .expect(StatusCode::OK);
    assert_eq!(late.body, json!({ "received": true, "duplicate": true }));
    assert_eq!(alice.task(&id).await["status"], "succeeded");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn only_whom_was_asked_can_report(db: PgPool) {
    let vendor = Vendor::start().await;
    let app = app(db, json!([vendor.entry("a", 1, &["video_generate"])])).await;
    let alice = app.user("alice").await;
    let id = alice.make("video_generate", URL).await;
    let report = json!({ "status": "failed", "errorMessage": "x" });
    vendor
        .report(&app, &id, report.clone())
        .await
        .refused(401, "BAD_SIGNATURE");
    app.media.run_jobs().await.unwrap();

    let unsigned =
        Request::post(format!("/media/callbacks/{id}/0")).body(report.to_string().into());
    app.call(unsigned.unwrap())
        .await
        .refused(401, "BAD_SIGNATURE");
    vendor
        .report(&app, "none", report.clone())
        .await
        .refused(401, "BAD_SIGNATURE");
    let wrong = json!({ "status": "done" });
    vendor
        .report(&app, &id, wrong)
        .await
        .refused(400, "VALIDATION_FAILED");
    app.media.run_jobs().await.unwrap();
    assert_eq!(alice.task(&id).await["status"], "submitted");

    vendor
        .report(&app, &id, report)
        .await
        .expect(StatusCode::OK);
    app.media.run_jobs().await.unwrap();
    let task = alice.task(&id).await;
    assert_eq!(
        (&task["status"], &task["errorCode"], &task["errorMessage"]),
        (&json!("failed"), &json!("PROVIDER_FAILED"), &json!("x"))
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_worker_that_dies_after_it_sent_a_step_is_followed_by_one_that_finds_it(db: PgPool) {
    let vendor = Vendor::start().await;
    let providers = json!([vendor.entry("a", 1, &["video_generate"])]).to_string();
    let app = TestApp::with(db, settings(&providers)).await;
    let alice = app.user("alice").await;
    let id = alice.make("video_generate", URL).await;
    vendor.trick("submit", [Trick::LoseAnswer]);
    let work = claim(&app.media, 1).await.unwrap().remove(0);
    let dying = media::job::worker::perform(&app.media, &work);
    // It is gone while it waits for the answer.
    let gone = tokio::time::timeout(Duration::from_millis(300), dying).await;
    assert!(gone.is_err() && vendor.taken().len() == 1);

    let other = app.replica(settings(&providers)).await;
    testkit::eventually(SOON, "the other one finds it", async || {
        other.media.run_jobs().await?;
        let status = alice.task(&id).await["status"].clone();
        anyhow::ensure!(status == "submitted", "{status}");
        Ok(())
    })
    .await;

    assert_eq!(vendor.submissions(), 1);
    app.until_all_end(&[&other]).await;
    assert_eq!(alice.task(&id).await["status"], "succeeded");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_nobody_wants_any_more_is_withdrawn(db: PgPool) {
    let vendor = Vendor::start().await;
    let app = app(db, json!([vendor.entry("a", 1, &["video_generate"])])).await;
    let alice = app.user("alice").await;
    let cancelled = alice.make("video_generate", URL).await;
    let expired = alice.make("video_generate", URL).await;
    app.media.run_jobs().await.unwrap();
    vendor.trick("cancel", [Trick::Status(500)]);

    alice.cancel(&cancelled).await.expect(StatusCode::OK);
    vendor.set(|inner| inner.done_after = usize::MAX);
    app.platform.clock.advance(TimeDelta::hours(2));
    for _ in 0..3 {
        app.media.run_jobs().await.unwrap();
        app.platform.clock.advance(TimeDelta::seconds(20));
    }

    assert!(vendor.taken().iter().all(|made| made.cancelled));
    assert_eq!(alice.task(&expired).await["errorCode"], "TIMEOUT");
    assert_eq!(app.events(&expired).await, ["expired"]);
    assert_eq!(app.events(&cancelled).await, ["cancelled"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_step_moves_on_only_from_whom_surely_did_not_take_it(db: PgPool) {
    let (first, second) = (Vendor::start().await, Vendor::start().await);
    let entries = json!([
        first.entry("a", 1, &["video_generate"]),
        second.entry("b", 2, &["video_generate"])
    ]);
    let app = app(db, entries).await;
    let alice = app.user("alice").await;

    // The first one refuses, and takes nothing.
    first.set(|inner| inner.always = Some(Trick::Status(429)));
    let moved = alice.make("video_generate", URL).await;
    app.until_all_end(&[&app]).await;
    assert_eq!(alice.task(&moved).await["steps"][0]["provider"], "b");
    assert_eq!((first.taken().len(), second.taken().len()), (0, 1));

    // Now it takes a step, and says nothing more: nobody else may make that.
    app.platform.clock.advance(TimeDelta::minutes(5));
    first.set(|inner| inner.always = Some(Trick::Hang));
    first.trick("submit", [Trick::LoseAnswer]);
    let unclear = alice.make("video_generate", URL).await;
    app.until_all_end(&[&app]).await;
    let task = alice.task(&unclear).await;
    assert_eq!(
        (&task["status"], &task["errorCode"]),
        (&json!("failed"), &json!("PROVIDER_UNCLEAR")),
        "{task}"
    );
    assert_eq!((first.taken().len(), second.taken().len()), (1, 1));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_provider_that_does_not_answer_keeps_nobody_waiting(db: PgPool) {
    let vendor = Vendor::start().await;
    vendor.set(|inner| inner.always = Some(Trick::Hang));
    let mut entry = vendor.entry("a", 1, &["video_generate"]);
    entry["timeoutSeconds"] = json!(300);
    let providers = json!([entry]).to_string();
    let settings = [
        ("MEDIA_PROVIDERS", providers.as_str()),
        ("MEDIA_WORKERS", "1"),
        ("MEDIA_POLL_SECONDS", "0.05"),
        ("MEDIA_USER_RUNNING", "100"),
    ];
    let app = TestApp::with(db, settings).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [9, 9, 9])).await;
    let tasks = Tasks::new();
    app.media.spawn_jobs(&tasks).await.unwrap();

    for _ in 0..4 {
        alice.make("video_generate", URL).await;
    }
    let id = alice.stitch(&key).await;
    testkit::eventually(SOON, "the picture is made", async || {
        let status = alice.task(&id).await["status"].clone();
        anyhow::ensure!(status == "succeeded", "{status}");
        Ok(())
    })
    .await;
    tasks.stop(Duration::from_secs(10)).await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_replica_that_only_makes_stitches_claims_nothing_else(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let body = json!({ "type": "text_process", "params": { "template": "x" } });
    alice
        .post("/media/tasks", body)
        .await
        .expect(StatusCode::CREATED);

    // So it claimed before it knew other types.
    let claimed = sqlx::query(
        "update media.jobs set state = 'leased', lease_owner = 'old', lease_until = now() + interval '1 minute',
            attempt = attempt + 1, fence = fence + 1 where state = 'ready'",
    );
    let claimed = claimed.execute(&app.platform.db).await.unwrap();

    assert_eq!(claimed.rows_affected(), 0);
    assert_eq!(claim(&app.media, 1).await.unwrap().len(), 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_cloud_function_that_goes_first_makes_what_could_be_made_here(db: PgPool) {
    let cloud = Vendor::start().await;
    let entry = json!({
        "ref": "cloud", "kind": "scf", "types": ["image_stitch"], "priority": -1, "secret": crate::vendor::SECRET,
        "secretId": "AKIDtest", "secretKey": "a key of the cloud", "region": "ap-guangzhou", "function": "compose",
        "endpoint": format!("{}/cloud", cloud.address),
    });
    let app = app(db, json!([entry])).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [9, 9, 9])).await;

    let id = alice.stitch(&key).await;
    app.until_all_end(&[&app]).await;

    let task = alice.task(&id).await;
    assert_eq!(
        (&task["status"], &task["steps"][0]["provider"]),
        (&json!("succeeded"), &json!("cloud"))
    );
    assert_eq!(cloud.submissions(), 1);
    drop(cloud);

    // It is gone: nothing was taken, so it is made here in the end.
    let id = alice.stitch(&key).await;
    let made = async {
        while alice.task(&id).await["completedAt"].is_null() {
            app.media.run_jobs().await.unwrap();
            app.platform.clock.advance(TimeDelta::seconds(1));
        }
    };
    tokio::time::timeout(Duration::from_secs(60), made)
        .await
        .unwrap();
    let task = alice.task(&id).await;
    assert_eq!(
        (&task["status"], &task["steps"][0]["provider"]),
        (&json!("succeeded"), &json!("local")),
        "{task}"
    );
}
