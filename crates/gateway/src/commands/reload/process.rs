//! A replica as a process of this machine: what it was started with, where its output goes, and whether it is there.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::lineage::Stat;

/// What a supervisor told the old process about itself, which is not for its successor.
const OWN: [&str; 17] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "MAINPID",
    "NODE_CHANNEL_FD",
    "NODE_CHANNEL_SERIALIZATION_MODE",
    "NODE_UNIQUE_ID",
    "pm_id",
    "SUPERVISOR_ENABLED",
    "SUPERVISOR_GROUP_NAME",
    "SUPERVISOR_PROCESS_NAME",
    "SUPERVISOR_SERVER_URL",
];

/// A process, as the kernel tells of it.
pub struct Process {
    pid: u32,
    /// When it began, by the kernel's count: another process of the same number began at another time.
    began: u64,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    folder: PathBuf,
}

/// Where an output of a process goes.
pub struct Output {
    to: Stdio,
    /// For people: a path, or that it is lost.
    pub name: String,
    /// What will be missing of it.
    pub loss: Option<String>,
    /// The file, and how long it is, where it is one.
    pub file: Option<(PathBuf, u64)>,
}

impl Process {
    /// Looks at the process that is said to listen at an address of its own.
    ///
    /// # Errors
    /// Where it is not there, is another user's, or does not listen there.
    pub fn of(pid: u32, address: SocketAddr) -> anyhow::Result<Self> {
        if !Path::new("/proc/self/stat").exists() {
            bail!(
                "this system has no /proc, by which a replica's successor learns its settings: send the replicas \
                 SIGTERM and start them again, one by one"
            );
        }
        let stat = Stat::of(pid).with_context(|| format!("no process {pid} runs here"))?;
        let of = |name: &str| {
            fs::read(format!("/proc/{pid}/{name}"))
                .with_context(|| format!("could not look at process {pid}: run this as its user"))
        };
        let environment = of("environ")?;
        let environment = parts(&environment).filter_map(|variable| {
            let equals = variable.iter().position(|byte| *byte == b'=')?;
            let (name, value) = (&variable[..equals], &variable[equals + 1..]);
            Some((
                OsStr::from_bytes(name).into(),
                OsStr::from_bytes(value).into(),
            ))
        });
        let arguments = of("cmdline")?;
        let arguments = parts(&arguments)
            .skip(1)
            .map(|text| OsStr::from_bytes(text).into());
        if !listens(pid, address.port()) {
            bail!(
                "process {pid} does not listen on {address}, as the registry says of the replica of that number: it \
                 is in another container, where `gateway reload` has to run as well"
            );
        }
        Ok(Self {
            pid,
            began: stat.began,
            arguments: arguments.collect(),
            environment: environment.collect(),
            folder: fs::read_link(format!("/proc/{pid}/cwd"))?,
        })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it still runs.
    pub fn is_there(&self) -> bool {
        Stat::of(self.pid).is_some_and(|stat| stat.began == self.began && !stat.is_dead)
    }

    /// A variable of its environment.
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        let variable = self.environment.iter().find(|(known, _)| known == name);
        variable.map(|(_, value)| value.as_os_str())
    }

    /// Refuses where a successor that this process starts would not be like it: of another user, or one that ends with
    /// the service that this process belongs to.
    ///
    /// # Errors
    /// What to do instead.
    pub fn may_be_started_again(&self) -> anyhow::Result<()> {
        let (owner, own) = (
            fs::metadata(format!("/proc/{}", self.pid))?.uid(),
            geteuid().as_raw(),
        );
        if owner != own {
            bail!(
                "process {} is of user {owner}, and its successor would be of user {own}: run this as that user, as by \
                 `sudo -u '#{owner}'`",
                self.pid
            );
        }
        let (theirs, ours) = (groups(self.pid), groups(std::process::id()));
        if let Some(unit) = unit_in(&ours).filter(|_| theirs != ours) {
            bail!(
                "this command runs in {unit} of systemd, with which the successors would be ended: run it from a login \
                 shell, or by `systemd-run --scope` (of a user: `systemd-run --user --scope`)"
            );
        }
        Ok(())
    }

