//! Lists, counts and changes.

use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{TestApp, User, id};

fn names(list: &Value) -> Vec<&str> {
    let list = list.as_array().unwrap();
    list.iter()
        .map(|device| device["name"].as_str().unwrap())
        .collect()
}

async fn five(user: &User) {
    for (name, group) in [
        ("a1", "g"),
        ("b2", "g"),
        ("c3", "h"),
        ("d4", "h"),
        ("e5", "h"),
    ] {
        user.create(json!({ "name": name, "groupName": group }))
            .await;
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_list_is_an_array_or_a_page_newest_first(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob) = (app.user("alice", &[]).await, app.user("bob", &[]).await);
    five(&alice).await;
    bob.create(json!({ "name": "bobs" })).await;

    let array = alice.get("/devices").await.expect(StatusCode::OK).body;
    let page = alice
        .get("/devices?page=2&pageSize=2")
        .await
        .expect(StatusCode::OK)
        .body;

    assert_eq!(names(&array), ["e5", "d4", "c3", "b2", "a1"]);
    assert_eq!(names(&page["data"]), ["c3", "b2"]);
    assert_eq!(page["data"], page["items"]);
    assert_eq!(
        (
            &page["total"],
            &page["page"],
            &page["pageSize"],
            &page["totalPages"]
        ),
        (&json!(5), &json!(2), &json!(2), &json!(3))
    );
    assert_eq!(
        names(&alice.get("/devices?limit=2&offset=1").await.body),
        ["d4", "c3"]
    );
    let root = app.user("root", &["admin"]).await;
    assert_eq!(names(&root.get("/devices").await.body).len(), 6);
    assert_eq!(names(&root.get("/devices?userId=bob").await.body), ["bobs"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn filters_narrow_the_list(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    five(&alice).await;
    app.run_operations().await;
    alice
        .create(json!({ "name": "new_one", "providerType": "simulated" }))
        .await;

    for (query, expected) in [
        ("groupName=g", vec!["b2", "a1"]),
        ("status=creating", vec!["new_one"]),
        ("status=running&search=C", vec!["c3"]),
        ("search=_", vec!["new_one"]),
        ("search=%25", vec![]),
        ("providerType=simulated", vec!["new_one"]),
        ("tenantId=t", vec![]),
        ("userId=alice&groupName=h&search=4", vec!["d4"]),
    ] {
        let list = alice
            .get(&format!("/devices?{query}"))
            .await
            .expect(StatusCode::OK)
            .body;
        assert_eq!(names(&list), expected, "{query}");
    }
    for query in [
        "status=paused",
        "status=deleting",
        "providerType=x",
        "page=0",
        "limit=0",
        "offset=-1",
    ] {
        alice
            .get(&format!("/devices?{query}"))
            .await
            .refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn my_devices_are_sorted_as_asked(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    five(&alice).await;

    for (query, expected) in [
        ("", ["e5", "d4", "c3", "b2", "a1"]),
        ("sortBy=name&sortOrder=asc", ["a1", "b2", "c3", "d4", "e5"]),
        ("sortBy=name", ["e5", "d4", "c3", "b2", "a1"]),
        (
            "sortBy=createdAt&sortOrder=asc",
            ["a1", "b2", "c3", "d4", "e5"],
        ),
        (
            "sortBy=lastStartedAt&status=creating",
            ["e5", "d4", "c3", "b2", "a1"],
        ),
    ] {
        let page = alice
            .get(&format!("/devices/my?{query}"))
            .await
            .expect(StatusCode::OK)
            .body;
        assert_eq!(names(&page["items"]), expected, "{query}");
        assert_eq!(page["total"], 5);
    }
    for query in ["sortBy=id", "sortOrder=up", "status=x"] {
        alice
            .get(&format!("/devices/my?{query}"))
            .await
            .refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn devices_are_counted(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, root) = (
        app.user("alice", &[]).await,
        app.user("root", &["admin"]).await,
    );
    five(&alice).await;
    app.run_operations().await;
    alice.create(json!({ "name": "n" })).await;

    assert_eq!(
        alice.get("/devices/count").await.body,
        json!({ "count": 6 })
    );
    assert_eq!(
        alice.get("/devices/count?status=running").await.body,
        json!({ "count": 5 })
    );
    let stats =
        json!({ "total": 6, "running": 5, "stopped": 0, "error": 0, "idle": 0, "creating": 1 });
    assert_eq!(alice.get("/devices/my/stats").await.body, stats);
    assert_eq!(root.get("/devices/stats").await.body, stats);
    assert_eq!(root.get("/devices/my/stats").await.body["total"], 0);
    alice
        .get("/devices/stats")
        .await
        .refused(StatusCode::FORBIDDEN, "FORBIDDEN");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_change_keeps_what_it_does_not_name_and_ignores_the_status(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice
        .create(json!({ "name": "n", "description": "d", "tags": ["a"] }))
        .await;
    let path = format!("/devices/{}", id(&device));

    let change = json!({ "name": "m", "tags": [], "groupName": "g", "metadata": { "k": 1 }, "cpuCores": 8, "memoryMB": 1024,
        "storageMB": 2048, "status": "running", "userId": "bob" });
    let changed = alice
        .send("PATCH", &path, change)
        .await
        .expect(StatusCode::OK)
        .body;

    assert!(changed["message"].is_string());
    for (field, value) in [
        ("name", json!("m")),
        ("description", json!("d")),
        ("tags", json!([])),
        ("groupName", json!("g")),
        ("metadata", json!({ "k": 1 })),
        ("cpuCores", json!(8)),
        ("memoryMB", json!(1024)),
        ("storageMB", json!(2048)),
        ("status", json!("creating")),
        ("userId", json!("alice")),
    ] {
        assert_eq!(changed[field], value, "{field}");
        assert_eq!(alice.device(&device).await[field], value, "{field}");
    }
    alice
        .send("PATCH", &path, json!({}))
        .await
        .expect(StatusCode::OK);
    let refused = alice
        .send(
            "PATCH",
            &path,
            json!({ "name": "", "cpuCores": 17, "memoryMB": 1 }),
        )
        .await;
    let refused = refused.refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
    assert_eq!(refused.body["details"].as_array().unwrap().len(), 3);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_is_of_the_tenant_of_its_owner(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    let (alice, root) = (
        app.user("alice", &[]).await,
        app.user("root", &["admin"]).await,
    );
    let account = platform::testing::account(&app.platform, &[]).await;
    sqlx::query("update users.accounts set id = 'alice', tenant_id = 'acme' where id = $1")
        .bind(account)
        .execute(&db)
        .await
        .unwrap();
    let mine = alice.create(json!({ "name": "mine" })).await;
    root.create(json!({ "name": "other" })).await;

    let listed = root.get("/devices?tenantId=acme").await;
    let listed = listed.expect(StatusCode::OK).body;

    assert_eq!(names(&listed), ["mine"]);
    assert_eq!(alice.device(&mine).await["tenantId"], "acme");
}
