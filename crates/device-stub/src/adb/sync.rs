//! Files: of what is pushed only the size is kept, and whether it can be an app.

use crate::device::{Device, Pushed};

const LONGEST_PATH: usize = 1024;
const LARGEST_BLOCK: usize = 64 * 1024;
const FOLDERS: &[&str] = &[
    "/",
    "/data/local/tmp",
    "/data",
    "/sdcard",
    "/sdcard/Download",
    "/storage/emulated/0",
];

/// A session of `sync:`.
#[derive(Default)]
pub struct Sync {
    buffer: Vec<u8>,
    /// How much of the current block is still to come.
    block_left: usize,
    sending: Option<(String, Pushed)>,
    is_done: bool,
}

impl Sync {
    /// Takes a piece of the other side's requests and answers those that are whole.
    pub fn hear(&mut self, device: &Device, mut data: &[u8]) -> Vec<u8> {
        let mut said = Vec::new();
        while !data.is_empty() && !self.is_done {
            if self.block_left > 0 {
                let (block, rest) = data.split_at(self.block_left.min(data.len()));
                self.take(block);
                data = rest;
                continue;
            }
            // Never a byte more than the request needs: what follows may be a block, which is not kept.
            let missing = self.missing().min(data.len());
            self.buffer.extend_from_slice(&data[..missing]);
            data = &data[missing..];
            if self.missing() == 0 {
                self.request(device, &mut said);
            }
        }
        said
    }

    /// Tells whether the session is over.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// How many bytes the request in the buffer still lacks.
    fn missing(&self) -> usize {
        let Some((name, length)) = header(&self.buffer) else {
            return 8 - self.buffer.len();
        };
        match name {
            // These carry a time or a length where others carry the length of a path.
            b"DATA" | b"DONE" | b"QUIT" => 0,
            _ => (8 + length.min(LONGEST_PATH)) - self.buffer.len(),
        }
    }

    fn take(&mut self, block: &[u8]) {
        self.block_left -= block.len();
        if let Some((_, file)) = &mut self.sending {
            file.grow(block);
        }
    }

    fn request(&mut self, device: &Device, said: &mut Vec<u8>) {
        let request = std::mem::take(&mut self.buffer);
        let Some((name, length)) = header(&request) else {
            return;
        };
        let path = String::from_utf8_lossy(&request[8..]).into_owned();
        match name {
            b"DATA" if length <= LARGEST_BLOCK && self.sending.is_some() => {
                self.block_left = length
            }
            b"DONE" => match self.sending.take() {
                None => self.refuse(said, "nothing was sent"),
                Some((path, file)) => {
                    if device.push(path, file) {
                        said.extend(words(b"OKAY", &[0]));
                    } else {
                        self.refuse(said, "no space left on device");
                    }
                }
            },
            b"QUIT" => self.is_done = true,
            _ if length > LONGEST_PATH => self.refuse(said, "path too long"),
            b"SEND" => {
                let path = path
                    .rsplit_once(',')
                    .map_or(path.as_str(), |(path, _mode)| path);
                self.sending = Some((path.to_owned(), Pushed::default()));
            }
            b"STAT" => {
                let (mode, size) = stat(device, &path);
                said.extend(words(b"STAT", &[mode, size, 0]));
            }
            b"LIST" => said.extend(words(b"DONE", &[0, 0, 0, 0])),
            _ => self.refuse(said, "not supported"),
        }
    }

    /// After a refusal the other side's bytes cannot be told apart any more.
    fn refuse(&mut self, said: &mut Vec<u8>, reason: &str) {
        said.extend(words(b"FAIL", &[reason.len() as u32]));
        said.extend(reason.as_bytes());
        self.is_done = true;
    }
}

fn header(bytes: &[u8]) -> Option<(&[u8; 4], usize)> {
    let (name, rest) = bytes.split_first_chunk::<4>()?;
    let length = rest.first_chunk::<4>()?;
    Some((name, u32::from_le_bytes(*length) as usize))
}

fn words(name: &[u8; 4], numbers: &[u32]) -> Vec<u8> {
    let mut bytes = name.to_vec();
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    bytes
}

fn stat(device: &Device, path: &str) -> (u32, u32) {
    const FOLDER: u32 = 0o040_771;
    const FILE: u32 = 0o100_644;
    if let Some(file) = device.file(path) {
        return (FILE, u32::try_from(file.bytes).unwrap_or(u32::MAX));
    }
    let is_folder = path.len() > 1 && path.ends_with('/') || FOLDERS.contains(&path);
    if is_folder { (FOLDER, 4096) } else { (0, 0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceProfile;

    fn push(path: &str, blocks: &[&[u8]]) -> Vec<u8> {
        let mut bytes = words(b"SEND", &[path.len() as u32]);
        bytes.extend(path.as_bytes());
        for block in blocks {
            bytes.extend(words(b"DATA", &[block.len() as u32]));
            bytes.extend(*block);
        }
        bytes.extend(words(b"DONE", &[1_700_000_000]));
        bytes
    }

    #[test]
    fn a_file_is_counted_however_it_is_cut() {
        for size in [1, 3, 7, 1000] {
            let device = Device::new(DeviceProfile::default());
            let mut session = Sync::default();

            let bytes = push("/data/local/tmp/a.apk,33188", &[b"PK34567890", b"abc"]);
            let said: Vec<u8> = bytes
                .chunks(size)
                .flat_map(|piece| session.hear(&device, piece))
                .collect();

            assert_eq!(said, words(b"OKAY", &[0]), "in pieces of {size}");
            let file = device.file("/data/local/tmp/a.apk").unwrap();
            assert!(file.bytes == 13 && file.is_archive, "{file:?}");
        }
    }

    #[test]
    fn a_path_and_a_block_have_a_limit() {
        for bytes in [
            push(&"a".repeat(2000), &[]),
            push("/a", &[&vec![0; LARGEST_BLOCK + 1]]),
        ] {
            let device = Device::new(DeviceProfile::default());
            let mut session = Sync::default();

            let said = session.hear(&device, &bytes);

            assert!(said.starts_with(b"FAIL") && session.is_done());
        }
    }

    #[test]
    fn any_requests_have_the_same_answers_however_they_are_cut() {
        bolero::check!()
            .with_type::<(Vec<(u8, u8, u8)>, u8)>()
            .with_iterations(1_000)
            .for_each(|(requests, size)| {
                let mut bytes = Vec::new();
                for (kind, length, filler) in requests {
                    let names = [
                        b"SEND", b"DATA", b"DONE", b"STAT", b"LIST", b"RECV", b"QUIT",
                    ];
                    bytes.extend(words(
                        names[usize::from(*kind) % names.len()],
                        &[(*length).into()],
                    ));
                    // Now and then a byte too few or too many.
                    bytes.extend(vec![*filler; usize::from(length.wrapping_add(filler % 3))]);
                }
                let answers = |size: usize| {
                    let device = Device::new(DeviceProfile::default());
                    let mut session = Sync::default();
                    let pieces = bytes.chunks(size);
                    let said: Vec<u8> = pieces
                        .flat_map(|piece| session.hear(&device, piece))
                        .collect();
                    assert!(session.buffer.len() <= 8 + LONGEST_PATH);
                    (said, session.is_done())
                };
                assert_eq!(answers(usize::from(*size) + 1), answers(bytes.len() + 1));
            });
    }
}
