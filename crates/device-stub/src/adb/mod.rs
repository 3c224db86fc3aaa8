//! The device's side of ADB over TCP, without authentication.

mod message;
mod package;
mod service;
mod sync;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::Duration;

use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::time::timeout;

pub use self::message::{MAX_DATA, Message, command};
use self::service::Service;
use crate::device::Device;

const IDLE: Duration = Duration::from_secs(600);
const VERSION: u32 = 0x0100_0001;
/// Streams of one connection at a time; a further one is refused.
const STREAMS: usize = 64;
/// Pieces that may wait for the other side; one that asks for more without taking them is cut off.
const PIECES: usize = 1024;

/// The bytes of a message before its data.
const HEAD: usize = 24;

/// Serves one connection.
pub async fn serve(device: Device, stream: TcpStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut connection = Connection::new(device.clone());
    loop {
        let message = timeout(IDLE, Message::read(&mut stream)).await??;
        let length = message.data.len();
        let answers = device.work(HEAD + length, || connection.hear(message))?;
        for answer in answers {
            device.sends(HEAD + answer.data.len());
            timeout(IDLE, answer.write(stream.get_mut())).await??;
        }
    }
}

/// The state of a connection; it does no input or output itself.
struct Connection {
    device: Device,
    greeted: bool,
    /// The largest payload that the other side takes.
    max_data: usize,
    last_id: u32,
    streams: HashMap<u32, Stream>,
}

/// A stream in a connection: one command, or one session of `sync:`.
struct Stream {
    /// What the other side calls it.
    theirs: u32,
    service: Service,
    /// What is still to be sent, each piece after the other side has taken the one before.
    pieces: VecDeque<Vec<u8>>,
    is_awaiting: bool,
}

impl Connection {
    fn new(device: Device) -> Self {
        Self {
            device,
            greeted: false,
            max_data: 4096,
            last_id: 0,
            streams: HashMap::new(),
        }
    }

