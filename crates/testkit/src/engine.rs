//! A container engine of a test's own: its own socket, data and bridge, and no say over the packet filter of the machine.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::authority::Authority;
use crate::server::Server;

/// The image that [`Engine::start`] makes: a program that says on each of the three ports of a device which one it is.
pub const IMAGE: &str = "cloudphone-test:1";
/// The environment variable that is `none` where tests do without engines.
const WANTED: &str = "TEST_ENGINES";
/// How long an engine may take to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(60);
const PROGRAM: &str = r#"
use std::{io::Write, net::TcpListener, thread};
fn main() {
    let ports = [5555, 8080, 27183].map(|port| thread::spawn(move || {
        let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
        for mut stream in listener.incoming().flatten() { let _ = write!(stream, "port {port}"); }
    }));
    for port in ports { port.join().unwrap(); }
}
"#;

/// A running engine. When it is dropped, it and all of its containers have ended.
pub struct Engine {
    server: Server,
    bridge: String,
    /// Where it listens with TLS, if it does.
    port: Option<u16>,
    folder: TempDir,
}

impl Engine {
    /// Starts an engine and makes [`IMAGE`] in it. Fails with the reason where this machine cannot run one: it needs
    /// `dockerd`, and the rights of root.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_in(TempDir::with_prefix("engine-")?, None)
    }

    /// What was started for a test, which fails with the reason where this machine cannot run an engine; `None` where the
    /// environment says `TEST_ENGINES=none`: tests are to do without.
    ///
    /// # Panics
    /// Where no engine can be started.
    pub fn for_test(start: impl FnOnce() -> anyhow::Result<Self>) -> Option<Self> {
        if env::var(WANTED).is_ok_and(|wanted| wanted == "none") {
            eprintln!("skipped: {WANTED}=none says that tests do without engines");
            return None;
        }
        match start() {
            Ok(engine) => Some(engine),
            Err(reason) => panic!(
                "no engine could be started, which takes dockerd and the rights of root; {WANTED}=none skips the tests that need one: {reason:#}"
            ),
        }
    }

    /// The same as [`Engine::start`] with an engine that listens at [`Engine::secure_endpoint`], too, and lets in only whom this authority knows.
    pub fn secured(authority: &Authority) -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("engine-")?;
        certify(folder.path(), authority)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        Self::start_in(folder, Some(port.port()))
    }

    fn start_in(folder: TempDir, port: Option<u16>) -> anyhow::Result<Self> {
        let path = |name: &str| folder.path().join(name).display().to_string();
        let bridge = bridge()?;
        let secured = port.map(|port| {
            vec![
                format!("--host=tcp://127.0.0.1:{port}"),
                "--tlsverify".into(),
                format!("--tlscacert={}", path("ca.pem")),
                format!("--tlscert={}", path("tls.crt")),
                format!("--tlskey={}", path("tls.key")),
            ]
        });
        let arguments = vec![
            format!("--host=unix://{}", path("docker.sock")),
            format!("--data-root={}", path("data")),
            format!("--exec-root={}", path("exec")),
            format!("--pidfile={}", path("pid")),
            format!("--bridge={bridge}"),
            "--iptables=false".into(),
            "--ip6tables=false".into(),
            "--storage-driver=vfs".into(),
        ];
        let server = Server::start(
            "dockerd",
            [arguments, secured.unwrap_or_default()].concat(),
            folder.path().to_owned(),
            "dockerd",
        );
        let server = server.inspect_err(|_| {
            let _ = run("ip", &["link", "delete", &bridge]);
        })?;
        let engine = Self {
            server,
            bridge,
            port,
            folder,
        };
        engine.wait()?;
        engine.import()?;
        Ok(engine)
    }

    /// Where it listens, as settings name it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}/docker.sock", self.folder.path().display())
    }

    /// Where it listens with TLS, as settings name it; only of one that was started so.
    pub fn secure_endpoint(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port.unwrap_or_default())
    }

    /// Gives it a certificate of another authority, which alone it trusts when it is started again.
    pub fn certify(&self, authority: &Authority) -> anyhow::Result<()> {
        certify(self.folder.path(), authority)
    }

    /// Runs its command line, and gives what it says.
    pub fn docker(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let endpoint = self.endpoint();
        run("docker", &[&["-H", endpoint.as_str()], arguments].concat())
    }

    /// Kills it like `kill -9`, with the supervisor of its containers. These run on until it is started again.
    pub fn kill(&self) {
        self.server.end(Signal::SIGKILL);
        for pid in self.processes() {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.trim() == "containerd" {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    }

    /// Stops it in its tracks: it accepts connections and answers nothing.
    pub fn freeze(&self) {
        self.server.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.server.signal(Signal::SIGCONT);
    }

    /// Starts it again after [`Engine::kill`], and waits until it answers.
    pub fn start_again(&self) -> anyhow::Result<()> {
        // Their numbers may be those of other programs by now.
        for file in ["pid", "exec/containerd/containerd.pid"] {
            let _ = fs::remove_file(self.folder.path().join(file));
        }
        self.server.start_again()?;
        self.wait()
    }

    fn wait(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            match self.docker(&["version", "--format", "{{.Server.Version}}"]) {
                Ok(_) => return Ok(()),
                Err(_) if !self.server.is_running() => {
                    let log = self.folder.path().join("dockerd.log");
                    let log = fs::read_to_string(log).unwrap_or_default();
                    bail!("dockerd ended: {}", log.lines().last().unwrap_or_default());
                }
                Err(error) if started.elapsed() > PATIENCE => {
                    return Err(error.context("dockerd did not answer"));
                }
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn import(&self) -> anyhow::Result<()> {
        let folder = self.folder.path();
        let text = |path: &Path| path.display().to_string();
        let (source, program, tar) = (
            folder.join("main.rs"),
            folder.join("device"),
            folder.join("root.tar"),
        );
        fs::write(&source, PROGRAM)?;
        let (source, program, tar) = (text(&source), text(&program), text(&tar));
        run(
            "rustc",
            &[
                "--edition=2024",
                "-Ctarget-feature=+crt-static",
                "-Cpanic=abort",
                "-Cstrip=symbols",
                "-o",
                &program,
                &source,
            ],
        )?;
        run("tar", &["-cf", &tar, "-C", &text(folder), "device"])?;
        self.docker(&["import", "-c", "CMD [\"/device\"]", &tar, IMAGE])?;
        Ok(())
    }

    /// The processes that belong to it: they name its folder, which no other has.
    fn processes(&self) -> Vec<Pid> {
        let folder = self.folder.path().display().to_string();
        let names_it = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&folder)
        };
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(names_it).map(Pid::from_raw).collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.thaw();
        if !self.server.is_running() {
            let _ = self.start_again();
        }
        if let Ok(ids) = self.docker(&["ps", "-aq"]) {
            let ids: Vec<&str> = ids.split_whitespace().collect();
            if !ids.is_empty() {
                let _ = self.docker(&[&["rm", "-f"], ids.as_slice()].concat());
            }
        }
        self.server.end(Signal::SIGTERM);
        for pid in self.processes() {
            let _ = kill(pid, Signal::SIGKILL);
        }
        // A folder in which something is mounted does not go.
        let folder = self.folder.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for place in places.filter(|place| place.starts_with(&folder)) {
            let _ = run("umount", &["--lazy", place]);
        }
        let _ = run("ip", &["link", "delete", &self.bridge]);
    }
}

/// Writes what an engine shows to others, and whom it trusts.
fn certify(folder: &Path, authority: &Authority) -> anyhow::Result<()> {
    authority.issue(&["127.0.0.1"])?.write(folder)?;
    fs::write(folder.join("ca.pem"), authority.certificate())?;
    Ok(())
}

/// A bridge that nobody else has, with an address.
fn bridge() -> anyhow::Result<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut failed = None;
    for _ in 0..16 {
        let number = (std::process::id() + 37 * NEXT.fetch_add(1, Ordering::Relaxed)) % 250;
        let name = format!("cptest{number}");
        match run("ip", &["link", "add", &name, "type", "bridge"]) {
            Ok(_) => {
                let address = format!("10.213.{number}.1/24");
                run("ip", &["addr", "add", &address, "dev", &name])?;
                run("ip", &["link", "set", &name, "up"])?;
                return Ok(name);
            }
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| anyhow::anyhow!("no bridge")))
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    let output = command.args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| program.to_owned())?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", arguments.join(" "), text.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
