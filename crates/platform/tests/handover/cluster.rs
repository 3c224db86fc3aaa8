//! Starts replicas as processes and speaks to them as a process manager does.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// How long anything may take before a test says that it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Replicas that share a folder and addresses.
pub struct Cluster {
    pub replicas: Vec<Replica>,
    folder: TempDir,
    addresses: BTreeMap<String, SocketAddr>,
}

impl Cluster {
    /// Makes a cluster without replicas.
    pub fn new(services: &[&str]) -> Self {
        let addresses = services
            .iter()
            .map(|service| ((*service).to_owned(), free_address()));
        Self {
            replicas: Vec::new(),
            folder: tempfile::tempdir().unwrap(),
            addresses: addresses.collect(),
        }
    }

    /// Where a service listens.
    pub fn address(&self, service: &str) -> SocketAddr {
        self.addresses[service]
    }

    /// Starts a replica of all services, and waits until it says that it is ready.
    pub async fn start(&self) -> Replica {
        self.spawn(self.command(&self.addresses)).await
    }

    /// Starts a replica of some services.
    pub async fn start_roles(&self, services: &[&str]) -> Replica {
        let mut addresses = self.addresses.clone();
        addresses.retain(|service, _| services.contains(&service.as_str()));
        self.spawn(self.command(&addresses)).await
    }

    /// Starts a replica with a listening socket of ours as descriptor 3.
    pub async fn start_with_socket(&self, socket: &TcpListener) -> Replica {
        let plain = self.command(&self.addresses);
        let mut command = Command::new("sh");
        command.args(["-c", r#"exec 3<&0 </dev/null; LISTEN_FDS=1 exec "$0" "$@""#]);
        command
            .arg(plain.as_std().get_program())
            .args(plain.as_std().get_args());
        let environment = plain.as_std().get_envs();
        command.envs(environment.filter_map(|(name, value)| Some((name, value?))));
        command
            .stdin(OwnedFd::from(socket.try_clone().unwrap()))
            .stdout(Stdio::null());
        self.spawn(command).await
    }

    /// Starts a replica that cannot start. Returns its exit code and what it wrote.
    pub async fn fail_to_start(&self) -> (i32, String) {
        let output = self.command(&self.addresses).kill_on_drop(true).output();
        let output = timeout(PATIENCE, output).await.unwrap().unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// How many replicas can be found by others, dead or alive.
    pub fn doors(&self) -> usize {
        let entries = self.run_folder().read_dir().unwrap().flatten();
        entries
            .filter(|entry| {
                entry
                    .path()
                    .extension()
                    .is_some_and(|extension| extension == "sock")
            })
            .count()
    }

    fn run_folder(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn command(&self, addresses: &BTreeMap<String, SocketAddr>) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["replica::process", "--exact", "--ignored", "--nocapture"])
            .env("REPLICA_FOLDER", self.run_folder())
            .env(
                "REPLICA_ADDRESSES",
                serde_json::to_string(addresses).unwrap(),
            )
            .stdout(Stdio::null());
        command
    }

    async fn spawn(&self, mut command: Command) -> Replica {
        let notify = self
            .folder
            .path()
            .join(format!("notify-{:08x}", rand::random::<u32>()));
        let manager = UnixDatagram::bind(&notify).unwrap();
        // The captured output of a test that fails shows what its replicas had to say.
        let log = std::fs::File::create(notify.with_extension("log")).unwrap();
        let child = command
            .env("NOTIFY_SOCKET", &notify)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut replica = Replica {
            child,
            log: notify.with_extension("log"),
        };
        let mut state = [0; 256];
        let length = tokio::select! {
            length = timeout(PATIENCE, manager.recv(&mut state)) => length.unwrap().unwrap(),
            code = replica.child.wait() => panic!("a replica did not start: {code:?}"),
        };
        assert!(state[..length].starts_with(b"READY=1"));
        replica
    }
}

/// A running replica.
pub struct Replica {
    child: Child,
    log: PathBuf,
}

impl Replica {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Asks it to leave.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Holds it still.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it run again.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Ends it without warning.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Waits until it has ended, and returns its exit code.
    pub async fn exit_code(&mut self) -> i32 {
        let status = timeout(PATIENCE, self.child.wait())
            .await
            .expect("a replica does not end")
            .unwrap();
        status.code().expect("a replica was killed")
    }

    /// Waits until it has ended, and asks again and again meanwhile.
    pub async fn exit_code_insisting(&mut self) -> i32 {
        loop {
            if let Ok(status) = timeout(Duration::from_millis(100), self.child.wait()).await {
                return status.unwrap().code().expect("a replica was killed");
            }
            self.terminate();
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).unwrap();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// An address that nobody uses, below the range from which outgoing connections take theirs.
fn free_address() -> SocketAddr {
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], rand::random_range(20_000..30_000)));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
