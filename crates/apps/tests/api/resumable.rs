//! Resumable uploads: what was told to be stored is there at every instance, and becomes an app once.

use axum::body::Body;
use bytes::Bytes;
use futures::{StreamExt, future, stream};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{Reply, TestApp, User};
use testkit::package::{archive, opaque, package};

const TUS: (&str, &str) = ("tus-resumable", "1.0.0");
const BYTES: (&str, &str) = ("content-type", "application/offset+octet-stream");
/// `packageName com.example.b`
const NAMED: &str = "packageName Y29tLmV4YW1wbGUuYg==";

async fn begin(app: &TestApp, user: &User, length: usize, metadata: &str) -> Reply {
    let length = length.to_string();
    let headers = [
        TUS,
        ("upload-length", &length),
        ("upload-metadata", metadata),
    ];
    app.send(user, "POST", "/apps/uploads", &headers, Body::empty())
        .await
}

async fn begun(app: &TestApp, user: &User, length: usize, metadata: &str) -> String {
    let reply = begin(app, user, length, metadata).await.expect(201);
    assert_eq!(reply.header("tus-resumable"), "1.0.0");
    assert_eq!(reply.header("upload-offset"), "0");
    reply.header("location").to_owned()
}

async fn put(app: &TestApp, user: &User, path: &str, offset: usize, body: Body) -> Reply {
    let offset = offset.to_string();
    let headers = [TUS, BYTES, ("upload-offset", &offset)];
    app.send(user, "PATCH", path, &headers, body).await
}

/// Bytes after which the connection breaks.
fn broken(bytes: &[u8]) -> Body {
    let bytes = Bytes::copy_from_slice(bytes);
    let end = Err(std::io::Error::other("the line broke"));
    Body::from_stream(stream::iter([Ok(bytes), end]))
}

