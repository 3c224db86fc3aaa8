//! Lifecycle rules: executed once for each due time by whichever replica, gone on with where one was left.

use chrono::TimeDelta;
use futures::future::join_all;
use http::StatusCode;
use platform::lifecycle::Tick;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{TestApp, User, id, text};

const RULES: &str = "/devices/lifecycle/rules";

async fn rule(admin: &User, kind: &str, config: Value) -> Value {
    let body = json!({ "name": kind, "type": kind, "schedule": "0 3 * * *", "timeZone": "Europe/Berlin", "config": config });
    let answer = admin.post(RULES, body).await;
    answer.expect(StatusCode::CREATED).body
}

async fn execute(admin: &User, rule: &Value) -> Value {
    let path = format!("{RULES}/{}/execute", text(rule, "id"));
    let answer = admin.post(&path, Value::Null).await;
    answer.expect(StatusCode::OK).body
}

async fn sql(app: &TestApp, statement: &'static str) {
    let done = sqlx::raw_sql(statement).execute(&app.platform.db).await;
    done.unwrap();
}

async fn stopped(user: &User, body: Value) -> Value {
    let mut device = json!({ "name": "phone", "autoStart": false });
    device
        .as_object_mut()
        .unwrap()
        .extend(body.as_object().unwrap().clone());
    user.create(device).await
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_rule_is_executed_once_for_a_due_time_however_many_replicas_see_it(db: PgPool) {
    let app = TestApp::new(db).await;
    let replicas = [app.clone(), app.another().await, app.another().await];
    let admin = app.user("root", &["admin"]).await;
    let made = rule(&admin, "cleanup", json!({ "stoppedDays": 30 })).await;
    assert!(made["nextExecutionAt"].is_string(), "{made}");
    sql(
        &app,
        "update devices.lifecycle_rules set next_execution_at = '2020-01-01T02:00:00Z'",
    )
    .await;

    let looks = replicas.iter().cycle().take(12);
    let looks = looks.map(|replica| replica.devices.run_lifecycle());
    for look in join_all(looks).await {
        look.unwrap();
    }

    let path = format!("{RULES}/{}", text(&made, "id"));
    let told = admin.get(&format!("{path}/executions")).await.body;
    assert_eq!(told["total"], 1, "{told}");
    assert_eq!(told["data"][0]["slot"], "2020-01-01T02:00:00.000Z");
    assert_eq!(told["data"][0]["status"], "completed");
    let shown = admin.get(&path).await.body;
    assert_eq!(shown["executionCount"], 1);
    assert!(shown["nextExecutionAt"].as_str() > Some("2021"), "{shown}");

    // A clock that was set back, or a row that was restored, does not run the slot again.
    sql(
        &app,
        "update devices.lifecycle_rules set next_execution_at = '2020-01-01T02:00:00Z'",
    )
    .await;
    app.devices.run_lifecycle().await.unwrap();
    assert_eq!(admin.get(&path).await.body["executionCount"], 1);

    let toggled = admin
        .send("PATCH", &format!("{path}/toggle"), json!({}))
        .await;
    let toggled = toggled.expect(StatusCode::OK).body;
    assert_eq!(toggled["enabled"], false);
    assert!(toggled.get("nextExecutionAt").is_none(), "{toggled}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn devices_that_nobody_touches_are_cleaned_up_and_named_before(db: PgPool) {
    let app = TestApp::new(db).await;
    let (admin, alice) = (
        app.user("root", &["admin"]).await,
        app.user("alice", &[]).await,
    );
    let (old, failed, kept) = (
        stopped(&alice, json!({ "name": "old" })).await,
        stopped(&alice, json!({ "name": "failed" })).await,
        stopped(&alice, json!({ "name": "kept" })).await,
    );
    app.run_operations().await;
    sql(&app, "update devices.devices set updated_at = '2020-01-01', status = case name when 'failed' then 'error' else status end
        where name <> 'kept'").await;
    let made = rule(&admin, "cleanup", json!({ "errorDays": 7 })).await;

    let path = format!("{RULES}/{}/test", text(&made, "id"));
    let dry = admin
        .post(&path, Value::Null)
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        (&dry["affected"], &dry["devices"]),
        (&json!(1), &json!([failed["id"]]))
    );
    assert_eq!(alice.status(&failed).await, "error");

    let done = execute(&admin, &made).await;
    assert_eq!(
        (&done["status"], &done["affected"]),
        (&json!("completed"), &json!(1))
    );
    let gone = alice.get(&format!("/devices/{}", id(&failed))).await;
    gone.refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    assert_eq!(alice.status(&old).await, "stopped");

    rule(&admin, "cleanup", json!({ "stoppedDays": 7 })).await;
    let done = admin.post("/lifecycle/cleanup", Value::Null).await;
    let done = done.expect(StatusCode::OK).body;
    assert_eq!(done["affected"], 1, "{done}");
    assert_eq!(done["executionIds"].as_array().unwrap().len(), 2);
    assert_eq!(alice.status(&kept).await, "stopped");
    let told = admin.get("/lifecycle/cleanup/statistics").await.body;
    assert_eq!((&told["rules"], &told["affected"]), (&json!(2), &json!(2)));

    for path in [
        RULES,
        "/devices/lifecycle/stats",
        "/devices/lifecycle/history",
    ] {
        admin.get(path).await.expect(StatusCode::OK);
        alice
            .get(path)
            .await
            .refused(StatusCode::FORBIDDEN, "FORBIDDEN");
    }
    for (body, field) in [
        (
            json!({ "name": "n", "type": "cleanup", "schedule": "0 3 * * *" }),
            "config",
        ),
        (
            json!({ "name": "n", "type": "backup", "schedule": "soon" }),
            "schedule",
        ),
        (
            json!({ "name": "n", "type": "backup", "schedule": "0 3 * * *", "timeZone": "Nowhere" }),
            "timeZone",
        ),
    ] {
        let refused = admin
            .post(RULES, body)
            .await
            .expect(StatusCode::BAD_REQUEST)
            .body;
        assert!(refused.to_string().contains(field), "{refused}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_backup_keeps_the_last_few_and_is_gone_on_with_where_it_was_left(db: PgPool) {
    let app = TestApp::new(db).await;
    let other = app.another().await;
    let (admin, alice) = (
        app.user("root", &["admin"]).await,
        app.user("alice", &[]).await,
    );
    let (one, two) = (
        stopped(&alice, json!({})).await,
        stopped(&alice, json!({})).await,
    );
    app.run_operations().await;
    let made = rule(&admin, "backup", json!({ "keep": 1 })).await;
    let snapshots = async |device: &Value| {
        let path = format!("/devices/{}/snapshots", id(device));
        alice.get(&path).await.body.as_array().unwrap().len()
    };

    for _ in 0..3 {
        assert_eq!(execute(&admin, &made).await["affected"], 2);
        app.run_operations().await;
    }
    // The one that was taken last, and the one before it, which the next round removes.
    assert_eq!((snapshots(&one).await, snapshots(&two).await), (2, 2));

    // A replica died behind the first device.
    let (first, second) = match id(&one) < id(&two) {
        true => (&one, &two),
        false => (&two, &one),
    };
    let left = sqlx::query(
        "insert into devices.lifecycle_executions (id, rule_id, rule_name, type, status, behind, affected, lease_until, started_at)
        values ('left', $1, 'backup', 'backup', 'running', $2, 1, '2020-01-01', '2020-01-01')",
    );
    let left = left.bind(text(&made, "id")).bind(text(first, "id"));
    left.execute(&app.platform.db).await.unwrap();
    let before = (snapshots(first).await, snapshots(second).await);
    other.devices.run_lifecycle().await.unwrap();
    other.run_operations().await;

    let told = admin
        .get("/devices/lifecycle/history?type=backup&pageSize=50")
        .await
        .body;
    let left = told["data"].as_array().unwrap().iter();
    let left = left.filter(|execution| execution["executionId"] == "left");
    let left: Vec<_> = left.collect();
    assert_eq!(
        (&left[0]["status"], &left[0]["affected"]),
        (&json!("completed"), &json!(2))
    );
    assert_eq!(snapshots(first).await, before.0);
    assert_eq!(snapshots(second).await, 2);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_end_of_a_device_is_told_once_and_a_pool_is_filled_and_no_fuller(db: PgPool) {
    let app = TestApp::new(db).await;
    let other = app.another().await;
    let (admin, alice) = (
        app.user("root", &["admin"]).await,
        app.user("alice", &[]).await,
    );
    let device = stopped(&alice, json!({})).await;
    app.run_operations().await;
    let soon = app.platform.clock.now().utc() + TimeDelta::days(2);
    sqlx::query("update devices.devices set expires_at = $1")
        .bind(soon)
        .execute(&app.platform.db)
        .await
        .unwrap();
    let made = rule(&admin, "expiration-warning", json!({ "days": 3 })).await;

    assert_eq!(execute(&admin, &made).await["affected"], 1);
    assert_eq!(execute(&other.as_user(&admin), &made).await["affected"], 0);
    let told = app.events().await;
    let told = told
        .iter()
        .filter(|event| event["type"] == "device.expiring");
    assert_eq!(
        told.map(|event| &event["data"]["deviceId"])
            .collect::<Vec<_>>()
            .len(),
        1
    );
    assert_eq!(alice.status(&device).await, "stopped");

    let template = json!({ "name": "small", "cpuCores": 1, "memoryMB": 1024, "isPublic": true });
    let template = alice
        .post("/templates", template)
        .await
        .expect(StatusCode::CREATED)
        .body;
    let owner = &device["userId"];
    let config = json!({ "templateId": template["id"], "userId": owner, "groupName": "pool", "ready": 3, "max": 4 });
    let made = rule(&admin, "autoscaling", config).await;
    assert_eq!(execute(&admin, &made).await["affected"], 3);
    app.run_operations().await;
    assert_eq!(execute(&other.as_user(&admin), &made).await["affected"], 0);

    // Two are taken; there is room for one more.
    let pool = alice.get("/devices?groupName=pool").await.body;
    for device in pool.as_array().unwrap().iter().take(2) {
        alice.act(device, "start").await.expect(StatusCode::OK);
    }
    app.run_operations().await;
    assert_eq!(execute(&admin, &made).await["affected"], 1);
    let told = admin.get("/lifecycle/autoscaling/status").await.body;
    assert_eq!(
        (&told["executions"], &told["affected"]),
        (&json!(3), &json!(4))
    );
}

async fn put(admin: &User, rule: &Value, change: Value) -> Value {
    let path = format!("{RULES}/{}", text(rule, "id"));
    let mut body = rule.clone();
    body.as_object_mut()
        .unwrap()
        .extend(change.as_object().unwrap().clone());
    let answer = admin.send("PUT", &path, body).await;
    answer.expect(StatusCode::OK).body
}

/// An execution that another replica has under way.
async fn under_way(app: &TestApp, rule: &Value) {
    let insert = sqlx::query(
        "insert into devices.lifecycle_executions (id, rule_id, rule_name, type, status, lease_until, started_at)
        values ('elsewhere', $1, 'n', $2, 'running', now() + interval '1 hour', now())",
    );
    let insert = insert.bind(text(rule, "id")).bind(text(rule, "type"));
    insert.execute(&app.platform.db).await.unwrap();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn rules_that_fill_a_group_beside_each_other_make_no_device_too_many(db: PgPool) {
    let app = TestApp::new(db).await;
    let replicas = [app.clone(), app.another().await, app.another().await];
    let (admin, alice) = (
        app.user("root", &["admin"]).await,
        app.user("alice", &[]).await,
    );
    let template = json!({ "name": "small", "cpuCores": 1, "memoryMB": 1024, "isPublic": true });
    let template = alice.post("/templates", template).await;
    let template = template.expect(StatusCode::CREATED).body;
    let owner = stopped(&alice, json!({})).await;
    let config = json!({ "templateId": template["id"], "userId": owner["userId"], "groupName": "pool", "ready": 4, "max": 5 });
    let rules = [
        rule(&admin, "autoscaling", config.clone()).await,
        rule(&admin, "autoscaling", config).await,
    ];

    let admins = replicas.each_ref().map(|replica| replica.as_user(&admin));
    let asked = admins.iter().zip(rules.iter().cycle());
    join_all(asked.map(|(admin, rule)| execute(admin, rule))).await;
    while matches!(app.devices.run_lifecycle().await.unwrap(), Tick::More) {}

    let pool = alice.get("/devices?groupName=pool").await.body;
    assert_eq!(pool.as_array().unwrap().len(), 4, "{pool}");
    let told = admin.get("/lifecycle/autoscaling/status").await.body;
    assert_eq!(
        (&told["affected"], &told["failed"], &told["running"]),
        (&json!(4), &json!(0), &json!(0))
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_rule_has_one_execution_that_follows_its_changes_and_ends_when_it_is_disabled(
    db: PgPool,
) {
    let app = TestApp::new(db).await;
    let admin = app.user("root", &["admin"]).await;
    let made = rule(&admin, "cleanup", json!({ "stoppedDays": 1 })).await;
    under_way(&app, &made).await;
    let asked = execute(&admin, &made).await;
    assert_eq!(
        (&asked["executionId"], &asked["status"]),
        (&json!("elsewhere"), &json!("running"))
    );

    sql(
        &app,
        "update devices.lifecycle_rules set next_execution_at = '2020-01-01T02:00:00Z'",
    )
    .await;
    let changed = put(&admin, &made, json!({ "config": { "stoppedDays": 30 } })).await;
    // What was due stays due.
    assert_eq!(changed["nextExecutionAt"], "2020-01-01T02:00:00.000Z");
    let fence = "select fence from devices.lifecycle_executions where id = 'elsewhere' and lease_until <= now()";
    let fence: i64 = sqlx::query_scalar(fence)
        .fetch_one(&app.platform.db)
        .await
        .unwrap();
    assert_eq!(fence, 1);

    let path = format!("{RULES}/{}", text(&made, "id"));
    let toggle = format!("{path}/toggle");
    let toggled = admin.send("PATCH", &toggle, json!({ "enabled": false }));
    toggled.await.expect(StatusCode::OK);
    let told = admin.get(&format!("{path}/executions")).await.body;
    assert_eq!(told["data"][0]["status"], "failed", "{told}");
    assert_eq!(told["total"], 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_backup_that_shall_keep_fewer_or_that_failed_makes_room_and_goes_on(db: PgPool) {
    let app = TestApp::new(db).await;
    let (admin, alice) = (
        app.user("root", &["admin"]).await,
        app.user("alice", &[]).await,
    );
    let device = stopped(&alice, json!({})).await;
    app.run_operations().await;
    let made = rule(&admin, "backup", json!({ "keep": 8 })).await;
    let snapshots = async || {
        let path = format!("/devices/{}/snapshots?pageSize=50", id(&device));
        alice.get(&path).await.body.as_array().unwrap().len()
    };
    let again = async || {
        assert_eq!(execute(&admin, &made).await["affected"], 1);
        app.run_operations().await;
    };
    for _ in 0..9 {
        again().await;
    }
    assert_eq!(snapshots().await, 9);

    put(&admin, &made, json!({ "config": { "keep": 1 } })).await;
    for _ in 0..2 {
        again().await;
    }
    assert_eq!(snapshots().await, 2);
    sql(&app, "update devices.snapshots set status = 'error' where id = (select min(id) from devices.snapshots where status = 'ready')").await;
    again().await;
    assert_eq!(snapshots().await, 2);

    let body =
        json!({ "name": "n", "type": "backup", "schedule": "0 3 * * *", "config": { "keep": 10 } });
    let refused = admin.post(RULES, body).await;
    let refused = refused.expect(StatusCode::BAD_REQUEST).body;
    assert!(refused.to_string().contains("config.keep"), "{refused}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn where_there_is_room_for_one_backup_the_last_one_stays_until_the_next_one_is_taken(
    db: PgPool,
) {
    let app = TestApp::with(db, |config| config.snapshots_per_device = 1).await;
    let (admin, alice) = (
        app.user("root", &["admin"]).await,
        app.user("alice", &[]).await,
    );
    let device = stopped(&alice, json!({})).await;
    app.run_operations().await;
    let made = rule(&admin, "backup", json!({ "keep": 1 })).await;
    let snapshots = async |status: &str| {
        let path = format!("/devices/{}/snapshots", id(&device));
        let list = alice.get(&path).await.body;
        let of = list.as_array().unwrap().iter();
        let of = of.filter(|snapshot| snapshot["status"] == status);
        of.map(|snapshot| text(snapshot, "id")).collect::<Vec<_>>()
    };
    assert_eq!(execute(&admin, &made).await["affected"], 1);
    app.run_operations().await;
    let first = snapshots("ready").await;
    assert_eq!(first.len(), 1);

    // While the next one is taken the last one is there, and where that fails it stays.
    assert_eq!(execute(&admin, &made).await["affected"], 1);
    assert_eq!(snapshots("ready").await, first);
    sql(&app, "update devices.operations set state = 'failed', finished_at = now() where state = 'queued'").await;
    sql(
        &app,
        "update devices.snapshots set status = 'error' where status = 'creating'",
    )
    .await;
    assert_eq!(snapshots("ready").await, first);

    assert_eq!(execute(&admin, &made).await["affected"], 1);
    assert_eq!(snapshots("ready").await, first);
    app.run_operations().await;
    let last = snapshots("ready").await;
    assert_eq!(last.len(), 1);
    assert_ne!(last, first);
    assert_eq!(snapshots("error").await, [""; 0]);
    app.run_operations().await;
    let rows: i64 = sqlx::query_scalar("select count(*) from devices.snapshots")
        .fetch_one(&app.platform.db)
        .await
        .unwrap();
    assert_eq!(rows, 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_that_is_used_again_while_it_is_about_to_be_cleaned_up_stays(db: PgPool) {
    let app = TestApp::new(db).await;
    let (admin, alice) = (
        app.user("root", &["admin"]).await,
        app.user("alice", &[]).await,
    );
    let device = stopped(&alice, json!({})).await;
    app.run_operations().await;
    let made = rule(&admin, "cleanup", json!({ "stoppedDays": 7 })).await;
    sql(
        &app,
        "update devices.devices set updated_at = '2020-01-01', lost = true",
    )
    .await;
    assert_eq!(execute(&admin, &made).await["affected"], 0);
    sql(&app, "update devices.devices set lost = false").await;

    let mut tx = app.platform.db.begin().await.unwrap();
    sqlx::query("select from devices.devices for update")
        .execute(&mut *tx)
        .await
        .unwrap();
    let used = async {
        let waits = "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')";
        while !sqlx::query_scalar::<_, bool>(waits)
            .fetch_one(&app.platform.db)
            .await
            .unwrap()
        {
            tokio::task::yield_now().await;
        }
        sqlx::raw_sql("insert into devices.snapshots (id, device_id, user_id, name, tags, status, created_by, created_at, updated_at)
            select 's', id, user_id, 'mine', '{}', 'ready', user_id, now(), now() from devices.devices")
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    };
    let (done, ()) = futures::join!(execute(&admin, &made), used);
    assert_eq!(
        (&done["status"], &done["affected"], &done["failed"]),
        (&json!("completed"), &json!(0), &json!(0))
    );
    assert_eq!(alice.status(&device).await, "stopped");

    // What a rule took says nothing about its user.
    sql(&app, "update devices.snapshots set tags = '{rule:r}'").await;
    assert_eq!(execute(&admin, &made).await["affected"], 1);
}
