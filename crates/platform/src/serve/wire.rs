//! A connection's bytes before HTTP takes them: what was read ahead comes first.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use super::streams::Activity;

/// How every HTTP/2 connection begins (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection whose first bytes may have been read already.
pub struct Wire<I> {
    io: I,
    ahead: Bytes,
    activity: Arc<Activity>,
}

impl<I: AsyncRead + Unpin> Wire<I> {
    /// Takes a connection.
    pub fn new(io: I, activity: Arc<Activity>) -> Self {
        Self {
            io,
            ahead: Bytes::new(),
            activity,
        }
    }

    /// The bytes that go before those that are still to be read.
    pub fn put_back(&mut self, ahead: &[u8]) {
        // Not as a slice of the buffer that it was read into, which would live on with it.
        self.ahead = Bytes::copy_from_slice(ahead);
    }

    /// Waits until the client sends something. `false` where it ended the connection instead.
    pub async fn wakes(&mut self) -> io::Result<bool> {
        if !self.ahead.is_empty() {
            return Ok(true);
        }
        // Small, since it is what a connection holds that rests.
        let mut first = [0; 64];
        let read = self.io.read(&mut first).await?;
        self.ahead = Bytes::copy_from_slice(&first[..read]);
        Ok(read > 0)
    }

    /// Whether the client begins with the preface of HTTP/2. Fewer bytes than that do not tell, and are waited for.
    pub async fn begins_as_http2(&mut self) -> io::Result<bool> {
        let mut read = BytesMut::with_capacity(PREFACE.len());
        let http2 = loop {
            if read.len() == PREFACE.len() {
                break true;
            }
            let mut more = [0; PREFACE.len()];
            let room = PREFACE.len() - read.len();
            let length = self.io.read(&mut more[..room]).await?;
            read.extend_from_slice(&more[..length]);
            if length == 0 || !PREFACE.starts_with(&read) {
                break false;
            }
        };
        self.ahead = read.freeze();
        Ok(http2)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Wire<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        let length = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead.split_to(length));
        if self.ahead.is_empty() {
            // Not as an empty slice of what was read.
            self.ahead = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Wire<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.activity.set_flushed(false);
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.activity.set_flushed(false);
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        if let Poll::Ready(Ok(())) = flushed {
            self.activity.set_flushed(true);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn http2_is_told_by_its_preface_and_nothing_is_lost() {
        let long = [PREFACE, b"and more"].concat();
        for (sent, http2) in [
            (&long[..], true),
            (PREFACE, true),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", false),
            (b"GET / HTTP/1.1\r\n\r\n", false),
            (b"P", false),
            (b"", false),
        ] {
            let (mut client, ours) = duplex(1024);
            let mut wire = Wire::new(ours, Activity::begun());
            for byte in sent {
                client.write_all(&[*byte]).await.unwrap();
            }
            drop(client);

            assert_eq!(wire.begins_as_http2().await.unwrap(), http2, "{sent:?}");

            let mut read = Vec::new();
            wire.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, sent);
        }
    }
}
