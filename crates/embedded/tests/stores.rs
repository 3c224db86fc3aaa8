//! Replicas and the supervisor as real processes: this test program starts itself again in either part.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use embedded::{Addresses, SupervisorCommand};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::Connection as _;

const DIR: &str = "EMBEDDED_TEST_DIR";

/// A folder that the stores' user may enter.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o711)).unwrap();
        Self(home)
    }

    fn dir(&self) -> PathBuf {
        self.0.path().join("stores")
    }

    fn supervisors(&self) -> Vec<Pid> {
        processes(|line| line.contains("supervisor_process") && self.is_environment_of(line))
    }

    fn is_environment_of(&self, line: &str) -> bool {
        let pid = line.split_whitespace().next().unwrap();
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(self.dir().to_str().unwrap())
    }

    fn stores(&self) -> Vec<Pid> {
        let dir = self.dir();
        processes(|line| line.contains(dir.to_str().unwrap()) || is_redis_below(line, &dir))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir().join("stores.log")).unwrap_or_default()
    }
}

/// Redis writes its address over its arguments, so it is known by its port.
fn is_redis_below(line: &str, dir: &Path) -> bool {
    let Ok(text) = fs::read_to_string(dir.join("stores.json")) else {
        return false;
    };
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    line.contains("redis-server") && line.contains(&format!("127.0.0.1:{}", record["redis_port"]))
}

fn processes(wanted: impl Fn(&str) -> bool) -> Vec<Pid> {
    let output = Command::new("ps")
        .args(["-ww", "-eo", "pid=,stat=,args="])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| wanted(line) && !line.split_whitespace().nth(1).unwrap().starts_with('Z'))
        .map(|line| Pid::from_raw(line.split_whitespace().next().unwrap().parse().unwrap()))
        .collect()
}

/// A replica; it says where its stores are and stays until its input ends.
struct Replica {
    process: Child,
    said: BufReader<ChildStdout>,
}

impl Replica {
    fn start(home: &Home) -> Self {
        let mut process = part("replica_process", &home.dir());
        process
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut process = process.spawn().unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        Self { process, said }
    }

    fn joined(&mut self) -> Addresses {
        self.joined_saying().0
    }

    /// The same, and what it said until then.
    fn joined_saying(&mut self) -> (Addresses, String) {
        let (mut said, mut line) = (String::new(), String::new());
        while !line.contains("joined ") {
            line.clear();
            assert_ne!(
                self.said.read_line(&mut line).unwrap(),
                0,
                "the replica ended before it had joined"
            );
            said.push_str(&line);
        }
        let start = line.find('{').unwrap();
        (serde_json::from_str(line[start..].trim()).unwrap(), said)
    }

    fn kill9(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn leave(mut self) {
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }
}

fn part(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(DIR, dir);
    command
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "in vain waited for: {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn answers(addresses: &Addresses) -> bool {
    value(addresses).is_ok() && redis_answers(addresses)
}

/// The number in table `kept`, zero where there is none.
fn value(addresses: &Addresses) -> sqlx::Result<i32> {
    execute(addresses, "create table if not exists kept (n int)")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut connection = sqlx::PgConnection::connect(&addresses.database_url).await?;
        let n: Option<i32> = sqlx::query_scalar("select max(n) from kept")
            .fetch_one(&mut connection)
            .await?;
        Ok(n.unwrap_or(0))
    })
}

fn execute(addresses: &Addresses, statement: &'static str) -> sqlx::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut connection = sqlx::PgConnection::connect(&addresses.database_url).await?;
        sqlx::query(statement).execute(&mut connection).await?;
        Ok(())
    })
}

fn redis_answers(addresses: &Addresses) -> bool {
    use std::io::{Read as _, Write as _};
    let (password, address) = addresses
        .redis_url
        .strip_prefix("redis://default:")
        .unwrap()
        .split_once('@')
        .unwrap();
    let Ok(mut connection) = std::net::TcpStream::connect(address) else {
        return false;
    };
    connection
        .write_all(format!("AUTH {password}\r\nPING\r\n").as_bytes())
        .unwrap();
    let mut heard = [0; 12];
    connection.read_exact(&mut heard).is_ok() && &heard == b"+OK\r\n+PONG\r\n"
}

#[test]
fn stores_outlive_every_killed_replica_and_end_with_the_last() {
    let home = Home::new();
    let mut first = Replica::start(&home);
    let addresses = first.joined();
    let mut second = Replica::start(&home);
    let (joined, said) = second.joined_saying();
    assert_eq!(joined, addresses);
    assert!(
        said.contains("which run already") && !said.contains("starting a private PostgreSQL"),
        "{said}"
    );

    let before = home.stores();
    first.kill9();
    std::thread::sleep(Duration::from_secs(2));

    assert!(answers(&addresses));
    assert_eq!(
        home.stores().first(),
        before.first(),
        "the servers are the same processes"
    );

    second.kill9();
    eventually("the end of all processes", || {
        home.stores().is_empty() && home.supervisors().is_empty()
    });
    assert!(!embedded::is_running(&home.dir()));
}

