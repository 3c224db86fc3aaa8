//! What a replica that cannot start says, and what the commands print.

use std::collections::BTreeMap;

use tempfile::TempDir;
use testkit::Cluster;
use tokio::process::Command;

async fn gateway(arguments: &[&str], variables: &[(&str, &str)]) -> anyhow::Result<(i32, String, String)> {
    let home = TempDir::new()?;
    let mut command = Command::new(testkit::gateway_program()?);
    command.args(arguments).env_clear().env("PATH", std::env::var("PATH")?).env("CLOUDPHONE_HOME", home.path());
    let output = command.envs(variables.iter().copied()).kill_on_drop(true).output().await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
}

#[tokio::test]
async fn every_fault_of_the_configuration_is_told_at_once() -> anyhow::Result<()> {
    let variables = [("PROFILE", "production"), ("SANDBOX", "true"), ("DATABASE_POOL_MAX", "many")];

    for arguments in [&["serve"][..], &["config", "check"]] {
        let (code, _, said) = gateway(arguments, &variables).await?;

        assert_eq!(code, 78);
        for name in ["SANDBOX", "DATABASE_POOL_MAX", "REDIS_URL", "DATABASE_URL", "AUTH_SIGNING_KEY", "SERVICE_SECRET"] {
            assert!(said.contains(name), "{name} is not told in {said}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_missing_store_is_told_in_a_line() -> anyhow::Result<()> {
    let reserved = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = reserved.local_addr()?.port();
    drop(reserved);
    let database = format!("postgres://cloudphone:hidden@127.0.0.1:{port}/x");
    let redis = format!("redis://127.0.0.1:{port}");

    let (code, _, said) = gateway(&["serve"], &[("DATABASE_URL", &database), ("REDIS_URL", &redis)]).await?;

    assert_eq!(code, 1);
    let line = said.lines().last().unwrap_or_default();
    assert!(line.contains("PostgreSQL") && line.contains(&port.to_string()) && line.contains("DATABASE_URL"), "{said}");
    assert!(!said.contains("hidden"), "a password is told");
    Ok(())
}

#[tokio::test]
async fn only_the_services_asked_for_are_served() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(1).await?;
    let replica = cluster.add_replica_with(&["serve", "--services", "gateway,billing"], []).await?;
    assert!(replica.is_running());

    let counts = |instances: Vec<String>| instances.len();
    let mut found = BTreeMap::new();
    for service in ["gateway", "billing", "devices"] {
        found.insert(service, counts(cluster_tests::instances(&cluster, service).await?));
    }

    assert_eq!(found, BTreeMap::from([("gateway", 2), ("billing", 2), ("devices", 1)]));
    Ok(())
}
