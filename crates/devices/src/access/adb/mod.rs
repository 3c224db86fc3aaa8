//! The host's side of ADB, as far as the service itself needs it: one connection, one command, its output within bounds.
//! The messages are those that the stand-in for a device speaks, too.

mod install;
mod output;

use std::io;
use std::time::Duration;

use device_stub::{Message, command};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

pub use install::{InstallError, install};
pub use output::{Cut, Output};

use output::Packets;

const VERSION: u32 = 0x0100_0001;
const BANNER: &str = "host::features=shell_v2";
/// How long a device may take to greet and to begin a command.
const GREETING: Duration = Duration::from_secs(5);
/// What every ADB takes in one message.
const LEAST_DATA: u32 = 4096;
/// What we call the only stream of a connection.
const OURS: u32 = 1;

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum AdbError {
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// What listens there does not speak ADB as every Android since 7 does.
    #[error("it does not speak ADB with shell_v2")]
    NotAdb,
    /// It lets in only whose key its user confirmed.
    #[error("it wants a key")]
    WantsKey,
    /// It does not run commands.
    #[error("it refused the shell")]
    Refused,
    /// It sent what is no output of a command.
    #[error("its output cannot be read")]
    Malformed,
    /// It was silent for too long.
    #[error("it was silent for too long")]
    Late,
}

/// Runs a command line in the shell of a device. Output beyond `most` bytes, and what comes after `until`, is cut off, and
/// the command ended with it.
///
/// # Errors
/// [`AdbError`] where the command did not begin, or the device broke off.
pub async fn shell(
    stream: TcpStream,
    line: &str,
    most: usize,
    until: Instant,
) -> Result<Output, AdbError> {
    let mut stream = BufReader::new(stream);
    let greeted = until.min(Instant::now() + GREETING);
    let service = format!("shell,v2,raw:{line}");
    let begun = timeout_at(greeted, begin(&mut stream, &service)).await;
    let theirs = begun.map_err(|_| AdbError::Late)??.theirs;
    let mut output = Output::new(most);
    let whole = timeout_at(until, read(&mut stream, theirs, &mut output)).await;
    match whole {
        Ok(read) => read?,
        Err(_) => output.cut = Some(Cut::TooLate),
    }
    Ok(output)
}

/// An open stream of a connection.
struct Opened {
    /// What the device calls it.
    theirs: u32,
    /// How much the device takes in one message.
    most: usize,
}

/// Greets the device and opens a service.
async fn begin(stream: &mut BufReader<TcpStream>, service: &str) -> Result<Opened, AdbError> {
    let greeting = Message::new(
        command::CNXN,
        VERSION,
        device_stub::MAX_DATA,
        format!("{BANNER}\0"),
    );
    greeting.write(stream.get_mut()).await?;
    let answer = Message::read(stream).await.map_err(unread)?;
    match answer.command {
        command::CNXN if has_shell_v2(&answer.data) => {}
        command::AUTH | command::STLS => return Err(AdbError::WantsKey),
        _ => return Err(AdbError::NotAdb),
    }
    let most = answer.arg1.clamp(LEAST_DATA, device_stub::MAX_DATA) as usize;
    let open = Message::new(command::OPEN, OURS, 0, format!("{service}\0"));
    open.write(stream.get_mut()).await?;
    loop {
        let answer = Message::read(stream).await.map_err(unread)?;
        match (answer.command, answer.arg1) {
            (command::OKAY, OURS) => {
                let theirs = answer.arg0;
                return Ok(Opened { theirs, most });
            }
            (command::CLSE, OURS) => return Err(AdbError::Refused),
            _ => {}
        }
    }
}

/// Reads until the stream is closed or the output is too long.
async fn read(
    stream: &mut BufReader<TcpStream>,
    theirs: u32,
    output: &mut Output,
) -> Result<(), AdbError> {
    let mut packets = Packets::default();
    loop {
        let message = Message::read(stream).await.map_err(unread)?;
        match (message.command, message.arg1) {
            (command::WRTE, OURS) => {
                packets.take(&message.data, output)?;
                if output.cut.is_some() {
                    return Ok(());
                }
                let taken = Message::new(command::OKAY, OURS, theirs, []);
                taken.write(stream.get_mut()).await?;
            }
            (command::CLSE, OURS) => return Ok(()),
            _ => {}
        }
    }
}

fn unread(error: io::Error) -> AdbError {
    match error.kind() {
        io::ErrorKind::InvalidData => AdbError::NotAdb,
        _ => AdbError::Io(error),
    }
}

/// Whether a device's banner, `device::name=value;…;features=a,b`, names the protocol that tells exit codes.
fn has_shell_v2(banner: &[u8]) -> bool {
    let banner = String::from_utf8_lossy(banner);
    let mut properties = banner.split([';', ':', '\0']);
    let features = properties.find_map(|property| property.strip_prefix("features="));
    features.is_some_and(|features| features.split(',').any(|feature| feature == "shell_v2"))
}

/// A word as a shell takes it, whatever is in it.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banners_tell_whether_exit_codes_come() {
        for (banner, has) in [
            (
                "device::ro.product.name=a;ro.product.model=b;features=cmd,shell_v2,stat_v2",
                true,
            ),
            ("device::features=shell_v2", true),
            ("device::features=shell_v2,cmd\0", true),
            ("device::ro.product.name=shell_v2;features=cmd", false),
            ("device::", false),
            ("", false),
        ] {
            assert_eq!(has_shell_v2(banner.as_bytes()), has, "{banner}");
        }
    }

    #[test]
    fn a_word_stays_one_word() {
        for (word, expected) in [
            ("a", "'a'"),
            ("a b;c", "'a b;c'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }
}
