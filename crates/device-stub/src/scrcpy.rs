//! The scrcpy port: says the device's name as scrcpy's server does, then listens in silence.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::device::Device;

const IDLE: Duration = Duration::from_secs(600);
const NAME_LENGTH: usize = 64;

/// Serves one connection.
pub async fn serve(device: Device, mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(&greeting(&device.profile().name)).await?;
    let mut input = [0; 1024];
    while timeout(IDLE, stream.read(&mut input)).await?? > 0 {}
    Ok(())
}

/// The name, cut between characters so that a zero always ends it.
fn greeting(name: &str) -> [u8; NAME_LENGTH] {
    let mut greeting = [0; NAME_LENGTH];
    let end = name.floor_char_boundary(NAME_LENGTH - 1);
    greeting[..end].copy_from_slice(&name.as_bytes()[..end]);
    greeting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let greeting = greeting(&"机".repeat(30));

        assert_eq!(
            std::str::from_utf8(&greeting[..63]).unwrap(),
            "机".repeat(21)
        );
        assert_eq!(greeting[63], 0);
    }
}
