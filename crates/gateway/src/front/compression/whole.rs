//! Gzip of bytes that are all there, by a compressor that each thread keeps.

use std::cell::RefCell;

use bytes::Bytes;
use flate2::{Compress, Compression, Crc, FlushCompress, Status};

use super::LEVEL;

/// Method deflate, no flags, no time, an unknown system (RFC 1952).
const HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// The checksum and the length.
const TAIL: usize = 8;

thread_local! {
    // Setting one up costs more than compressing a short answer.
    static DEFLATE: RefCell<Compress> =
        RefCell::new(Compress::new(Compression::new(LEVEL), false));
}

/// Compresses bytes; `None` where they would not become fewer.
pub fn gzip(plain: &[u8]) -> Option<Bytes> {
    // With no more room than the plain bytes have it ends early where it gains nothing.
    let mut deflated = Vec::with_capacity(plain.len().checked_sub(HEAD.len() + TAIL)?);
    let status = DEFLATE.with_borrow_mut(|deflate| {
        deflate.reset();
        deflate.compress_vec(plain, &mut deflated, FlushCompress::Finish)
    });
    if !matches!(status, Ok(Status::StreamEnd)) {
        return None;
    }
    let mut checksum = Crc::new();
    checksum.update(plain);
    let mut packed = Vec::with_capacity(HEAD.len() + deflated.len() + TAIL);
    packed.extend_from_slice(&HEAD);
    packed.extend_from_slice(&deflated);
    packed.extend_from_slice(&checksum.sum().to_le_bytes());
    packed.extend_from_slice(&checksum.amount().to_le_bytes());
    Some(packed.into())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn what_is_packed_can_be_unpacked_and_noise_stays_as_it_is() {
        for size in [0, 1, 17, 18, 1000, 65_536] {
            let noise: Vec<u8> = (0..size).map(|_| rand::random()).collect();
            assert_eq!(gzip(&noise), None, "{size} bytes of noise");
            let words = b"one word after the other, ".repeat(size / 10);
            let Some(packed) = gzip(&words) else {
                assert!(words.len() < 40, "{size}");
                continue;
            };
            let mut unpacked = Vec::new();
            let mut decoder = GzDecoder::new(&*packed);
            decoder.read_to_end(&mut unpacked).unwrap();
            assert!(unpacked == words && packed.len() < words.len());
        }
    }
}
