//! Apps get from the service that keeps them to devices, whichever replicas these are on.

use anyhow::ensure;
use cluster_tests::operator::bearing;
use cluster_tests::{GATEWAY, PATIENCE, call_with, register, text};
use reqwest::multipart::{Form, Part};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use testkit::{Cluster, eventually};

use crate::files::package;

async fn post(
    cluster: &Cluster,
    client: &Client,
    path: &str,
    body: Value,
    status: u16,
) -> anyhow::Result<Value> {
    let url = cluster.url(GATEWAY, path);
    let reply = call_with(client, Method::POST, url, Some(body)).await?;
    Ok(reply.expect_at(path, status))
}

async fn running(cluster: &Cluster, client: &Client) -> anyhow::Result<String> {
    let made = post(cluster, client, "/devices", json!({ "name": "phone" }), 201).await?;
    let id = text(&made, "id");
    let url = cluster.url(GATEWAY, &format!("/devices/{id}"));
    eventually(PATIENCE, "the device runs", async || {
        let shown = call_with(client, Method::GET, url.clone(), None).await?;
        ensure!(shown.expect(200)["status"] == "running", "not yet");
        Ok(())
    })
    .await;
    Ok(id)
}

async fn upload(cluster: &Cluster, client: &Client, file: Vec<u8>) -> anyhow::Result<String> {
    let form = Form::new()
        .text("packageName", "com.example.app")
        .part("file", Part::bytes(file).file_name("app.apk"));
    let url = cluster.url(GATEWAY, "/apps/upload");
    let reply = client.post(url).multipart(form).send().await?;
    let (status, app) = (reply.status(), reply.json::<Value>().await?);
    ensure!(status == 201, "{status} {app:#}");
    Ok(text(&app, "id"))
}

