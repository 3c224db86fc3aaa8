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
    let length = u32::from_be_bytes(length) as usize;
    if length > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::listen::peers::Request;

    async fn read_all(bytes: &[u8]) -> io::Result<Request> {
        let (mut ours, theirs) = UnixStream::pair()?;
        ours.write_all(bytes).await?;
        drop(ours);
        read::<Request>(&theirs).await.map(|(request, _)| request)
    }

    #[test]
    fn any_bytes_of_a_peer_are_a_message_or_refused() {
        const WORDS: [&str; 12] = [
            "{",
            "}",
            "\"claim\":",
            "\"give\":",
            "\"users\":",
            "\"127.0.0.1:1\"",
            "[",
            "]",
            ",",
            "[\"users\",\"127.0.0.1:1\"]",
            "\"",
            "{}",
        ];
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        bolero::check!()
            .with_iterations(1_000)
            .with_max_len(24)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                runtime.block_on(async {
                    // Its own length, which may be any.
                    let _ = read_all(bytes).await;
                    let whole = [
                        &u32::try_from(text.len()).unwrap().to_be_bytes()[..],
                        text.as_bytes(),
                    ]
                    .concat();
                    let answer = read_all(&whole).await;
                    assert_eq!(
                        answer.is_ok(),
                        serde_json::from_str::<Request>(&text).is_ok(),
                        "{text}"
                    );
                    assert!(read_all(&whole[..whole.len() - 1]).await.is_err());

                    let wanted =
                        BTreeMap::from([(text.clone(), SocketAddr::from(([127, 0, 0, 1], 1)))]);
                    let (ours, theirs) = UnixStream::pair().unwrap();
                    write(&ours, &Request::Claim(wanted.clone()), &[])
                        .await
                        .unwrap();
                    let (Request::Claim(heard), _) = read(&theirs).await.unwrap() else {
                        panic!("another message")
                    };
                    assert_eq!(heard, wanted);
                });
            });
    }
}
