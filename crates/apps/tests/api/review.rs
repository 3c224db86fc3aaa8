//! Reviews: an app goes the one way to the shelf, and who decided what stays known.

use axum::body::Body;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{Reply, TestApp, User, form};
use testkit::package::{opaque, package};

async fn post(app: &TestApp, user: &User, path: &str, body: Value) -> Reply {
    let json = [("content-type", "application/json")];
    app.send(user, "POST", path, &json, Body::from(body.to_string()))
        .await
}

async fn uploaded(app: &TestApp, user: &User, name: &str, version: u32) -> String {
    let file = package(name, &version.to_string(), version);
    let stored = app.upload(user, form(Some(&file), &[]), 4096).await;
    let id = stored.expect(201).body["id"].clone();
    format!("/apps/{}", id.as_str().unwrap())
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_app_goes_to_the_shelf_by_the_reviewers_steps_alone(db: PgPool) {
    let app = TestApp::start(db.clone()).await;
    let (alice, bob, admin) = (
        app.user(&[]).await,
        app.user(&[]).await,
        app.user(&["admin"]).await,
    );
    let path = uploaded(&app, &alice, "com.example.a", 1).await;
    let step = async |user: &User, step: &str, comment: &str| {
        let body = json!({ "comment": comment });
        post(&app, user, &format!("{path}/{step}"), body).await
    };

    // Nobody sees it before, and nobody but reviewers decides.
    app.get(&bob, &path).await.expect(404);
    for name in [
        "approve",
        "reject",
        "request-changes",
        "publish",
        "unpublish",
    ] {
        step(&alice, name, "mine").await.refused(403, "FORBIDDEN");
    }
    step(&bob, "submit-review", "").await.expect(404);
    step(&alice, "submit-review", "")
        .await
        .refused(409, "CONFLICT");
    step(&admin, "publish", "").await.refused(409, "CONFLICT");

    step(&admin, "request-changes", " ")
        .await
        .refused(400, "VALIDATION_FAILED");
    let long = "x".repeat(1001);
    step(&admin, "reject", &long)
        .await
        .refused(400, "VALIDATION_FAILED");
    let back = step(&admin, "request-changes", "an icon is missing").await;
    assert_eq!(back.expect(200).body["status"], "uploading");
    step(&admin, "approve", "").await.refused(409, "CONFLICT");
    let again = step(&alice, "submit-review", "").await.expect(200);
    assert_eq!(again.body["status"], "pending_review");
    step(&admin, "reject", "no").await.expect(200);
    step(&alice, "submit-review", "please").await.expect(200);
    assert_eq!(
        step(&admin, "approve", "").await.expect(200).body["status"],
        "approved"
    );
    app.get(&bob, &path).await.expect(200);
    step(&bob, "submit-review", "")
        .await
        .refused(403, "FORBIDDEN");
    assert_eq!(
        step(&admin, "publish", "").await.expect(200).body["status"],
        "available"
    );
    assert_eq!(
        step(&admin, "unpublish", "").await.expect(200).body["status"],
        "unavailable"
    );
    app.get(&bob, &path).await.expect(404);

    let records = app.get(&admin, &format!("{path}/audit-records")).await;
    let records = records.expect(200).body;
    let actions: Vec<_> = records.as_array().unwrap().iter().rev().collect();
    let said: Vec<_> = actions
        .iter()
        .map(|it| it["action"].as_str().unwrap())
        .collect();
    let wanted = [
        "submit",
        "request_changes",
        "submit",
        "reject",
        "submit",
        "approve",
        "publish",
        "unpublish",
    ];
    assert_eq!(said, wanted);
    assert_eq!(actions[1]["comment"], "an icon is missing");
    assert_eq!(actions[1]["reviewerId"], json!(admin.id));
    let all = app
        .get(&admin, "/apps/audit-records?pageSize=3")
        .await
        .expect(200);
    assert_eq!(
        (
            &all.body["total"],
            all.body["data"].as_array().unwrap().len()
        ),
        (&json!(8), 3)
    );
    app.get(&alice, "/apps/audit-records")
        .await
        .refused(403, "FORBIDDEN");

    let told: Vec<Value> = sqlx::query_scalar(
        "select event->'data' from platform.outbox where event->>'type' = 'app.reviewed' and event->>'userId' = $1 order by id",
    )
    .bind(&alice.id)
    .fetch_all(&db)
    .await
    .unwrap();
    assert_eq!(told.len(), 7);
    assert_eq!(
        (&told[0]["status"], &told[0]["comment"]),
        (&json!("uploading"), &json!("an icon is missing"))
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn of_reviewers_that_decide_at_once_one_does(db: PgPool) {
    let app = TestApp::start(db.clone()).await;
    let (alice, admin) = (app.user(&[]).await, app.user(&["admin"]).await);
    let path = uploaded(&app, &alice, "com.example.a", 1).await;

    let (approve, reject) = (format!("{path}/approve"), format!("{path}/reject"));
    let steps = (0..12).map(|n| {
        let step = if n % 2 == 0 { &approve } else { &reject };
        post(&app, &admin, step, json!({ "comment": "so it is" }))
    });
    let replies = futures::future::join_all(steps).await;

    let done = replies.iter().filter(|reply| reply.status == 200).count();
    let late = replies.iter().filter(|reply| reply.status == 409).count();
    assert_eq!((done, late), (1, 11));
    let decided: i64 =
        sqlx::query_scalar("select count(*) from apps.reviews where action <> 'submit'")
            .fetch_one(&db)
            .await
            .unwrap();
    assert_eq!(decided, 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn apps_are_found_by_cursor_in_short_in_numbers_and_by_package(db: PgPool) {
    let app = TestApp::start(db.clone()).await;
    let (alice, bob, admin) = (
        app.user(&[]).await,
        app.user(&[]).await,
        app.user(&["admin"]).await,
    );
    for version in 1..=5 {
        let path = uploaded(&app, &alice, "com.example.a", version).await;
        if version < 4 {
            post(&app, &admin, &format!("{path}/approve"), json!({}))
                .await
                .expect(200);
        }
    }
    let other = uploaded(&app, &bob, "com.example.b", 1).await;
    app.get(&bob, &format!("{other}/download"))
        .await
        .expect(200);

    // What is uploaded meanwhile moves no page.
    let first = app
        .get(&alice, "/apps/cursor?limit=2")
        .await
        .expect(200)
        .body;
    uploaded(&app, &alice, "com.example.a", 9).await;
    let mut seen: Vec<Value> = first["data"].as_array().unwrap().clone();
    let mut next = first["nextCursor"].clone();
    while let Some(cursor) = next.as_str() {
        let page = app
            .get(&alice, &format!("/apps/cursor?limit=2&cursor={cursor}"))
            .await;
        let page = page.expect(200).body;
        seen.extend(page["data"].as_array().unwrap().iter().cloned());
        next = page["nextCursor"].clone();
    }
    let codes: Vec<_> = seen
        .iter()
        .map(|it| it["versionCode"].as_i64().unwrap())
        .collect();
    assert_eq!(codes, [5, 4, 3, 2, 1]);
    app.get(&alice, "/apps/cursor?cursor=x")
        .await
        .refused(400, "VALIDATION_FAILED");

    let short = app
        .get(&bob, "/apps/quick-list?search=example.a")
        .await
        .expect(200)
        .body;
    assert_eq!(short["total"], 3);
    assert_eq!(short["items"][0]["packageName"], "com.example.a");
    let stats = app.get(&admin, "/apps/stats").await.expect(200).body;
    assert_eq!(
        (&stats["total"], &stats["totalDownloads"]),
        (&json!(7), &json!(1))
    );
    assert!(
        stats["byStatus"]
            .as_array()
            .unwrap()
            .contains(&json!({ "status": "approved", "count": 3 }))
    );
    let top = app.get(&admin, "/apps/top?limit=1").await.expect(200).body;
    assert_eq!(
        (top.as_array().unwrap().len(), &top[0]["packageName"]),
        (1, &json!("com.example.b"))
    );

    let of = async |user: &User, what: &str| {
        app.get(user, &format!("/apps/package/com.example.a/{what}"))
            .await
    };
    assert_eq!(of(&bob, "versions").await.expect(200).body["total"], 3);
    assert_eq!(of(&bob, "latest").await.expect(200).body["versionCode"], 3);
    assert_eq!(
        of(&alice, "latest").await.expect(200).body["versionCode"],
        9
    );
    app.get(&bob, "/apps/package/com.example.none/latest")
        .await
        .expect(404);
    app.get(&bob, "/apps/package/nonsense/latest")
        .await
        .refused(400, "VALIDATION_FAILED");
    let waiting = app
        .get(&admin, "/apps/pending-review/list")
        .await
        .expect(200)
        .body;
    assert_eq!(
        (&waiting["total"], &waiting["data"][0]["versionCode"]),
        (&json!(4), &json!(4))
    );
    app.get(&alice, "/apps/pending-review/list")
        .await
        .refused(403, "FORBIDDEN");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn its_uploader_changes_what_is_said_of_an_app_and_nothing_else(db: PgPool) {
    let app = TestApp::start(db).await;
    let (alice, bob) = (app.user(&[]).await, app.user(&[]).await);
    let named = [("packageName", "com.example.a"), ("description", "old")];
    let stored = app
        .upload(&alice, form(Some(&opaque(1)), &named), 100)
        .await;
    let before = stored.expect(201).body;
    let path = format!("/apps/{}", before["id"].as_str().unwrap());
    let change = async |user: &User, body: Value| {
        let json = [("content-type", "application/json")];
        app.send(user, "PATCH", &path, &json, Body::from(body.to_string()))
            .await
    };

    let body = json!({ "name": "Game", "category": "game", "tags": ["a", "b"], "status": "available", "packageName": "com.x.y" });
    let after = change(&alice, body).await.expect(200).body;

    assert_eq!(
        (&after["name"], &after["category"], &after["tags"]),
        (&json!("Game"), &json!("game"), &json!(["a", "b"]))
    );
    for same in [
        "description",
        "status",
        "packageName",
        "sha256",
        "createdAt",
    ] {
        assert_eq!(after[same], before[same], "{same}");
    }
    change(&bob, json!({ "name": "Mine" })).await.expect(404);
    for (body, field) in [
        (json!({ "name": "" }), "name"),
        (json!({ "name": "a\0b" }), "name"),
        (json!({ "tags": vec!["x"; 21] }), "tags"),
        (json!({ "category": "war" }), "category"),
        (json!({ "description": "x".repeat(2001) }), "description"),
    ] {
        let refused = change(&alice, body).await;
        let text = String::from_utf8_lossy(&refused.bytes).into_owned();
        refused.refused(400, "VALIDATION_FAILED");
        assert!(text.contains(field), "{text}");
    }
}
