//! Resumable uploads: what was told to be stored outlives the replicas that took it.

use anyhow::ensure;
use bytes::Bytes;
use cluster_tests::operator::bearing;
use cluster_tests::{GATEWAY, PATIENCE, register};
use futures::stream;
use reqwest::{Body, Client, RequestBuilder};
use testkit::{Cluster, eventually};

use crate::files::package;

fn more(client: &Client, url: &str, offset: usize, body: impl Into<Body>) -> RequestBuilder {
    client
        .patch(url)
        .header("tus-resumable", "1.0.0")
        .header("content-type", "application/offset+octet-stream")
        .header("upload-offset", offset)
        .body(body)
}

/// How far the upload is, asked on a connection of its own.
async fn offset(token: &str, url: &str) -> anyhow::Result<usize> {
    let head = bearing(token)?.head(url).send().await?;
    ensure!(head.status() == 200, "{}", head.status());
    Ok(head.headers()["upload-offset"].to_str()?.parse()?)
}

#[tokio::test]
async fn an_upload_goes_on_when_the_replicas_that_had_it_are_killed() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2).await?;
    let token = register(&cluster, "alice").await?;
    let alice = bearing(&token)?;
    let file = package(&vec![9; 20_000_000]);
    let begun = alice
        .post(cluster.url(GATEWAY, "/api/apps/uploads"))
        .header("tus-resumable", "1.0.0")
        .header("upload-length", file.len())
        // com.example.app
        .header("upload-metadata", "packageName Y29tLmV4YW1wbGUuYXBw")
        .send()
        .await?;
    ensure!(begun.status() == 201, "{}", begun.text().await?);
    let url = cluster.url(GATEWAY, begun.headers()["location"].to_str()?);

    // Half of it comes, and then nothing for as long as the connection lives.
    let half = Bytes::copy_from_slice(&file[..file.len() / 2]);
    let pieces = stream::unfold(0, move |at| {
        let half = half.clone();
        async move {
            if at >= half.len() {
                std::future::pending::<()>().await;
            }
            let end = half.len().min(at + 100_000);
            Some((Ok::<_, std::io::Error>(half.slice(at..end)), end))
        }
    });
    let sending = more(&alice, &url, 0, Body::wrap_stream(pieces)).send();
    let killing = async {
        eventually(PATIENCE, "a part is stored", async || {
            ensure!(offset(&token, &url).await? > 0, "not yet");
            Ok(())
        })
        .await;
        // Whichever of them has it, both die, one after the other.
        for number in 0..2 {
            cluster.add_replica().await?;
            cluster.replica(number).kill9();
        }
        anyhow::Ok(())
    };
    let (sent, killed) = tokio::join!(sending, killing);
    killed?;
    ensure!(!sent.is_ok_and(|reply| reply.status().is_success()));

    let mut stored = 0;
    eventually(PATIENCE, "the upload is found again", async || {
        stored = offset(&token, &url).await?;
        Ok(())
    })
    .await;
    ensure!(stored >= 8 << 20 && stored < file.len(), "{stored}");
    let rest = Bytes::copy_from_slice(&file[stored..]);
    let last = more(&bearing(&token)?, &url, stored, rest).send().await?;
    ensure!(last.status() == 204, "{}", last.text().await?);
    let app = last.headers()["x-app-id"].to_str()?.to_owned();
    let download = cluster.url(GATEWAY, &format!("/api/apps/{app}/download"));
    let fetched = bearing(&token)?.get(download).send().await?.bytes().await?;
    ensure!(fetched == file, "other bytes came back");
    Ok(())
}
