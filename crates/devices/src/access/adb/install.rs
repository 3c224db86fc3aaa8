//! The installation of an app that comes as a stream, `cmd package install -S <size>`: never more of it in memory than one
//! message.

use bytes::Bytes;
use device_stub::{Message, command};
use futures::{Stream, StreamExt};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::{AdbError, GREETING, OURS, Opened, begin, unread};

/// How much a device may say of an installation.
const MOST_SAID: usize = 4096;

/// Why a package did not reach the device.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The device did not take it.
    #[error("the device did not take the package")]
    Device(#[from] AdbError),
    /// Where it comes from, it broke off.
    #[error("the package broke off")]
    Package(#[source] std::io::Error),
}

/// Installs a package of so many bytes, in the place of what the device has of the same app; what the device says of it. The
/// device that says something before the end has refused it.
///
/// # Errors
/// Where either side breaks off, or it is not over at `until`: the device then installs nothing.
pub async fn install<E: std::error::Error + Send + Sync + 'static>(
    stream: TcpStream,
    size: u64,
    package: impl Stream<Item = Result<Bytes, E>> + Unpin,
    until: Instant,
) -> Result<String, InstallError> {
    let mut stream = BufReader::new(stream);
    let greeted = until.min(Instant::now() + GREETING);
    let service = format!("exec:cmd package install -r -S {size}");
    let begun = timeout_at(greeted, begin(&mut stream, &service)).await;
    let opened = begun.map_err(|_| AdbError::Late)??;
    let said = timeout_at(until, send(&mut stream, &opened, size, package)).await;
    let said = said.map_err(|_| AdbError::Late)??;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

async fn send<E: std::error::Error + Send + Sync + 'static>(
    stream: &mut BufReader<TcpStream>,
    opened: &Opened,
    size: u64,
    mut package: impl Stream<Item = Result<Bytes, E>> + Unpin,
) -> Result<Vec<u8>, InstallError> {
    let mut said = Vec::new();
    let mut left = size;
    while left > 0 {
        let piece = match package.next().await {
            Some(piece) => {
                piece.map_err(|error| InstallError::Package(std::io::Error::other(error)))?
            }
            None => {
                return Err(InstallError::Package(
                    std::io::ErrorKind::UnexpectedEof.into(),
                ));
            }
        };
        left = left.saturating_sub(piece.len() as u64);
        for part in piece.chunks(opened.most) {
            let message = Message::new(command::WRTE, OURS, opened.theirs, part);
            message
                .write(stream.get_mut())
                .await
                .map_err(AdbError::from)?;
            if hear(stream, opened, &mut said).await? == Heard::Closed {
                return Ok(said);
            }
        }
    }
    while hear(stream, opened, &mut said).await? == Heard::Taken {}
    Ok(said)
}

/// What a device answers.
#[derive(PartialEq, Eq)]
enum Heard {
    /// It has taken the last message.
    Taken,
    /// It has said all.
    Closed,
}

/// Reads until the device has taken the last message or closed the stream.
async fn hear(
    stream: &mut BufReader<TcpStream>,
    opened: &Opened,
    said: &mut Vec<u8>,
) -> Result<Heard, AdbError> {
    loop {
        let message = Message::read(stream).await.map_err(unread)?;
        match (message.command, message.arg1) {
            (command::OKAY, OURS) => return Ok(Heard::Taken),
            (command::CLSE, OURS) => return Ok(Heard::Closed),
            (command::WRTE, OURS) => {
                if said.len() + message.data.len() > MOST_SAID {
                    return Err(AdbError::Malformed);
                }
                said.extend(message.data);
                let taken = Message::new(command::OKAY, OURS, opened.theirs, []);
                taken.write(stream.get_mut()).await?;
            }
            _ => {}
        }
    }
}
