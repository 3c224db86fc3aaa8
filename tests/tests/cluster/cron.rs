//! Cron, invariants and instances in the hands of an administrator: through the gateway, and on the command line.

use anyhow::{Context, ensure};
use cluster_tests::operator::{administrator, bearing, gateway};
use cluster_tests::{GATEWAY, PATIENCE, Reply, call_with, register, text};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use testkit::{Cluster, eventually};

/// Calls a route of the gateway's own.
async fn ask(cluster: &Cluster, who: &Client, method: Method, path: &str) -> anyhow::Result<Reply> {
    let url = cluster.url(GATEWAY, &format!("/api/gateway{path}"));
    call_with(who, method, url, None).await
}

fn job<'a>(list: &'a Value, name: &str) -> &'a Value {
    let jobs = list["jobs"].as_array().into_iter().flatten();
    jobs.into_iter()
        .find(|job| job["job"] == name)
        .unwrap_or_else(|| panic!("no job {name} in {list:#}"))
}

#[tokio::test]
async fn an_administrator_sees_jobs_triggers_pauses_and_resumes_them() -> anyhow::Result<()> {
    let cluster = Cluster::builder(2)
        .env("CRON_TIME_ZONE", "Europe/Berlin")
        .start()
        .await?;
    let admin = administrator(&cluster).await?;

    let list = ask(&cluster, &admin, Method::GET, "/cron?next=3")
        .await?
        .expect(200);
    let verify = job(&list, "ledger-verify");
    assert_eq!(verify["timeZone"], "Europe/Berlin");
    assert_eq!(verify["overlap"], "queue-one");
    assert_eq!(verify["nextRuns"].as_array().map(Vec::len), Some(3));

    // A run by hand, and where it stands afterwards.
    let asked = ask(
        &cluster,
        &admin,
        Method::POST,
        "/cron/ledger-verify/trigger",
    )
    .await?
    .expect(202);
    eventually(PATIENCE, "the run by hand has succeeded", async || {
        let runs = ask(&cluster, &admin, Method::GET, "/cron/ledger-verify/runs")
            .await?
            .expect(200);
        let run = &runs["runs"][0];
        ensure!(
            run["slot"] == asked["slot"] && run["state"] == "succeeded",
            "{runs:#}"
        );
        ensure!(
            run["manual"] == true && run["token"].is_number(),
            "{runs:#}"
        );
        Ok(())
    })
    .await;
    let slot = text(&asked, "slot");
    let older = ask(
        &cluster,
        &admin,
        Method::GET,
        &format!("/cron/ledger-verify/runs?limit=5&before={slot}"),
    )
    .await?;
    assert_eq!(older.expect(200)["runs"], json!([]));

    // Pause and resume, told once.
    for (step, paused, changed) in [
        ("pause", true, true),
        ("pause", true, false),
        ("resume", false, true),
        ("resume", false, false),
    ] {
        let path = format!("/cron/ledger-verify/{step}");
        let told = ask(&cluster, &admin, Method::POST, &path)
            .await?
            .expect(200);
        assert_eq!(
            told,
            json!({ "job": "ledger-verify", "paused": paused, "changed": changed })
        );
        let list = ask(&cluster, &admin, Method::GET, "/cron")
            .await?
            .expect(200);
        assert_eq!(job(&list, "ledger-verify")["pausedAt"].is_string(), paused);
    }

    // The same on the command line, beside any replica.
    let printed = gateway(
        &cluster,
        &["cron", "pause", "ledger-verify", "--reason", "audit"],
        "",
    )
    .await?;
    assert!(
        printed.contains("gateway cron resume ledger-verify"),
        "{printed}"
    );
    let table = gateway(&cluster, &["cron", "list"], "").await?;
    let row = table.lines().find(|line| line.starts_with("ledger-verify"));
    assert!(
        row.is_some_and(|row| row.contains("paused: audit")),
        "{table}"
    );
    for arguments in [
        ["list", "--next", "51"].as_slice(),
        &["history", "ledger-verify", "--limit", "501"],
    ] {
        let wrong = gateway(&cluster, &[&["cron"], arguments].concat(), "").await;
        let said = wrong.unwrap_err().to_string();
        assert!(said.contains("=50") || said.contains("=500"), "{said}");
    }
    gateway(&cluster, &["cron", "resume", "ledger-verify"], "").await?;
    gateway(&cluster, &["cron", "trigger", "ledger-verify"], "").await?;
    let history = gateway(
        &cluster,
        &["cron", "history", "ledger-verify", "--json"],
        "",
    )
    .await?;
    let history: Vec<Value> = serde_json::from_str(&history)?;
    assert_eq!(history.len(), 2, "{history:#?}");
    let wrong = gateway(&cluster, &["cron", "trigger", "nothing"], "")
        .await
        .unwrap_err();
    assert!(
        wrong.to_string().contains("there is no job nothing"),
        "{wrong}"
    );
    Ok(())
}

