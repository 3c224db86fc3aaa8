//! Sending files in, and getting rid of them.

use axum::body::Body;
use chrono::TimeDelta;
use coordination::{Fence, Run};
use futures::future::join_all;
use http::StatusCode;
use serde_json::json;
use sqlx::PgPool;

use crate::app::{TestApp, picture};

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_address_takes_one_file_from_whoever_knows_it(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let file = picture(20, 20, [1, 2, 3]);

    let address = alice.address(file.len(), "image/png").await;
    let (url, key) = (address.text("/uploadUrl"), address.text("/key"));
    assert!(
        key.starts_with("input/alice/") && key.ends_with("/a_picture.png"),
        "{key}"
    );
    assert_eq!(address.body["method"], "PUT");
    assert_eq!(
        address.body["headers"],
        json!({ "Content-Type": "image/png" })
    );
    assert_eq!(
        address.text("/expiresAt"),
        (app.platform.clock.now() + TimeDelta::minutes(30)).to_string()
    );

    let stored = app.put(&url, file.clone()).await.expect(StatusCode::OK);
    assert_eq!(
        stored.body,
        json!({ "key": key, "contentType": "image/png", "size": file.len() })
    );
    assert_eq!(std::fs::read(app.object_of(&key).await).unwrap(), file);
    app.put(&url, file).await.refused(409, "CONFLICT");
    app.put(&format!("/media/uploads/{}", "0".repeat(64)), "x")
        .await
        .refused(404, "NOT_FOUND");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn of_many_that_come_at_once_one_is_taken(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let file = picture(20, 20, [1, 2, 3]);
    let address = alice.address(file.len(), "image/png").await;
    let url = address.text("/uploadUrl");

    let replies = join_all((0..8).map(|_| app.put(&url, file.clone()))).await;

    let taken = replies
        .iter()
        .filter(|reply| reply.status == StatusCode::OK)
        .count();
    assert_eq!(taken, 1);
    assert!(
        replies
            .iter()
            .all(|reply| [StatusCode::OK, StatusCode::CONFLICT].contains(&reply.status))
    );
    assert_eq!(app.files("input"), 1, "those that lost left nothing behind");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_not_what_was_announced_is_refused_and_may_be_sent_again(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let file = picture(20, 20, [1, 2, 3]);
    let url = alice
        .address(file.len(), "image/png")
        .await
        .text("/uploadUrl");

    app.put(&url, &b"\xFF\xD8\xFF\xE0 a jpeg"[..])
        .await
        .refused(415, "BAD_TYPE");
    app.put(&url, "<html>").await.refused(415, "BAD_TYPE");
    app.put(&url, Body::empty()).await.refused(415, "BAD_TYPE");
    app.put(&url, file[..file.len() - 1].to_vec())
        .await
        .refused(400, "VALIDATION_FAILED");
    app.put(&url, [file.clone(), vec![0]].concat())
        .await
        .refused(413, "TOO_LARGE");
    assert_eq!(app.files("input"), 0);

    app.put(&url, file).await.expect(StatusCode::OK);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_largest_file_is_ten_mebibytes(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let mut file = picture(20, 20, [1, 2, 3]);
    file.resize(10 << 20, 0);

    let url = alice
        .address(file.len(), "image/png")
        .await
        .text("/uploadUrl");
    app.put(&url, file).await.expect(StatusCode::OK);

    for body in [
        json!({ "fileName": "a", "contentType": "image/png", "size": (10 << 20) + 1 }),
        json!({ "fileName": "a", "contentType": "image/png", "size": 0 }),
    ] {
        let reply = alice
            .post("/media/uploads", body)
            .await
            .refused(400, "VALIDATION_FAILED");
        assert_eq!(reply.faults(), ["size"]);
    }
    let reply = alice
        .post(
            "/media/uploads",
            json!({ "fileName": "", "contentType": "image/gif", "size": 1 }),
        )
        .await;
    let mut faults = reply.faults();
    faults.sort_unstable();
    assert_eq!(faults, ["contentType", "fileName"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_address_ends_after_half_an_hour(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let file = picture(20, 20, [1, 2, 3]);
    let url = alice
        .address(file.len(), "image/png")
        .await
        .text("/uploadUrl");

    app.platform.clock.advance(TimeDelta::minutes(30));

    app.put(&url, file).await.refused(404, "NOT_FOUND");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_user_keeps_a_bounded_number_of_uploads(db: PgPool) {
    let app = TestApp::with(db, [("MEDIA_USER_UPLOADS", "3")]).await;
    let (alice, bob) = (app.user("alice").await, app.user("bob").await);
    let body = json!({ "fileName": "a", "contentType": "image/png", "size": 9 });

    let replies = join_all((0..8).map(|_| alice.post("/media/uploads", body.clone()))).await;

    assert_eq!(
        replies
            .iter()
            .filter(|reply| reply.status == StatusCode::CREATED)
            .count(),
        3
    );
    let full = alice
        .post("/media/uploads", body.clone())
        .await
        .refused(429, "RATE_LIMITED");
    assert!(full.headers.contains_key("retry-after"));
    bob.post("/media/uploads", body)
        .await
        .expect(StatusCode::CREATED);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn files_nobody_needs_are_deleted_and_others_stay(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let old = alice.upload(picture(9, 9, [0; 3])).await;
    let old_file = app.object_of(&old).await;
    alice.address(50, "image/png").await;
    let task = alice.stitch(&old).await;
    app.media.run_jobs().await.unwrap();
    // What a worker left that was killed between its file and its row.
    sqlx::query("update media.jobs set fence = 7")
        .execute(&app.platform.db)
        .await
        .unwrap();
    let lost = app.file(&format!("output/alice/{task}/5/0.jpg"));
    std::fs::create_dir_all(lost.parent().unwrap()).unwrap();
    std::fs::write(&lost, "late").unwrap();

    app.platform
        .clock
        .advance(TimeDelta::days(7) + TimeDelta::minutes(11));
    let alice = app.user("alice").await;
    let new = alice.upload(picture(9, 9, [0; 3])).await;
    let waiting = alice.address(50, "image/png").await.text("/uploadUrl");
    let jobs = app.media.cron_jobs();
    assert_eq!(
        (jobs[0].name, jobs[0].schedule.as_str()),
        ("media-cleanup", "0 * * * *")
    );
    for attempt in [1, 2] {
        let run = Run {
            job: "media-cleanup",
            fence_key: "cron:test".into(),
            slot: app.platform.clock.now().utc(),
            fence: Fence(1),
            attempt,
            cancelled: tokio_util::sync::CancellationToken::new(),
        };
        jobs[0].start(run).await.unwrap();
    }

    let kept: i64 = app
        .scalar(
            "select count(*) from media.uploads where user_id = $1",
            "alice",
        )
        .await;
    assert_eq!(kept, 2);
    assert!(!old_file.exists() && !lost.exists());
    assert!(app.object_of(&new).await.exists());
    app.put(&waiting, "x").await.refused(415, "BAD_TYPE");
    alice
        .get(&format!("/media/tasks/{task}/results/0"))
        .await
        .expect(StatusCode::OK);
    alice
        .post("/media/tasks", crate::app::small(&old))
        .await
        .refused(404, "NOT_FOUND");
}
