//! The private Redis: it coordinates and keeps nothing.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::record::is_taken;
use crate::store::{Shared, Store};

/// The private Redis of a folder.
pub struct Redis {
    shared: Rc<Shared>,
}

impl Redis {
    /// Describes it; nothing starts yet.
    pub fn new(shared: Rc<Shared>) -> Self {
        Self { shared }
    }

    /// Sends a command after the password and reads what comes back, up to the length of the expected answer.
    async fn ask(&self, command: &str, answer: &str) -> std::io::Result<bool> {
        let (port, password) = {
            let record = self.shared.record.borrow();
            (record.redis_port, record.redis_password.clone())
        };
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        connection
            .write_all(format!("AUTH {password}\r\n{command}\r\n").as_bytes())
            .await?;
        let mut heard = vec![0; answer.len()];
        connection.read_exact(&mut heard).await?;
        Ok(heard == answer.as_bytes())
    }

    /// Where the kernel does not end children with their parent, our own Redis may still be there.
    async fn end_leftover(&self) {
        let port = self.shared.record.borrow().redis_port;
        if is_taken(port) {
            let _ = timeout(
                Duration::from_secs(1),
                self.ask("SHUTDOWN NOSAVE", "+OK\r\n"),
            )
            .await;
            sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Store for Redis {
    const NAME: &'static str = "Redis";
    const ENDINGS: &'static [(Signal, Duration)] = &[
        (Signal::SIGTERM, Duration::from_secs(3)),
        (Signal::SIGKILL, Duration::from_secs(2)),
    ];

    async fn prepare(&mut self) -> anyhow::Result<Command> {
        self.end_leftover().await;
        let folder = self.shared.place.folder("redis")?;
        let port = self.shared.port(|record| &mut record.redis_port)?;
        let file = folder.join("redis.conf");
        let text = configuration(&folder, port, &self.shared.record.borrow().redis_password);
        write_private(&file, &text)
            .with_context(|| format!("could not write {}", file.display()))?;
        self.shared.place.give(&file)?;

        let mut command = self.shared.place.command(&self.shared.binaries.redis);
        command.arg(file).stdin(Stdio::null());
        Ok(command)
    }

    async fn answers(&self) -> bool {
        self.ask("PING", "+OK\r\n+PONG\r\n").await.unwrap_or(false)
    }
}

/// The password stands in a file because everybody can read a command line.
fn configuration(folder: &Path, port: u16, password: &str) -> String {
    let folder = folder
        .display()
        .to_string()
        .replace('\\', "\\\\")
        .replace('"', "\\\"");
    format!(
        "bind 127.0.0.1\nport {port}\nprotected-mode yes\nrequirepass {password}\ndir \"{folder}\"\n\
         save \"\"\nappendonly no\nmaxmemory-policy noeviction\nmaxclients 4064\n\
         daemonize no\nloglevel warning\nlogfile \"\"\n"
    )
}

/// Writes a file that only its owner may read.
pub fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let _ = fs::remove_file(path);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())
}