    fn hear(&mut self, message: Message) -> io::Result<Vec<Message>> {
        let Message {
            command,
            arg0: theirs,
            arg1: ours,
            data,
        } = message;
        if command == command::CNXN {
            self.greeted = true;
            self.streams.clear();
            self.max_data = ours.clamp(1024, MAX_DATA) as usize;
            return Ok(vec![Message::new(
                command::CNXN,
                VERSION,
                MAX_DATA,
                self.banner(),
            )]);
        }
        if !self.greeted {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a message before the greeting",
            ));
        }
        Ok(match command {
            command::OPEN => self.open(theirs, &data),
            command::OKAY => {
                if let Some(stream) = self.streams.get_mut(&ours) {
                    stream.is_awaiting = false;
                }
                self.go_on(ours)
            }
            command::WRTE => {
                let Some(stream) = self.streams.get_mut(&ours) else {
                    return Ok(vec![Message::new(command::CLSE, 0, theirs, [])]);
                };
                let said = stream.service.hear(&self.device, &data);
                stream
                    .pieces
                    .extend(said.chunks(self.max_data).map(<[u8]>::to_vec));
                if stream.pieces.len() > PIECES {
                    self.streams.remove(&ours);
                    return Ok(vec![Message::new(command::CLSE, ours, theirs, [])]);
                }
                let mut answers = vec![Message::new(command::OKAY, ours, theirs, [])];
                answers.extend(self.go_on(ours));
                answers
            }
            command::CLSE => match self.streams.remove(&ours) {
                Some(stream) => vec![Message::new(command::CLSE, ours, stream.theirs, [])],
                None => Vec::new(),
            },
            // Newer requests, such as encryption, are for devices that have announced them.
            _ => Vec::new(),
        })
    }

    fn open(&mut self, theirs: u32, name: &[u8]) -> Vec<Message> {
        let name = String::from_utf8_lossy(name);
        let opened = Service::open(&self.device, name.trim_end_matches('\0'));
        let Some((service, said)) = opened.filter(|_| self.streams.len() < STREAMS) else {
            return vec![Message::new(command::CLSE, 0, theirs, [])];
        };
        self.last_id = self.last_id.wrapping_add(1).max(1);
        let ours = self.last_id;
        let pieces = said.chunks(self.max_data).map(<[u8]>::to_vec).collect();
        self.streams.insert(
            ours,
            Stream {
                theirs,
                service,
                pieces,
                is_awaiting: false,
            },
        );
        let mut answers = vec![Message::new(command::OKAY, ours, theirs, [])];
        answers.extend(self.go_on(ours));
        answers
    }

    /// Sends the next piece of a stream if the last one was taken, and closes a stream that has said all.
    fn go_on(&mut self, ours: u32) -> Vec<Message> {
        let Some(stream) = self.streams.get_mut(&ours) else {
            return Vec::new();
        };
        if stream.is_awaiting {
            return Vec::new();
        }
        if let Some(piece) = stream.pieces.pop_front() {
            stream.is_awaiting = true;
            return vec![Message::new(command::WRTE, ours, stream.theirs, piece)];
        }
        if stream.service.is_done() {
            let theirs = stream.theirs;
            self.streams.remove(&ours);
            return vec![Message::new(command::CLSE, ours, theirs, [])];
        }
        Vec::new()
    }

    /// Without the feature `cmd`, `adb install` pushes the file and calls `pm install`.
    fn banner(&self) -> Vec<u8> {
        let profile = self.device.profile();
        let banner = format!(
            "device::ro.product.name={};ro.product.model={};ro.product.device=stub;features=shell_v2",
            profile.name, profile.model
        );
        banner.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceProfile;

    /// The names of services, lines that are typed, and pieces of requests for files.
    const SAID: [&[u8]; 16] = [
        b"shell:",
        b"shell,v2:",
        b"shell:screencap -p",
        b"shell:getprop; echo 'a",
        b"exec:cmd package install -S 6 x",
        b"sync:",
        b"exit\n",
        b"getprop\ngetprop\n",
        b"\0\x05\0\0\0id\nid",
        b"\0\xff\xff\xff\xff",
        b"SEND\x04\0\0\0/a,1",
        b"DATA\x06\0\0\0PKPKPK",
        b"DONE\0\0\0\0",
        b"STAT\x02\0\0\0/a",
        b"LIST\xff\xff\0\0",
        b"\0",
    ];

    #[test]
    fn any_messages_are_answered_within_bounds() {
        bolero::check!()
            .with_type::<(bool, Vec<(u8, u8, u8, u8)>)>()
            .with_iterations(300)
            .for_each(|(greets, steps)| {
                let mut connection = Connection::new(Device::new(DeviceProfile::default()));
                let greeting = Message::new(command::CNXN, VERSION, 1024, []);
                if *greets {
                    connection.hear(greeting).unwrap();
                }
                for (kind, theirs, ours, said) in steps {
                    let kind = match kind % 8 {
                        0 => command::CNXN,
                        1 | 2 => command::OPEN,
                        3 | 4 => command::WRTE,
                        5 => command::OKAY,
                        6 => command::CLSE,
                        _ => u32::from(*kind),
                    };
                    let other = [*said];
                    let data = SAID.get(usize::from(*said % 20)).copied().unwrap_or(&other);
                    let ours = u32::from(*ours % 8);
                    let Ok(answers) =
                        connection.hear(Message::new(kind, u32::from(*theirs), ours, data))
                    else {
                        assert!(!connection.greeted);
                        continue;
                    };
                    for answer in answers {
                        assert!(answer.data.len() <= connection.max_data);
                        assert!(answer.arg1 == u32::from(*theirs) || kind != command::OPEN);
                    }
                    assert!(connection.streams.len() <= STREAMS);
                    let pieces = connection
                        .streams
                        .values()
                        .map(|stream| stream.pieces.len());
                    assert!(pieces.max().unwrap_or(0) <= 2 * PIECES);
                }
            });
    }
}
