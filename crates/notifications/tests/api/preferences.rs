//! What users want to be told.

use contracts::{DeviceId, EventBody};
use futures::future::join_all;
use http::StatusCode;
use platform::events::spawn_relay;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{Cluster, with_sweep};

const PATH: &str = "/notifications/preferences";

fn of<'a>(preferences: &'a Value, kind: &str) -> &'a Value {
    let list = preferences["preferences"].as_array().unwrap();
    list.iter()
        .find(|one| one["notificationType"] == kind)
        .unwrap()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_chosen_on_one_instance_stands_on_the_other_until_it_is_forgotten(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let (first, second) = (&cluster.first, &cluster.second);

    let fresh = first.get(PATH, &alice).await.body;
    for (member, value) in [
        ("userId", json!("alice")),
        ("emailEnabled", json!(true)),
        ("smsEnabled", json!(true)),
        ("pushEnabled", json!(true)),
        ("soundEnabled", json!(true)),
        ("digest", json!("off")),
    ] {
        assert_eq!(fresh[member], value, "{member}");
    }
    assert_eq!(
        of(&fresh, "billing"),
        &json!({ "notificationType": "billing", "enabled": true, "enabledChannels": ["websocket"] })
    );
    let body = json!({ "enabledChannels": ["email", "email"] });
    first
        .ask("PUT", &format!("{PATH}/billing"), &alice, body)
        .await;
    let list = json!({ "preferences": [{ "notificationType": "device", "enabled": false }] });
    first
        .ask("POST", &format!("{PATH}/batch"), &alice, list)
        .await;
    let quiet = json!({ "from": "22:00", "to": "07:00", "timeZone": "Asia/Shanghai" });
    let object = json!({ "preferences": { "smsEnabled": false, "quietHours": quiet, "digest": "daily", "categories": { "promotion": false } } });
    first
        .ask("POST", &format!("{PATH}/batch"), &alice, object)
        .await;

    let chosen = second.get(PATH, &alice).await.body;
    assert_eq!(of(&chosen, "billing")["enabledChannels"], json!(["email"]));
    assert_eq!(of(&chosen, "billing")["enabled"], true);
    assert_eq!(of(&chosen, "device")["enabled"], false);
    assert_eq!(chosen["categories"]["promotion"], false);
    assert_eq!(
        (&chosen["smsEnabled"], &chosen["emailEnabled"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(
        (&chosen["quietHours"], &chosen["digest"]),
        (&quiet, &json!("daily"))
    );
    let none = json!({ "preferences": { "quietHours": null } });
    let told = second
        .ask("POST", &format!("{PATH}/batch"), &alice, none)
        .await
        .body;
    assert!(
        told.get("quietHours").is_none() && told["digest"] == "daily",
        "{told}"
    );
    second
        .ask("POST", &format!("{PATH}/reset"), &alice, Value::Null)
        .await;
    assert_eq!(first.get(PATH, &alice).await.body, fresh);
    let types = first.get(&format!("{PATH}/meta/types"), &alice).await.body;
    assert_eq!(types.as_array().unwrap().len(), 5);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn choices_made_at_once_on_two_instances_all_stand(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let settings = ["emailEnabled", "smsEnabled", "pushEnabled", "soundEnabled"];

    let choosing = settings.iter().enumerate().map(|(n, setting)| {
        let instance = [&cluster.first, &cluster.second][n % 2];
        let body = json!({ "preferences": { *setting: false } });
        let alice = &alice;
        async move {
            instance
                .ask("POST", &format!("{PATH}/batch"), alice, body)
                .await
                .status
        }
    });
    assert_eq!(join_all(choosing).await, [StatusCode::OK; 4]);

    let chosen = cluster.first.get(PATH, &alice).await.body;
    for setting in settings {
        assert_eq!(chosen[setting], false, "{setting}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_no_choice_is_refused_and_others_choices_are_their_own(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let admin = cluster.sign_in("root", &["admin"]).await;

    for (preferences, what) in [
        (json!("x"), "neither list nor object"),
        (json!([{ "notificationType": "other" }]), "no type"),
        (
            json!([{ "notificationType": "device", "enabledChannels": ["pigeon"] }]),
            "no channel",
        ),
        (json!({ "digest": "yearly" }), "no digest"),
        (json!({ "language": "a b" }), "no language"),
        (
            json!({ "quietHours": { "from": "22:00", "to": "7", "timeZone": "UTC" } }),
            "no time",
        ),
        (
            json!({ "quietHours": { "from": "22:00", "to": "07:00", "timeZone": "Here" } }),
            "no zone",
        ),
    ] {
        let body = json!({ "preferences": preferences });
        let reply = cluster
            .first
            .ask("POST", &format!("{PATH}/batch"), &alice, body)
            .await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{what}");
    }
    let path = format!("{PATH}/nothing");
    assert_eq!(
        cluster
            .first
            .ask("PUT", &path, &alice, json!({}))
            .await
            .status,
        StatusCode::NOT_FOUND
    );
    let other = format!("{PATH}?userId=bob");
    assert_eq!(
        cluster.first.get(&other, &alice).await.status,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        cluster.first.get(&other, &admin).await.body["userId"],
        "bob"
    );
    for (method, path) in [("PUT", "/device"), ("POST", "/batch"), ("POST", "/reset")] {
        let body = json!({ "userId": "bob", "preferences": {} });
        let reply = cluster
            .first
            .ask(method, &format!("{PATH}{path}"), &alice, body)
            .await;
        assert_eq!(reply.status, StatusCode::FORBIDDEN, "{path}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_type_that_is_switched_off_comes_only_when_it_is_urgent(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    spawn_relay(&cluster.first.platform, &cluster.tasks);
    let alice = cluster.sign_in("alice", &["user"]).await;
    let path = format!("/notifications?token={alice}");
    let mut socket = cluster.second.connect(&path).await;
    socket.event("unread-count").await;
    cluster
        .first
        .ask(
            "PUT",
            &format!("{PATH}/device"),
            &alice,
            json!({ "enabled": false }),
        )
        .await;
    let send = async |priority: &str| {
        let body = json!({ "userId": "alice", "message": priority, "type": "device", "priority": priority });
        cluster
            .second
            .ask("POST", "/notifications", &alice, body)
            .await
            .status
    };

    assert_eq!(send("high").await, StatusCode::CONFLICT);
    let started = EventBody::DeviceStatusChanged {
        device_id: DeviceId::new(),
        name: "phone".into(),
        status: "running".into(),
        previous_status: "starting".into(),
        error: None,
    };
    cluster.emit(&cluster.event("alice", started)).await;
    assert_eq!(
        socket.event("device-status-changed").await["status"],
        "running"
    );
    assert_eq!(send("urgent").await, StatusCode::CREATED);
    assert_eq!(socket.event("notification").await["message"], "urgent");

    let list = cluster.first.get("/notifications", &alice).await.body;
    assert_eq!(
        (&list["total"], &list["data"][0]["seq"]),
        (&json!(1), &json!(1))
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn words_come_in_the_language_of_their_user(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    spawn_relay(&cluster.first.platform, &cluster.tasks);
    let admin = cluster.sign_in("root", &["admin"]).await;
    for (language, title) in [("zh-CN", "Chinese"), ("en", "English")] {
        let body = json!({ "code": "user.registered", "name": "n", "title": title, "body": "{{username}}", "language": language });
        cluster
            .first
            .ask("POST", "/notification-templates", &admin, body)
            .await;
    }
    for (user, language, title) in [
        ("a", Some("en"), "English"),
        ("b", Some("fr"), "Chinese"),
        ("c", None, "Chinese"),
    ] {
        let token = cluster.sign_in(user, &["user"]).await;
        if let Some(language) = language {
            let body = json!({ "preferences": { "language": language } });
            cluster
                .second
                .ask("POST", &format!("{PATH}/batch"), &token, body)
                .await;
        }
        let mut socket = cluster
            .second
            .connect(&format!("/notifications?token={token}"))
            .await;
        socket.event("unread-count").await;
        let registered = EventBody::UserRegistered {
            username: user.into(),
        };
        cluster.emit(&cluster.event(user, registered)).await;
        assert_eq!(socket.event("notification").await["title"], title, "{user}");
    }
}
