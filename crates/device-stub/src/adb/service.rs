//! What a stream does: run a command line, be a shell, take an app, or take files.

use super::package::Passing;
use super::sync::Sync;
use crate::device::{Device, Pushed};
use crate::shell::{self, Outcome};

/// A line that somebody types may be this long.
const LONGEST_LINE: usize = 4096;

/// The other end of a stream.
pub enum Service {
    /// It has said all it had to say.
    Done,
    /// A command that never ends.
    Asleep,
    /// A shell that is typed into, line by line.
    Shell {
        line: Vec<u8>,
        packets: Option<Packets>,
        is_done: bool,
    },
    /// An app of a known size, `cmd package install -S <size>`.
    Install {
        left: u64,
        file: Pushed,
        passing: Passing,
    },
    /// A session of `sync:`.
    Sync(Sync),
}

/// Collects the packets that `shell,v2` puts its input into.
#[derive(Default)]
pub struct Packets(Vec<u8>);

impl Service {
    /// Opens the service of a name, with what it says at once; `None` for one we do not have.
    pub fn open(device: &Device, name: &str) -> Option<(Self, Vec<u8>)> {
        let (kind, line) = name.split_once(':')?;
        let mut options = kind.split(',');
        match options.next()? {
            "shell" => {
                let with_packets = options.any(|option| option == "v2");
                if line.is_empty() {
                    let packets = with_packets.then(Packets::default);
                    let greeting = typed(with_packets, prompt(device).as_bytes());
                    return Some((
                        Self::Shell {
                            line: Vec::new(),
                            packets,
                            is_done: false,
                        },
                        greeting,
                    ));
                }
                if line == "sleep infinity" {
                    return Some((Self::Asleep, Vec::new()));
                }
                Some((Self::Done, printed(with_packets, shell::run(device, line))))
            }
            "exec" => Some(match announced_size(line) {
                Some(left) => (
                    Self::Install {
                        left,
                        file: Pushed::default(),
                        passing: Passing::default(),
                    },
                    Vec::new(),
                ),
                None => (Self::Done, printed(false, shell::run(device, line))),
            }),
            "sync" => Some((Self::Sync(Sync::default()), Vec::new())),
            _ => None,
        }
    }

    /// Takes what the other side says and answers it.
    pub fn hear(&mut self, device: &Device, data: &[u8]) -> Vec<u8> {
        match self {
            Self::Done | Self::Asleep => Vec::new(),
            Self::Shell {
                line,
                packets,
                is_done,
            } => {
                let with_packets = packets.is_some();
                let input = match packets {
                    Some(packets) => packets.input(data, is_done),
                    None => data.to_vec(),
                };
                let mut said = Vec::new();
                for byte in input {
                    if byte != b'\n' && byte != b'\r' {
                        if line.len() < LONGEST_LINE {
                            line.push(byte);
                        }
                        continue;
                    }
                    let text = String::from_utf8_lossy(line).trim().to_owned();
                    line.clear();
                    let outcome = shell::run(device, &text);
                    if text.split_whitespace().next() == Some("exit") {
                        *is_done = true;
                        said.extend(printed(with_packets, outcome));
                        return said;
                    }
                    said.extend(typed(
                        with_packets,
                        &[outcome.stdout, outcome.stderr].concat(),
                    ));
                    said.extend(typed(with_packets, prompt(device).as_bytes()));
                    if said.len() > shell::MOST_OUTPUT {
                        *is_done = true;
                        return said;
                    }
                }
                said
            }
            Self::Install {
                left,
                file,
                passing,
            } => {
                let taken = (data.len() as u64).min(*left);
                let piece = &data[..taken as usize];
                file.grow(piece);
                passing.grow(piece);
                *left -= taken;
                if *left > 0 {
                    return Vec::new();
                }
                let name = passing.name();
                let outcome = shell::verdict(device.install(&name, file).map_err(str::to_owned));
                *self = Self::Done;
                outcome.stdout
            }
            Self::Sync(sync) => sync.hear(device, data),
        }
    }

    /// Tells whether nothing will come any more.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Done => true,
            Self::Shell { is_done, .. } => *is_done,
            Self::Install { .. } | Self::Asleep => false,
            Self::Sync(sync) => sync.is_done(),
        }
    }
}

impl Packets {
    /// Takes the input out of packets: a kind, a length, the content. The end of the input ends the shell.
    fn input(&mut self, data: &[u8], is_done: &mut bool) -> Vec<u8> {
        const STDIN: u8 = 0;
        const CLOSE_STDIN: u8 = 3;
        self.0.extend_from_slice(data);
        let mut input = Vec::new();
        while let Some((header, rest)) = self.0.split_first_chunk::<5>() {
            let [kind, length @ ..] = *header;
            let length = u32::from_le_bytes(length) as usize;
            if length > super::MAX_DATA as usize {
                *is_done = true;
                break;
            }
            let Some(content) = rest.get(..length) else {
                break;
            };
            match kind {
                STDIN => input.extend_from_slice(content),
                CLOSE_STDIN => *is_done = true,
                _ => {}
            }
            self.0.drain(..5 + length);
        }
        input
    }
}

fn prompt(device: &Device) -> String {
    format!("{}:/ $ ", device.profile().name)
}

/// A command's output and status, in packets or plainly; plainly there is no status.
fn printed(with_packets: bool, outcome: Outcome) -> Vec<u8> {
    const STDOUT: u8 = 1;
    const STDERR: u8 = 2;
    const EXIT: u8 = 3;
    if !with_packets {
        return [outcome.stdout, outcome.stderr].concat();
    }
    let mut said = Vec::new();
    for (kind, content) in [
        (STDOUT, outcome.stdout),
        (STDERR, outcome.stderr),
        (EXIT, vec![outcome.status]),
    ] {
        if !content.is_empty() {
            said.extend(packet(kind, &content));
        }
    }
    said
}

fn typed(with_packets: bool, text: &[u8]) -> Vec<u8> {
    match with_packets {
        true if text.is_empty() => Vec::new(),
        true => packet(1, text),
        false => text.to_vec(),
    }
}

fn packet(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut packet = vec![kind];
    packet.extend((content.len() as u32).to_le_bytes());
    packet.extend(content);
    packet
}

/// The size in `cmd package install … -S <size> …`.
fn announced_size(line: &str) -> Option<u64> {
    let words: Vec<_> = line
        .split_whitespace()
        .map(|word| word.trim_matches(['\'', '"']))
        .collect();
    let ["cmd", "package", "install", rest @ ..] = &words[..] else {
        return None;
    };
    let position = rest.iter().position(|word| *word == "-S")?;
    rest.get(position + 1)?.parse().ok()
}
