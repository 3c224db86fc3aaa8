//! `gateway healthcheck`: whether the replica in this container can take requests, as an engine of containers asks it.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use futures::future::join_all;
use http::StatusCode;
use reqwest::redirect::Policy;

use super::say;

/// How long the answers may take; they are waited for at once.
const DEADLINE: Duration = Duration::from_secs(3);
/// The state of a socket that listens, in the kernel's tables.
const LISTENING: &str = "0A";

/// A socket that listens, and where.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Listener {
    address: SocketAddr,
    inode: u64,
}

/// What an address said about the replica.
#[derive(Debug, PartialEq)]
enum Answer {
    Ready,
    /// It is none that tells of health, a listener with TLS for one.
    Nothing,
    Ails(String),
}

/// Asks a replica, known by its process, at the addresses that it shares with no other one.
///
/// # Errors
/// Where it cannot take requests, and why.
pub async fn healthcheck(pid: u32) -> anyhow::Result<i32> {
    let addresses = alone(&listeners(pid)?, &sockets(pid)?);
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .timeout(DEADLINE)
        .build()?;
    let asked = addresses.iter().map(|address| ask(&client, *address));
    let answers = join_all(asked).await;
    for answer in &answers {
        if let Answer::Ails(why) = answer {
            bail!("{why}");
        }
    }
    if !answers.contains(&Answer::Ready) {
        bail!("process {pid} has no address that tells of its health");
    }
    say("ready")?;
    Ok(0)
}

async fn ask(client: &reqwest::Client, address: SocketAddr) -> Answer {
    match client
        .get(format!("http://{address}/health/readiness"))
        .send()
        .await
    {
        Ok(reply) if reply.status() == StatusCode::OK => Answer::Ready,
        Ok(reply) if reply.status().is_server_error() => {
            Answer::Ails(format!("{address} says {}", reply.status()))
        }
        Ok(_) => Answer::Nothing,
        Err(error) if error.is_timeout() => Answer::Ails(format!("{address} does not answer")),
        Err(error) if error.is_connect() => Answer::Ails(format!("{address} takes no connection")),
        Err(_) => Answer::Nothing,
    }
}

/// The addresses at which only this process answers: at those that replicas share, another one may. All of its addresses
/// where it has none of its own.
fn alone(listeners: &[Listener], own: &HashSet<u64>) -> Vec<SocketAddr> {
    let (own, others): (Vec<Listener>, Vec<Listener>) = listeners
        .iter()
        .partition(|listener| own.contains(&listener.inode));
    let others: HashSet<SocketAddr> = others.iter().map(|other| other.address).collect();
    let own: HashSet<SocketAddr> = own.iter().map(|each| each.address).collect();
    let alone: Vec<SocketAddr> = own.difference(&others).copied().collect();
    let chosen = match alone.is_empty() {
        true => own.into_iter().collect(),
        false => alone,
    };
    chosen.into_iter().map(reachable).collect()
}

/// Who listens everywhere is asked at the loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The sockets that a process has open, by their inodes.
fn sockets(pid: u32) -> anyhow::Result<HashSet<u64>> {
    let folder = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&folder).with_context(|| format!("reading {folder}"))?;
    // One that was closed meanwhile has no link any more.
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    Ok(links
        .filter_map(|link| {
            let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            inode.parse().ok()
        })
        .collect())
}

/// Everything that listens where a process does, others' sockets among it.
fn listeners(pid: u32) -> anyhow::Result<Vec<Listener>> {
    let path = format!("/proc/{pid}/net/tcp");
    let mut table = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    // A kernel without IPv6 has no such file.
    table += &fs::read_to_string(format!("/proc/{pid}/net/tcp6")).unwrap_or_default();
    Ok(table.lines().filter_map(listener).collect())
}

/// Reads a line as `0: 0100007F:7530 00000000:0000 0A 00000000:00000000 00:00000000 00000000 65532 0 4711 …`.
fn listener(line: &str) -> Option<Listener> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if *fields.get(3)? != LISTENING {
        return None;
    }
    let (ip, port) = fields.get(1)?.split_once(':')?;
    let address = SocketAddr::new(address(ip)?, u16::from_str_radix(port, 16).ok()?);
    let inode = fields.get(9)?.parse().ok()?;
    Some(Listener { address, inode })
}

/// An address as words of 32 bits, each as the machine has it in memory.
fn address(text: &str) -> Option<IpAddr> {
    let words = text.as_bytes().chunks(8).map(|word| {
        let word = std::str::from_utf8(word).ok()?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    });
    let bytes = words.collect::<Option<Vec<_>>>()?.concat();
    if let Ok(v4) = <[u8; 4]>::try_from(bytes.as_slice()) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_of_this_process_is_found_where_it_listens() {
        for ip in ["127.0.0.1:0", "[::1]:0"] {
            // A machine may have no IPv6.
            let Ok(socket) = TcpListener::bind(ip) else {
                continue;
            };
            let pid = std::process::id();

            let found = alone(&listeners(pid).unwrap(), &sockets(pid).unwrap());

            assert!(found.contains(&socket.local_addr().unwrap()), "{found:?}");
        }
    }

    #[test]
    fn an_address_that_is_shared_is_asked_only_where_there_is_no_other() {
        let shared: SocketAddr = "0.0.0.0:30001".parse().unwrap();
        let private: SocketAddr = "0.0.0.0:41000".parse().unwrap();
        let at = |address, inode| Listener { address, inode };
        let table = [at(shared, 1), at(shared, 2), at(private, 3)];

        let with_private = alone(&table, &HashSet::from([1, 3]));
        let without = alone(&table, &HashSet::from([2]));

        assert_eq!(with_private, ["127.0.0.1:41000".parse().unwrap()]);
        assert_eq!(without, ["127.0.0.1:30001".parse().unwrap()]);
    }

    #[test]
    fn what_does_not_listen_or_is_no_line_of_the_table_is_passed_over() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        let connected =
            "0: 0100007F:7530 0100007F:9C40 01 00000000:00000000 00:00000000 00000000 0 0 7 1";
        for line in [head, connected, "", "0: nowhere 0 0A 0 0 0 0 0 7"] {
            assert_eq!(listener(line), None, "{line}");
        }
    }
}
