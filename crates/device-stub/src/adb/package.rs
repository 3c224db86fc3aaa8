//! The name of an app that comes as a stream: its manifest is found as it passes by, for the whole is never kept.

use std::io::Read;

use apk_info_axml::AXML;
use flate2::read::DeflateDecoder;

const MANIFEST: &[u8] = b"AndroidManifest.xml";
/// What stands before the name of an entry of a ZIP archive.
const HEADER: usize = 30;
/// How much of the manifest is kept packed, and unpacked.
const MOST_PACKED: usize = 256 << 10;
const MOST: u64 = 4 << 20;
/// FNV-1a of 32 bits.
const FNV_OFFSET: u32 = 0x811c_9dc5;
const FNV_PRIME: u32 = 0x0100_0193;

/// What is known of a package of which so much has come.
pub struct Passing {
    /// The manifest's entry from its header on, or the last bytes, which may be its beginning.
    kept: Vec<u8>,
    is_found: bool,
    digest: u32,
}

impl Default for Passing {
    fn default() -> Self {
        Self {
            kept: Vec::new(),
            is_found: false,
            digest: FNV_OFFSET,
        }
    }
}

impl Passing {
    /// Takes the next piece.
    pub fn grow(&mut self, piece: &[u8]) {
        for byte in piece {
            self.digest = (self.digest ^ u32::from(*byte)).wrapping_mul(FNV_PRIME);
        }
        if self.is_found {
            let room = MOST_PACKED.saturating_sub(self.kept.len());
            self.kept.extend_from_slice(&piece[..room.min(piece.len())]);
            return;
        }
        self.kept.extend_from_slice(piece);
        let entry = self.kept.windows(HEADER + MANIFEST.len()).position(|one| {
            one.starts_with(b"PK\x03\x04") && one[26..28] == [19, 0] && one.ends_with(MANIFEST)
        });
        self.is_found = entry.is_some();
        let passed = self.kept.len().saturating_sub(HEADER + MANIFEST.len() - 1);
        self.kept.drain(..entry.unwrap_or(passed));
        self.kept.truncate(MOST_PACKED.max(HEADER));
    }

    /// The name by its manifest; where that cannot be read, one of its content, so that the same app again takes the place of
    /// the one that is there.
    pub fn name(&self) -> String {
        let told = self.is_found.then(|| name_of(&self.kept)).flatten();
        told.unwrap_or_else(|| format!("streamed.package{:08x}", self.digest))
    }
}

/// The package's name by the entry of its manifest.
fn name_of(entry: &[u8]) -> Option<String> {
    const STORED: u16 = 0;
    let number = |at: usize| Some(u16::from_le_bytes(entry.get(at..at + 2)?.try_into().ok()?));
    let (method, extra) = (number(8)?, usize::from(number(28)?));
    let content = entry.get(HEADER + MANIFEST.len() + extra..)?;
    let mut xml = Vec::new();
    match method {
        STORED => {
            let size = u32::from_le_bytes(entry.get(18..22)?.try_into().ok()?);
            xml.extend_from_slice(content.get(..size as usize)?);
        }
        _ => {
            let unpacked = DeflateDecoder::new(content)
                .take(MOST)
                .read_to_end(&mut xml);
            unpacked.ok()?;
        }
    }
    let xml = AXML::new(&mut xml.as_slice(), None).ok()?;
    let name = xml.get_attribute_value("manifest", "package", None)?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_');
    ((1..=255).contains(&name.len()) && name.chars().all(is_name)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(content: &[u8], step: usize) -> Passing {
        let mut passing = Passing::default();
        for piece in content.chunks(step) {
            passing.grow(piece);
        }
        passing
    }

    #[test]
    fn a_manifest_is_found_however_the_package_is_cut_and_any_bytes_have_one_name() {
        let mut entry = [0; HEADER];
        entry[..4].copy_from_slice(b"PK\x03\x04");
        entry[26] = 19;
        let package = [&[7; 3000], &entry[..], MANIFEST, &[1; 500]].concat();
        for step in [1, 2, 29, 48, 49, 50, 512, 4000] {
            let passing = passed(&package, step);
            assert!(passing.is_found, "{step}");
            assert_eq!(passing.kept, package[3000..], "{step}");
        }
        bolero::check!()
            .with_iterations(300)
            .with_max_len(512)
            .for_each(|bytes: &[u8]| {
                let entry = [&package[3000..3049], bytes].concat();
                assert_eq!(passed(&entry, 1).name(), passed(&entry, 4000).name());
            });
    }
}
