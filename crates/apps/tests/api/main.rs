//! The service from outside: packages go in whole or not at all, and come out as they went in.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

mod app;
mod bucket;
mod icon;
mod link;
mod on_device;
mod resumable;
mod review;
mod shared;

use axum::body::Body;
use chrono::TimeDelta;
use futures::{StreamExt, future, stream};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::PgPool;

use app::{BOUNDARY, TestApp, form};
use testkit::package::{archive, opaque, package};

async fn publish(db: &PgPool, id: &Value) {
    sqlx::query("update apps.apps set status = 'available' where id = $1")
        .bind(id.as_str())
        .execute(db)
        .await
        .unwrap();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_package_tells_its_name_and_version_and_is_readable_through_every_instance(db: PgPool) {
    let app = TestApp::start(db.clone()).await;
    let alice = app.user(&[]).await;
    let file = package("com.example.game", "2.1", 21);
    let fields = [
        ("category", "game"),
        ("tags", "fun, new"),
        ("packageName", "com.other.name"),
        ("versionCode", "9"),
    ];

    // Chunks of three bytes part the mark of the archive too.
    let stored = app
        .upload(&alice, form(Some(&file), &fields), 3)
        .await
        .expect(201)
        .body;

    let wanted = json!({
        "packageName": "com.example.game", "versionName": "2.1", "version": "2.1", "versionCode": 21, "isLatest": true,
        "status": "pending_review", "category": "game", "tags": ["fun", "new"], "uploaderId": alice.id,
        "size": file.len(), "sha256": hex::encode(Sha256::digest(&file)), "downloadCount": 0, "installCount": 0,
    });
    for (name, value) in wanted.as_object().unwrap() {
        assert_eq!(&stored[name], value, "{name}");
    }
    let path = format!("/apps/{}", stored["id"].as_str().unwrap());
    assert_eq!(app.get(&alice, &path).await.expect(200).body, stored);
    let fetched = app
        .get(&alice, &format!("{path}/download"))
        .await
        .expect(200);
    assert_eq!(fetched.bytes, file);
    let event: Value = sqlx::query_scalar("select event from platform.outbox")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(
        (&event["type"], &event["data"]["appId"]),
        (&json!("app.uploaded"), &stored["id"])
    );
    assert_eq!(app.files().len(), 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn where_the_manifest_cannot_be_read_the_form_tells(db: PgPool) {
    let app = TestApp::start(db).await;
    let alice = app.user(&[]).await;
    let fields = [
        ("name", "Game"),
        ("packageName", "com.example.b"),
        ("versionName", "3"),
        ("versionCode", "30"),
    ];

    let reply = app
        .upload(&alice, form(Some(&opaque(1)), &fields), 100)
        .await
        .expect(201)
        .body;

    assert_eq!(
        (&reply["name"], &reply["versionCode"]),
        (&json!("Game"), &json!(30))
    );
    app.upload(&alice, form(Some(&opaque(1)), &[]), 100)
        .await
        .refused(400, "VALIDATION_FAILED");
    assert_eq!(app.files().len(), 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_refused_leaves_nothing_behind(db: PgPool) {
    let app = TestApp::start(db.clone()).await;
    let alice = app.user(&[]).await;
    let named = [("packageName", "com.example.c")];
    let good = opaque(2);
    let large = archive(&[
        ("AndroidManifest.xml", b"x"),
        ("classes.dex", &[0; 100_000]),
    ]);
    let broken = &form(Some(&good), &named)[..120];
    let mut twice = form(Some(&good), &named);
    twice.truncate(twice.len() - format!("--{BOUNDARY}--\r\n").len());
    twice.extend(form(Some(&good), &named));
    let many: Vec<_> = (0..40).map(|_| ("x", "y")).collect();
    let long = "x".repeat(9_000);

    for (form, status, code) in [
        (form(Some(b"no archive at all"), &named), 415, "BAD_TYPE"),
        (form(Some(b""), &named), 415, "BAD_TYPE"),
        (form(Some(b"PK"), &named), 415, "BAD_TYPE"),
        (
            form(Some(b"PK\x03\x04 and then nothing"), &named),
            415,
            "BAD_TYPE",
        ),
        (
            form(Some(&archive(&[("readme", b"x")])), &named),
            415,
            "BAD_TYPE",
        ),
        (
            form(Some(&package("../../etc", "1", 1)), &named),
            415,
            "BAD_TYPE",
        ),
        (form(Some(&large), &named), 413, "TOO_LARGE"),
        (form(None, &named), 400, "VALIDATION_FAILED"),
        (
            form(Some(&good), &[("packageName", "nonsense")]),
            400,
            "VALIDATION_FAILED",
        ),
        (
            form(
                Some(&good),
                &[("packageName", "com.a.b"), ("versionCode", "-1")],
            ),
            400,
            "VALIDATION_FAILED",
        ),
        (
            form(
                Some(&good),
                &[("packageName", "com.a.b"), ("category", "war")],
            ),
            400,
            "VALIDATION_FAILED",
        ),
        (
            form(Some(&good), &[("packageName", "com.a.b"), ("name", "a\0b")]),
            400,
            "VALIDATION_FAILED",
        ),
        (
            form(Some(&good), &[("description", &long)]),
            400,
            "VALIDATION_FAILED",
        ),
        (form(Some(&good), &many), 400, "VALIDATION_FAILED"),
        (broken.to_vec(), 400, "VALIDATION_FAILED"),
        (twice, 400, "VALIDATION_FAILED"),
    ] {
        app.upload(&alice, form, 1000).await.refused(status, code);
    }
    let json = app.send(
        &alice,
        "POST",
        "/apps/upload",
        &[("content-type", "application/json")],
        Body::from("{}"),
    );
    json.await.refused(415, "BAD_TYPE");
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let announced = [
        ("content-type", kind.as_str()),
        ("content-length", "900000000"),
    ];
    app.send(&alice, "POST", "/apps/upload", &announced, Body::empty())
        .await
        .refused(413, "TOO_LARGE");

    nothing_left(&app).await;
    let rows: i64 = sqlx::query_scalar("select count(*) from apps.apps")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(rows, 0);
}

/// What an upload wrote aside is deleted by another thread.
async fn nothing_left(app: &TestApp) {
    let ends = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !app.files().is_empty() {
        assert!(std::time::Instant::now() < ends, "{:?}", app.files());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_upload_that_breaks_off_leaves_nothing_visible(db: PgPool) {
    let app = TestApp::start(db).await;
    let alice = app.user(&[]).await;
    let form = form(Some(&package("com.example.d", "1", 1)), &[]);
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let headers = [("content-type", kind.as_str())];

    // The connection breaks in the middle of the file.
    let half = bytes::Bytes::copy_from_slice(&form[..form.len() / 2]);
    let breaks = stream::iter([Ok(half.clone()), Err(std::io::Error::other("reset"))]);
    let reply = app
        .send(
            &alice,
            "POST",
            "/apps/upload",
            &headers,
            Body::from_stream(breaks),
        )
        .await;
    reply.refused(400, "VALIDATION_FAILED");
    nothing_left(&app).await;

    // The client is gone, and the server drops the request.
    let sent = std::sync::Arc::new(tokio::sync::Notify::new());
    let told = sent.clone();
    let stalls = stream::iter([Ok::<_, std::io::Error>(half)])
        .chain(stream::once(async move { told.notify_one() }).then(|()| future::pending()));
    tokio::select! {
        reply = app.send(&alice, "POST", "/apps/upload", &headers, Body::from_stream(stalls)) => panic!("{reply:?}"),
        () = sent.notified() => {}
    }
    nothing_left(&app).await;
    assert_eq!(
        app.get(&alice, "/apps/count").await.expect(200).body["count"],
        0
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn of_one_version_sent_by_many_at_once_one_is_stored(db: PgPool) {
    let app = TestApp::start(db).await;
    let alice = app.user(&[]).await;
    let file = package("com.example.e", "1", 1);

    let replies =
        future::join_all((0..6).map(|_| app.upload(&alice, form(Some(&file), &[]), 500))).await;

    let mut statuses: Vec<_> = replies.iter().map(|reply| reply.status.as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409, 409, 409]);
    assert_eq!(app.files().len(), 1);
    let next = app
        .upload(
            &alice,
            form(Some(&package("com.example.e", "2", 2)), &[]),
            500,
        )
        .await
        .expect(201)
        .body;
    assert_eq!(next["isLatest"], true);
    let listed = app.get(&alice, "/apps").await.expect(200).body;
    let latest: Vec<_> = listed["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|app| app["isLatest"].clone())
        .collect();
    assert_eq!(latest, [true, false]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn plain_users_see_their_own_and_what_is_published(db: PgPool) {
    let app = TestApp::start(db.clone()).await;
    let (alice, bob, root) = (
        app.user(&[]).await,
        app.user(&[]).await,
        app.user(&["admin"]).await,
    );
    let mut ids = Vec::new();
    for (user, name) in [
        (&alice, "com.example.f"),
        (&alice, "com.example_g"),
        (&bob, "com.example.h"),
    ] {
        ids.push(
            app.upload(user, form(Some(&package(name, "1", 1)), &[]), 500)
                .await
                .expect(201)
                .body["id"]
                .clone(),
        );
    }
    publish(&db, &ids[1]).await;
    let paths: Vec<String> = ids
        .iter()
        .map(|id| format!("/apps/{}", id.as_str().unwrap()))
        .collect();

    for (user, total) in [(&alice, 3 - 1), (&bob, 2), (&root, 3)] {
        let page = app
            .get(user, "/apps?pageSize=1&page=2")
            .await
            .expect(200)
            .body;
        assert_eq!(
            (&page["total"], &page["totalPages"]),
            (&json!(total), &json!(total))
        );
        assert_eq!(
            (page["data"].as_array().unwrap().len(), &page["data"]),
            (1, &page["items"])
        );
        assert_eq!(
            app.get(user, "/apps/count").await.expect(200).body["count"],
            total
        );
    }
    for (filter, total) in [
        ("search=EXAMPLE_", 1),
        ("search=%25", 0),
        ("status=available", 1),
        ("status=uploading", 0),
        ("category=game", 0),
        ("category=other", 3),
    ] {
        assert_eq!(
            app.get(&root, &format!("/apps?{filter}"))
                .await
                .expect(200)
                .body["total"],
            total,
            "{filter}"
        );
    }
    for bad in [
        "status=lost",
        "category=war",
        "page=0",
        "pageSize=x",
        "search=%00",
    ] {
        app.get(&root, &format!("/apps?{bad}"))
            .await
            .refused(400, "VALIDATION_FAILED");
    }
    app.get(&bob, &paths[0]).await.refused(404, "NOT_FOUND");
    app.get(&bob, &format!("{}/download", paths[0]))
        .await
        .refused(404, "NOT_FOUND");
    app.get(&bob, &paths[1]).await.expect(200);
    app.get(&root, &paths[0]).await.expect(200);
    // What everybody may see is still its owner's.
    app.send(&bob, "DELETE", &paths[1], &[], Body::empty())
        .await
        .refused(404, "NOT_FOUND");
    app.send(&alice, "DELETE", &paths[1], &[], Body::empty())
        .await
        .expect(200);
    app.send(&alice, "DELETE", &paths[1], &[], Body::empty())
        .await
        .refused(404, "NOT_FOUND");
    app.send(&root, "DELETE", &paths[2], &[], Body::empty())
        .await
        .expect(200);
    app.get(&bob, &paths[2]).await.refused(404, "NOT_FOUND");
    assert_eq!(app.files().len(), 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn apps_are_listed_by_the_tenant_of_their_uploaders_as_far_as_they_may_be_seen(db: PgPool) {
    let app = TestApp::start(db.clone()).await;
    let (acme, acme_too, other) = (
        app.tenant("acme").await,
        app.tenant("acme").await,
        app.tenant("other").await,
    );
    let root = app.user(&["admin"]).await;
    for (user, name) in [
        (&acme, "com.example.a"),
        (&acme_too, "com.example.b"),
        (&other, "com.example.c"),
        (&root, "com.example.d"),
    ] {
        let form = form(Some(&package(name, "1", 1)), &[]);
        app.upload(user, form, 500).await.expect(201);
    }

    for (user, tenant, total) in [
        (&root, "acme", 2),
        (&root, "other", 1),
        (&root, "none", 0),
        // To be of one tenant opens nothing.
        (&acme, "acme", 1),
        (&acme, "other", 0),
    ] {
        let query = format!("tenantId={tenant}");
        let page = app.get(user, &format!("/apps?{query}")).await;
        assert_eq!(page.expect(200).body["total"], total, "{tenant}");
        let cursor = app.get(user, &format!("/apps/cursor?{query}")).await;
        assert_eq!(cursor.expect(200).body["count"], total, "{tenant}");
        let count = app.get(user, &format!("/apps/count?{query}")).await;
        assert_eq!(count.expect(200).body["count"], total, "{tenant}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_package_is_fetched_whole_in_ranges_or_not_again(db: PgPool) {
    let app = TestApp::start(db).await;
    let alice = app.user(&[]).await;
    let file = package("com.example.i", "1", 1);
    let stored = app
        .upload(&alice, form(Some(&file), &[]), 500)
        .await
        .expect(201)
        .body;
    let path = stored["downloadUrl"].as_str().unwrap().to_owned();
    let etag = format!("\"{}\"", stored["sha256"].as_str().unwrap());
    let size = file.len();

    let whole = app.get(&alice, &path).await.expect(200);
    assert_eq!(
        (whole.header("etag"), whole.header("accept-ranges")),
        (etag.as_str(), "bytes")
    );
    assert_eq!(whole.header("content-length"), size.to_string());
    for (range, from, to) in [
        ("bytes=0-9", 0, 10),
        ("bytes=100-", 100, size),
        ("bytes=-7", size - 7, size),
    ] {
        let part = app
            .fetch(&alice, &path, &[("range", range), ("if-range", &etag)])
            .await
            .expect(206);
        assert_eq!(
            part.header("content-range"),
            format!("bytes {from}-{}/{size}", to - 1)
        );
        assert_eq!(part.bytes, file[from..to], "{range}");
    }
    let beyond = app
        .fetch(
            &alice,
            &path,
            &[("range", &format!("bytes=10-{}", size + 99))],
        )
        .await
        .expect(206);
    assert_eq!(beyond.bytes, file[10..]);
    let outside = app
        .fetch(&alice, &path, &[("range", &format!("bytes={size}-"))])
        .await
        .expect(416);
    assert_eq!(outside.header("content-range"), format!("bytes */{size}"));
    for ignored in [
        [("range", "bytes=5-1")].as_slice(),
        &[("range", "bytes=0-1"), ("if-range", "\"other\"")],
    ] {
        assert_eq!(
            app.fetch(&alice, &path, ignored).await.expect(200).bytes,
            file
        );
    }
    for known in [etag.clone(), format!("\"x\", W/{etag}"), "*".to_owned()] {
        let reply = app
            .fetch(&alice, &path, &[("if-none-match", &known)])
            .await
            .expect(304);
        assert!(reply.bytes.is_empty() && reply.header("etag") == etag);
    }
    app.send(&alice, "HEAD", &path, &[], Body::empty())
        .await
        .expect(200);

    let after = app
        .get(&alice, &format!("/apps/{}", stored["id"].as_str().unwrap()))
        .await
        .expect(200)
        .body;
    assert_eq!(after["downloadCount"], 3);
    assert_eq!(after["updatedAt"], stored["updatedAt"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn objects_that_no_app_names_are_swept_after_a_day(db: PgPool) {
    let app = TestApp::start(db.clone()).await;
    let alice = app.user(&[]).await;
    for name in ["com.example.j", "com.example.k"] {
        app.upload(&alice, form(Some(&package(name, "1", 1)), &[]), 500)
            .await
            .expect(201);
    }
    // A replica died between the row's end and the object's.
    sqlx::query("delete from apps.apps where package_name = 'com.example.j'")
        .execute(&db)
        .await
        .unwrap();

    app.state.sweep().await.unwrap();
    assert_eq!(app.files().len(), 2);
    app.platform.clock.advance(TimeDelta::days(2));
    app.state.sweep().await.unwrap();

    assert_eq!(app.files().len(), 1);
    let alive: String = sqlx::query_scalar("select object_key from apps.apps")
        .fetch_one(&db)
        .await
        .unwrap();
    assert!(app.files()[0].ends_with(&alive));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn nobody_unknown_gets_in(db: PgPool) {
    let app = TestApp::start(db.clone()).await;
    let alice = app.user(&[]).await;
    sqlx::query("delete from platform.sessions")
        .execute(&db)
        .await
        .unwrap();

    for path in ["/apps", "/apps/count", "/apps/x", "/apps/x/download"] {
        app.get(&alice, path).await.refused(401, "UNAUTHENTICATED");
    }
    app.upload(
        &alice,
        form(Some(&package("com.example.l", "1", 1)), &[]),
        500,
    )
    .await
    .refused(401, "UNAUTHENTICATED");
    assert!(app.files().is_empty());
    assert!(apps::openapi().paths.paths.contains_key("/apps/upload"));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_service_gets_the_packages_that_its_user_may_see_and_nobody_else_does(db: PgPool) {
    let app = TestApp::start(db.clone()).await;
    let (alice, bob, root) = (
        app.user(&[]).await,
        app.user(&[]).await,
        app.user(&["admin"]).await,
    );
    let file = package("com.example.game", "2.1", 21);
    let stored = app.upload(&alice, form(Some(&file), &[]), 4096).await;
    let id = stored.expect(201).body["id"].clone();
    let path = format!("/internal/apps/{}/package", id.as_str().unwrap());
    let (of_alice, of_bob) = (
        format!("?userId={}", alice.id),
        format!("?userId={}", bob.id),
    );

    for query in [&*of_alice, ""] {
        let given = app.fetch_as_service(&path, query).await.expect(200);
        assert!(given.bytes == file);
        assert_eq!(given.header("x-cloudphone-package"), "com.example.game");
        assert_eq!(given.header("content-length"), file.len().to_string());
    }
    let unseen = app.fetch_as_service(&path, &of_bob).await;
    unseen.refused(404, "NOT_FOUND");
    for user in [&alice, &root] {
        app.get(user, &path).await.refused(401, "UNAUTHENTICATED");
    }

    publish(&db, &id).await;
    app.fetch_as_service(&path, &of_bob).await.expect(200);
}
