//! This machine: files, ports, disk.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::path::Path;

use contracts::Service;
use coordination::{Keys, PortKind, Registry};
use devices::node::check::{Check, Standing};
use gateway::front::hostname;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use platform::config::ObjectsAt;
use platform::redis;

use crate::commands::stores::addresses;
use crate::serve::Config;

/// Open files that a busy replica needs, connections included.
const FILES: u64 = 65_536;
const BACKLOG: u64 = 1_024;
/// Of the disk this much must be free, or so many bytes.
const FREE_SHARE: f64 = 0.1;
const FREE_BYTES: u64 = 1 << 30;

/// What is found.
pub async fn examine(config: &Config) -> Vec<Check> {
    let mut checks = vec![files(), backlog()];
    checks.extend(device_ports(config));
    checks.push(well_known_ports(config).await);
    let settings = &config.settings;
    let mut folders = vec![("disk of CLOUDPHONE_HOME", settings.home.as_path())];
    if let ObjectsAt::Folder(folder) = &settings.objects {
        folders.push(("disk of OBJECTS_FOLDER", folder));
    }
    checks.extend(folders.into_iter().map(|(name, folder)| disk(name, folder)));
    checks
}

fn files() -> Check {
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    let standing = match hard < FILES {
        true => Standing::Warn,
        false => Standing::Ok,
    };
    let advice =
        "raise the hard limit (`ulimit -Hn`, LimitNOFILE= of systemd): each connection is a file";
    Check::new("open files", standing, format!("{hard} at most"), advice)
}

fn backlog() -> Check {
    let Some(most) = kernel("net/core/somaxconn").and_then(|text| text.parse::<u64>().ok()) else {
        return Check::new("backlog", Standing::Unknown, "not known", "");
    };
    let standing = match most < BACKLOG {
        true => Standing::Warn,
        false => Standing::Ok,
    };
    let advice = format!(
        "sysctl -w net.core.somaxconn={}: clients that come at once are refused",
        BACKLOG * 4
    );
    Check::new("backlog", standing, format!("{most} connections"), &advice)
}

/// Ports that the kernel gives to outgoing connections cannot be promised to devices.
fn device_ports(config: &Config) -> Option<Check> {
    let text = kernel("net/ipv4/ip_local_port_range")?;
    let mut ends = text
        .split_whitespace()
        .filter_map(|end| end.parse::<u16>().ok());
    let given = ends.next()?..=ends.next()?;
    let reserved = kernel("net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let reserved: Vec<_> = reserved.split(',').filter_map(range).collect();
    let exposed: Vec<String> = PortKind::ALL
        .iter()
        .map(|kind| config.devices.ports.of(*kind))
        .filter(|ports| clash(ports, &given) && !reserved.iter().any(|kept| covers(kept, ports)))
        .map(|ports| format!("{}-{}", ports.start(), ports.end()))
        .collect();
    let found = match exposed.is_empty() {
        true => format!("outside of {}-{}", given.start(), given.end()),
        false => format!(
            "{} within {}-{}",
            exposed.join(", "),
            given.start(),
            given.end()
        ),
    };
    let standing = match exposed.is_empty() {
        true => Standing::Ok,
        false => Standing::Warn,
    };
    let advice = format!(
        "sysctl -w net.ipv4.ip_local_reserved_ports={}: else a connection of this machine may have the port of a device",
        exposed.join(",")
    );
    Some(Check::new("device ports", standing, found, &advice))
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    Some(from.trim().parse().ok()?..=to.trim().parse().ok()?)
}

fn clash(one: &RangeInclusive<u16>, other: &RangeInclusive<u16>) -> bool {
    one.start() <= other.end() && other.start() <= one.end()
}

fn covers(outer: &RangeInclusive<u16>, inner: &RangeInclusive<u16>) -> bool {
    outer.start() <= inner.start() && inner.end() <= outer.end()
}

/// Whether the ports of the services are free, or held by replicas of ours.
async fn well_known_ports(config: &Config) -> Check {
    let settings = &config.settings;
    let taken: Vec<u16> = Service::ALL
        .iter()
        .map(|service| settings.address(*service))
        .filter(|address| TcpListener::bind(*address).is_err())
        .map(|address: SocketAddr| address.port())
        .collect();
    let list: Vec<String> = taken.iter().map(ToString::to_string).collect();
    let list = list.join(", ");
    let advice = "end the other program, or choose other ports (GATEWAY_PORT and so on)";
    match (taken.is_empty(), runs_here(config).await) {
        (true, _) => Check::new("well-known ports", Standing::Ok, "free", ""),
        (false, true) => Check::new(
            "well-known ports",
            Standing::Ok,
            format!("{list}: replicas run here"),
            "",
        ),
        (false, false) => {
            let found = format!("{list}: taken, and no replica of this cluster runs here");
            Check::new("well-known ports", Standing::Fail, found, advice)
        }
    }
}

async fn runs_here(config: &Config) -> bool {
    let asking = async {
        let url = addresses(&config.settings).ok()?.redis;
        let redis = redis::connect(&url).await.ok()?.pool;
        let registry = Registry::new(redis, Keys::new(&config.settings.key_prefix));
        registry.read().await.ok()
    };
    let host = hostname();
    asking.await.is_some_and(|snapshot| {
        let mut entries = snapshot.entries();
        entries.any(|entry| entry.announcement.host == host)
    })
}

fn disk(name: &'static str, folder: &Path) -> Check {
    // The nearest folder that is there already.
    let there = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let there = there.ancestors().find(|folder| folder.exists());
    let Some(stat) = there.and_then(|folder| statvfs(folder).ok()) else {
        return Check::new(name, Standing::Unknown, "not known", "");
    };
    let (free, all) = (stat.blocks_available(), stat.blocks());
    let bytes = free.saturating_mul(stat.fragment_size());
    let share = free as f64 / all.max(1) as f64;
    let standing = match (
        bytes < FREE_BYTES / 4,
        share < FREE_SHARE || bytes < FREE_BYTES,
    ) {
        (true, _) => Standing::Fail,
        (_, true) => Standing::Warn,
        _ => Standing::Ok,
    };
    let found = format!("{} GB free, {:.0} %", bytes / 1_000_000_000, share * 100.0);
    Check::new(
        name,
        standing,
        found,
        "make room, or move it to a larger disk",
    )
}

fn kernel(name: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ports_clash_or_are_covered() {
        assert_eq!(range("5555-6554"), Some(5555..=6554));
        assert_eq!(range("80"), Some(80..=80));
        assert_eq!(range("a-b"), None);
        assert!(clash(&(1..=5), &(5..=9)) && !clash(&(1..=5), &(6..=9)));
        assert!(covers(&(1..=9), &(2..=9)) && !covers(&(3..=9), &(2..=9)));
    }
}
