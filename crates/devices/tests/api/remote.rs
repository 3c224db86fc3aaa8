//! What the service does on devices by ADB.

use futures::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{TestApp, User, id};

async fn shell(user: &User, device: &Value, body: Value) -> crate::app::Answer {
    user.post(&format!("/devices/{}/shell", id(device)), body)
        .await
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_command_gives_its_output_and_exit_code(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;

    for (command, output, exit_code) in [
        ("getprop ro.product.model", "Cloudphone Stub\n", 0),
        ("exit 7", "", 7),
        (
            "echo one; nonsense",
            "one\n/system/bin/sh: nonsense: inaccessible or not found\n",
            127,
        ),
        (
            "echo $(reboot) `id` | cat; false",
            "$(reboot) `id` | cat\n",
            1,
        ),
    ] {
        let answer = shell(&alice, &device, json!({ "command": command })).await;
        let answer = answer.expect(StatusCode::OK).body;
        assert_eq!(
            (&answer["output"], &answer["exitCode"]),
            (&json!(output), &json!(exit_code)),
            "{command}"
        );
        assert_eq!(
            (&answer["truncated"], &answer["timedOut"]),
            (&json!(false), &json!(false))
        );
    }
    for body in [
        json!({}),
        json!({ "command": "" }),
        json!({ "command": "x".repeat(1001) }),
        json!({ "command": "a\u{0}b" }),
        json!({ "command": "id", "timeout": 0 }),
        json!({ "command": "id", "timeout": 61 }),
    ] {
        shell(&alice, &device, body)
            .await
            .refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_output_that_is_too_long_and_a_command_that_does_not_end_are_cut_off_and_say_so(
    db: PgPool,
) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;

    let long = shell(&alice, &device, json!({ "command": "seq 1000000" })).await;
    let long = long.expect(StatusCode::OK).body;
    assert_eq!(long["output"].as_str().unwrap().len(), 1 << 20);
    assert_eq!(
        (&long["truncated"], &long["exitCode"]),
        (&json!(true), &json!(-1))
    );

    let endless = shell(
        &alice,
        &device,
        json!({ "command": "sleep infinity", "timeout": 1 }),
    )
    .await;
    let endless = endless.expect(StatusCode::OK).body;
    assert_eq!(
        (&endless["timedOut"], &endless["exitCode"]),
        (&json!(true), &json!(-1))
    );
    assert!(
        endless["message"]
            .as_str()
            .unwrap()
            .contains("longer than 1 s"),
        "{endless}"
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn commands_are_bounded_for_a_device(db: PgPool) {
    let app = TestApp::with(db, |config| config.access.commands_per_device = 2).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;

    let ask = json!({ "command": "sleep infinity", "timeout": 2 });
    let answers = join_all((0..5).map(|_| shell(&alice, &device, ask.clone()))).await;

    let refused = answers
        .iter()
        .filter(|answer| answer.status == StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.count(), 3);
    shell(&alice, &device, json!({ "command": "id" }))
        .await
        .expect(StatusCode::OK);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn packages_properties_log_and_screen_are_read(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, mallory) = (app.user("alice", &[]).await, app.user("mallory", &[]).await);
    let device = alice.running().await;
    let path = |end: &str| format!("/devices/{}/{end}", id(&device));

    let none = alice
        .get(&path("packages"))
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(none, json!({ "packages": [], "count": 0 }));
    let absent = json!({ "packageName": "com.example.absent" });
    let absent = alice
        .post(&path("uninstall"), absent)
        .await
        .refused(StatusCode::CONFLICT, "CONFLICT");
    assert!(
        absent.body["message"]
            .as_str()
            .unwrap()
            .contains("DELETE_FAILED"),
        "{}",
        absent.body
    );
    let evil = json!({ "packageName": "a.b; reboot" });
    alice
        .post(&path("uninstall"), evil)
        .await
        .refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");

    let properties = alice
        .get(&path("properties"))
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(properties["ro.product.model"], "Cloudphone Stub");

    let log = async |query: &str| {
        let answer = alice.get(&path(&format!("logcat{query}"))).await;
        answer.expect(StatusCode::OK).body["logs"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert!(log("").await.contains("phone is up"));
    for text in ["one", "two", "three"] {
        shell(&alice, &device, json!({ "command": format!("log {text}") }))
            .await
            .expect(StatusCode::OK);
    }
    let last = log("?lines=2&filter=log:I%20*:S").await;
    assert!(
        last.contains("two") && last.contains("three") && !last.contains("one"),
        "{last}"
    );
    for query in [
        "?lines=0",
        "?lines=5001",
        "?filter=-f%20/data/x",
        "?filter=a;b",
    ] {
        alice
            .get(&path(&format!("logcat{query}")))
            .await
            .refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
    }
    alice
        .post(&path("logcat/clear"), Value::Null)
        .await
        .expect(StatusCode::OK);
    assert!(!log("").await.contains("three"));

    for method in ["GET", "POST"] {
        let picture = alice
            .send(method, &path("screenshot"), Value::Null)
            .await
            .expect(StatusCode::OK);
        assert_eq!(picture.headers["content-type"], "image/png");
        assert!(picture.bytes.starts_with(b"\x89PNG"));
    }

    for end in ["packages", "properties", "logcat", "screenshot"] {
        mallory
            .get(&path(end))
            .await
            .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    }
    shell(&mallory, &device, json!({ "command": "id" }))
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    alice
        .act(&device, "adb/disable")
        .await
        .expect(StatusCode::OK);
    alice
        .get(&path("packages"))
        .await
        .refused(StatusCode::CONFLICT, "CONFLICT");
    alice
        .act(&device, "adb/enable")
        .await
        .expect(StatusCode::OK);
    alice.act(&device, "stop").await.expect(StatusCode::OK);
    alice
        .get(&path("packages"))
        .await
        .refused(StatusCode::CONFLICT, "CONFLICT");
}
