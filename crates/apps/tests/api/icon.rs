//! Icons: the densest picture of a package, once for each content, and never the end of an upload.

use std::io::Write;

use axum::body::Body;
use chrono::TimeDelta;
use futures::future;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{TestApp, User, form};
use testkit::package::{Is, illustrated, illustrated_of, resource, resources};

/// As much of a picture as tells that it is one.
fn png(side: u32, filling: u8) -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    png.extend(side.to_be_bytes());
    png.extend(side.to_be_bytes());
    png.extend([filling; 300]);
    png
}

const WEBP: &[u8] = b"RIFF\x20\0\0\0WEBPVP8L and so on";
const NAMES: [u32; 2] = [resource(0), resource(1)];

/// A package of two pictures and a drawing, with a label.
fn game(name: &str) -> Vec<u8> {
    let table = resources(&[
        (0, 0xfffe, Is::Text("res/anydpi/icon.xml")),
        (0, 160, Is::Text("res/mdpi/icon.png")),
        (0, 480, Is::Text("res/xxhdpi/icon.png")),
        (1, 0, Is::Text("The game")),
    ]);
    let entries = [
        ("resources.arsc", table.as_slice()),
        ("res/anydpi/icon.xml", b"<adaptive-icon/>"),
        ("res/mdpi/icon.png", &png(48, 1)),
        ("res/xxhdpi/icon.png", &png(144, 3)),
    ];
    illustrated(name, NAMES, &entries)
}

async fn upload(app: &TestApp, user: &User, file: &[u8]) -> Value {
    let form = form(Some(file), &[]);
    app.upload(user, form, 4096).await.expect(201).body
}

