//! Descriptors that cross a process border. All unsafe code of the hand-over is here.

use std::collections::HashSet;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, send, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The most descriptors in one message.
pub const MOST: usize = 32;

/// The longest message.
const LONGEST: usize = 64 * 1024;

/// Sends a message with descriptors: its length in four bytes, then JSON.
pub async fn write(
    stream: &UnixStream,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    if body.len() > LONGEST || fds.len() > MOST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = (body.len() as u32).to_be_bytes().to_vec();
    bytes.extend(body);
    let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    // The descriptors travel with the first byte.
    let mut sent = stream
        .async_io(Interest::WRITABLE, || {
            let rights = [ControlMessage::ScmRights(&fds)];
            let rights = if fds.is_empty() {
                &rights[..0]
            } else {
                &rights[..]
            };
            let parts = [IoSlice::new(&bytes)];
            Ok(sendmsg::<()>(
                stream.as_raw_fd(),
                &parts,
                rights,
                no_signal(),
                None,
            )?)
        })
        .await?;
    while sent < bytes.len() {
        sent += stream
            .async_io(Interest::WRITABLE, || stream.try_write(&bytes[sent..]))
            .await?;
    }
    Ok(())
}

/// Receives what [`write`] sent.
pub async fn read<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut fds = Vec::new();
    let mut length = [0; 4];
    let mut filled = 0;
    while filled < length.len() {
        let read = stream
            .async_io(Interest::READABLE, || {
                receive(stream.as_raw_fd(), &mut length[filled..], &mut fds)
            })
            .await?;
        filled += some(read)?;
    }
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    if body.len() > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut filled = 0;
    while filled < body.len() {
        let read = stream
            .async_io(Interest::READABLE, || stream.try_read(&mut body[filled..]))
            .await?;
        filled += some(read)?;
    }
    Ok((serde_json::from_slice(&body)?, fds))
}

fn some(read: usize) -> io::Result<usize> {
    if read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(read)
}

#[expect(
    unsafe_code,
    reason = "a descriptor that the kernel just made for us has no other owner"
)]
fn receive(socket: RawFd, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = nix::cmsg_space!([RawFd; MOST]);
    let mut parts = [IoSliceMut::new(bytes)];
    let message = recvmsg::<()>(socket, &mut parts, Some(&mut space), close_on_exec())?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = part {
            // SAFETY: the kernel made these descriptors for this call.
            fds.extend(
                received
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    Ok(message.bytes)
}

/// Takes the listening sockets with which a parent started this process (`LISTEN_FDS`). Each can be taken once.
#[expect(unsafe_code, reason = "the protocol passes descriptors by number")]
pub fn inherited() -> Vec<TcpListener> {
    static TAKEN: Mutex<Option<HashSet<RawFd>>> = Mutex::new(None);
    let number = |name| std::env::var(name).ok()?.parse::<i32>().ok();
    let count = number("LISTEN_FDS").unwrap_or(0).clamp(0, 64);
    // A parent that cannot know our pid before it starts us leaves it out.
    if number("LISTEN_PID").is_some_and(|pid| pid != std::process::id() as i32) {
        return Vec::new();
    }
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = taken.get_or_insert_default();
    let new = (3..3 + count).filter(|fd| taken.insert(*fd));
    // SAFETY: the parent opened these for us, and nobody else takes them, for `taken` remembers.
    let listening = new.filter(|fd| is_listening(unsafe { BorrowedFd::borrow_raw(*fd) }));
    listening
        .map(|fd| unsafe { TcpListener::from_raw_fd(fd) })
        .collect()
}

/// Sends bytes over a socket that a parent left open for us, and leaves it open, but not for our own children.
#[expect(unsafe_code, reason = "the protocol passes the descriptor by number")]
pub fn send_inherited(fd: RawFd, bytes: &[u8]) -> io::Result<()> {
    if fd < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    send(fd, bytes, no_signal() | MsgFlags::MSG_DONTWAIT)?;
    // SAFETY: it was open a moment ago, and nobody here closes it.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}

/// Whether a descriptor is a listening TCP socket; it does not stay open for our children.
pub fn is_listening(fd: BorrowedFd<'_>) -> bool {
    let socket = socket2::SockRef::from(&fd);
    socket.is_listener().unwrap_or(false) && socket.set_cloexec(true).is_ok()
}

#[cfg(target_os = "linux")]
fn no_signal() -> MsgFlags {
    MsgFlags::MSG_NOSIGNAL
}

// Rust programs ignore SIGPIPE anyway.
#[cfg(not(target_os = "linux"))]
fn no_signal() -> MsgFlags {
    MsgFlags::empty()
}

#[cfg(target_os = "linux")]
fn close_on_exec() -> MsgFlags {
    MsgFlags::MSG_CMSG_CLOEXEC
}

// `is_listening` sets it a moment later.
#[cfg(not(target_os = "linux"))]
fn close_on_exec() -> MsgFlags {
    MsgFlags::empty()
}
