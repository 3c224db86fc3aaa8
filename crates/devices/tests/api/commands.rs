//! One command, or the removal of one app, on many devices.

use device_stub::{Message, command};
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpStream;

use crate::app::{TestApp, User, id, text};

async fn batch(user: &User, what: &str, body: Value) -> Value {
    let answer = user.post(&format!("/devices/batch/{what}"), body).await;
    answer.expect(StatusCode::OK).body
}

async fn shell(user: &User, device: &Value, command: &str) -> String {
    let path = format!("/devices/{}/shell", id(device));
    let answer = user.post(&path, json!({ "command": command })).await;
    text(&answer.expect(StatusCode::OK).body, "output")
}

/// Puts an app on a device by a client of its own.
async fn install(device: &Value) {
    let address = (text(device, "adbHost"), device["adbPort"].as_u64().unwrap());
    let port = u16::try_from(address.1).unwrap();
    let mut stream = TcpStream::connect((address.0, port)).await.unwrap();
    let service = "exec:cmd package install -S 4\0";
    for (sent, answered) in [
        (
            Message::new(command::CNXN, 1 << 24, 4096, "host::\0"),
            command::CNXN,
        ),
        (Message::new(command::OPEN, 1, 0, service), command::OKAY),
        (
            Message::new(command::WRTE, 1, 1, "PK\u{3}\u{4}"),
            command::OKAY,
        ),
    ] {
        sent.write(&mut stream).await.unwrap();
        assert_eq!(Message::read(&mut stream).await.unwrap().command, answered);
    }
    let said = Message::read(&mut stream).await.unwrap().data;
    assert_eq!(said, b"Success\n");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_command_runs_on_each_device_of_a_batch_and_each_output_is_told(db: PgPool) {
    let app = TestApp::new(db).await;
    let other = app.another().await;
    let (alice, bob) = (app.user("alice", &[]).await, app.user("bob", &[]).await);
    let (one, two) = (alice.running().await, alice.running().await);
    let (stopped, foreign) = (alice.running().await, bob.running().await);
    alice.act(&stopped, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;

    let ids = json!([one["id"], stopped["id"], two["id"], foreign["id"]]);
    let ask = json!({ "ids": ids, "command": "echo hello", "maxConcurrency": 2 });
    for asked in [&alice, &other.as_user(&alice)] {
        let report = batch(asked, "execute", ask.clone()).await;
        assert_eq!(
            (&report["total"], &report["succeeded"], &report["failed"]),
            (&json!(4), &json!(2), &json!(2))
        );
        let results = report["results"].as_array().unwrap();
        for (result, device) in [(&results[0], &one), (&results[2], &two)] {
            let expected = json!({ "deviceId": device["id"], "success": true, "output": "hello\n", "exitCode": 0, "truncated": false });
            assert_eq!(result, &expected);
        }
        assert!(text(&results[1], "error").contains("does not run"));
        assert!(text(&results[3], "error").contains("not found"));
    }

    let ask = json!({ "ids": [one["id"]], "command": "echo so; exit 3" });
    let failed = batch(&alice, "execute", ask).await["results"][0].clone();
    assert_eq!(
        (&failed["success"], &failed["output"], &failed["exitCode"]),
        (&json!(false), &json!("so\n"), &json!(3))
    );
    assert!(text(&failed, "error").contains("ended with 3"), "{failed}");

    let ask = json!({ "ids": [one["id"]], "command": "seq 100000" });
    let long = batch(&alice, "execute", ask).await["results"][0].clone();
    assert_eq!(text(&long, "output").len(), 16 << 10);
    assert_eq!(long["truncated"], true);

    for body in [
        json!({ "ids": [one["id"]] }),
        json!({ "ids": [one["id"]], "command": "" }),
        json!({ "ids": [one["id"]], "command": "x".repeat(1001) }),
        json!({ "command": "id" }),
    ] {
        let answer = alice.post("/devices/batch/execute", body).await;
        answer.refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_command_of_a_batch_that_does_not_end_is_cut_off_before_the_answer_is_due(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let (one, two) = (alice.running().await, alice.running().await);

    let ask = json!({ "ids": [one["id"], two["id"]], "command": "sleep infinity" });
    let report = batch(&alice, "execute", ask).await;

    assert_eq!(report["failed"], 2, "{report}");
    for result in report["results"].as_array().unwrap() {
        assert!(text(result, "error").contains("was cut off"), "{report}");
        assert_eq!(result["exitCode"], -1);
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_app_is_removed_from_each_device_and_a_repeated_batch_succeeds(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let (one, two) = (alice.running().await, alice.running().await);
    install(&one).await;
    install(&two).await;
    let listed = shell(&alice, &one, "pm list packages").await;
    let name = listed.trim().strip_prefix("package:").unwrap();

    let ask = json!({ "ids": [one["id"], two["id"]], "packageName": name });
    for _ in 0..2 {
        let report = batch(&alice, "uninstall", ask.clone()).await;
        assert_eq!(report["succeeded"], 2, "{report}");
    }

    for device in [&one, &two] {
        assert_eq!(shell(&alice, device, "pm list packages").await, "");
    }
    let ask = json!({ "ids": [one["id"]], "packageName": "x;reboot" });
    let answer = alice.post("/devices/batch/uninstall", ask).await;
    answer.refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
}
