//! A loopback address that no other cluster on the machine has.

use std::fs::{self, File, OpenOptions};
use std::net::Ipv4Addr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};

use anyhow::Context as _;

/// An address that is ours while this lives: the kernel gives the lock back when the process dies.
pub struct Address {
    pub ip: Ipv4Addr,
    _lock: File,
}

impl Address {
    /// Takes a free address of 127.90.0.0/16.
    pub fn take() -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join("cloudphone-testkit");
        fs::create_dir_all(&folder)
            .with_context(|| format!("could not create {}", folder.display()))?;
        // Another user's tests take addresses here, too; only the first of them can open the folder to all.
        let _ = fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777));
        for _ in 0..1000 {
            let ip = Ipv4Addr::new(
                127,
                90,
                rand::random_range(0..4),
                rand::random_range(1..=254),
            );
            let path = folder.join(ip.to_string());
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o666)
                .open(path);
            if let Ok(lock) = file
                && lock.try_lock().is_ok()
            {
                return Ok(Self { ip, _lock: lock });
            }
        }
        anyhow::bail!(
            "no free address found: too many clusters run, or {} is not writable",
            folder.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_clusters_have_two_addresses() {
        let taken: Vec<_> = (0..50).map(|_| Address::take().unwrap()).collect();
        let different: std::collections::HashSet<_> =
            taken.iter().map(|address| address.ip).collect();

        assert_eq!(different.len(), 50);
    }
}
