//! `gateway reload`: what it refuses, what it leaves as it was, and how it works beside a supervisor.

use anyhow::Context;
use cluster_tests::leftovers::Leftovers;
use cluster_tests::operator::command;
use cluster_tests::{PATIENCE, all_instances};
use serde_json::Value;
use testkit::Cluster;
use tokio::time::timeout;

/// Runs it to its end: the exit code, what it printed, and what it said on standard error.
async fn reload(cluster: &Cluster, options: &[&str]) -> anyhow::Result<(i32, String, String)> {
    let arguments = [&["reload"], options].concat();
    let output = timeout(PATIENCE * 3, command(cluster, &arguments)?.output());
    let output = output.await.context("reload hangs")??;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let code = output.status.code().unwrap_or(-1);
    Ok((code, text(output.stdout), text(output.stderr)))
}

#[tokio::test]
async fn what_a_supervisor_restarts_or_too_few_serve_is_refused_and_left_alone()
-> anyhow::Result<()> {
    let cluster = Cluster::start(2).await?;
    let pids = [0, 1].map(|number| cluster.replica(number).pid());

    // They tell their readiness to a NOTIFY_SOCKET, as services of systemd do.
    let (code, _, said) = reload(&cluster, &[]).await?;
    assert_eq!(code, 1);
    assert!(
        said.contains("systemctl restart") && said.contains("--signal-only"),
        "{said}"
    );

    let (code, shown, said) = reload(&cluster, &["--dry-run", "--min-healthy", "3"]).await?;
    assert_eq!(code, 1, "what stands against it is told after the plan");
    for pid in pids {
        let planned = format!("pid {pid}  would be replaced");
        assert!(shown.contains(&planned), "{shown}");
    }
    assert!(
        said.contains("--unsupervised") && said.contains("needs 3"),
        "{said}"
    );

    let (code, _, said) = reload(&cluster, &["--unsupervised", "--min-healthy", "3"]).await?;
    assert_eq!(code, 1);
    assert!(
        said.contains("2 healthy instances") && said.contains("needs 3"),
        "{said}"
    );
    for pid in pids {
        assert!(
            said.contains(&pid.to_string()),
            "it says that {pid} goes on: {said}"
        );
    }

    let (code, shown, said) = reload(&cluster, &["--unsupervised", "--dry-run"]).await?;
    assert_eq!(code, 0, "{said}");
    for pid in pids {
        assert!(
            shown.contains(&format!("pid {pid}  would be replaced")),
            "{shown}"
        );
    }
    assert_eq!(
        pids,
        [0, 1].map(|number| cluster.replica(number).pid()),
        "nothing was done"
    );
    all_instances(&cluster, "gateway", 2).await;
    assert!(cluster.replicas().iter().all(testkit::Replica::is_running));
    Ok(())
}

#[tokio::test]
async fn one_that_a_supervisor_starts_again_is_waited_for_before_the_next_is_asked()
-> anyhow::Result<()> {
    let cluster = Cluster::start(2).await?;
    all_instances(&cluster, "billing", 2).await;
    let before = [0, 1].map(|number| cluster.replica(number).pid());

    let options = ["--signal-only", "--json"];
    let reloading = reload(&cluster, &options);
    let supervising = async {
        let mut running = vec![0, 1];
        while !running.is_empty() {
            for number in running.clone() {
                let replica = cluster.replica(number);
                if replica.is_running() {
                    continue;
                }
                let others = cluster.replicas().iter().filter(|other| other.is_running());
                assert_eq!(others.count(), 1, "one at a time");
                assert!(replica.wait_exit().await?.success());
                replica.begin_again()?;
                running.retain(|other| *other != number);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    let (told, supervised) = tokio::join!(reloading, timeout(PATIENCE * 3, supervising));
    supervised??;
    let (code, shown, said) = told?;

    assert_eq!(code, 0, "{shown} {said}");
    let report: Value = serde_json::from_str(&shown)?;
    let replaced = report["replaced"].as_array().context("no replaced")?;
    let mut old: Vec<_> = replaced.iter().map(|one| one["pid"].as_u64()).collect();
    old.sort_unstable();
    let mut expected = before.map(|pid| Some(u64::from(pid))).to_vec();
    expected.sort_unstable();
    assert_eq!(old, expected);
    let new = [0, 1].map(|number| Some(u64::from(cluster.replica(number).pid())));
    assert!(
        replaced
            .iter()
            .all(|one| new.contains(&one["newPid"].as_u64())),
        "{report:#}"
    );
    Ok(())
}

#[tokio::test]
async fn where_a_successor_cannot_start_its_predecessor_goes_on() -> anyhow::Result<()> {
    let folder = tempfile::TempDir::new()?;
    let settings = folder.path().join("settings.env");
    std::fs::write(&settings, "CRON_PAUSE_AFTER=3\n")?;
    let file = settings.to_str().context("a path that is no text")?;
    let cluster = Cluster::builder(1)
        .args(["serve", "--env-file", file])
        .start()
        .await?;
    let _leftovers = Leftovers::of(&cluster)?;
    std::fs::write(&settings, "CRON_PAUSE_AFTER=often\n")?;

    let (code, shown, _) = reload(&cluster, &["--unsupervised", "--json"]).await?;

    assert_eq!(code, 1);
    let report: Value = serde_json::from_str(&shown)?;
    let error = report["error"].as_str().context("no error")?;
    assert!(
        error.contains("before it was ready") && error.contains("78"),
        "{error}"
    );
    let reason = report["reason"].as_str().context("no reason")?;
    assert!(
        reason.contains("CRON_PAUSE_AFTER") && error.contains(reason),
        "{report:#}"
    );
    let output = std::fs::read_to_string(report["output"].as_str().context("no output")?)?;
    let mut lines = output
        .lines()
        .filter(|line| line.contains("CRON_PAUSE_AFTER"));
    let line: Value = serde_json::from_str(lines.next().context("no line")?)?;
    assert_eq!(
        (&line["level"], &line["message"]),
        (&"ERROR".into(), &reason.into())
    );
    assert_eq!(report["kept"][0], cluster.replica(0).pid());
    assert!(cluster.replica(0).is_running());
    assert_eq!(
        all_instances(&cluster, "billing", 1).await.len(),
        1,
        "nobody else is there"
    );
    let told = cluster.replica(0).logs_containing("CRON_PAUSE_AFTER");
    assert!(
        !told.is_empty(),
        "the successor said why, where its predecessor's lines are"
    );

    std::fs::write(&settings, "CRON_PAUSE_AFTER=4\n")?;
    let (code, shown, said) = reload(&cluster, &["--unsupervised"]).await?;
    assert_eq!(code, 0, "{shown} {said}");
    assert!(cluster.replica(0).wait_exit().await?.success());
    all_instances(&cluster, "billing", 1).await;
    Ok(())
}
