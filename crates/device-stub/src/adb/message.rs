//! A message of the ADB transport: 24 bytes of header and a payload.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The largest payload either side may send.
pub const MAX_DATA: u32 = 64 * 1024;

/// The commands of the transport, four letters each.
pub mod command {
    pub const CNXN: u32 = u32::from_le_bytes(*b"CNXN");
    /// The device wants a key of its host.
    pub const AUTH: u32 = u32::from_le_bytes(*b"AUTH");
    /// The device wants TLS.
    pub const STLS: u32 = u32::from_le_bytes(*b"STLS");
    pub const OPEN: u32 = u32::from_le_bytes(*b"OPEN");
    pub const OKAY: u32 = u32::from_le_bytes(*b"OKAY");
    pub const WRTE: u32 = u32::from_le_bytes(*b"WRTE");
    pub const CLSE: u32 = u32::from_le_bytes(*b"CLSE");
}

/// One message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    pub command: u32,
    pub arg0: u32,
    pub arg1: u32,
    pub data: Vec<u8>,
}

impl Message {
    /// Makes a message.
    pub fn new(command: u32, arg0: u32, arg1: u32, data: impl Into<Vec<u8>>) -> Self {
        Self {
            command,
            arg0,
            arg1,
            data: data.into(),
        }
    }

    /// Reads a message; its check sum is not looked at, as in every ADB since version 0x01000001.
    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let command = from.read_u32_le().await?;
        let arg0 = from.read_u32_le().await?;
        let arg1 = from.read_u32_le().await?;
        let length = from.read_u32_le().await?;
        let _check = from.read_u32_le().await?;
        let magic = from.read_u32_le().await?;
        if magic != !command || length > MAX_DATA {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not a message of ADB, or too long",
            ));
        }
        let mut data = vec![0; length as usize];
        from.read_exact(&mut data).await?;
        Ok(Self {
            command,
            arg0,
            arg1,
            data,
        })
    }

    /// Writes the message.
    pub async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let check = self
            .data
            .iter()
            .fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        let header = [
            self.command,
            self.arg0,
            self.arg1,
            self.data.len() as u32,
            check,
            !self.command,
        ];
        let mut bytes: Vec<u8> = header.into_iter().flat_map(u32::to_le_bytes).collect();
        bytes.extend_from_slice(&self.data);
        to.write_all(&bytes).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(future)
    }

    #[test]
    fn any_bytes_are_messages_that_are_written_as_they_were_read_or_none() {
        bolero::check!()
            .with_type::<(u32, u32, u32, Vec<u8>, Vec<u8>)>()
            .with_iterations(1_000)
            .for_each(|(command, arg0, arg1, data, rest)| {
                block(async {
                    let message = Message::new(*command, *arg0, *arg1, data.clone());
                    let mut bytes = Vec::new();
                    message.write(&mut bytes).await.unwrap();
                    let length = bytes.len();
                    bytes.extend(rest);

                    let mut left = bytes.as_slice();
                    assert_eq!(Message::read(&mut left).await.unwrap(), message);
                    assert_eq!(left, rest);

                    assert!(Message::read(&mut &bytes[..length - 1]).await.is_err());
                    if let Ok(read) = Message::read(&mut rest.as_slice()).await {
                        let mut again = Vec::new();
                        read.write(&mut again).await.unwrap();
                        assert_eq!(
                            (&again[..16], &again[20..]),
                            (&rest[..16], &rest[20..again.len()])
                        );
                    }
                });
            });
    }
}