    /// Asks it to leave.
    ///
    /// # Errors
    /// Where it may not be asked.
    pub fn ask_to_leave(&self) -> anyhow::Result<()> {
        if !self.is_there() {
            return Ok(());
        }
        let pid = Pid::from_raw(self.pid.cast_signed());
        kill(pid, Signal::SIGTERM).with_context(|| format!("asking process {} to leave", self.pid))
    }

    /// Where its standard output (1) or standard error (2) goes, opened once more.
    pub fn output(&self, number: u8) -> io::Result<Output> {
        let path = format!("/proc/{}/fd/{number}", self.pid);
        let name = fs::read_link(&path)?.display().to_string();
        match again(Path::new(&path)) {
            Ok(file) => {
                let about = file.metadata()?;
                let overwritten = about.is_file() && !self.appends(number);
                Ok(Output {
                    file: about.is_file().then(|| ((&name).into(), about.len())),
                    to: file.into(),
                    loss: overwritten.then(|| {
                        format!(
                            "the last lines of pid {} overwrite the first of its successor in {name}, for it was \
                             started by > and not by >>",
                            self.pid
                        )
                    }),
                    name,
                })
            }
            Err(error) => Ok(Output {
                to: Stdio::null(),
                file: None,
                loss: Some(format!(
                    "what the successor of pid {} writes is lost, for {name} cannot be opened again ({error})",
                    self.pid
                )),
                name: format!("nowhere, for {name} cannot be opened again ({error})"),
            }),
        }
    }

    /// Whether what it writes to an output lands at the end of the file, whoever else writes there.
    fn appends(&self, number: u8) -> bool {
        let told = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", self.pid));
        told.is_ok_and(|told| flags_in(&told).contains(OFlag::O_APPEND))
    }

    /// Starts a program as this process was started, for a life of its own.
    ///
    /// # Errors
    /// Where the program cannot be started.
    pub fn start_again(
        &self,
        program: &Path,
        output: Output,
        errors: Output,
    ) -> anyhow::Result<Child> {
        let mut command = Command::new(program);
        let environment = self.environment.iter();
        let environment = environment.filter(|(name, _)| OWN.iter().all(|own| name != own));
        command
            .args(&self.arguments)
            .env_clear()
            .envs(environment.map(|(name, value)| (name, value)))
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(output.to)
            .stderr(errors.to);
        embedded::process::detach(&mut command);
        command
            .spawn()
            .with_context(|| format!("could not start {}", program.display()))
    }
}

/// Opens what a process writes to. A pipe that nobody reads is an error, and no wait.
fn again(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = File::options()
        .append(true)
        .custom_flags(flags.bits())
        .open(path)?;
    // Writers expect to wait.
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
    Ok(file)
}

/// The flags of an open file, in a file of `/proc/PID/fdinfo`.
fn flags_in(told: &str) -> OFlag {
    let flags = told.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    OFlag::from_bits_truncate(flags.unwrap_or_default())
}

/// Whether a process has a listening TCP socket at this port.
pub fn listens(pid: u32, port: u16) -> bool {
    let tables = ["tcp", "tcp6"]
        .map(|table| fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default());
    let sockets: Vec<PathBuf> = tables
        .iter()
        .flat_map(|table| listening(table, port))
        .collect();
    let held = fs::read_dir(format!("/proc/{pid}/fd"));
    held.into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|link| sockets.contains(&link))
}

/// The sockets in a table of `/proc/net` that listen at a port.
fn listening(table: &str, port: u16) -> impl Iterator<Item = PathBuf> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).filter_map(move |line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let (_, hex) = local.rsplit_once(':')?;
        let here = *state == LISTEN && u16::from_str_radix(hex, 16).ok()? == port;
        here.then(|| PathBuf::from(format!("socket:[{inode}]")))
    })
}

/// Texts that end in a zero byte.
fn parts(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let some = if bytes.is_empty() { 0 } else { usize::MAX };
    bytes.split(|byte| *byte == 0).take(some)
}

