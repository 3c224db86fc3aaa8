//! Tells the process manager how we are: systemd's `sd_notify`, and PM2's `ready` message.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tracing::warn;

use crate::listen::fds;

/// Tells that requests are wanted from now on.
pub fn ready() {
    report("systemd", std::env::var_os("NOTIFY_SOCKET"), |socket| {
        sd_notify(socket, "READY=1\nSTATUS=serving")
    });
    report("PM2", std::env::var_os("NODE_CHANNEL_FD"), |channel| {
        let number = channel.to_str().and_then(|text| text.parse().ok());
        // Node's channel takes one JSON value a line.
        fds::send_inherited(number.ok_or(io::ErrorKind::InvalidInput)?, b"\"ready\"\n")
    });
}

/// Tells that we leave.
pub fn stopping() {
    report("systemd", std::env::var_os("NOTIFY_SOCKET"), |socket| {
        sd_notify(socket, "STOPPING=1\nSTATUS=leaving")
    });
}

fn report(manager: &str, to: Option<OsString>, tell: impl FnOnce(&OsStr) -> io::Result<()>) {
    let Some(to) = to.filter(|to| !to.is_empty()) else {
        return;
    };
    if let Err(error) = tell(&to) {
        warn!(
            "could not tell {manager} our state by {}: {error}",
            to.display()
        );
    }
}

fn sd_notify(socket: &OsStr, state: &str) -> io::Result<()> {
    let sender = UnixDatagram::unbound()?;
    // A manager that does not read must not stop us.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address(socket)?)?;
    Ok(())
}

fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = socket.as_bytes().strip_prefix(b"@") {
        use std::os::linux::net::SocketAddrExt;
        return SocketAddr::from_abstract_name(name);
    }
    SocketAddr::from_pathname(socket)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn systemd_is_told_by_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();

        sd_notify(path.as_os_str(), "READY=1").unwrap();

        assert_eq!(read(&manager), "READY=1");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn systemd_is_told_by_abstract_name() {
        let name = format!("@cloudphone-notify-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&address(name.as_ref()).unwrap()).unwrap();

        sd_notify(name.as_ref(), "STOPPING=1").unwrap();

        assert_eq!(read(&manager), "STOPPING=1");
    }

    #[test]
    fn a_channel_of_node_takes_a_line_and_stays_open() {
        let (ours, mut nodes) = UnixStream::pair().unwrap();

        fds::send_inherited(ours.as_raw_fd(), b"\"ready\"\n").unwrap();
        fds::send_inherited(ours.as_raw_fd(), b"more").unwrap();

        let mut text = [0; 12];
        nodes.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"\"ready\"\nmore");
        assert!(fds::send_inherited(-1, b"").is_err());
    }

    fn read(manager: &UnixDatagram) -> String {
        let mut text = [0; 64];
        let length = manager.recv(&mut text).unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap()
    }

    #[test]
    fn any_name_of_a_socket_is_an_address_or_refused() {
        bolero::check!()
            .with_iterations(500)
            .with_max_len(200)
            .for_each(|bytes: &[u8]| {
                for name in [bytes.to_vec(), [&b"@"[..], bytes].concat()] {
                    let told = address(OsStr::from_bytes(&name));
                    // The kernel takes 108 bytes.
                    assert!(told.is_err() || name.len() <= 108);
                }
            });
    }
}
