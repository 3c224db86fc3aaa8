//! The output of a command, as it comes in the packets of `shell_v2`: a kind, a length, so many bytes.

use super::AdbError;

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const EXIT: u8 = 3;
const HEAD: usize = 5;

/// Why an output is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It was longer than allowed.
    TooLong,
    /// The command took longer than allowed.
    TooLate,
}

/// What a command printed, within bounds, and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    /// Everything that was printed, as a terminal would show it.
    pub all: Vec<u8>,
    /// The standard output alone.
    pub stdout: Vec<u8>,
    /// How many bytes there is still room for.
    room: usize,
    /// The exit code; `None` where the command was cut off, or ended by a signal.
    pub exit: Option<u8>,
    /// Why it is not whole, where it is not.
    pub cut: Option<Cut>,
}

impl Output {
    /// Nothing was printed yet, and so much may be.
    pub fn new(most: usize) -> Self {
        Self {
            all: Vec::new(),
            stdout: Vec::new(),
            room: most,
            exit: None,
            cut: None,
        }
    }

    fn print(&mut self, kind: u8, bytes: &[u8]) {
        let fits = bytes.len().min(self.room);
        if fits < bytes.len() {
            self.cut = Some(Cut::TooLong);
        }
        self.room -= fits;
        self.all.extend_from_slice(&bytes[..fits]);
        if kind == STDOUT {
            self.stdout.extend_from_slice(&bytes[..fits]);
        }
    }
}

/// Takes packets apart, wherever messages cut them; a packet is never held as a whole.
#[derive(Debug, Default)]
pub struct Packets {
    head: [u8; HEAD],
    have: usize,
    /// How many bytes of the present packet are still to come.
    left: usize,
}

impl Packets {
    /// Takes the next bytes, up to where the output is too long.
    ///
    /// # Errors
    /// [`AdbError::Malformed`] where an exit code is none.
    pub fn take(&mut self, mut bytes: &[u8], output: &mut Output) -> Result<(), AdbError> {
        while !bytes.is_empty() && output.cut.is_none() {
            if self.have < HEAD {
                self.head[self.have] = bytes[0];
                self.have += 1;
                bytes = &bytes[1..];
                if self.have == HEAD {
                    let [_, length @ ..] = self.head;
                    self.left = u32::from_le_bytes(length) as usize;
                    if self.head[0] == EXIT && self.left != 1 {
                        return Err(AdbError::Malformed);
                    }
                    self.end_if_empty();
                }
                continue;
            }
            let (piece, rest) = bytes.split_at(self.left.min(bytes.len()));
            match self.head[0] {
                kind @ (STDOUT | STDERR) => output.print(kind, piece),
                EXIT => output.exit = piece.first().copied(),
                // Newer kinds are for whoever asked for them.
                _ => {}
            }
            self.left -= piece.len();
            bytes = rest;
            self.end_if_empty();
        }
        Ok(())
    }

    fn end_if_empty(&mut self) {
        if self.left == 0 {
            self.have = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(kind: u8, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).unwrap();
        [&[kind][..], &length.to_le_bytes(), content].concat()
    }

    #[test]
    fn outputs_are_told_apart_and_kept_in_their_order() {
        let said = [
            packet(STDOUT, b"one "),
            packet(STDERR, b"two "),
            packet(STDOUT, b""),
            packet(9, b"unheard of"),
            packet(STDOUT, b"three"),
            packet(EXIT, &[7]),
        ];
        let mut output = Output::new(100);
        Packets::default()
            .take(&said.concat(), &mut output)
            .unwrap();

        assert_eq!(output.all, b"one two three");
        assert_eq!(output.stdout, b"one three");
        assert_eq!((output.exit, output.cut), (Some(7), None));
    }

    #[test]
    fn a_long_output_is_cut_and_says_so() {
        let mut output = Output::new(5);
        let said = [packet(STDERR, b"123"), packet(STDOUT, b"4567")].concat();
        Packets::default().take(&said, &mut output).unwrap();

        assert_eq!(output.all, b"12345");
        assert_eq!((output.exit, output.cut), (None, Some(Cut::TooLong)));
    }

    #[test]
    fn any_packets_read_the_same_however_they_are_cut_and_stay_within_bounds() {
        bolero::check!()
            .with_type::<(Vec<(u8, Vec<u8>)>, Vec<u8>, u8, u8)>()
            .with_iterations(2_000)
            .for_each(|(packets, rubbish, step, most)| {
                let mut said: Vec<u8> = packets
                    .iter()
                    .flat_map(|(kind, content)| packet(kind % 5, content))
                    .collect();
                said.extend(rubbish);
                let most = usize::from(*most);
                let (mut whole, mut pieces) = (Output::new(most), Output::new(most));
                let at_once = Packets::default().take(&said, &mut whole);
                let mut reader = Packets::default();
                let mut in_pieces = Ok(());
                for piece in said.chunks(usize::from(*step).max(1)) {
                    in_pieces = reader.take(piece, &mut pieces);
                    if in_pieces.is_err() {
                        break;
                    }
                }

                assert_eq!(at_once.is_ok(), in_pieces.is_ok());
                assert_eq!(whole, pieces);
                assert!(whole.all.len() <= most && whole.stdout.len() <= whole.all.len());
                assert!(whole.cut.is_none() || whole.all.len() == most);
            });
    }
}
