//! What workers promise: each task ends once, whoever races, freezes or leaves.

use std::time::Duration;

use chrono::TimeDelta;
use futures::future::{join, join_all};
use http::StatusCode;
use media::job::worker::{Outcome, perform, result_folder};
use media::job::{Work, claim, expire};
use platform::lifecycle::{Phase, Tasks};
use serde_json::json;
use sqlx::PgPool;
use tokio::time::{sleep, timeout};

use crate::app::{TestApp, User, picture};

async fn claim_one(app: &TestApp) -> Work {
    let mut claimed = claim(&app.media, 1).await.unwrap();
    assert_eq!(claimed.len(), 1);
    claimed.remove(0)
}

async fn until_status(user: &User, id: &str, status: &str) {
    let reached = async {
        while user.task(id).await["status"] != status {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(30), reached)
        .await
        .unwrap_or_else(|_| panic!("task {id} is never {status}"));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn racing_workers_make_each_task_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let other = app.replica([]).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [9, 9, 9])).await;
    let ids = join_all((0..12).map(|_| alice.stitch(&key))).await;

    let (one, two) = join(app.media.run_jobs(), other.media.run_jobs()).await;
    one.unwrap();
    two.unwrap();
    app.media.run_jobs().await.unwrap();

    for id in ids {
        let task = alice.task(&id).await;
        assert_eq!(
            (&task["status"], &task["steps"][0]["attempts"]),
            (&json!("succeeded"), &json!(1))
        );
        assert_eq!(app.events(&id).await, ["succeeded"]);
    }
    assert_eq!(app.files("output"), 12);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn two_that_believe_to_hold_one_claim_end_it_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [9, 9, 9])).await;
    let id = alice.stitch(&key).await;
    let work = claim_one(&app).await;

    let outcomes = join_all((0..4).map(|_| perform(&app.media, &work))).await;

    let ended = outcomes
        .into_iter()
        .filter(|outcome| matches!(outcome, Ok(Outcome::Ended)))
        .count();
    assert_eq!(ended, 1);
    assert_eq!(app.events(&id).await, ["succeeded"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_frozen_worker_that_wakes_late_changes_nothing(db: PgPool) {
    let app = TestApp::with(db, [("MEDIA_LEASE_SECONDS", "0.2")]).await;
    let other = app.replica([]).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [9, 9, 9])).await;
    let id = alice.stitch(&key).await;

    let frozen = claim_one(&app).await;
    let taken_over = timeout(Duration::from_secs(20), async {
        loop {
            if let Some(work) = claim(&other.media, 1).await.unwrap().pop() {
                return work;
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    let taken_over = taken_over.await.unwrap();
    assert_eq!(
        (taken_over.fence, taken_over.attempt),
        (frozen.fence + 1, 2)
    );

    // It wakes before the other is done, and again after it.
    assert_eq!(perform(&app.media, &frozen).await.unwrap(), Outcome::Lost);
    assert_eq!(alice.task(&id).await["status"], "running");
    assert_eq!(
        perform(&other.media, &taken_over).await.unwrap(),
        Outcome::Ended
    );
    let before = (
        alice.task(&id).await,
        alice
            .get(&format!("/media/tasks/{id}/results/0"))
            .await
            .bytes,
    );
    assert_eq!(perform(&app.media, &frozen).await.unwrap(), Outcome::Lost);
    let after = (
        alice.task(&id).await,
        alice
            .get(&format!("/media/tasks/{id}/results/0"))
            .await
            .bytes,
    );

    assert_eq!(before, after);
    assert_eq!(before.0["status"], "succeeded");
    assert_eq!(app.events(&id).await, ["succeeded"]);
    assert!(app.file(&result_folder(&taken_over)).join("0.jpg").exists());
    assert_eq!(app.files("output"), 1, "the late one took its file away");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_task_past_its_deadline_expires_once_whoever_is_at_work(db: PgPool) {
    let app = TestApp::new(db).await;
    let other = app.replica([]).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [9, 9, 9])).await;
    let running = alice.stitch(&key).await;
    let work = claim_one(&app).await;
    let waiting = alice.stitch(&key).await;

    app.platform.clock.advance(TimeDelta::milliseconds(59_999));
    expire(&app.media).await.unwrap();
    assert_eq!(alice.task(&waiting).await["status"], "queued");
    app.platform.clock.advance(TimeDelta::milliseconds(1));
    // Past the deadline nothing is claimed or finished, also before the step has come by.
    assert!(claim(&other.media, 20).await.unwrap().is_empty());
    assert_eq!(perform(&app.media, &work).await.unwrap(), Outcome::Lost);
    let steps = join_all([&app, &other, &app, &other].map(|replica| expire(&replica.media))).await;
    assert!(steps.iter().all(Result::is_ok));

    for id in [&running, &waiting] {
        let task = alice.task(id).await;
        assert_eq!(
            (&task["status"], &task["errorCode"]),
            (&json!("expired"), &json!("TIMEOUT")),
            "{task}"
        );
        assert_eq!(task["steps"][0]["status"], "expired");
        assert_eq!(app.events(id).await, ["expired"]);
        alice.cancel(id).await.refused(409, "CONFLICT");
    }
    assert_eq!(perform(&app.media, &work).await.unwrap(), Outcome::Lost);
    assert_eq!(app.files("output"), 0);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn of_a_cancellation_and_an_end_at_the_same_moment_one_counts(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [9, 9, 9])).await;
    for round in 0..12_u64 {
        let id = alice.stitch(&key).await;
        let work = claim_one(&app).await;
        let cancel = async {
            sleep(Duration::from_millis(round * 2)).await;
            alice.cancel(&id).await
        };

        let (outcome, cancelled) = join(perform(&app.media, &work), cancel).await;

        let task = alice.task(&id).await;
        let result = alice
            .get(&format!("/media/tasks/{id}/results/0"))
            .await
            .status;
        match outcome.unwrap() {
            Outcome::Ended => {
                assert_eq!(
                    (cancelled.status, result),
                    (StatusCode::CONFLICT, StatusCode::OK)
                );
                assert_eq!(task["status"], "succeeded");
            }
            Outcome::Lost => {
                assert_eq!(
                    (cancelled.status, result),
                    (StatusCode::OK, StatusCode::NOT_FOUND)
                );
                assert_eq!(task["status"], "cancelled");
            }
            other => panic!("nothing failed, and yet {other:?}"),
        }
        assert_eq!(app.events(&id).await, [task["status"].as_str().unwrap()]);
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_may_pass_is_tried_three_times_more_each_later(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [9, 9, 9])).await;
    // The store cannot make the folder for results.
    std::fs::write(app.file("output"), "in the way").unwrap();
    let id = alice.stitch(&key).await;

    for (attempts, pause) in [(1, 2), (2, 7), (3, 31)] {
        app.media.run_jobs().await.unwrap();
        let task = alice.task(&id).await;
        assert_eq!(
            (&task["status"], &task["steps"][0]["attempts"]),
            (&json!("running"), &json!(attempts))
        );
        assert!(task["steps"][0]["error"].is_string() && app.events(&id).await.is_empty());
        app.platform.clock.advance(TimeDelta::seconds(pause));
    }
    app.media.run_jobs().await.unwrap();

    let task = alice.task(&id).await;
    assert_eq!(
        (&task["status"], &task["errorCode"]),
        (&json!("failed"), &json!("STORAGE_DOWN"))
    );
    assert_eq!(task["steps"][0]["attempts"], 4);
    assert_eq!(app.events(&id).await, ["failed"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_store_that_comes_back_is_used_again(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [9, 9, 9])).await;
    std::fs::write(app.file("output"), "in the way").unwrap();
    let id = alice.stitch(&key).await;
    app.media.run_jobs().await.unwrap();

    std::fs::remove_file(app.file("output")).unwrap();
    app.media.run_jobs().await.unwrap();
    assert_eq!(
        alice.task(&id).await["status"],
        "running",
        "the pause is not over"
    );
    app.platform.clock.advance(TimeDelta::seconds(2));
    app.media.run_jobs().await.unwrap();

    let task = alice.task(&id).await;
    assert_eq!(task["status"], "succeeded");
    assert!(task["steps"][0].get("error").is_none());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_input_that_is_gone_fails_the_task_at_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [9, 9, 9])).await;
    let id = alice.stitch(&key).await;
    std::fs::remove_file(app.object_of(&key).await).unwrap();

    app.media.run_jobs().await.unwrap();

    let task = alice.task(&id).await;
    assert_eq!(
        (&task["status"], &task["errorCode"]),
        (&json!("failed"), &json!("INPUT_MISSING"))
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_worker_makes_what_comes_and_claims_nothing_when_it_leaves(db: PgPool) {
    let app = TestApp::with(db, [("MEDIA_POLL_SECONDS", "0.05")]).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [9, 9, 9])).await;
    let tasks = Tasks::new();
    app.media.spawn_jobs(&tasks).await.unwrap();
    for _ in 0..5 {
        let id = alice.stitch(&key).await;
        until_status(&alice, &id, "succeeded").await;
    }

    app.platform.readiness.advance(Phase::Draining);
    let left = tasks.stop(Duration::from_secs(10)).await;

    assert!(left.is_empty(), "{left:?}");
    let id = alice.stitch(&key).await;
    assert_eq!(alice.task(&id).await["status"], "queued");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_lease_is_renewed_for_as_long_as_the_work_takes_and_given_back_at_the_end(db: PgPool) {
    let app = TestApp::with(
        db,
        [
            ("MEDIA_LEASE_SECONDS", "0.3"),
            ("MEDIA_POLL_SECONDS", "0.05"),
        ],
    )
    .await;
    let other = app.replica([]).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [9, 9, 9])).await;
    let id = alice.stitch(&key).await;
    // Reading the input waits for somebody to write it.
    let input = app.object_of(&key).await;
    let bytes = std::fs::read(&input).unwrap();
    std::fs::remove_file(&input).unwrap();
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&input)
            .status()
            .unwrap()
            .success()
    );
    let tasks = Tasks::new();
    app.media.spawn_jobs(&tasks).await.unwrap();
    until_status(&alice, &id, "running").await;

    let began: f64 = lease_end(&app, &id).await;
    let renewed = async {
        while lease_end(&app, &id).await < began + 0.6 {
            assert!(
                claim(&other.media, 1).await.unwrap().is_empty(),
                "it is held"
            );
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(30), renewed).await.unwrap();
    let left = tasks.stop(Duration::from_secs(10)).await;

    assert!(left.is_empty(), "{left:?}");
    let (state, attempt): (String, i16) = sqlx::query_as("select state, attempt from media.jobs")
        .fetch_one(&app.platform.db)
        .await
        .unwrap();
    assert_eq!((state.as_str(), attempt), ("ready", 0));
    tokio::task::spawn_blocking(move || {
        std::fs::write(&input, b"").unwrap();
        std::fs::remove_file(&input).unwrap();
        std::fs::write(&input, bytes).unwrap();
    })
    .await
    .unwrap();
    other.media.run_jobs().await.unwrap();
    assert_eq!(alice.task(&id).await["status"], "succeeded");
    assert_eq!(app.events(&id).await, ["succeeded"]);
}

async fn lease_end(app: &TestApp, task: &str) -> f64 {
    app.scalar(
        "select extract(epoch from lease_until)::float8 from media.jobs where task_id = $1",
        task,
    )
    .await
}