/// Waits until everything that was queued is over, and so many of it failed.
async fn over(cluster: &Cluster, client: &Client, queued: &Value, failed: usize) {
    let path = format!("/devices/batch/installs/{}", text(queued, "batchId"));
    let url = cluster.url(GATEWAY, &path);
    eventually(PATIENCE, "the app is installed", async || {
        let shown = call_with(client, Method::GET, url.clone(), None).await?;
        let shown = shown.expect(200);
        ensure!(shown["done"] == shown["total"], "not yet: {shown}");
        assert_eq!(shown["failed"], failed, "{shown}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn an_app_is_streamed_to_devices_again_as_often_as_it_is_asked_for() -> anyhow::Result<()> {
    let cluster = Cluster::start(2).await?;
    let alice = bearing(&register(&cluster, "alice").await?)?;
    let bob = bearing(&register(&cluster, "bob").await?)?;
    let app = upload(&cluster, &alice, package(&vec![7; 3_000_000])).await?;
    let (one, two) = (
        running(&cluster, &alice).await?,
        running(&cluster, &alice).await?,
    );
    let foreign = running(&cluster, &bob).await?;

    let install = format!("/devices/{one}/install");
    for _ in 0..3 {
        let queued = post(&cluster, &alice, &install, json!({ "appId": app }), 200).await?;
        over(&cluster, &alice, &queued, 0).await;
    }
    let ask = json!({ "appId": app, "ids": [one, two, foreign] });
    let report = post(&cluster, &alice, "/devices/batch/install", ask, 200).await?;
    assert_eq!(
        (&report["succeeded"], &report["failed"]),
        (&json!(2), &json!(1)),
        "{report}"
    );
    over(&cluster, &alice, &report, 0).await;

    for id in [&one, &two] {
        let url = cluster.url(GATEWAY, &format!("/devices/{id}/packages"));
        let listed = call_with(&alice, Method::GET, url, None).await?.expect(200);
        assert_eq!(listed["count"], 1, "{listed}");
    }
    let none = json!({ "appId": "none" });
    post(&cluster, &alice, &install, none, 404).await?;
    // What waits for review is its owner's alone.
    let of_bob = format!("/devices/{foreign}/install");
    post(&cluster, &bob, &of_bob, json!({ "appId": app }), 404).await?;
    Ok(())
}

#[tokio::test]
async fn an_app_is_installed_and_removed_by_its_id_for_whoever_may() -> anyhow::Result<()> {
    let cluster = Cluster::start(2).await?;
    let alice = bearing(&register(&cluster, "alice").await?)?;
    let bob = bearing(&register(&cluster, "bob").await?)?;
    let app = upload(&cluster, &alice, package(&vec![7; 100_000])).await?;
    let (device, foreign) = (
        running(&cluster, &alice).await?,
        running(&cluster, &bob).await?,
    );
    let on = json!({ "applicationId": app, "deviceIds": [device, foreign] });

    let each = post(&cluster, &alice, "/apps/install", on.clone(), 200).await?;

    let results = &each["results"];
    assert_eq!(
        (&results[0]["deviceId"], &results[0]["status"]),
        (&json!(device), &json!("pending"))
    );
    assert_eq!(
        (&results[1]["success"], &results[1]["status"]),
        (&json!(false), &json!("failed"))
    );
    let saga = format!("/apps/install/saga/{}", text(&results[0], "sagaId"));
    eventually(PATIENCE, "the app is installed", async || {
        let shown = call_with(&alice, Method::GET, cluster.url(GATEWAY, &saga), None).await?;
        ensure!(shown.expect(200)["status"] == "completed", "not yet");
        Ok(())
    })
    .await;
    call_with(&bob, Method::GET, cluster.url(GATEWAY, &saga), None)
        .await?
        .expect(404);
    // What waits for review is its owner's alone, and so is a device.
    post(&cluster, &bob, "/apps/install", on.clone(), 404).await?;
    post(
        &cluster,
        &alice,
        "/apps/install",
        json!({ "appId": app }),
        400,
    )
    .await?;
    let packages = cluster.url(GATEWAY, &format!("/devices/{device}/packages"));
    let listed = call_with(&alice, Method::GET, packages.clone(), None)
        .await?
        .expect(200);
    assert_eq!(listed["count"], 1, "{listed}");
    // The stub names what it was sent by its content.
    let package = &listed["packages"][0];
    let gone = json!({ "packageName": package, "deviceId": device });
    for _ in 0..2 {
        let each = post(&cluster, &alice, "/apps/uninstall", gone.clone(), 200).await?;
        assert_eq!(each["results"][0]["status"], "uninstalled", "{each}");
    }
    let listed = call_with(&alice, Method::GET, packages, None)
        .await?
        .expect(200);
    assert_eq!(listed["count"], 0, "{listed}");

    // A key is held to both scopes before anything is asked of another service.
    for (scopes, status) in [
        (json!(["apps:write"]), 403),
        (json!(["apps:write", "apps:read", "devices:write"]), 200),
    ] {
        let made = post(
            &cluster,
            &alice,
            "/api-keys",
            json!({ "name": "ci", "scopes": scopes }),
            201,
        )
        .await?;
        let url = cluster.url(GATEWAY, "/apps/install");
        let with_key = testkit::fresh()
            .post(url)
            .header("x-api-key", text(&made, "key"));
        let reply = with_key
            .json(&json!({ "appId": app, "deviceId": device }))
            .send()
            .await?;
        assert_eq!(reply.status(), status, "{scopes}: {}", reply.text().await?);
    }
    Ok(())
}

#[tokio::test]
async fn what_was_put_on_a_device_is_told_by_its_name_also_when_the_device_rests()
-> anyhow::Result<()> {
    let cluster = Cluster::start(2).await?;
    let alice = bearing(&register(&cluster, "alice").await?)?;
    let bob = bearing(&register(&cluster, "bob").await?)?;
    let app = upload(
        &cluster,
        &alice,
        testkit::package::package("com.example.app", "1.0", 1),
    )
    .await?;
    let device = running(&cluster, &alice).await?;
    let install = format!("/devices/{device}/install");
    let queued = post(&cluster, &alice, &install, json!({ "appId": app }), 200).await?;
    over(&cluster, &alice, &queued, 0).await;
    let url = cluster.url(GATEWAY, &format!("/apps/devices/{device}/apps"));

    let listed = call_with(&alice, Method::GET, url.clone(), None).await?;
    let listed = listed.expect(200);
    assert_eq!(
        (&listed[0]["packageName"], &listed[0]["isChecked"]),
        (&json!("com.example.app"), &json!(true))
    );
    let holders = cluster.url(GATEWAY, &format!("/apps/{app}/devices"));
    let told = call_with(&alice, Method::GET, holders.clone(), None).await?;
    assert_eq!(told.expect(200)[0]["deviceId"], device.as_str());
    call_with(&bob, Method::GET, holders, None)
        .await?
        .expect(404);
    let stop = format!("/devices/{device}/stop");
    post(&cluster, &alice, &stop, json!({}), 200).await?;
    eventually(PATIENCE, "the device rests", async || {
        let listed = call_with(&alice, Method::GET, url.clone(), None).await?;
        let listed = listed.expect(200);
        ensure!(
            listed[0]["applicationId"] == app.as_str(),
            "not yet: {listed}"
        );
        assert_eq!(
            (&listed[0]["packageName"], &listed[0]["isChecked"]),
            (&json!("com.example.app"), &json!(false))
        );
        assert_eq!(
            (&listed[0]["versionCode"], &listed[0]["status"]),
            (&json!(1), &json!("installed"))
        );
        Ok(())
    })
    .await;
    call_with(&bob, Method::GET, url, None).await?.expect(404);
    Ok(())
}
