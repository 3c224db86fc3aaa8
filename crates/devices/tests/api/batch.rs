//! Many devices in one call, groups, and templates.

use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{TestApp, User, id, text};

use devices::quota::Limit;

async fn stopped(user: &User, count: usize) -> Vec<Value> {
    let mut devices = Vec::new();
    for _ in 0..count {
        devices.push(
            user.create(json!({ "name": "n", "autoStart": false }))
                .await,
        );
    }
    devices
}

async fn batch(user: &User, what: &str, body: Value) -> Value {
    let answer = user.post(&format!("/devices/batch/{what}"), body).await;
    answer.expect(StatusCode::OK).body
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn each_device_of_a_batch_is_checked_and_done_alone(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob) = (app.user("alice", &[]).await, app.user("bob", &[]).await);
    let own = stopped(&alice, 3).await;
    let foreign = stopped(&bob, 1).await.remove(0);
    app.run_operations().await;

    let ids = json!([
        own[0]["id"],
        foreign["id"],
        own[1]["id"],
        own[0]["id"],
        "none"
    ]);
    let report = batch(&alice, "start", json!({ "ids": ids, "maxConcurrency": 2 })).await;

    assert_eq!(
        (&report["total"], &report["succeeded"], &report["failed"]),
        (&json!(4), &json!(2), &json!(2))
    );
    let results = report["results"].as_array().unwrap();
    let told: Vec<_> = results
        .iter()
        .map(|result| (result["deviceId"].clone(), result["success"].clone()))
        .collect();
    assert_eq!(
        told,
        [
            (own[0]["id"].clone(), json!(true)),
            (foreign["id"].clone(), json!(false)),
            (own[1]["id"].clone(), json!(true)),
            (json!("none"), json!(false)),
        ]
    );
    assert!(text(&results[1], "error").contains("not found"), "{report}");
    app.run_operations().await;
    let ids = json!([own[0]["id"], own[1]["id"], own[2]["id"], foreign["id"]]);
    let statuses = batch(&alice, "status", json!({ "deviceIds": ids })).await;
    assert_eq!(
        statuses,
        json!({ (text(&own[0], "id")): "running", (text(&own[1], "id")): "running", (text(&own[2], "id")): "stopped" })
    );

    for (what, status) in [
        ("restart", "running"),
        ("stop", "stopped"),
        ("start", "running"),
        ("reboot", "running"),
    ] {
        let report = batch(&alice, what, json!({ "ids": [own[0]["id"]] })).await;
        assert_eq!(report["succeeded"], 1, "{report}");
        app.run_operations().await;
        assert_eq!(alice.status(&own[0]).await, status, "{what}");
    }
    let operate = json!({ "operation": "stop", "ids": [own[0]["id"]] });
    assert_eq!(batch(&alice, "operate", operate).await["succeeded"], 1);
    let report = batch(
        &alice,
        "delete",
        json!({ "ids": [own[0]["id"], foreign["id"]] }),
    )
    .await;
    assert_eq!(
        (
            &report["succeeded"],
            &report["sagaIds"].as_array().unwrap().len()
        ),
        (&json!(1), &1)
    );
    alice
        .get(&format!("/devices/{}", id(&own[0])))
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");

    let many: Vec<_> = (0..501).map(|number| format!("d{number}")).collect();
    for body in [
        json!({}),
        json!({ "ids": [] }),
        json!({ "ids": many }),
        json!({ "ids": ["d"], "maxConcurrency": 51 }),
    ] {
        let answer = alice.post("/devices/batch/start", body).await;
        answer.refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_batch_makes_as_many_devices_as_the_quota_allows_and_tells_how_it_goes(db: PgPool) {
    let app = TestApp::with(db, |config| config.quota.0.extend([(Limit::Devices, 12)])).await;
    let alice = app.user("alice", &[]).await;

    let body = json!({ "count": 30, "namePrefix": "farm", "cpuCores": 1, "autoStart": false, "groupName": "g" });
    let answer = alice
        .post("/devices/batch/create", body)
        .await
        .expect(StatusCode::CREATED);

    let report = answer.body;
    assert_eq!(
        (&report["total"], &report["succeeded"], &report["failed"]),
        (&json!(30), &json!(12), &json!(18))
    );
    let results = report["results"].as_array().unwrap();
    let names: Vec<_> = results.iter().map(|result| text(result, "name")).collect();
    let expected: Vec<_> = (1..=30).map(|number| format!("farm-{number}")).collect();
    assert_eq!(names, expected);
    for result in results {
        let error = text(result, "error");
        match result["success"] == true {
            true => assert!(result["deviceId"].is_string(), "{result}"),
            false => assert!(
                error.contains("quota") && error.contains("12 used"),
                "{result}"
            ),
        }
    }
    assert_eq!(alice.get("/devices/count").await.body["count"], 12);
    let told: Vec<Value> = app
        .events()
        .await
        .into_iter()
        .filter(|event| event["type"] == "device.batch_progressed")
        .collect();
    assert_eq!(told.len(), 10);
    assert!(
        told.iter()
            .any(|event| event["data"]["done"] == 30 && event["data"]["failed"] == 18),
        "{told:?}"
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_group_names_its_devices_and_no_others(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob) = (app.user("alice", &[]).await, app.user("bob", &[]).await);
    let member = json!({ "name": "n", "autoStart": false, "groupName": "lab" });
    let inside = alice.create(member.clone()).await;
    let outside = stopped(&alice, 1).await.remove(0);
    let other = json!({ "name": "n", "autoStart": false, "groupName": "rack" });
    let elsewhere = alice.create(other).await;
    let foreign = bob.create(member).await;

    let none = batch(&alice, "delete", json!({ "groupName": "none" })).await;
    let report = batch(&alice, "delete", json!({ "groupName": "lab" })).await;

    assert_eq!(none["total"], 0, "{none}");
    assert_eq!(
        (&report["total"], &report["results"][0]["deviceId"]),
        (&json!(1), &inside["id"])
    );
    alice.device(&outside).await;
    alice.device(&elsewhere).await;
    bob.device(&foreign).await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_batch_that_comes_again_with_its_key_makes_only_what_is_missing(db: PgPool) {
    let app = TestApp::with(db, |config| config.quota.0.extend([(Limit::Devices, 3)])).await;
    let alice = app.user("alice", &[]).await;
    let path = "/devices/batch/create";
    let body = json!({ "count": 4, "autoStart": false });
    let ask = async || {
        let key = Some("9a51");
        let answer = alice.send_with("POST", path, body.clone(), key).await;
        answer.expect(StatusCode::CREATED).body
    };
    let made = |report: &Value| -> Vec<String> {
        let results = report["results"].as_array().unwrap().iter();
        let made = results.filter(|result| result["success"] == true);
        made.map(|result| text(result, "deviceId")).collect()
    };

    let (first, again) = (ask().await, ask().await);

    let (first, again) = (made(&first), made(&again));
    assert_eq!(first.len(), 3);
    assert_eq!(first, again);
    assert_eq!(alice.get("/devices/count").await.body["count"], 3);
    let gone = json!({ "id": first[0] });
    alice.delete(&gone).await.expect(StatusCode::OK);
    let whole = made(&ask().await);
    assert_eq!(whole.len(), 4, "{whole:?}");
    assert_eq!(alice.get("/devices/count").await.body["count"], 3);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_a_batch_asks_behind_an_operation_waits_there_and_is_not_taken_back(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(json!({ "name": "n" })).await;

    let report = batch(&alice, "stop", json!({ "ids": [device["id"]] })).await;
    assert_eq!(report["succeeded"], 1, "{report}");
    app.run_operations().await;

    assert_eq!(alice.status(&device).await, "stopped");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn groups_are_made_renamed_and_removed_with_their_devices(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob) = (app.user("alice", &[]).await, app.user("bob", &[]).await);
    let devices = stopped(&alice, 2).await;
    let group = alice
        .post("/devices/groups", json!({ "name": "lab", "tags": ["a"] }))
        .await;
    let group = group.expect(StatusCode::CREATED).body;
    assert_eq!(
        (&group["deviceCount"], &group["tags"]),
        (&json!(0), &json!(["a"]))
    );
    let again = alice
        .post("/devices/groups", json!({ "name": "lab" }))
        .await;
    again.refused(StatusCode::CONFLICT, "CONFLICT");
    bob.post("/devices/groups", json!({ "name": "lab" }))
        .await
        .expect(StatusCode::CREATED);

    let ids = json!([devices[0]["id"], devices[1]["id"], "none"]);
    let body = json!({ "deviceIds": ids, "groupName": "lab" });
    let put = alice
        .send("PATCH", "/devices/batch/groups/update", body.clone())
        .await;
    assert_eq!(put.expect(StatusCode::OK).body["updated"], 2);
    assert_eq!(
        bob.send("PATCH", "/devices/batch/groups/update", body)
            .await
            .body["updated"],
        0
    );
    let path = format!("/devices/groups/{}", text(&group, "id"));
    bob.send("PATCH", &path, json!({ "name": "x" }))
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    let renamed = alice
        .send("PATCH", &path, json!({ "name": "rack" }))
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        (&renamed["name"], &renamed["deviceCount"]),
        (&json!("rack"), &json!(2))
    );
    assert_eq!(alice.device(&devices[0]).await["groupName"], "rack");
    let listed = alice
        .get("/devices/groups")
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        (&listed[0]["name"], &listed[0]["deviceCount"]),
        (&json!("rack"), &json!(2))
    );

    bob.send("DELETE", &path, Value::Null)
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    alice
        .send("DELETE", &path, Value::Null)
        .await
        .expect(StatusCode::OK);
    alice
        .send("DELETE", &path, Value::Null)
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    assert_eq!(alice.device(&devices[0]).await["groupName"], Value::Null);
    assert_eq!(alice.get("/devices/groups").await.body, json!([]));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn devices_are_made_of_own_and_public_templates(db: PgPool) {
    let app = TestApp::with(db, |config| config.quota.0.extend([(Limit::Devices, 4)])).await;
    let (alice, bob) = (app.user("alice", &[]).await, app.user("bob", &[]).await);
    let body = json!({ "name": "small", "cpuCores": 1, "memoryMB": 1024, "category": "gaming", "tags": ["t"] });
    let template = alice
        .post("/templates", body)
        .await
        .expect(StatusCode::CREATED)
        .body;
    assert_eq!(
        (
            &template["storageMB"],
            &template["isPublic"],
            &template["usageCount"],
            &template["createdBy"]
        ),
        (&json!(10_240), &json!(false), &json!(0), &json!("alice"))
    );
    let path = format!("/templates/{}", text(&template, "id"));

    // Another user finds it only when it is public, and never changes it.
    bob.get(&path)
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    bob.post(&format!("{path}/create-device"), json!({}))
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    alice
        .send("PATCH", &path, json!({ "isPublic": true, "dpi": 240 }))
        .await
        .expect(StatusCode::OK);
    assert_eq!(bob.get(&path).await.expect(StatusCode::OK).body["dpi"], 240);
    bob.send("PATCH", &path, json!({ "name": "x" }))
        .await
        .refused(StatusCode::FORBIDDEN, "FORBIDDEN");
    bob.send("DELETE", &path, Value::Null)
        .await
        .refused(StatusCode::FORBIDDEN, "FORBIDDEN");

    let made = bob
        .post(
            &format!("{path}/create-device"),
            json!({ "deviceName": "one", "memoryMB": 2048 }),
        )
        .await;
    let made = made.expect(StatusCode::CREATED).body;
    assert_eq!(
        (
            &made["name"],
            &made["userId"],
            &made["cpuCores"],
            &made["memoryMB"],
            &made["dpi"],
            &made["tags"]
        ),
        (
            &json!("one"),
            &json!("bob"),
            &json!(1),
            &json!(2048),
            &json!(240),
            &json!(["t"])
        )
    );
    assert!(
        made["sagaId"].is_string() && made["device"]["id"] == made["id"],
        "{made}"
    );
    let many = bob
        .post(
            &format!("{path}/batch-create"),
            json!({ "count": 5, "namePrefix": "p" }),
        )
        .await;
    assert_eq!(
        many.expect(StatusCode::CREATED)
            .body
            .as_array()
            .unwrap()
            .len(),
        3
    );
    // Asked again with its key, it makes nothing that counts.
    for _ in 0..2 {
        let body = json!({ "count": 1, "namePrefix": "q" });
        let path = format!("{path}/batch-create");
        let again = app.user("carol", &[]).await;
        let made = again.send_with("POST", &path, body, Some("key")).await;
        made.expect(StatusCode::CREATED);
    }
    assert_eq!(bob.get(&path).await.body["usageCount"], 5);
    let none = bob
        .post(&format!("{path}/batch-create"), json!({ "count": 2 }))
        .await;
    none.refused(StatusCode::FORBIDDEN, "QUOTA_EXCEEDED");
    assert_eq!(bob.get(&path).await.body["usageCount"], 5);

    let of_device = format!("/templates/from-device/{}", id(&made));
    alice
        .post(&of_device, json!({ "name": "copy" }))
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    let copy = bob
        .post(&of_device, json!({ "name": "copy" }))
        .await
        .expect(StatusCode::CREATED)
        .body;
    assert_eq!(
        (&copy["memoryMB"], &copy["category"]),
        (&json!(2048), &json!("custom"))
    );

    let names = |page: &Value| -> Vec<String> {
        page["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| text(one, "name"))
            .collect()
    };
    let page = bob.get("/templates").await.expect(StatusCode::OK).body;
    assert_eq!(
        (names(&page), &page["total"]),
        (vec!["copy".to_owned(), "small".to_owned()], &json!(2))
    );
    for (query, expected) in [
        ("/templates?category=gaming", "small"),
        ("/templates?isPublic=false", "copy"),
        ("/templates?search=COP", "copy"),
        ("/templates/search?keyword=mall", "small"),
    ] {
        assert_eq!(
            names(&bob.get(query).await.expect(StatusCode::OK).body),
            [expected],
            "{query}"
        );
    }
    let popular = bob
        .get("/templates/popular?limit=1")
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        (popular.as_array().unwrap().len(), &popular[0]["name"]),
        (1, &json!("small"))
    );
    let stats = bob
        .get("/templates/stats")
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        stats,
        json!({ "total": 2, "public": 1, "private": 1, "totalUsage": 5, "byCategory": { "custom": 1, "gaming": 1 } })
    );

    alice
        .send("DELETE", &path, Value::Null)
        .await
        .expect(StatusCode::OK);
    alice
        .get(&path)
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    let wrong = json!({ "name": "x", "cpuCores": 17, "resolution": "wide", "category": "none" });
    let wrong = alice
        .post("/templates", wrong)
        .await
        .refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
    assert_eq!(
        wrong.body["details"].as_array().unwrap().len(),
        3,
        "{}",
        wrong.body
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_user_has_so_many_groups_and_templates_and_no_more(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    sqlx::raw_sql(
        "insert into devices.groups (id, user_id, name, created_at, updated_at)
        select 'g' || n, 'alice', 'g' || n, now(), now() from generate_series(1, 499) n;
        insert into devices.templates (id, created_by, name, category, cpu_cores, memory_mb, storage_mb, resolution, dpi,
            android_version, created_at, updated_at)
        select 't' || n, 'alice', 't' || n, 'general', 1, 512, 1024, '720x1280', 320, '11', now(), now() from generate_series(1, 499) n;",
    )
    .execute(&app.platform.db)
    .await
    .unwrap();

    for path in ["/devices/groups", "/templates"] {
        let asking = (0..4).map(|number| {
            let (alice, name) = (alice.clone(), format!("new-{number}"));
            async move { alice.post(path, json!({ "name": name })).await }
        });
        let answers = futures::future::join_all(asking).await;

        let made = answers
            .iter()
            .filter(|answer| answer.status == StatusCode::CREATED);
        assert_eq!(made.count(), 1, "{path}");
        for answer in answers {
            if answer.status != StatusCode::CREATED {
                let refused = answer.refused(StatusCode::FORBIDDEN, "QUOTA_EXCEEDED");
                assert!(text(&refused.body, "message").contains("500 used, 500 allowed"));
            }
        }
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn devices_change_their_groups_from_all_sides_at_once(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    let alice = app.user("alice", &[]).await;
    sqlx::query(
        "insert into devices.devices (id, user_id, name, type, provider_type, runtime, node, status, wanted, cpu_cores, memory_mb,
            storage_mb, resolution, dpi, android_version, group_name, adb_port, webrtc_port, scrcpy_port, created_at, updated_at)
        select md5(n::text), 'alice', 'n', 'phone', 'redroid', 'simulated', (select min(name) from devices.nodes), 'stopped', 'stopped', 1, 512,
            1024, '720x1280', 320, '11', 'a', 5554 + n, 8079 + n, 27182 + n, now(), now()
        from generate_series(1, 300) n",
    )
    .execute(&db)
    .await
    .unwrap();
    let group = alice.post("/devices/groups", json!({ "name": "a" })).await;
    let path = format!(
        "/devices/groups/{}",
        text(&group.expect(StatusCode::CREATED).body, "id")
    );
    let mut ids: Vec<String> =
        sqlx::query_scalar("select id from devices.devices order by id desc")
            .fetch_all(&db)
            .await
            .unwrap();

    for round in 0..10 {
        ids.rotate_left(37);
        let (from, to) = (round, round + 1);
        let back = json!({ "ids": ids, "groupName": "a" });
        let (renamed, moved) = tokio::join!(
            alice.send("PATCH", &path, json!({ "name": format!("a{to}") })),
            alice.send("PATCH", "/devices/batch/groups/update", back),
        );
        renamed.expect(StatusCode::OK);
        assert_eq!(
            moved.expect(StatusCode::OK).body["updated"],
            300,
            "round {from}"
        );
    }
}