#[test]
fn data_survive_a_restart_at_the_same_addresses() {
    let home = Home::new();
    let mut replica = Replica::start(&home);
    let addresses = replica.joined();
    assert_eq!(value(&addresses).unwrap(), 0);
    execute(&addresses, "insert into kept values (7)").unwrap();
    replica.leave();
    eventually("the end of the stores", || {
        !embedded::is_running(&home.dir())
    });

    let mut replica = Replica::start(&home);

    assert_eq!(replica.joined(), addresses);
    assert_eq!(value(&addresses).unwrap(), 7);
    replica.leave();
    eventually("the end of the stores", || {
        !embedded::is_running(&home.dir())
    });
}

#[test]
fn a_killed_supervisor_comes_back_with_the_same_addresses() {
    let home = Home::new();
    let mut replicas = [Replica::start(&home), Replica::start(&home)];
    let addresses = replicas[0].joined();
    replicas[1].joined();
    assert_eq!(value(&addresses).unwrap(), 0);
    execute(&addresses, "insert into kept values (3)").unwrap();
    let [supervisor] = home.supervisors()[..] else {
        panic!("{:?}", home.supervisors())
    };

    kill(supervisor, Signal::SIGKILL).unwrap();
    eventually("another supervisor", || {
        home.supervisors().iter().any(|pid| *pid != supervisor)
    });
    eventually("the stores", || answers(&addresses));

    assert_eq!(value(&addresses).unwrap(), 3);
    assert_eq!(home.supervisors().len(), 1);
    let [first, second] = replicas;
    first.leave();
    std::thread::sleep(Duration::from_secs(2));
    assert!(
        answers(&addresses),
        "both replicas are members of the new supervisor"
    );
    second.leave();
    eventually("the end of all processes", || {
        home.stores().is_empty() && home.supervisors().is_empty()
    });
}

#[test]
fn a_store_that_dies_is_started_again() {
    let home = Home::new();
    let mut replica = Replica::start(&home);
    let addresses = replica.joined();
    let servers = home.stores();

    for server in &servers {
        let _ = kill(*server, Signal::SIGKILL);
    }
    eventually("the stores", || answers(&addresses));

    assert!(home.stores().iter().all(|server| !servers.contains(server)));
    replica.leave();
    eventually("the end of all processes", || {
        home.stores().is_empty() && home.supervisors().is_empty()
    });
}

#[test]
fn replicas_that_start_at_once_share_one_supervisor() {
    let home = Home::new();
    let mut replicas: Vec<_> = (0..4).map(|_| Replica::start(&home)).collect();

    let addresses: Vec<_> = replicas.iter_mut().map(Replica::joined).collect();

    assert!(addresses.iter().all(|other| *other == addresses[0]));
    assert_eq!(home.supervisors().len(), 1);
    let created = home
        .log()
        .matches("first start creates the cluster")
        .count();
    assert_eq!(created, 1, "{}", home.log());
    replicas.into_iter().for_each(Replica::kill9);
    eventually("the end of all processes", || {
        home.stores().is_empty() && home.supervisors().is_empty()
    });
}

#[test]
fn a_replica_that_comes_while_the_stores_end_is_served() {
    let home = Home::new();
    for pause in [900, 1000, 1050, 1100] {
        let mut replica = Replica::start(&home);
        assert!(answers(&replica.joined()));
        replica.leave();
        std::thread::sleep(Duration::from_millis(pause));
    }
    eventually("the end of the stores", || {
        !embedded::is_running(&home.dir())
    });
}

#[test]
fn a_long_path_and_a_stale_process_number_do_no_harm() {
    let home = Home::new();
    let long = home.dir().join("a".repeat(60)).join("b".repeat(60));
    let replica = |dir: &Path| {
        let mut process = part("replica_process", dir);
        let mut process = process
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        Replica { process, said }
    };
    let mut first = replica(&long);
    first.joined();
    first.leave();
    eventually("the end of the stores", || !embedded::is_running(&long));
    // As after a crash of the machine: the number now belongs to another process, ours.
    let file = long.join("postgres/data/postmaster.pid");
    fs::write(file, format!("{}\n", std::process::id())).unwrap();

    let mut second = replica(&long);

    assert!(answers(&second.joined()));
    second.leave();
    eventually("the end of the stores", || !embedded::is_running(&long));
}

#[test]
#[ignore = "a part of the other tests, in a process of its own"]
fn replica_process() {
    let Some(dir) = env::var_os(DIR) else { return };
    log(std::io::stdout);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let supervisor = SupervisorCommand {
            program: env::current_exe().unwrap(),
            args: ["--exact", "supervisor_process", "--ignored", "--nocapture"]
                .map(Into::into)
                .into(),
        };
        let stores = embedded::join(Path::new(&dir), supervisor).await.unwrap();
        let addresses = Addresses {
            redis_url: stores.redis_url.clone(),
            database_url: stores.database_url.clone(),
        };
        let line = format!("joined {}\n", serde_json::to_string(&addresses).unwrap());
        std::io::Write::write_all(&mut std::io::stdout(), line.as_bytes()).unwrap();
        let input = tokio::task::spawn_blocking(|| std::io::read_to_string(std::io::stdin()));
        input.await.unwrap().unwrap();
        stores.leave().await;
    });
}

#[test]
#[ignore = "a part of the other tests, in a process of its own"]
fn supervisor_process() {
    let Some(dir) = env::var_os(DIR) else { return };
    log(std::io::stderr);
    embedded::supervise(Path::new(&dir)).unwrap();
}

fn log<W: std::io::Write + 'static>(writer: fn() -> W) {
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(writer)
        .init();
}