async fn offset(app: &TestApp, user: &User, path: &str) -> usize {
    let reply = app.get(user, path).await.expect(200);
    assert_eq!(reply.header("cache-control"), "no-store");
    let told = reply.header("upload-offset").parse().unwrap();
    assert_eq!(reply.body["offset"], json!(told));
    told
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_upload_that_breaks_off_goes_on_where_it_was_at_another_instance(db: PgPool) {
    let app = TestApp::start(db.clone()).await;
    let (alice, bob) = (app.user(&[]).await, app.user(&[]).await);
    let file = package("com.example.game", "2.1", 21);
    let third = file.len() / 3;
    let path = begun(&app, &alice, file.len(), "name R2FtZQ==,filename YS5hcGs=").await;

    put(&app, &alice, &path, 0, broken(&file[..third]))
        .await
        .expect(400);
    // What came before the line broke is kept, and every instance knows.
    assert_eq!(offset(&app, &alice, &path).await, third);
    app.get(&bob, &path).await.expect(404);
    put(&app, &bob, &path, third, file[third..].to_vec().into())
        .await
        .expect(404);
    put(&app, &alice, &path, 0, file.clone().into())
        .await
        .refused(409, "CONFLICT");
    let more = put(
        &app,
        &alice,
        &path,
        third,
        file[third..2 * third].to_vec().into(),
    )
    .await;
    assert_eq!(
        more.expect(204).header("upload-offset"),
        (2 * third).to_string()
    );
    let too_much = [&file[2 * third..], b"x"].concat();
    put(&app, &alice, &path, 2 * third, too_much.into())
        .await
        .refused(413, "TOO_LARGE");
    assert_eq!(offset(&app, &alice, &path).await, 2 * third);
    let last = put(
        &app,
        &alice,
        &path,
        2 * third,
        file[2 * third..].to_vec().into(),
    )
    .await
    .expect(204);

    let id = last.header("x-app-id").to_owned();
    let stored = app
        .get(&alice, &format!("/apps/{id}"))
        .await
        .expect(200)
        .body;
    assert_eq!(
        (&stored["packageName"], &stored["name"]),
        (&json!("com.example.game"), &json!("Game"))
    );
    let fetched = app
        .get(&alice, &format!("/apps/{id}/download"))
        .await
        .expect(200);
    assert_eq!(fetched.bytes, file);
    let upload = app.get(&alice, &path).await.expect(200).body;
    assert_eq!(
        (&upload["status"], &upload["appId"]),
        (&json!("stored"), &json!(id))
    );
    assert_eq!(app.files().len(), 1, "its parts are gone");
    // What came once too often does no harm.
    put(&app, &alice, &path, file.len(), Body::empty())
        .await
        .expect(204);
    let apps: i64 = sqlx::query_scalar("select count(*) from apps.apps")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(apps, 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn of_connections_that_send_the_same_at_once_one_counts(db: PgPool) {
    let app = TestApp::start(db).await;
    let alice = app.user(&[]).await;
    let file = opaque(7);
    let half = file.len() / 2;
    let path = begun(&app, &alice, file.len(), NAMED).await;

    let at_once = (0..8).map(|_| put(&app, &alice, &path, 0, file[..half].to_vec().into()));
    let replies = future::join_all(at_once).await;

    let stored = replies.iter().filter(|reply| reply.status == 204).count();
    let late = replies.iter().filter(|reply| reply.status == 409).count();
    assert_eq!((stored, late), (1, 7));
    assert_eq!(offset(&app, &alice, &path).await, half);
    assert_eq!(app.files().len(), 1, "one part is stored");
    let last = (0..8).map(|_| put(&app, &alice, &path, half, file[half..].to_vec().into()));
    let replies = future::join_all(last).await;
    assert_eq!(
        replies.iter().filter(|reply| reply.status == 204).count(),
        1
    );
    let ids: Vec<_> = replies
        .iter()
        .map(|reply| reply.header("x-app-id"))
        .filter(|id| !id.is_empty())
        .collect();
    let fetched = app
        .get(&alice, &format!("/apps/{}/download", ids[0]))
        .await
        .expect(200);
    assert_eq!(fetched.bytes, file);
    assert_eq!(app.files().len(), 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_whole_upload_whose_replica_died_is_assembled_once_by_another(db: PgPool) {
    let app = TestApp::start(db.clone()).await;
    let alice = app.user(&[]).await;
    let file = opaque(3);
    let path = begun(&app, &alice, file.len(), NAMED).await;
    let id = path.rsplit('/').next().unwrap().to_owned();
    put(&app, &alice, &path, 0, file[..10].to_vec().into())
        .await
        .expect(204);
    // A replica took the last byte, began to assemble, and died.
    let held =
        "update apps.uploads set lease_until = clock_timestamp() + interval '1 hour' where id = $1";
    sqlx::query("update apps.uploads set status = 'receiving' where id = $1")
        .bind(&id)
        .execute(&db)
        .await
        .unwrap();
    sqlx::query(held).bind(&id).execute(&db).await.unwrap();
    let last = put(&app, &alice, &path, 10, file[10..].to_vec().into())
        .await
        .expect(204);
    assert_eq!(last.header("x-app-id"), "", "another one holds it");
    assert_eq!(
        app.get(&alice, &path).await.expect(200).body["status"],
        "assembling"
    );
    app.state.assemble().await.unwrap();
    assert_eq!(
        app.get(&alice, &path).await.expect(200).body["status"],
        "assembling"
    );
    app.send(&alice, "DELETE", &path, &[TUS], Body::empty())
        .await
        .refused(409, "CONFLICT");

    sqlx::query("update apps.uploads set lease_until = clock_timestamp() - interval '1 second'")
        .execute(&db)
        .await
        .unwrap();
    let (one, two) = tokio::join!(app.state.assemble(), app.state.assemble());
    one.and(two).unwrap();

    let upload = app.get(&alice, &path).await.expect(200).body;
    assert_eq!(upload["status"], "stored");
    let fetched = app
        .get(
            &alice,
            &format!("/apps/{}/download", upload["appId"].as_str().unwrap()),
        )
        .await;
    assert_eq!(fetched.expect(200).bytes, file);
    assert_eq!(app.files().len(), 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_cannot_be_assembled_again_and_again_is_refused_with_the_reason(db: PgPool) {
    let app = TestApp::start(db.clone()).await;
    let alice = app.user(&[]).await;
    let file = opaque(3);
    let path = begun(&app, &alice, file.len(), NAMED).await;
    put(&app, &alice, &path, 0, file[..10].to_vec().into())
        .await
        .expect(204);
    for lost in app.files() {
        std::fs::remove_file(lost).unwrap();
    }
    let last = put(&app, &alice, &path, 10, file[10..].to_vec().into())
        .await
        .expect(204);
    assert_eq!(last.header("x-app-id"), "");

    for _ in 0..8 {
        sqlx::query(
            "update apps.uploads set lease_until = clock_timestamp() - interval '1 second'",
        )
        .execute(&db)
        .await
        .unwrap();
        let _ = app.state.assemble().await;
    }

    let upload = app.get(&alice, &path).await.expect(200).body;
    assert_eq!(upload["status"], "refused");
    assert!(
        upload["error"]
            .as_str()
            .unwrap()
            .contains("again and again"),
        "{upload}"
    );
    assert_eq!(app.files(), Vec::<String>::new());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_upload_that_is_no_app_is_refused_and_leaves_nothing(db: PgPool) {
    let app = TestApp::start(db).await;
    let alice = app.user(&[]).await;

    // No archive at all, seen at the first bytes.
    let path = begun(&app, &alice, 100, NAMED).await;
    put(&app, &alice, &path, 0, vec![b'x'; 50].into())
        .await
        .refused(415, "BAD_TYPE");
    assert_eq!(offset(&app, &alice, &path).await, 0);
    app.send(&alice, "DELETE", &path, &[TUS], Body::empty())
        .await
        .expect(204);
    app.get(&alice, &path).await.expect(404);
    // An archive without a manifest; a package nobody tells the name of; a version that is there.
    let file = opaque(1);
    let path = begun(&app, &alice, file.len(), NAMED).await;
    put(&app, &alice, &path, 0, file.clone().into())
        .await
        .expect(204);
    for (file, metadata, status, why) in [
        (
            archive(&[("readme", b"x")]),
            NAMED,
            415,
            "AndroidManifest.xml",
        ),
        (opaque(2), "", 400, "packageName"),
        (opaque(3), NAMED, 409, "there already"),
    ] {
        let path = begun(&app, &alice, file.len(), metadata).await;
        let reply = put(&app, &alice, &path, 0, file.into())
            .await
            .expect(status);
        let upload = app.get(&alice, &path).await.expect(200).body;
        assert_eq!(upload["status"], "refused", "{:?}", reply.body);
        assert!(upload["error"].as_str().unwrap().contains(why), "{upload}");
    }
    assert_eq!(app.files().len(), 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_protocol_is_spoken_as_tus_says(db: PgPool) {
    let app = TestApp::start(db.clone()).await;
    let alice = app.user(&[]).await;
    let options = app
        .send(&alice, "OPTIONS", "/apps/uploads", &[], Body::empty())
        .await
        .expect(204);
    assert_eq!(options.header("tus-version"), "1.0.0");
    assert_eq!(options.header("tus-max-size"), (64 << 10).to_string());
    assert!(
        options
            .header("tus-extension")
            .contains("creation-with-upload")
    );
    let post = async |headers: &[(&str, &str)], body: Vec<u8>| {
        app.send(&alice, "POST", "/apps/uploads", headers, body.into())
            .await
    };

    post(&[("upload-length", "9")], Vec::new())
        .await
        .refused(412, "BAD_VERSION");
    post(
        &[("tus-resumable", "0.2.2"), ("upload-length", "9")],
        Vec::new(),
    )
    .await
    .refused(412, "BAD_VERSION");
    for length in ["-1", "x", "", "0", "99999999999999999999"] {
        post(&[TUS, ("upload-length", length)], Vec::new())
            .await
            .refused(400, "VALIDATION_FAILED");
    }
    post(&[TUS], Vec::new())
        .await
        .refused(400, "VALIDATION_FAILED");
    post(&[TUS, ("upload-length", "65537")], Vec::new())
        .await
        .refused(413, "TOO_LARGE");
    let bad = [TUS, ("upload-length", "9"), ("upload-metadata", "name ???")];
    post(&bad, Vec::new())
        .await
        .refused(400, "VALIDATION_FAILED");

    let file = opaque(5);
    let length = file.len().to_string();
    let whole = [
        TUS,
        BYTES,
        ("upload-length", &length),
        ("upload-metadata", NAMED),
    ];
    let reply = post(&whole, file.clone()).await.expect(201);
    assert_eq!(reply.header("upload-offset"), length);
    assert!(!reply.header("x-app-id").is_empty() && !reply.header("upload-expires").is_empty());
    assert_eq!(reply.header("upload-metadata"), NAMED);
    let path = begun(&app, &alice, 100, NAMED).await;
    let json = [
        TUS,
        ("content-type", "application/json"),
        ("upload-offset", "0"),
    ];
    app.send(&alice, "PATCH", &path, &json, Body::from("{}"))
        .await
        .refused(415, "BAD_TYPE");
    app.send(&alice, "PATCH", &path, &[TUS, BYTES], Body::empty())
        .await
        .refused(400, "VALIDATION_FAILED");
    let head = app
        .send(&alice, "HEAD", &path, &[TUS], Body::empty())
        .await
        .expect(200);
    assert_eq!(
        (head.header("upload-offset"), head.header("upload-length")),
        ("0", "100")
    );
    assert!(head.bytes.is_empty());

    // One is open; 19 more may be.
    let more = stream::iter(0..30).then(|_| begin(&app, &alice, 100, NAMED));
    let statuses: Vec<u16> = more.map(|reply| reply.status.as_u16()).collect().await;
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 19);
    assert!(statuses[19..].iter().all(|status| *status == 429));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_left_lying_is_swept_away_and_what_goes_on_is_not(db: PgPool) {
    let app = TestApp::start(db.clone()).await;
    let alice = app.user(&[]).await;
    let file = opaque(5);
    let left = begun(&app, &alice, file.len(), NAMED).await;
    put(&app, &alice, &left, 0, file[..20].to_vec().into())
        .await
        .expect(204);
    let goes_on = begun(&app, &alice, file.len(), NAMED).await;
    put(&app, &alice, &goes_on, 0, file[..20].to_vec().into())
        .await
        .expect(204);
    sqlx::query("update apps.uploads set expires_at = created_at where id = $1")
        .bind(left.rsplit('/').next())
        .execute(&db)
        .await
        .unwrap();

    app.get(&alice, &left).await.expect(404);
    app.state.sweep().await.unwrap();

    assert_eq!(app.files().len(), 1);
    put(&app, &alice, &goes_on, 20, file[20..].to_vec().into())
        .await
        .expect(204);
    let rows: Vec<Value> = sqlx::query_scalar("select to_jsonb(status) from apps.uploads")
        .fetch_all(&db)
        .await
        .unwrap();
    assert_eq!(rows, [json!("stored")]);
}
