//! The kit itself, with a small program in the place of `gateway`: this test program, started again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use embedded::SupervisorCommand;
use fred::interfaces::ClientLike as _;
use testkit::{Builder, Cluster, eventually, fresh};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};

const SOON: Duration = Duration::from_secs(20);

fn program() -> PathBuf {
    env::current_exe().unwrap()
}

fn imitation(replicas: usize) -> Builder {
    let args = ["--exact", "replica_process", "--ignored", "--nocapture"];
    Cluster::builder(replicas)
        .program(program())
        .args(args)
        .env("LABEL", "blue")
}

async fn serving_process(cluster: &Cluster) -> anyhow::Result<u32> {
    let answer = fresh().get(cluster.url(30000, "/")).send().await?;
    Ok(answer.text().await?.parse()?)
}

fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[tokio::test]
async fn replicas_share_an_address_and_are_hurt_one_by_one() {
    let mut cluster = imitation(2).start().await.unwrap();
    let (first, second) = (cluster.replica(0).pid(), cluster.replica(1).pid());
    for wanted in [first, second] {
        eventually(SOON, "an answer of each replica", async || {
            let pid = serving_process(&cluster).await?;
            anyhow::ensure!(pid == wanted, "an answer of {pid}");
            Ok(())
        })
        .await;
    }

    cluster.replica(0).kill9();
    assert!(!cluster.replica(0).is_running());
    assert_eq!(serving_process(&cluster).await.unwrap(), second);
    let n: i32 = sqlx::query_scalar("select 1")
        .fetch_one(&cluster.database().await.unwrap())
        .await
        .unwrap();
    assert_eq!(n, 1, "the stores outlive the replica that started them");
    cluster
        .redis()
        .await
        .unwrap()
        .ping::<()>(None)
        .await
        .unwrap();

    cluster.replica(0).restart().await.unwrap();
    assert_ne!(cluster.replica(0).pid(), first);
    cluster
        .add_replica_with(&[], [("LABEL", "green")])
        .await
        .unwrap();
    assert_eq!(cluster.logs_containing("label blue").len(), 3);
    assert_eq!(cluster.replica(2).logs_containing("label green").len(), 1);

    cluster.replica(1).sigterm();
    assert!(cluster.replica(1).wait_exit().await.unwrap().success());
}

#[tokio::test]
async fn a_stopped_replica_goes_on_when_told() {
    let cluster = imitation(1).start().await.unwrap();
    cluster.replica(0).stop();
    let silent = tokio::time::timeout(Duration::from_millis(300), serving_process(&cluster)).await;
    assert!(silent.is_err() && cluster.replica(0).is_running());

    cluster.replica(0).cont();

    eventually(SOON, "an answer", async || serving_process(&cluster).await).await;
}

#[tokio::test]
async fn clusters_side_by_side_share_nothing_and_leave_nothing() {
    let (one, other) = tokio::join!(imitation(1).start(), imitation(1).start());
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_ne!(one.address(), other.address());
    assert_ne!(one.stores().unwrap(), other.stores().unwrap());
    let (home, pid) = (one.home().to_owned(), one.replica(0).pid());

    drop(one);

    assert!(!embedded::is_running(&home) && !home.exists() && !is_alive(pid));
    assert!(other.replica(0).is_running());
    serving_process(&other).await.unwrap();
}

#[tokio::test]
async fn a_replica_that_ends_early_is_told_with_its_log() {
    let error = imitation(1)
        .env("FAIL", "1")
        .start()
        .await
        .err()
        .unwrap()
        .to_string();

    assert!(
        error.contains("before it was ready") && error.contains("told to fail"),
        "{error}"
    );
}

#[tokio::test]
async fn everything_ends_with_a_test_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("home");
    let mut test = Command::new(program());
    test.args(["--exact", "killed_test_process", "--ignored", "--nocapture"])
        .env("TESTKIT_TOLD", &file);
    let mut test = test
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let told = eventually(Duration::from_secs(60), "a running cluster", async || {
        let text = std::fs::read_to_string(&file)?;
        anyhow::ensure!(text.ends_with('\n'), "half a line");
        Ok(text)
    });
    let told = told.await;
    let (home, pid) = told.trim().split_once(' ').unwrap();
    let pid: u32 = pid.parse().unwrap();
    assert!(is_alive(pid) && embedded::is_running(Path::new(home)));

    test.kill().unwrap();
    test.wait().unwrap();

    eventually(SOON, "the end of the replica and its stores", async || {
        let (replica, stores) = (is_alive(pid), embedded::is_running(Path::new(home)));
        anyhow::ensure!(!replica && !stores, "replica {replica}, stores {stores}");
        Ok(())
    })
    .await;
    std::fs::remove_dir_all(home).unwrap();
}

#[test]
#[ignore = "a part of another test, in a process of its own"]
fn killed_test_process() {
    let Some(file) = env::var_os("TESTKIT_TOLD") else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let cluster = imitation(1).start().await.unwrap();
        let told = format!(
            "{} {}\n",
            cluster.home().display(),
            cluster.replica(0).pid()
        );
        std::fs::write(file, told).unwrap();
        std::future::pending::<()>().await;
    });
}

/// What the tests take for `gateway`: joins the stores, serves its process number, says that it is ready.
#[test]
#[ignore = "a part of the other tests, in a process of its own"]
fn replica_process() {
    let (Ok(home), Ok(address)) = (env::var("CLOUDPHONE_HOME"), env::var("LISTEN_ADDRESS")) else {
        return;
    };
    if env::var("FAIL").is_ok() {
        eprintln!("told to fail");
        std::process::exit(1);
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let supervisor = SupervisorCommand {
            program: program(),
            args: ["--exact", "supervisor_process", "--ignored", "--nocapture"]
                .map(Into::into)
                .into(),
        };
        let stores = embedded::join(Path::new(&home), supervisor).await.unwrap();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseport(true).unwrap();
        socket
            .bind(format!("{address}:30000").parse().unwrap())
            .unwrap();
        let listener = socket.listen(128).unwrap();
        eprintln!("label {}", env::var("LABEL").unwrap());
        let notify = std::os::unix::net::UnixDatagram::unbound().unwrap();
        notify
            .send_to(b"READY=1", env::var("NOTIFY_SOCKET").unwrap())
            .unwrap();

        let mut terminate = signal(SignalKind::terminate()).unwrap();
        loop {
            let mut stream = tokio::select! {
                accepted = listener.accept() => accepted.unwrap().0,
                _ = terminate.recv() => break,
            };
            let _ = stream.read(&mut [0; 4096]).await;
            let body = std::process::id().to_string();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
        stores.leave().await;
    });
}

#[test]
#[ignore = "a part of the other tests, in a process of its own"]
fn supervisor_process() {
    if let Ok(home) = env::var("CLOUDPHONE_HOME") {
        embedded::supervise(Path::new(&home)).unwrap();
    }
}
