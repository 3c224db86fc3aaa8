//! `gateway nodes`: what an operator does with nodes by an administrator's token.

use anyhow::Context;
use cluster_tests::operator::{administrator_token, command};
use cluster_tests::{GATEWAY, register};
use serde_json::Value;
use testkit::Cluster;

/// Runs `gateway nodes` with a token: the exit code, what it printed, and what it said on standard error.
async fn nodes(
    cluster: &Cluster,
    token: &str,
    arguments: &[&str],
) -> anyhow::Result<(i32, String, String)> {
    let arguments = [&["nodes"], arguments].concat();
    let output = command(cluster, &arguments)?
        .env("CLOUDPHONE_URL", cluster.url(GATEWAY, ""))
        .env("CLOUDPHONE_TOKEN", token)
        .output()
        .await?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let code = output.status.code().context("it was killed")?;
    Ok((code, text(output.stdout), text(output.stderr)))
}

#[tokio::test]
async fn an_administrator_sees_nodes_and_closes_and_opens_them() -> anyhow::Result<()> {
    let cluster = Cluster::start(1).await?;
    let root = administrator_token(&cluster).await?;

    let (code, shown, said) = nodes(&cluster, &root, &["list"]).await?;
    assert_eq!(code, 0, "{said}");
    let line = shown.lines().nth(1).context("no node")?;
    assert!(
        line.starts_with("local ") && line.contains("ready"),
        "{shown}"
    );

    for (what, status) in [("cordon", "cordoned"), ("drain", "draining")] {
        let why = ["local", "--reason", "a new disk", "--json"];
        let (code, shown, said) = nodes(&cluster, &root, &[&[what], &why[..]].concat()).await?;
        assert_eq!(code, 0, "{said}");
        let node: Value = serde_json::from_str(&shown)?;
        assert_eq!(
            (&node["status"], &node["reason"]),
            (&status.into(), &"a new disk".into())
        );
    }
    let (_, shown, _) = nodes(&cluster, &root, &["list"]).await?;
    assert!(
        shown.contains("draining") && shown.contains("a new disk"),
        "{shown}"
    );
    let (code, shown, said) = nodes(&cluster, &root, &["uncordon", "local"]).await?;
    assert_eq!(code, 0, "{said}");
    assert!(shown.contains("ready"), "{shown}");
    let (_, shown, _) = nodes(&cluster, &root, &["list", "--json"]).await?;
    let all: Value = serde_json::from_str(&shown)?;
    assert_eq!(all[0]["status"], "ready", "{all}");

    let (code, _, said) = nodes(&cluster, &root, &["cordon", "nowhere"]).await?;
    assert!(code == 1 && said.contains("gateway nodes list"), "{said}");
    let (code, _, said) = nodes(&cluster, &root, &["cordon", "../users"]).await?;
    assert!(code == 1 && said.contains("no name of a node"), "{said}");
    let alice = register(&cluster, "alice").await?;
    let (code, _, said) = nodes(&cluster, &alice, &["list"]).await?;
    assert!(code == 1 && said.contains("administrator"), "{said}");
    let (code, _, said) = nodes(&cluster, "nonsense", &["list"]).await?;
    assert!(code == 1 && said.contains("sign in"), "{said}");
    Ok(())
}
