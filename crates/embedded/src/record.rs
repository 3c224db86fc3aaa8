//! `stores.json`: the ports and passwords of a folder's stores, kept from start to start.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const NAME: &str = "stores.json";
/// Outside the range that the kernel takes for outgoing connections, and outside every port Cloudphone itself uses.
const PORTS: std::ops::Range<u16> = 15_000..25_000;

/// Where the stores answer; the URLs contain the passwords.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Addresses {
    /// `redis://default:password@127.0.0.1:port`.
    pub redis_url: String,
    /// `postgres://cloudphone:password@127.0.0.1:port/cloudphone`.
    pub database_url: String,
}

/// Reads where the stores of a folder answer, or did when they last ran.
pub fn addresses(dir: &Path) -> io::Result<Addresses> {
    let text = fs::read(dir.join(NAME))?;
    Ok(serde_json::from_slice::<Record>(&text)?.addresses)
}

/// Everything that has to be the same at the next start.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Record {
    #[serde(flatten)]
    addresses: Addresses,
    pub redis_port: u16,
    pub redis_password: String,
    pub postgres_port: u16,
    pub postgres_password: String,
    /// Where the data lies if not beside this file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
}

impl Record {
    /// Reads the record of a folder, `None` before the first start.
    pub fn read(dir: &Path) -> io::Result<Option<Self>> {
        match fs::read(dir.join(NAME)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Chooses ports and passwords.
    pub fn new() -> io::Result<Self> {
        let redis_port = free_port(&HashSet::new())?;
        Ok(Self {
            addresses: Addresses {
                redis_url: String::new(),
                database_url: String::new(),
            },
            redis_port,
            redis_password: password(),
            postgres_port: free_port(&HashSet::from([redis_port]))?,
            postgres_password: password(),
            data: None,
        })
    }

    /// Where the stores answer.
    pub fn addresses(&self) -> Addresses {
        Addresses {
            redis_url: format!(
                "redis://default:{}@127.0.0.1:{}",
                self.redis_password, self.redis_port
            ),
            database_url: format!(
                "postgres://cloudphone:{}@127.0.0.1:{}/cloudphone",
                self.postgres_password, self.postgres_port
            ),
        }
    }

    /// Chooses another port for a store if somebody else has taken its own; `true` where it did.
    pub fn avoid_taken(&mut self, port: fn(&mut Self) -> &mut u16) -> io::Result<bool> {
        let used = HashSet::from([self.redis_port, self.postgres_port]);
        let port = port(self);
        let taken = is_taken(*port);
        if taken {
            *port = free_port(&used)?;
        }
        Ok(taken)
    }

    /// Writes the record so that a reader sees the old one or the new one, never half of it.
    pub fn save(&mut self, dir: &Path) -> io::Result<()> {
        self.addresses = self.addresses();
        let draft = dir.join("stores.json.tmp");
        // The mode counts only for a file that is created here.
        let _ = fs::remove_file(&draft);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(draft, dir.join(NAME))
    }
}

/// Tells whether somebody listens on a port of the loopback address.
pub fn is_taken(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err()
}

fn free_port(except: &HashSet<u16>) -> io::Result<u16> {
    for _ in 0..200 {
        let port = rand::random_range(PORTS);
        if !except.contains(&port) && !is_taken(port) {
            return Ok(port);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!(
            "no free port found between {} and {}",
            PORTS.start, PORTS.end
        ),
    ))
}

/// 192 random bits in letters that need no escape in a URL, a file or SQL.
fn password() -> String {
    rand::random::<[u8; 24]>()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_port_taken_by_a_stranger_is_replaced_and_the_other_kept() {
        let mut record = Record::new().unwrap();
        let (redis, postgres) = (record.redis_port, record.postgres_port);
        let _stranger = TcpListener::bind((Ipv4Addr::LOCALHOST, redis)).unwrap();

        let redis_changed = record.avoid_taken(|record| &mut record.redis_port).unwrap();
        let postgres_changed = record
            .avoid_taken(|record| &mut record.postgres_port)
            .unwrap();

        assert!(redis_changed && !postgres_changed);
        assert_ne!(record.redis_port, redis);
        assert_eq!(record.postgres_port, postgres);
    }

    #[test]
    fn what_is_saved_is_read_again_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = Record::new().unwrap();
        record.save(dir.path()).unwrap();

        let read = Record::read(dir.path()).unwrap().unwrap();

        assert_eq!(read.redis_password, record.redis_password);
        assert_eq!(addresses(dir.path()).unwrap(), record.addresses());
        assert_eq!(
            fs::metadata(dir.path().join(NAME))
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o600
        );
    }
}
