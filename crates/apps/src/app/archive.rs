//! The entries of a package, unpacked within bounds whatever the archive says of their sizes.

use std::io::{self, Read, Seek};

use apk_info_zip::{Signature, ZipEntry, ZipError};
use zip::ZipArchive;

/// Deflate makes a byte into 1,032 at the most: what is packed into less than this may be unpacked without counting.
const SMALL: u64 = 64 << 10;
/// How many signers of the oldest scheme are looked at.
const MOST_BLOCKS: usize = 8;

/// A package. It is read by a reader that takes the faulty archives that Android takes, and that unpacks without a bound; what
/// could be too large for that is read by one that is stricter, and stops.
pub struct Archive<F> {
    entries: ZipEntry,
    open: F,
}

impl<F, R> Archive<F>
where
    F: Fn() -> R,
    R: Read + Seek + Send + 'static,
{
    /// Reads the directory of a package, which `open` opens as often as it is called.
    ///
    /// # Errors
    /// Where it is no whole archive, or cannot be read.
    pub fn read_directory(open: F) -> Result<Self, ZipError> {
        Ok(Self {
            entries: ZipEntry::from_reader(open())?,
            open,
        })
    }

    /// Whether there is such an entry.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains(name)
    }

    /// An entry of `most` bytes or less; none where there is no such one. No more is ever unpacked, but for one whose packed
    /// form is below 64 KiB, and so itself below 66 MB.
    pub fn read(&self, name: &str, most: u64) -> Option<Vec<u8>> {
        let entry = self.entries.entry_info(name)?;
        if entry.uncompressed_size > most {
            return None;
        }
        let is_stored = entry.compression_method == ZipEntry::METHOD_STORED && !entry.tampered;
        let bytes = match is_stored || entry.compressed_size <= SMALL {
            true => self.entries.read(name).ok()?.0,
            false => self.read_counting(name, most).ok()?,
        };
        (bytes.len() as u64 <= most).then_some(bytes)
    }

    fn read_counting(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let mut archive = ZipArchive::new((self.open)())?;
        let mut bytes = Vec::new();
        let entry = archive.by_name(name)?;
        entry.take(most + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Who signed it, by the newest scheme first.
    pub fn signatures(&self) -> impl Iterator<Item = Signature> {
        let newer = self.entries.get_signatures_other().unwrap_or_default();
        let first = self
            .has_few_blocks()
            .then(|| self.entries.get_signature_v1());
        let first = first.and_then(Result::ok).flatten();
        newer.into_iter().rev().chain(first)
    }

    /// Whether what the oldest scheme signs by, which are entries that are unpacked to be looked at, are few and small.
    fn has_few_blocks(&self) -> bool {
        let blocks = self.entries.namelist().filter(|name| {
            let block = name.strip_prefix("META-INF/").unwrap_or_default();
            [".RSA", ".DSA", ".EC"]
                .iter()
                .any(|end| block.ends_with(end))
        });
        let mut sizes =
            blocks.filter_map(|name| Some(self.entries.entry_info(name)?.compressed_size));
        let small = sizes.by_ref().take(MOST_BLOCKS).all(|size| size <= SMALL);
        small && sizes.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::{Cursor, SeekFrom, Write as _};
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    const BOMB: usize = 160 << 20;
    const MOST: u64 = 1 << 20;

    /// Counts what is read.
    struct Counted(Cursor<Vec<u8>>, Arc<AtomicUsize>);

    impl Read for Counted {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(into)?;
            self.1.fetch_add(read, Ordering::Relaxed);
            Ok(read)
        }
    }

    impl Seek for Counted {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    fn packed(entries: &[(&str, usize)]) -> Vec<u8> {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        let zeros = vec![0; 1 << 20];
        for (name, size) in entries {
            writer
                .start_file(*name, SimpleFileOptions::default())
                .unwrap();
            for begin in (0..*size).step_by(zeros.len()) {
                writer
                    .write_all(&zeros[..zeros.len().min(size - begin)])
                    .unwrap();
            }
        }
        writer.finish().unwrap().into_inner()
    }

    #[test]
    fn an_entry_larger_than_it_says_is_unpacked_as_far_as_it_may_be() {
        let mut file = packed(&[("bomb", BOMB), ("honest", 1 << 20)]);
        let size = u32::try_from(BOMB).unwrap().to_le_bytes();
        let mut at = 0;
        while let Some(found) = file[at..].windows(4).position(|four| four == size) {
            at += found;
            file[at..at + 4].copy_from_slice(&1000_u32.to_le_bytes());
        }
        let (opened, read) = (Rc::new(Cell::new(0)), Arc::new(AtomicUsize::new(0)));
        let open = || {
            opened.set(opened.get() + 1);
            Counted(Cursor::new(file.clone()), Arc::clone(&read))
        };
        let archive = Archive::read_directory(open).unwrap();
        assert!(archive.entries.entry_info("bomb").unwrap().compressed_size > SMALL);
        let before = read.load(Ordering::Relaxed);

        assert_eq!(archive.read("bomb", MOST), None);

        // By the reader that stops, and not far into what is packed.
        assert_eq!(opened.get(), 2);
        assert!(read.load(Ordering::Relaxed) - before < file.len() / 2);
        assert_eq!(
            archive.read("honest", MOST).map(|bytes| bytes.len()),
            Some(1 << 20)
        );
        assert_eq!(archive.read("honest", MOST - 1), None);
        assert_eq!(archive.read("nothing", MOST), None);
    }

    #[test]
    fn a_large_entry_that_says_the_truth_is_read() {
        let file = packed(&[("resources.arsc", BOMB)]);
        let archive = Archive::read_directory(|| Cursor::new(file.clone())).unwrap();
        let bytes = archive.read("resources.arsc", BOMB as u64).unwrap();
        assert_eq!(bytes.len(), BOMB);
    }
}
