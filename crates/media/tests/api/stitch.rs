//! The picture that comes out, measured.

use http::{StatusCode, header};
use image::RgbImage;
use serde_json::json;
use sqlx::PgPool;

use crate::app::{TestApp, picture};

/// JPEG blurs sharp edges a little.
#[track_caller]
fn is_about(picture: &RgbImage, (x, y): (u32, u32), colour: [u8; 3]) {
    let pixel = picture.get_pixel(x, y).0;
    let far = pixel
        .iter()
        .zip(colour)
        .any(|(is, should)| is.abs_diff(should) > 16);
    assert!(!far, "({x}, {y}) is {pixel:?}, not {colour:?}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_default_stitch_has_its_size_and_every_picture_in_its_place(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let colours: Vec<[u8; 3]> = (0..13_u8)
        .map(|n| [n * 19, 250 - n * 17, (n % 4) * 60])
        .collect();
    let mut keys = Vec::new();
    for (index, colour) in colours.iter().enumerate() {
        // Tall, wide and square ones.
        let (width, height) = [(40, 90), (90, 40), (60, 60)][index % 3];
        keys.push(alice.upload(picture(width, height, *colour)).await);
    }

    let task = alice
        .post(
            "/media/tasks",
            json!({ "type": "image_stitch", "inputUrls": keys }),
        )
        .await
        .expect(StatusCode::CREATED);
    app.media.run_jobs().await.unwrap();

    let task = alice.task(&task.text("/id")).await;
    assert_eq!(
        (&task["status"], &task["progress"]),
        (&json!("succeeded"), &json!(100)),
        "{task}"
    );
    let result = alice
        .get(task["resultUrls"][0].as_str().unwrap())
        .await
        .expect(StatusCode::OK);
    assert_eq!(result.headers[header::CONTENT_TYPE], "image/jpeg");
    assert!(result.bytes.starts_with(&[0xFF, 0xD8, 0xFF]));
    let whole = image::load_from_memory(&result.bytes).unwrap().into_rgb8();
    assert_eq!(whole.dimensions(), (2098, 1576));
    for (index, colour) in colours.iter().take(12).enumerate() {
        let (column, row) = (index as u32 % 4, index as u32 / 4);
        let corner = (10 + column * 522, 10 + row * 522);
        is_about(&whole, (corner.0 + 256, corner.1 + 256), *colour);
        is_about(&whole, (corner.0 + 20, corner.1 + 490), *colour);
    }
    for gap in [(3, 3), (526, 700), (2094, 1572), (1000, 526), (1048, 1048)] {
        is_about(&whole, gap, [0xF5; 3]);
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_the_params_say_is_what_comes_out(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let red = alice.upload(picture(30, 30, [255, 0, 0])).await;
    let params = json!({ "rows": 4, "columns": 3, "cell": 32, "gap": 0, "background": "#000080", "quality": 100 });

    let body =
        json!({ "type": "image_stitch", "inputUrl": red, "params": params, "priority": "high" });
    let task = alice
        .post("/media/tasks", body)
        .await
        .expect(StatusCode::CREATED)
        .text("/id");
    app.media.run_jobs().await.unwrap();

    assert_eq!(alice.task(&task).await["params"], params);
    let result = alice.get(&format!("/media/tasks/{task}/results/0")).await;
    let whole = image::load_from_memory(&result.bytes).unwrap().into_rgb8();
    assert_eq!(whole.dimensions(), (96, 128));
    is_about(&whole, (8, 8), [255, 0, 0]);
    is_about(&whole, (80, 100), [0, 0, 0x80]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_file_that_only_begins_as_a_picture_fails_the_task_at_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let good = alice.upload(picture(8, 8, [1, 2, 3])).await;
    let bad = alice
        .upload(b"\x89PNG\r\n\x1a\nand then nothing".to_vec())
        .await;

    let body = json!({ "type": "image_stitch", "inputUrls": [good, bad] });
    let id = alice
        .post("/media/tasks", body)
        .await
        .expect(StatusCode::CREATED)
        .text("/id");
    app.media.run_jobs().await.unwrap();

    let task = alice.task(&id).await;
    assert_eq!(
        (&task["status"], &task["errorCode"]),
        (&json!("failed"), &json!("INPUT_INVALID"))
    );
    assert!(
        task["errorMessage"].as_str().unwrap().contains("input 1"),
        "{task}"
    );
    assert_eq!(task["steps"][0]["attempts"], 1);
    assert_eq!(task["resultUrls"], json!([]));
    assert_eq!(app.events(&id).await, ["failed"]);
}
