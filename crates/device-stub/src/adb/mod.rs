//! The device's side of ADB over TCP, without authentication.

mod message;
mod service;
mod sync;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::Duration;

use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::time::timeout;

use self::message::MAX_DATA;
pub use self::message::{Message, command};
use self::service::Service;
use crate::device::Device;

const IDLE: Duration = Duration::from_secs(600);
const VERSION: u32 = 0x0100_0001;
/// Streams of one connection at a time; a further one is refused.
const STREAMS: usize = 64;
/// Pieces that may wait for the other side; one that asks for more without taking them is cut off.
const PIECES: usize = 1024;

/// Serves one connection.
pub async fn serve(device: Device, stream: TcpStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut connection = Connection::new(device);
    loop {
        let message = timeout(IDLE, Message::read(&mut stream)).await??;
        for answer in connection.hear(message)? {
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
