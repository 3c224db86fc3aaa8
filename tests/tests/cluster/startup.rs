//! What a replica that cannot start says, and what the commands print.

use std::collections::BTreeMap;

use tempfile::TempDir;
use testkit::Cluster;
use tokio::process::Command;

async fn gateway(
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> anyhow::Result<(i32, String, String)> {
    let home = TempDir::new()?;
    let mut command = Command::new(testkit::gateway_program()?);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var("PATH")?)
        .env("CLOUDPHONE_HOME", home.path());
    let output = command
        .envs(variables.iter().copied())
        .kill_on_drop(true)
        .output()
        .await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    ))
}

#[tokio::test]
async fn every_fault_of_the_configuration_is_told_at_once() -> anyhow::Result<()> {
    let variables = [
        ("PROFILE", "production"),
        ("SANDBOX", "true"),
        ("DATABASE_POOL_MAX", "many"),
    ];

    for arguments in [&["serve"][..], &["config", "check"]] {
        let (code, _, said) = gateway(arguments, &variables).await?;

        assert_eq!(code, 78);
        for name in [
            "SANDBOX",
            "DATABASE_POOL_MAX",
            "REDIS_URL",
            "DATABASE_URL",
            "AUTH_SIGNING_KEY",
            "SERVICE_SECRET",
        ] {
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

    let (code, _, said) = gateway(
        &["serve"],
        &[("DATABASE_URL", &database), ("REDIS_URL", &redis)],
    )
    .await?;

    assert_eq!(code, 1);
    let line = said.lines().last().unwrap_or_default();
    assert!(
        line.contains("PostgreSQL")
            && line.contains(&port.to_string())
            && line.contains("DATABASE_URL"),
        "{said}"
    );
    assert!(!said.contains("hidden"), "a password is told");
    Ok(())
}

#[tokio::test]
async fn only_the_services_asked_for_are_served() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(1).await?;
    let replica = cluster
        .add_replica_with(&["serve", "--services", "gateway,billing"], [])
        .await?;
    assert!(replica.is_running());

    let counts = |instances: Vec<String>| instances.len();
    let mut found = BTreeMap::new();
    for service in ["gateway", "billing", "devices"] {
        found.insert(
            service,
            counts(cluster_tests::instances(&cluster, service).await?),
        );
    }

    assert_eq!(
        found,
        BTreeMap::from([("gateway", 2), ("billing", 2), ("devices", 1)])
    );
    Ok(())
}

#[tokio::test]
async fn the_sample_configurations_are_right() -> anyhow::Result<()> {
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/config");
    let development = format!("{samples}/development.env");
    let production = format!("{samples}/production.env");

    let (code, _, said) = gateway(&["config", "check", "--env-file", &development], &[]).await?;
    assert_eq!(code, 0, "{said}");
    let (code, _, said) = gateway(&["config", "check", "--env-file", &production], &[]).await?;
    assert_eq!(code, 78, "production does not run without secrets");
    assert!(said.contains("PAYMENT_WEBHOOK_SECRETS"), "{said}");

    let secret = "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3I=";
    let given = [
        ("REDIS_URL", "redis://redis:6379"),
        ("DATABASE_URL", "postgres://cloudphone@postgres/cloudphone"),
        ("AUTH_SIGNING_KEY", secret),
        ("SERVICE_SECRET", secret),
        (
            "PAYMENT_WEBHOOK_SECRETS",
            "whsec_c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3I=",
        ),
    ];
    let (code, _, said) = gateway(&["config", "check", "--env-file", &production], &given).await?;
    assert_eq!(code, 0, "{said}");
    Ok(())
}

/// Every variable that a `Config` reads stands in the sample with its default, so that nobody has to read the code.
#[test]
fn the_sample_names_every_setting() -> anyhow::Result<()> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let sample = std::fs::read_to_string(root.join("deploy/config/development.env"))?;
    let mut sources = vec![
        root.join("crates/platform/src/config/settings.rs"),
        root.join("crates/gateway/src/front/config.rs"),
        root.join("crates/billing/src/provider/settings.rs"),
        root.join("crates/billing/src/webhook/settings.rs"),
    ];
    for service in [
        "users",
        "devices",
        "apps",
        "media",
        "billing",
        "notifications",
    ] {
        sources.push(root.join(format!("crates/{service}/src/config.rs")));
    }

    let mut missing = Vec::new();
    for source in sources {
        let text = std::fs::read_to_string(&source)?;
        let documented = text
            .lines()
            .filter(|line| line.trim_start().starts_with("///"));
        for name in documented.flat_map(|line| line.split('`').skip(1).step_by(2)) {
            let is_variable = name.len() > 3
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_uppercase() || byte == b'_');
            if is_variable && !sample.contains(&format!("{name}=")) {
                missing.push(name.to_owned());
            }
        }
    }

    missing.retain(|name| name != "RUST_LOG" && name != "DOCKER_HOST");
    assert_eq!(missing, Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_told_before_anything_starts() -> anyhow::Result<()> {
    let (authority, folder) = (testkit::Authority::new()?, TempDir::new()?);
    let (certificate, key) = authority.issue(&["localhost"])?.write(folder.path())?;
    let other = TempDir::new()?;
    let (_, stranger) = authority.issue(&["localhost"])?.write(other.path())?;
    let absent = folder.path().join("absent.pem");
    let [certificate, key, stranger, absent] =
        [certificate, key, stranger, absent].map(|path| path.display().to_string());

    for (certificate, key, fault) in [
        (&certificate, &stranger, "does not belong to"),
        (&absent, &key, "cannot read"),
        (&certificate, &absent, "absent.pem"),
        (&certificate, &String::new(), "GATEWAY_TLS_KEY"),
    ] {
        let variables = [
            ("GATEWAY_TLS_CERT", certificate.as_str()),
            ("GATEWAY_TLS_KEY", key.as_str()),
        ];
        for arguments in [&["serve"][..], &["config", "check"]] {
            let (code, _, said) = gateway(arguments, &variables).await?;

            assert_eq!(code, 78, "{said}");
            assert!(said.contains(fault), "{fault} is not told in {said}");
        }
    }
    let gone = folder.path().join("gone.pem").display().to_string();
    let variables = [
        ("GATEWAY_TLS_CERT", absent.as_str()),
        ("GATEWAY_TLS_KEY", gone.as_str()),
    ];
    for arguments in [&["serve"][..], &["config", "check"]] {
        let (_, _, said) = gateway(arguments, &variables).await?;
        assert!(said.contains("2 fault(s)"), "{said}");
        assert!(said.contains(&absent) && said.contains(&gone), "{said}");
    }
    let (code, shown, _) = gateway(&["config", "check", "--json"], &variables).await?;
    let told: serde_json::Value = serde_json::from_str(&shown)?;
    assert_eq!((code, &told["right"]), (78, &false.into()));
    assert_eq!(told["faults"][1]["variable"], "GATEWAY_TLS_KEY", "{told}");
    let more = [&variables[..], &[("DATABASE_POOL_MAX", "many")]].concat();
    let (_, _, said) = gateway(&["config", "check"], &more).await?;
    assert!(said.contains("3 fault(s)"), "{said}");
    let variables = [
        ("GATEWAY_TLS_CERT", certificate.as_str()),
        ("GATEWAY_TLS_KEY", key.as_str()),
    ];
    let (code, _, said) = gateway(&["config", "check"], &variables).await?;
    assert_eq!(code, 0, "{said}");
    Ok(())
}
