//! Packages in a bucket, at a server that speaks as S3 does: what holds for a folder holds there.

use std::net::SocketAddr;

use axum::body::Body;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use platform::config::{Bucket, ObjectsAt};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use serde_json::json;
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::app::{TestApp, form};
use testkit::package::{archive, package};

/// Serves a folder as S3 does, to whoever has the key; the bucket is a folder in it.
async fn serve(folder: &std::path::Path) -> (SocketAddr, JoinHandle<()>) {
    // As the gateway does at its start; the first one counts.
    let _ = rustls::crypto::ring::default_provider().install_default();
    std::fs::create_dir(folder.join("phones")).unwrap();
    let mut service = S3ServiceBuilder::new(FileSystem::new(folder).unwrap());
    service.set_auth(SimpleAuth::from_single("id", "secret"));
    let service = service.build();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    let server = tokio::spawn(async move {
        let connections = Builder::new(TokioExecutor::new());
        while let Ok((stream, _)) = listener.accept().await {
            let connection = connections.serve_connection(TokioIo::new(stream), service.clone());
            let connection = connection.into_owned();
            #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
            tokio::spawn(async move { drop(connection.await) });
        }
    });
    (address, server)
}

fn bucket(address: SocketAddr, secret: &str) -> ObjectsAt {
    ObjectsAt::S3(Bucket {
        name: "phones".to_owned(),
        endpoint: Some(format!("http://{address}")),
        region: "us-east-1".to_owned(),
        access_key_id: "id".to_owned(),
        secret_access_key: secret.to_owned().into(),
    })
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_package_is_stored_read_and_deleted_in_a_bucket(db: PgPool) {
    let folder = tempfile::tempdir().unwrap();
    let (address, _server) = serve(folder.path()).await;
    let app = TestApp::over(db, folder, bucket(address, "secret")).await;
    let alice = app.user(&[]).await;
    let file = package("com.example.game", "2.1", 21);

    let stored = app
        .upload(&alice, form(Some(&file), &[]), 4096)
        .await
        .expect(201)
        .body;

    assert_eq!(
        (&stored["packageName"], &stored["versionCode"]),
        (&json!("com.example.game"), &json!(21))
    );
    let path = format!("/apps/{}", stored["id"].as_str().unwrap());
    let fetched = app
        .get(&alice, &format!("{path}/download"))
        .await
        .expect(200);
    assert_eq!(fetched.bytes, file);
    let part = app
        .fetch(
            &alice,
            &format!("{path}/download"),
            &[("range", "bytes=10-19")],
        )
        .await;
    assert_eq!(part.expect(206).bytes, file[10..20]);
    // What is refused leaves nothing there, not even parts.
    app.upload(&alice, form(Some(&archive(&[("readme", b"x")])), &[]), 4096)
        .await
        .refused(415, "BAD_TYPE");
    let mut broken = form(Some(&file), &[]);
    broken.truncate(broken.len() / 2);
    app.upload(&alice, broken, 4096)
        .await
        .refused(400, "VALIDATION_FAILED");
    app.send(&alice, "DELETE", &path, &[], Body::empty())
        .await
        .expect(200);
    let left = app.files();
    assert!(!left.iter().any(|file| file.contains(".apk")), "{left:?}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_upload_goes_on_in_a_bucket(db: PgPool) {
    let folder = tempfile::tempdir().unwrap();
    let (address, _server) = serve(folder.path()).await;
    let app = TestApp::over(db, folder, bucket(address, "secret")).await;
    let alice = app.user(&[]).await;
    let file = package("com.example.game", "2.1", 21);
    let length = file.len().to_string();
    let headers = [
        ("tus-resumable", "1.0.0"),
        ("upload-length", length.as_str()),
    ];
    let begun = app
        .send(&alice, "POST", "/apps/uploads", &headers, Body::empty())
        .await
        .expect(201);
    let path = begun.header("location").to_owned();

    for (offset, bytes) in [(0, &file[..1000]), (1000, &file[1000..])] {
        let offset = offset.to_string();
        let headers = [
            ("tus-resumable", "1.0.0"),
            ("content-type", "application/offset+octet-stream"),
            ("upload-offset", &offset),
        ];
        app.send(&alice, "PATCH", &path, &headers, bytes.to_vec().into())
            .await
            .expect(204);
    }

    let id = app.get(&alice, &path).await.expect(200).body["appId"].clone();
    let fetched = app
        .get(&alice, &format!("/apps/{}/download", id.as_str().unwrap()))
        .await;
    assert_eq!(fetched.expect(200).bytes, file);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_bucket_that_refuses_us_is_told_as_a_store_that_is_away(db: PgPool) {
    let folder = tempfile::tempdir().unwrap();
    let (address, _server) = serve(folder.path()).await;
    let app = TestApp::over(db.clone(), folder, bucket(address, "another secret")).await;
    let alice = app.user(&[]).await;
    let file = package("com.example.game", "2.1", 21);

    let refused = app.upload(&alice, form(Some(&file), &[]), 4096).await;

    let text = String::from_utf8_lossy(&refused.bytes).into_owned();
    assert_eq!(refused.status, 503, "{text}");
    assert!(!text.contains("secret"), "{text}");
    let rows: i64 = sqlx::query_scalar("select count(*) from apps.apps")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(rows, 0);
}