#[tokio::test]
async fn invariants_and_instances_are_the_same_from_every_replica() -> anyhow::Result<()> {
    let cluster = Cluster::builder(2).start().await?;
    let admin = administrator(&cluster).await?;

    for name in [
        "invariants-cron-duplicates",
        "invariants-cron-gaps",
        "invariants-port-leases",
    ] {
        ask(
            &cluster,
            &admin,
            Method::POST,
            &format!("/cron/{name}/trigger"),
        )
        .await?
        .expect(202);
    }
    let expected = ["cron_slot_duplicates", "cron_slot_gaps", "double_lease"];
    eventually(
        PATIENCE,
        "each invariant was checked and holds",
        async || {
            let report = ask(&cluster, &admin, Method::GET, "/invariants")
                .await?
                .expect(200);
            let found = report["invariants"].as_array().context("no invariants")?;
            let names: Vec<&str> = found
                .iter()
                .filter_map(|each| each["invariant"].as_str())
                .collect();
            ensure!(names == expected, "{report:#}");
            for each in found {
                ensure!(each["total"] == 0 && each["error"].is_null(), "{each:#}");
            }
            ensure!(report["fencedWrites"].is_array(), "{report:#}");
            Ok(())
        },
    )
    .await;
    for address in cluster_tests::all_instances(&cluster, "gateway", 2).await {
        eventually(PATIENCE, "its metrics tell the same", async || {
            let metrics = reqwest::get(format!("http://{address}/metrics"))
                .await?
                .text()
                .await?;
            for name in expected {
                let line = format!("{name}_total 0");
                ensure!(metrics.lines().any(|each| each == line), "no `{line}`");
            }
            Ok(())
        })
        .await;
    }

    let reply = ask(&cluster, &admin, Method::GET, "/instances")
        .await?
        .expect(200);
    let instances = reply["instances"].as_array().context("no instances")?;
    assert_eq!(instances.len(), 14, "{reply:#}");
    for each in instances {
        assert_eq!(each["health"], "ready");
        for member in [
            "service",
            "instance",
            "address",
            "version",
            "startedAt",
            "load",
        ] {
            assert!(!each[member].is_null(), "no {member} in {each:#}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_routes_of_an_administrator_are_closed_to_others_and_know_no_strange_job()
-> anyhow::Result<()> {
    let cluster = Cluster::start(1).await?;
    let (admin, nobody) = (administrator(&cluster).await?, testkit::fresh());
    let user = bearing(&register(&cluster, "alice").await?)?;

    for (method, path) in [
        (Method::GET, "/cron"),
        (Method::GET, "/cron/strange/runs"),
        (Method::POST, "/cron/strange/trigger"),
        (Method::POST, "/cron/strange/pause"),
        (Method::POST, "/cron/strange/resume"),
        (Method::GET, "/invariants"),
        (Method::GET, "/instances"),
    ] {
        ask(&cluster, &nobody, method.clone(), path)
            .await?
            .expect(401);
        ask(&cluster, &user, method.clone(), path)
            .await?
            .expect(403);
        let status = if path.contains("strange") { 404 } else { 200 };
        ask(&cluster, &admin, method, path).await?.expect(status);
    }
    let wrong = ask(&cluster, &admin, Method::GET, "/cron/strange/runs?limit=0").await?;
    wrong.expect(400);
    Ok(())
}
