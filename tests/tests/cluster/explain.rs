//! What became of a request, asked of any replica whichever it went through.

use anyhow::{Context, ensure};
use cluster_tests::operator::{administrator, bearing, gateway};
use cluster_tests::{PATIENCE, all_instances, call_with, register};
use reqwest::{Client, Method};
use serde_json::Value;
use testkit::{Cluster, eventually, fresh};

/// Asks for a device through the gateway at this address, which is nobody's without a token, under an id of our own.
async fn request(address: &str, id: &str) -> anyhow::Result<()> {
    let url = format!("http://{address}/api/devices?secret=query");
    let reply = fresh().get(url).header("x-request-id", id).send().await?;
    ensure!(reply.headers()["x-request-id"] == id, "{reply:?}");
    ensure!(reply.headers().contains_key("server-timing"), "{reply:?}");
    Ok(())
}

/// What the gateway at this address says of a request.
async fn explained(who: &Client, address: &str, id: &str) -> anyhow::Result<(u16, Value)> {
    let url = format!("http://{address}/api/gateway/requests/{id}");
    let reply = call_with(who, Method::GET, url, None).await?;
    Ok((reply.status.as_u16(), reply.body))
}

#[tokio::test]
async fn any_replica_and_the_command_tell_what_became_of_a_request() -> anyhow::Result<()> {
    let cluster = Cluster::builder(2).env("SANDBOX", "false").start().await?;
    let gateways = all_instances(&cluster, "gateway", 2).await;
    let devices = all_instances(&cluster, "devices", 2).await;
    let admin = administrator(&cluster).await?;
    request(&gateways[1], "of-the-second").await?;

    let mut told = Vec::new();
    for asked in &gateways {
        let (status, body) = eventually(PATIENCE, "the request is remembered", async || {
            let (status, body) = explained(&admin, asked, "of-the-second").await?;
            ensure!(status == 200, "{status} {body:#}");
            Ok((status, body))
        })
        .await;
        ensure!(
            status == 200 && body["silent"] == Value::Array(Vec::new()),
            "{body:#}"
        );
        told.push(body);
    }
    let printed = gateway(&cluster, &["explain", "of-the-second", "--json"], "").await?;
    told.push(serde_json::from_str(&printed)?);
    for told in &told {
        let requests = told["requests"].as_array().context("no list")?;
        ensure!(requests.len() == 1, "{told:#}");
        let request = &requests[0];
        ensure!(request["gateway"] == "instance-1", "{told:#}");
        ensure!(
            request["service"] == "devices" && request["status"] == 401,
            "{told:#}"
        );
        ensure!(request["problem"]["code"] == "UNAUTHENTICATED", "{told:#}");
        let tries = request["tries"].as_array().context("no tries")?;
        let instance = tries[0]["address"].as_str().context("no address")?;
        ensure!(
            tries.len() == 1 && devices.iter().any(|one| one == instance),
            "{told:#}"
        );
        ensure!(!told.to_string().contains("query"), "{told:#}");
    }

    let table = gateway(&cluster, &["explain", "of-the-second"], "").await?;
    for part in [
        "GET /api/devices",
        "gateway instance-1",
        "answered 401",
        "by the service, UNAUTHENTICATED: ",
        "OUTCOME",
    ] {
        ensure!(table.contains(part), "{part} is not in {table}");
    }
    let unknown = gateway(&cluster, &["explain", "of-nobody"], "")
        .await
        .unwrap_err();
    ensure!(
        unknown.to_string().contains("none of 2 gateway(s)"),
        "{unknown}"
    );
    ensure!(
        explained(&admin, &gateways[0], "of-nobody").await?.0 == 404,
        "not known"
    );

    let user = bearing(&register(&cluster, "alice").await?)?;
    ensure!(
        explained(&user, &gateways[0], "of-the-second").await?.0 == 403,
        "a user"
    );
    let url = format!("http://{}/api/gateway/cron", gateways[0]);
    let refused = user.get(url).header("x-request-id", "of-a-user");
    ensure!(refused.send().await?.status() == 403, "a user");
    let told = gateway(&cluster, &["explain", "of-a-user"], "").await?;
    ensure!(
        told.contains("forbidden: the role admin is required"),
        "{told}"
    );
    ensure!(
        explained(&fresh(), &gateways[0], "of-the-second").await?.0 == 401,
        "nobody"
    );
    Ok(())
}

#[tokio::test]
async fn a_replica_that_does_not_answer_is_named_and_holds_nobody_up() -> anyhow::Result<()> {
    let cluster = Cluster::start(2).await?;
    let gateways = all_instances(&cluster, "gateway", 2).await;
    for (address, id) in gateways.iter().zip(["of-the-first", "of-the-second"]) {
        request(address, id).await?;
    }
    let ask = async |id: &str| gateway(&cluster, &["explain", id, "--json"], "").await;
    let first: Value = serde_json::from_str(&ask("of-the-first").await?)?;
    let address = first["requests"][0]["gateway"]
        .as_str()
        .context("no gateway")?;
    ensure!(address == "instance-0", "{first:#}");

    let instances: Value =
        serde_json::from_str(&gateway(&cluster, &["status", "--json"], "").await?)?;
    let pid = instances
        .as_array()
        .into_iter()
        .flatten()
        .find_map(|entry| {
            let is_second = entry["service"] == "gateway" && entry["instance"] == "instance-1";
            is_second.then(|| entry["pid"].as_u64()).flatten()
        });
    let pid = pid.context("no second gateway")?;

    // The registry lists a frozen replica for a while.
    let frozen = cluster
        .replicas()
        .iter()
        .find(|replica| u64::from(replica.pid()) == pid)
        .context("no such replica")?;
    frozen.stop();
    let known: Value = serde_json::from_str(&ask("of-the-first").await?)?;
    let lost = ask("of-the-second").await.unwrap_err().to_string();
    frozen.cont();

    ensure!(
        known["requests"]
            .as_array()
            .is_some_and(|all| all.len() == 1),
        "{known:#}"
    );
    for silent in known["silent"].as_array().into_iter().flatten() {
        ensure!(
            silent
                .as_str()
                .is_some_and(|text| text.contains("instance-1 at ")),
            "{known:#}"
        );
    }
    ensure!(lost.contains("of-the-second"), "{lost}");
    Ok(())
}