/// The unit of systemd that a process belongs to, where it is a service.
pub fn unit(pid: u32) -> Option<String> {
    unit_in(&groups(pid))
}

/// The control groups of a process.
fn groups(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default()
}

/// The innermost unit, where it is a service that is not itself a manager of units.
fn unit_in(groups: &str) -> Option<String> {
    let is_unit = |name: &&str| name.ends_with(".service") || name.ends_with(".scope");
    let mut units = groups
        .lines()
        .filter_map(|line| line.rsplit('/').find(is_unit));
    let unit = units.next()?;
    let is_service = unit.ends_with(".service") && !unit.starts_with("user@");
    is_service.then(|| unit.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    #[test]
    fn a_listening_socket_is_found_by_its_port() {
        let table = "  sl  local_address rem_address   st tx rx tr tm retrnsmt   uid  timeout inode\n   \
            0: 0100007F:7530 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 41 1\n   \
            1: 0100007F:7530 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 42 1\n   \
            2: 0100007F:7531 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 43 1\n";

        let found: Vec<_> = listening(table, 30_000).collect();

        assert_eq!(found, [PathBuf::from("socket:[41]")]);
    }

    #[test]
    fn this_very_process_is_known_with_its_settings() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();

        let own = Process::of(std::process::id(), address).unwrap();

        assert!(own.is_there());
        assert_eq!(own.variable("PATH"), std::env::var_os("PATH").as_deref());
        assert_eq!(own.folder, std::env::current_dir().unwrap());
        drop(listener);
        assert!(Process::of(std::process::id(), address).is_err());
    }

    #[test]
    fn a_process_of_another_user_is_not_started_again() {
        let nobody = if geteuid().is_root() { 65534 } else { 0 };
        let mut other = Command::new("sleep");
        other.arg("60");
        // Only root can start one; for others the first process of the system is root's.
        let mut other = (nobody > 0).then(|| other.uid(nobody).spawn().unwrap());
        let process = |pid| Process {
            pid,
            began: 0,
            arguments: Vec::new(),
            environment: Vec::new(),
            folder: PathBuf::new(),
        };

        let theirs = process(other.as_ref().map_or(1, Child::id)).may_be_started_again();
        let own = process(std::process::id()).may_be_started_again();

        if let Some(other) = &mut other {
            other.kill().unwrap();
            other.wait().unwrap();
        }
        let said = theirs.unwrap_err().to_string();
        assert!(said.contains(&format!("sudo -u '#{nobody}'")), "{said}");
        own.unwrap();
    }

    #[test]
    fn whether_a_file_is_appended_to_is_told_by_its_flags() {
        let told = |flags| flags_in(&format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t9\n"));

        assert!(told("0102001").contains(OFlag::O_APPEND));
        assert!(!told("0100001").contains(OFlag::O_APPEND));
    }

    #[test]
    fn a_variable_may_be_empty_and_a_list_too() {
        assert_eq!(
            parts(b"a=\0\0b\0").collect::<Vec<_>>(),
            [&b"a="[..], b"", b"b"]
        );
        assert_eq!(parts(b"").count(), 0);
    }

    #[test]
    fn only_a_service_is_a_unit() {
        for (groups, unit) in [
            (
                "0::/system.slice/cloudphone@1.service\n",
                Some("cloudphone@1.service"),
            ),
            (
                "1:name=systemd:/cloudphone.slice/cloudphone.service/supervise\n0::/\n",
                Some("cloudphone.service"),
            ),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/cloudphone.service\n",
                Some("cloudphone.service"),
            ),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/terminal-7.scope\n",
                None,
            ),
            ("0::/user.slice/user-1000.slice/user@1000.service\n", None),
            ("0::/user.slice/user-1000.slice/session-3.scope\n", None),
            ("0::/system.slice/docker-0a1b.scope\n", None),
            ("0::/\n", None),
        ] {
            assert_eq!(unit_in(groups).as_deref(), unit, "{groups}");
        }
    }
}