async fn icons(app: &TestApp) -> usize {
    let files = app.files();
    files.iter().filter(|file| file.contains("/icons/")).count()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_densest_picture_is_the_icon_for_whoever_may_see_the_app(db: PgPool) {
    let app = TestApp::start(db).await;
    let (alice, bob) = (app.user(&[]).await, app.user(&[]).await);

    let stored = upload(&app, &alice, &game("com.example.game")).await;

    assert_eq!(stored["name"], "The game");
    let path = format!("/apps/{}/icon", stored["id"].as_str().unwrap());
    assert_eq!(stored["iconUrl"], json!(path));
    let icon = app.get(&alice, &path).await.expect(200);
    assert_eq!(icon.bytes, png(144, 3));
    let etag = icon.header("etag").to_owned();
    for (name, value) in [
        ("content-type", "image/png"),
        ("x-content-type-options", "nosniff"),
        ("cache-control", "private, max-age=3600"),
    ] {
        assert_eq!(icon.header(name), value);
    }
    let known = [("if-none-match", etag.as_str())];
    let again = app.fetch(&alice, &path, &known).await.expect(304);
    assert!(again.bytes.is_empty());
    app.get(&bob, &path).await.refused(404, "NOT_FOUND");
    let listed = app.get(&alice, "/apps").await.expect(200).body;
    assert_eq!(listed["data"][0]["iconUrl"], json!(path));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_no_picture_of_the_archive_is_no_icon_and_the_app_is_stored(db: PgPool) {
    let app = TestApp::start(db.clone()).await;
    let alice = app.user(&[]).await;
    let icon = |path| resources(&[(0, 480, Is::Text(path)), (1, 0, Is::Text("App"))]);
    let table = icon("res/icon.png");
    let circle = resources(&[(0, 0, Is::Like(1)), (1, 0, Is::Like(0))]);
    let truncated = &table[..table.len() - 10];
    let cases: [&[(&str, &[u8])]; 9] = [
        &[
            ("resources.arsc", &icon("res/icon.xml")),
            ("res/icon.xml", b"<vector/>"),
        ],
        &[
            ("resources.arsc", &table),
            ("res/icon.png", b"<html><script>"),
        ],
        &[("resources.arsc", &table), ("res/icon.png", b"<svg/>")],
        &[
            ("resources.arsc", &icon("../../icon.png")),
            ("../../icon.png", &png(48, 1)),
        ],
        &[("resources.arsc", &icon("/etc/icon.png"))],
        &[("resources.arsc", &table)],
        &[("resources.arsc", &circle)],
        &[("resources.arsc", truncated), ("res/icon.png", &png(48, 1))],
        &[
            ("resources.arsc", &table),
            ("res/icon.png", &png(99_999, 1)),
        ],
    ];
    for (n, entries) in cases.into_iter().enumerate() {
        let file = illustrated(&format!("com.example.n{n}"), NAMES, entries);
        let stored = upload(&app, &alice, &file).await;
        assert_eq!(stored["packageName"], format!("com.example.n{n}"));
        assert!(stored.get("iconUrl").is_none(), "{n}: {stored}");
        let path = format!("/apps/{}/icon", stored["id"].as_str().unwrap());
        app.get(&alice, &path).await.refused(404, "NOT_FOUND");
    }
    assert_eq!(icons(&app).await, 0);
    // One that is too large, and one that is so against its word, are passed over for the next.
    let three = resources(&[
        (0, 640, Is::Text("res/bomb.png")),
        (0, 480, Is::Text("res/liar.png")),
        (0, 320, Is::Text("res/icon.webp")),
    ]);
    let large = [png(48, 1), vec![0; 2 << 20]].concat();
    let mut deflater = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    deflater.write_all(&large).unwrap();
    let packed = deflater.finish().unwrap();
    let entries: [(&str, &[u8], _); 4] = [
        ("resources.arsc", &three, None),
        ("res/bomb.png", &packed, Some(large.len())),
        ("res/liar.png", &packed, Some(1000)),
        ("res/icon.webp", WEBP, None),
    ];
    let file = illustrated_of("com.example.bomb", NAMES, &entries);
    let stored = upload(&app, &alice, &file).await;
    let icon = app.get(&alice, stored["iconUrl"].as_str().unwrap()).await;
    assert_eq!(icon.header("content-type"), "image/webp");
    assert_eq!(icon.expect(200).bytes, WEBP);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn one_content_has_one_icon_however_many_send_it_and_the_last_app_takes_it_along(db: PgPool) {
    let app = TestApp::start(db.clone()).await;
    let alice = app.user(&[]).await;

    for round in 0..5 {
        // Of the same content only one app is made: the manifest names it.
        let file = game(&format!("com.example.r{round}"));
        let sent = (0..4).map(|_| app.upload(&alice, form(Some(&file), &[]), 4096));
        let replies = future::join_all(sent).await;

        let made: Vec<_> = replies.iter().filter(|reply| reply.status == 201).collect();
        assert_eq!(made.len(), 1);
        assert_eq!(
            (app.files().len(), icons(&app).await),
            (2, 1),
            "round {round}"
        );
        let url = made[0].body["iconUrl"].as_str().unwrap();
        assert_eq!(app.get(&alice, url).await.expect(200).bytes, png(144, 3));
        let path = url.strip_suffix("/icon").unwrap();
        // Sent anew while it is deleted, it is there with its icon or not at all.
        let (again, _) = tokio::join!(
            app.upload(&alice, form(Some(&file), &[]), 4096),
            app.send(&alice, "DELETE", path, &[], Body::empty()),
        );
        if again.status == 201 {
            let url = again.body["iconUrl"].as_str().unwrap();
            assert_eq!(app.get(&alice, url).await.expect(200).bytes, png(144, 3));
            let path = url.strip_suffix("/icon").unwrap();
            app.send(&alice, "DELETE", path, &[], Body::empty())
                .await
                .expect(200);
        }
        assert_eq!(app.files(), Vec::<String>::new(), "round {round}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_icon_that_no_content_names_is_swept_after_a_day(db: PgPool) {
    let app = TestApp::start(db).await;
    let alice = app.user(&[]).await;
    let stored = upload(&app, &alice, &game("com.example.game")).await;
    // What a replica leaves that died before its transaction.
    let objects = platform::objects::Objects::open(&app.platform.settings.objects).unwrap();
    objects
        .put("icons/orphan", png(48, 1).into())
        .await
        .unwrap();

    app.state.sweep().await.unwrap();
    assert_eq!(icons(&app).await, 2);
    app.platform.clock.advance(TimeDelta::days(2));
    app.state.sweep().await.unwrap();

    assert_eq!(icons(&app).await, 1);
    let id = stored["id"].as_str().unwrap();
    let left = app.files();
    assert!(
        left.iter()
            .any(|file| file.ends_with(&format!("/icons/{id}")))
    );
}
