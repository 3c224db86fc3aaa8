//! The page of the API, in a browser.

use std::process::Stdio;

use anyhow::{Context, ensure};
use cluster_tests::{GATEWAY, PATIENCE};
use serde_json::Value;
use testkit::{Cluster, fresh};
use tokio::process::Command;
use tokio::time::timeout;

/// What a page has become once its scripts have run, as Chromium shows it.
async fn page(url: &str) -> anyhow::Result<String> {
    let profile = tempfile::TempDir::new()?;
    let browser = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu"])
        .args(["--disable-dev-shm-usage", "--no-first-run"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        // Of the page's own time, which stands still while something is loaded.
        .args(["--virtual-time-budget=60000", "--dump-dom", url])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let shown = timeout(PATIENCE * 2, browser)
        .await
        .context("the browser hangs")?
        .context("starting chromium")?;
    ensure!(shown.status.success(), "chromium ended: {}", shown.status);
    Ok(String::from_utf8(shown.stdout)?)
}

#[tokio::test]
async fn a_browser_shows_the_operations_of_every_service() -> anyhow::Result<()> {
    let cluster = Cluster::start(1).await?;
    let document = fresh().get(cluster.url(GATEWAY, "/api/openapi.json"));
    let document: Value = document.send().await?.json().await?;

    let page = page(&cluster.url(GATEWAY, "/api/docs")).await?;

    let paths = document["paths"].as_object().context("no paths")?;
    let operations = paths
        .values()
        .flat_map(|path| path.as_object().into_iter().flatten());
    let named = operations.filter_map(|(_, operation)| {
        let (tag, name) = (&operation["tags"][0], &operation["operationId"]);
        Some(format!("operations-{}-{}", tag.as_str()?, name.as_str()?))
    });
    let named: Vec<String> = named.collect();
    let missing: Vec<_> = named.iter().filter(|id| !page.contains(*id)).collect();
    ensure!(
        named.len() > 100 && missing.is_empty(),
        "{missing:?} of {}",
        named.len()
    );
    Ok(())
}
