//! Where WebSocket frames begin and end in a stream of bytes, so that one of ours can be put in between.

/// Follows the frames of one direction.
#[derive(Debug, Default)]
pub struct Frames {
    head: [u8; 14],
    have: usize,
    payload: u64,
}

impl Frames {
    /// Notes bytes that passed.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let taken = usize::try_from(self.payload)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                self.payload -= taken as u64;
                bytes = &bytes[taken..];
                continue;
            }
            self.head[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            if self.have >= 2 && self.have == head_size(self.head[1]) {
                self.payload = payload_size(&self.head);
                self.have = 0;
            }
        }
    }

    /// Whether no frame is under way.
    pub fn is_between(&self) -> bool {
        self.have == 0 && self.payload == 0
    }
}

fn head_size(second: u8) -> usize {
    let length = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + length + if second & 0x80 == 0 { 0 } else { 4 }
}

fn payload_size(head: &[u8; 14]) -> u64 {
    match head[1] & 0x7f {
        126 => u64::from(u16::from_be_bytes([head[2], head[3]])),
        127 => u64::from_be_bytes([
            head[2], head[3], head[4], head[5], head[6], head[7], head[8], head[9],
        ]),
        short => u64::from(short),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(masked: bool, size: usize) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = vec![0x82];
        match size {
            0..=125 => frame.push(mask | u8::try_from(size).unwrap()),
            126..=0xffff => {
                frame.push(mask | 126);
                frame.extend(u16::try_from(size).unwrap().to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend((size as u64).to_be_bytes());
            }
        }
        frame.extend(vec![0xff; size + if masked { 4 } else { 0 }]);
        frame
    }

    #[test]
    fn frames_of_every_size_are_followed_however_they_are_cut() {
        let sizes = [0, 1, 125, 126, 65_535, 65_536];
        let stream: Vec<Vec<u8>> = sizes
            .iter()
            .flat_map(|size| [frame(true, *size), frame(false, *size)])
            .collect();
        for cut in [1, 2, 3, 7, 4096, 1 << 20] {
            let mut frames = Frames::default();
            for frame in &stream {
                let (last, most) = frame.split_last().unwrap();
                for piece in most.chunks(cut) {
                    frames.pass(piece);
                    assert!(!frames.is_between());
                }
                frames.pass(&[*last]);
                assert!(
                    frames.is_between(),
                    "frame of {} in pieces of {cut}",
                    frame.len()
                );
            }
        }
    }

    #[test]
    fn any_stream_ends_at_the_same_places_however_it_is_cut() {
        bolero::check!()
            .with_type::<(Vec<(bool, u16)>, Vec<u8>, Vec<u8>)>()
            .with_iterations(300)
            .for_each(|(sizes, rest, cuts)| {
                let mut stream = Vec::new();
                let mut ends = vec![0];
                for (masked, size) in sizes {
                    // Lengths of one and of three bytes.
                    let size = usize::from(size % 300);
                    stream.extend(frame(*masked, size));
                    ends.push(stream.len());
                }
                let whole = stream.len();
                stream.extend(rest);

                let mut bytewise = Frames::default();
                let between = |frames: &mut Frames, byte: &u8| {
                    frames.pass(&[*byte]);
                    Some(frames.is_between())
                };
                let between: Vec<bool> = stream
                    .iter()
                    .scan(&mut bytewise, |frames, byte| between(frames, byte))
                    .collect();
                for (place, is_between) in between.iter().enumerate().take(whole) {
                    assert_eq!(
                        *is_between,
                        ends.contains(&(place + 1)),
                        "after {place} bytes"
                    );
                }
                let (mut cut, mut place) = (Frames::default(), 0);
                for size in cuts.iter().cycle().take(stream.len()) {
                    let next = (place + usize::from(*size)).min(stream.len());
                    cut.pass(&stream[place..next]);
                    place = next;
                    assert_eq!(cut.is_between(), place == 0 || between[place - 1]);
                }
            });
    }
}
