//! Texts, videos and chains, measured; inputs by URL.

use std::process::Command;

use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{TestApp, User, picture};
use crate::vendor::Vendor;

async fn make(app: &TestApp, user: &User, body: Value) -> Value {
    let id = user
        .post("/media/tasks", body)
        .await
        .expect(StatusCode::CREATED)
        .text("/id");
    app.media.run_jobs().await.unwrap();
    user.task(&id).await
}

/// What `ffprobe` says of a file.
fn probe(bytes: &[u8]) -> Value {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let told = Command::new("ffprobe")
        .args([
            "-v",
            "error",
            "-show_streams",
            "-show_format",
            "-count_frames",
            "-of",
            "json",
        ])
        .arg(file.path())
        .output()
        .unwrap();
    serde_json::from_slice(&told.stdout).unwrap()
}

async fn result(user: &User, task: &Value) -> crate::app::Reply {
    assert_eq!(task["status"], "succeeded", "{task}");
    user.get(task["resultUrls"][0].as_str().unwrap())
        .await
        .expect(StatusCode::OK)
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_template_becomes_a_text_subtitles_a_file_and_lines_a_picture(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let of = |params: Value| json!({ "type": "text_process", "params": params });

    let values = json!({ "product": "Coat", "description": "Warm", "price": "99" });
    let task = make(
        &app,
        &alice,
        of(json!({ "template": "product_showcase", "values": values })),
    )
    .await;
    let text = result(&alice, &task).await;
    assert_eq!(
        (
            &text.bytes[..],
            &text.headers["content-type"].to_str().unwrap()[..10]
        ),
        (&b"Coat\nWarm\n99"[..], "text/plain")
    );

    let lines = json!([{ "start": 0, "end": 2, "text": "Hello" }]);
    let task = make(
        &app,
        &alice,
        of(json!({ "mode": "subtitles", "lines": lines })),
    )
    .await;
    assert!(
        result(&alice, &task)
            .await
            .bytes
            .starts_with(b"1\n00:00:00,000 --> 00:00:02,000\nHello")
    );

    let params = json!({ "mode": "image", "template": "one two three four", "width": 200, "size": 20, "background": "#0000FF", "colour": "#FFFFFF" });
    let task = make(&app, &alice, of(params)).await;
    let image = image::load_from_memory(&result(&alice, &task).await.bytes)
        .unwrap()
        .into_rgb8();
    // Fifteen letters fit beside the margins: two lines of 25 pixels, and 20 around them.
    assert_eq!(image.dimensions(), (200, 70));
    let light = |rows: std::ops::Range<u32>| {
        rows.flat_map(|y| (0..200).map(move |x| (x, y)))
            .filter(|(x, y)| image.get_pixel(*x, *y).0[0] > 200)
            .count()
    };
    assert!(
        light(8..35) > 50 && light(35..62) > 20,
        "letters stand in both lines"
    );
    assert!(image.get_pixel(1, 1).0[2] > 230 && image.get_pixel(1, 1).0[0] < 30);

    let missing = alice
        .post("/media/tasks", of(json!({ "template": "Hi {name}" })))
        .await;
    assert_eq!(
        missing.refused(400, "VALIDATION_FAILED").faults(),
        ["params.values.name"]
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_video_has_the_length_size_and_pictures_that_were_asked_for(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let red = alice.upload(picture(64, 64, [255, 0, 0])).await;
    let blue = alice.upload(picture(64, 64, [0, 0, 255])).await;
    let params = json!({ "width": 160, "height": 120, "frameRate": 10, "pictureSeconds": 1, "caption": "It's 50% off: 'now'" });

    let task = make(
        &app,
        &alice,
        json!({ "type": "video_compose", "inputUrls": [red, blue], "params": params }),
    )
    .await;

    let video = result(&alice, &task).await;
    assert_eq!(video.headers["content-type"], "video/mp4");
    let told = probe(&video.bytes);
    let stream = &told["streams"][0];
    assert_eq!(
        (&stream["width"], &stream["height"], &stream["codec_name"]),
        (&json!(160), &json!(120), &json!("h264"))
    );
    assert_eq!(stream["nb_read_frames"], "20");
    let seconds: f64 = told["format"]["duration"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((seconds - 2.0).abs() <= 0.1, "{seconds}");

    let broken = alice
        .upload(b"\x89PNG\r\n\x1a\n and nothing more".to_vec())
        .await;
    let task = make(
        &app,
        &alice,
        json!({ "type": "video_compose", "inputUrls": [broken] }),
    )
    .await;
    assert_eq!(
        (&task["status"], &task["errorCode"]),
        (&json!("failed"), &json!("INPUT_INVALID"))
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_video_that_takes_too_long_is_given_up(db: PgPool) {
    let folder = tempfile::tempdir().unwrap();
    let slow = folder.path().join("slow");
    std::fs::write(&slow, "#!/bin/sh\nsleep 60\n").unwrap();
    Command::new("chmod").arg("+x").arg(&slow).status().unwrap();
    let settings = [
        ("MEDIA_COMPOSE_DEADLINE_SECONDS", "1"),
        ("MEDIA_FFMPEG", slow.to_str().unwrap()),
    ];
    let app = TestApp::with(db, settings).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [0, 0, 0])).await;

    let body = json!({ "type": "video_compose", "inputUrls": [key] });
    let task = make(&app, &alice, body).await;

    assert_eq!(
        (&task["status"], &task["errorCode"]),
        (&json!("failed"), &json!("TIMEOUT"))
    );
    assert_eq!(app.files("output"), 0);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_a_step_makes_is_what_the_next_one_is_made_from(db: PgPool) {
    let app = TestApp::new(db).await;
    let other = app.replica([]).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(30, 30, [0, 200, 0])).await;
    let steps = json!([
        { "type": "image_stitch", "params": { "layout": "row", "cell": 32, "gap": 0, "format": "png" } },
        { "type": "image_stitch", "params": { "layout": "column", "cell": 16, "gap": 2, "format": "webp" } },
        { "type": "video_compose", "params": { "width": 64, "height": 64, "frameRate": 5, "pictureSeconds": 1 } },
    ]);
    let id = alice
        .post(
            "/media/tasks",
            json!({ "steps": steps, "inputUrls": [key.clone(), key] }),
        )
        .await
        .expect(StatusCode::CREATED)
        .text("/id");

    app.until_all_end(&[&app, &other]).await;

    let task = alice.task(&id).await;
    let told = probe(&result(&alice, &task).await.bytes);
    assert_eq!(told["streams"][0]["nb_read_frames"], "5");
    assert_eq!(task["type"], "video_compose");
    let statuses: Vec<_> = task["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| &step["status"])
        .collect();
    assert_eq!(statuses, ["succeeded"; 3]);
    assert!(
        task["steps"]
            .as_array()
            .unwrap()
            .iter()
            .all(|step| step["attempts"] == 1)
    );
    assert_eq!(app.events(&id).await, ["succeeded"]);

    // Nobody needs what the first steps made, once the task is over for a while.
    assert_eq!(app.files("output"), 3);
    app.platform.clock.advance(chrono::TimeDelta::minutes(11));
    let never = tokio_util::sync::CancellationToken::new();
    media::upload::cleanup::run(&app.media, &never)
        .await
        .unwrap();
    assert_eq!(app.files("output"), 1);
    result(&alice, &task).await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_chain_that_fails_goes_no_further(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(30, 30, [0, 200, 0])).await;
    let steps = json!([
        { "type": "text_process", "params": { "template": "no picture" } },
        { "type": "image_stitch" },
        { "type": "image_stitch" },
    ]);

    let task = make(&app, &alice, json!({ "steps": steps, "inputUrl": key })).await;

    assert_eq!(
        (&task["status"], &task["errorCode"]),
        (&json!("failed"), &json!("INPUT_INVALID")),
        "{task}"
    );
    assert_eq!(
        (&task["steps"][0]["status"], &task["steps"][1]["status"]),
        (&json!("succeeded"), &json!("failed"))
    );
    assert_eq!(task["steps"][2]["attempts"], 0);
    assert_eq!(app.events(task["id"].as_str().unwrap()).await, ["failed"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn inputs_come_from_urls_that_lead_to_no_private_address(db: PgPool) {
    let server = Vendor::start().await;
    let open = TestApp::with(db, [("MEDIA_FETCH_LOOPBACK", "true")]).await;
    let strict = open.replica([]).await;
    let alice = open.user("alice").await;
    let stitch = |url: String| json!({ "type": "image_stitch", "inputUrl": url, "params": { "layout": "row", "cell": 16 } });

    let task = make(
        &open,
        &alice,
        stitch(format!("{}/files/a.png", server.address)),
    )
    .await;
    result(&alice, &task).await;

    for (path, code) in [
        ("/inward", "URL_REFUSED"),
        ("/round", "URL_REFUSED"),
        ("/absent", "URL_REFUSED"),
        ("/large", "INPUT_INVALID"),
    ] {
        let task = make(&open, &alice, stitch(format!("{}{path}", server.address))).await;
        assert_eq!(
            (&task["status"], &task["errorCode"]),
            (&json!("failed"), &json!(code)),
            "{path}"
        );
    }
    // A name that leads to this machine is judged when it is resolved.
    let port = server.address.rsplit(':').next().unwrap();
    let named = stitch(format!("http://localhost:{port}/files/a.png"));
    let task = make(&strict, &alice, named).await;
    assert_eq!(task["errorCode"], "URL_REFUSED", "{task}");
}
