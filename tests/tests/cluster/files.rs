//! Files: a package and a picture go in through one replica and come out through another.

use anyhow::{Context, ensure};
use cluster_tests::{GATEWAY, PATIENCE, all_instances, text};
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use testkit::package::archive;
use testkit::{Cluster, eventually};

/// A package whose manifest is this, and so says nothing that can be read.
pub fn package(manifest: &[u8]) -> Vec<u8> {
    archive(&[("AndroidManifest.xml", manifest)])
}

#[tokio::test]
async fn a_package_uploaded_through_the_gateway_is_readable_on_every_replica() -> anyhow::Result<()>
{
    let cluster = Cluster::start(3).await?;
    let token = cluster_tests::register(&cluster, "alice").await?;
    let client = testkit::fresh();
    let bytes = package(&vec![7; 3_000_000]);
    let form = Form::new()
        .text("packageName", "com.example.app")
        .text("versionCode", "7")
        .part("file", Part::bytes(bytes.clone()).file_name("app.apk"));

    let reply = client
        .post(cluster.url(GATEWAY, "/api/apps/upload"))
        .bearer_auth(&token)
        .multipart(form)
        .send()
        .await?;

    let status = reply.status();
    let app: Value = reply.json().await?;
    ensure!(status == 201, "{status} {app:#}");
    assert_eq!(
        (
            app["packageName"].as_str(),
            app["versionCode"].as_i64(),
            app["size"].as_u64()
        ),
        (Some("com.example.app"), Some(7), Some(bytes.len() as u64))
    );
    for address in all_instances(&cluster, "apps", 3).await {
        let url = format!("http://{address}/apps/{}/download", text(&app, "id"));
        let fetched = client
            .get(url)
            .bearer_auth(&token)
            .send()
            .await?
            .bytes()
            .await?;
        assert!(
            fetched == bytes,
            "{} of {} bytes came back",
            fetched.len(),
            bytes.len()
        );
    }
    let listed: Value = client
        .get(cluster.url(GATEWAY, "/api/apps"))
        .bearer_auth(&token)
        .send()
        .await?
        .json()
        .await?;
    assert_eq!(listed["total"], 1);
    Ok(())
}

#[tokio::test]
async fn pictures_are_stitched_by_whichever_replica_is_free() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let token = cluster_tests::register(&cluster, "alice").await?;
    let client = testkit::fresh();
    let picture = include_bytes!("../../clients/picture.png");
    let ask =
        json!({ "fileName": "picture.png", "contentType": "image/png", "size": picture.len() });
    let upload: Value = client
        .post(cluster.url(GATEWAY, "/api/media/uploads"))
        .bearer_auth(&token)
        .json(&ask)
        .send()
        .await?
        .json()
        .await?;
    let target = cluster.url(GATEWAY, &text(&upload, "uploadUrl"));
    let put = client
        .put(target)
        .header("content-type", "image/png")
        .body(&picture[..])
        .send()
        .await?;
    ensure!(
        put.status().is_success(),
        "{} {}",
        put.status(),
        put.text().await?
    );

    let key = text(&upload, "key");
    let ask = json!({ "type": "image_stitch", "inputUrls": vec![key; 4], "params": { "rows": 2, "columns": 2 } });
    let reply = client
        .post(cluster.url(GATEWAY, "/api/media/tasks"))
        .bearer_auth(&token)
        .json(&ask)
        .send()
        .await?;
    let status = reply.status();
    let task: Value = reply.json().await?;
    ensure!(status == 201, "{status} {task:#}");

    let url = cluster.url(GATEWAY, &format!("/api/media/tasks/{}", text(&task, "id")));
    let done = eventually(PATIENCE, "the pictures are stitched", async || {
        let task: Value = client
            .get(&url)
            .bearer_auth(&token)
            .send()
            .await?
            .json()
            .await?;
        ensure!(task["status"] == "succeeded", "{task:#}");
        Ok(task)
    })
    .await;
    let result = done["resultUrls"][0].as_str().context("no result")?;
    let result = client
        .get(cluster.url(GATEWAY, result))
        .bearer_auth(&token)
        .send()
        .await?
        .bytes()
        .await?;
    assert!(result.starts_with(b"\xFF\xD8\xFF"), "a JPEG");
    let db = cluster.database().await?;
    eventually(PATIENCE, "the user is told once", async || {
        let count =
            crate::payments::notifications_of(&db, &text(&task, "userId"), "task.finished").await?;
        ensure!(count == 1, "{count}");
        Ok(())
    })
    .await;
    Ok(())
}
