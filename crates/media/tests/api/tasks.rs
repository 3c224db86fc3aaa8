//! Tasks as clients see them: shapes, refusals, lists, cancelling.

use axum::body::Body;
use chrono::TimeDelta;
use futures::future::join_all;
use http::{Method, Request, StatusCode};
use serde_json::json;
use sqlx::PgPool;

use crate::app::{TestApp, picture, small};

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_task_shows_what_it_is(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [0, 0, 0])).await;

    let queued = alice
        .post("/media/tasks", small(&key))
        .await
        .expect(StatusCode::CREATED)
        .body;
    let id = queued["id"].as_str().unwrap();
    let now = app.platform.clock.now().to_string();
    let begun = json!({
        "id": id, "userId": "alice", "type": "image_stitch", "status": "queued", "priority": "normal", "progress": 0,
        "inputUrls": [key],
        "params": { "rows": 2, "columns": 2, "cell": 16, "gap": 2, "background": "#F5F5F5", "quality": 90 },
        "steps": [{ "index": 0, "type": "image_stitch", "provider": "local", "status": "queued", "attempts": 0 }],
        "resultUrls": [], "creditCost": 0, "refunded": false, "createdAt": now, "updatedAt": now,
    });
    assert_eq!(queued, begun);
    assert_eq!(alice.task(id).await, begun);

    app.platform.clock.advance(TimeDelta::seconds(1));
    app.media.run_jobs().await.unwrap();

    let later = app.platform.clock.now().to_string();
    let mut done = begun;
    done["status"] = json!("succeeded");
    done["progress"] = json!(100);
    done["resultUrls"] = json!([format!("/media/tasks/{id}/results/0")]);
    done["updatedAt"] = json!(later);
    done["completedAt"] = json!(later);
    done["steps"] = json!([{
        "index": 0, "type": "image_stitch", "provider": "local", "status": "succeeded", "attempts": 1,
        "startedAt": later, "completedAt": later,
    }]);
    assert_eq!(alice.task(id).await, done);
    assert_eq!(app.events(id).await, ["succeeded"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_cannot_be_made_is_refused_with_its_fields(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob) = (app.user("alice").await, app.user("bob").await);
    let key = alice.upload(picture(9, 9, [0, 0, 0])).await;
    let pending = alice.address(100, "image/jpeg").await.text("/key");
    let with = |field: &str, value: serde_json::Value| {
        let mut body = small(&key);
        body[field] = value;
        body
    };
    let cases = [
        (json!({}), vec!["type", "inputUrls"]),
        (with("type", json!("video_generate")), vec!["type"]),
        (with("type", json!("magic")), vec!["type"]),
        (with("priority", json!("urgent")), vec!["priority"]),
        (
            with("inputUrls", json!(["https://10.0.0.1/a.png"])),
            vec!["inputUrls[0]"],
        ),
        (
            with("inputUrls", json!(vec![key.clone(); 17])),
            vec!["inputUrls"],
        ),
        (with("inputUrls", json!("a")), vec!["inputUrls"]),
        (
            with(
                "params",
                json!({ "rows": 3, "columns": 2, "cell": 5000, "quality": 101 }),
            ),
            vec!["params.rows", "params.cell", "params.quality"],
        ),
        (
            with("params", json!({ "background": "red" })),
            vec!["params.background"],
        ),
        (with("params", json!({ "rows": -1 })), vec!["params.rows"]),
        (with("steps", json!([])), vec!["type"]),
        (with("featureId", json!("image_stitch")), vec!["type"]),
    ];

    for (body, fields) in cases {
        let reply = alice
            .post("/media/tasks", body.clone())
            .await
            .refused(400, "VALIDATION_FAILED");
        assert_eq!(reply.faults(), fields, "{body}");
    }
    let other_type = alice
        .post("/media/tasks", with("type", json!("basic_clean")))
        .await;
    assert!(
        other_type.body["message"]
            .as_str()
            .unwrap()
            .contains("no provider makes it"),
        "{}",
        other_type.body
    );
    for (user, key) in [
        (&alice, "input/alice/x/y.png"),
        (&alice, &pending),
        (&bob, &key),
    ] {
        let reply = user
            .post("/media/tasks", small(key))
            .await
            .refused(404, "NOT_FOUND");
        assert_eq!(reply.faults(), ["inputUrls[0]"]);
    }
    let stored: i64 = app
        .scalar("select count(*) from media.tasks where id <> $1", "")
        .await;
    assert_eq!(stored, 0);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn nobody_enters_without_a_token_or_another_users_task(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob, admin) = (
        app.user("alice").await,
        app.user("bob").await,
        app.admin().await,
    );
    let key = alice.upload(picture(9, 9, [0, 0, 0])).await;
    let id = alice.stitch(&key).await;
    app.media.run_jobs().await.unwrap();
    let (task, result) = (
        format!("/media/tasks/{id}"),
        format!("/media/tasks/{id}/results/0"),
    );
    let cancel = format!("{task}/cancel");

    let calls = [
        (Method::GET, task.as_str()),
        (Method::GET, &result),
        (Method::POST, &cancel),
        (Method::GET, "/media/tasks"),
        (Method::POST, "/media/tasks"),
        (Method::POST, "/media/uploads"),
        (Method::GET, "/media/features"),
    ];
    for (method, path) in calls {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(Body::empty())
            .unwrap();
        app.call(request).await.refused(401, "UNAUTHENTICATED");
    }
    bob.get(&task).await.refused(404, "NOT_FOUND");
    bob.get(&result).await.refused(404, "NOT_FOUND");
    bob.cancel(&id).await.refused(404, "NOT_FOUND");
    for path in [
        "/media/tasks/none",
        "/media/tasks/a%20b",
        &format!("{task}/results/1"),
        &format!("{task}/results/x"),
    ] {
        alice.get(path).await.refused(404, "NOT_FOUND");
    }
    admin.get(&task).await.expect(StatusCode::OK);
    admin.get(&result).await.expect(StatusCode::OK);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn lists_are_pages_newest_first_of_the_callers_own(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob, admin) = (
        app.user("alice").await,
        app.user("bob").await,
        app.admin().await,
    );
    let key = alice.upload(picture(9, 9, [0, 0, 0])).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(alice.stitch(&key).await);
    }
    alice.cancel(&ids[1]).await.expect(StatusCode::OK);
    ids.reverse();

    let page = alice
        .get("/media/tasks?pageSize=2")
        .await
        .expect(StatusCode::OK)
        .body;
    let shown: Vec<_> = page["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|task| task["id"].clone())
        .collect();
    assert_eq!(json!(shown), json!(ids[..2]));
    assert_eq!(page["items"], page["data"]);
    assert_eq!(
        (&page["total"], &page["totalPages"]),
        (&json!(3), &json!(2))
    );
    assert_eq!(page["data"][1]["steps"][0]["status"], "cancelled");

    for (query, total) in [
        ("?status=queued", 2),
        ("?status=cancelled&type=image_stitch", 1),
        ("?type=video_generate", 0),
        ("?page=2&pageSize=2", 3),
    ] {
        assert_eq!(
            alice.get(&format!("/media/tasks{query}")).await.body["total"],
            total,
            "{query}"
        );
    }
    assert_eq!(bob.get("/media/tasks").await.body["total"], 0);
    assert_eq!(
        admin.get("/media/tasks?userId=alice").await.body["total"],
        3
    );
    bob.get("/media/tasks?userId=alice")
        .await
        .refused(403, "FORBIDDEN");
    for query in ["?status=done", "?type=magic", "?page=0"] {
        alice
            .get(&format!("/media/tasks{query}"))
            .await
            .refused(400, "VALIDATION_FAILED");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_cancelled_task_is_never_made(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [0, 0, 0])).await;
    let id = alice.stitch(&key).await;

    let task = alice.cancel(&id).await.expect(StatusCode::OK).body;
    app.media.run_jobs().await.unwrap();

    assert_eq!(
        (&task["status"], &task["refunded"]),
        (&json!("cancelled"), &json!(false))
    );
    assert!(task["completedAt"].is_string());
    assert_eq!(alice.task(&id).await, task);
    alice.cancel(&id).await.refused(409, "CONFLICT");
    assert_eq!(app.events(&id).await, ["cancelled"]);
    assert_eq!(app.files("output"), 0);
    let change = sqlx::query("update media.tasks set status = 'succeeded'")
        .execute(&app.platform.db)
        .await;
    assert!(change.is_err(), "the database keeps what is final");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn one_key_creates_one_task_however_often_it_is_sent(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [0, 0, 0])).await;
    let create = |cell: u32| {
        let mut body = small(&key);
        body["params"]["cell"] = json!(cell);
        alice.send(Method::POST, "/media/tasks", Some(body), Some("k-1"))
    };

    let replies = join_all((0..6).map(|_| create(16))).await;

    let ids: Vec<_> = replies.iter().map(|reply| reply.text("/id")).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert!(
        replies
            .iter()
            .all(|reply| reply.status == StatusCode::CREATED)
    );
    assert_eq!(
        replies
            .iter()
            .filter(|reply| reply.headers.contains_key("idempotent-replayed"))
            .count(),
        5
    );
    create(17).await.refused(422, "IDEMPOTENCY_MISMATCH");
    assert_eq!(alice.get("/media/tasks").await.body["total"], 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn only_what_can_be_made_is_offered(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;

    let features = alice
        .get("/media/features")
        .await
        .expect(StatusCode::OK)
        .body;

    assert_eq!(features.as_array().unwrap().len(), 3);
    assert_eq!(
        (&features[0]["id"], &features[0]["isEnabled"]),
        (&json!("image_stitch"), &json!(true))
    );
    assert_eq!(
        features[0]["formSchema"]["properties"]["background"]["default"],
        "#F5F5F5"
    );
    assert_eq!(
        alice.get("/media/features/image_stitch").await.body,
        features[0]
    );
    alice
        .get("/media/features/video_generate")
        .await
        .refused(404, "NOT_FOUND");
}

#[test]
fn the_document_names_every_route() {
    let document = media::openapi();

    let mut paths: Vec<_> = document.paths.paths.keys().map(String::as_str).collect();
    paths.sort_unstable();
    assert_eq!(
        paths,
        [
            "/media/callbacks/{task_id}/{step_index}",
            "/media/features",
            "/media/features/{feature_id}",
            "/media/jobs",
            "/media/jobs/stats",
            "/media/providers",
            "/media/providers/{ref}/check",
            "/media/tasks",
            "/media/tasks/{task_id}",
            "/media/tasks/{task_id}/cancel",
            "/media/tasks/{task_id}/results/{index}",
            "/media/uploads",
            "/media/uploads/{ticket}",
        ]
    );
}
