//! What a package says of itself.

use std::path::{Path, PathBuf};

use apk_info::Apk;
use apk_info_zip::ZipEntry;

use super::upload::is_package_name;
use crate::{Error, Result};

const MANIFEST: &str = "AndroidManifest.xml";
/// Holds the texts that the manifest refers to.
const RESOURCES: &str = "resources.arsc";
const LARGEST_ENTRY: u64 = 128 << 20;
const LARGEST_PACKED: u64 = 4 << 20;

/// What a package says of itself, as far as it could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The Android package.
    pub package_name: Option<String>,
    /// The version as people read it.
    pub version_name: Option<String>,
    /// The version as Android compares it.
    pub version_code: Option<i64>,
    /// What people call it.
    pub label: Option<String>,
    /// The oldest Android API level it runs on.
    pub min_sdk_version: Option<i32>,
    /// The Android API level it was made for.
    pub target_sdk_version: Option<i32>,
}

/// Whether the first bytes are those of a ZIP archive that has entries.
pub fn begins_a_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04")
}

/// Reads the manifest of a package; one that is a ZIP with a manifest that cannot be read says nothing of itself.
///
/// # Errors
/// Where the file has no `AndroidManifest.xml` or is no whole archive.
pub async fn read(file: PathBuf) -> Result<Manifest> {
    tokio::task::spawn_blocking(move || read_blocking(&file))
        .await
        .unwrap_or_else(|_| {
            Err(Error::NotAPackage {
                reason: "its reading broke off".to_owned(),
            })
        })
}

fn read_blocking(file: &Path) -> Result<Manifest> {
    let archive = ZipEntry::open(file).map_err(|error| {
        tracing::debug!("a package is no archive: {error}");
        Error::NotAPackage {
            reason: "it is no whole ZIP archive".to_owned(),
        }
    })?;
    if !archive.contains(MANIFEST) {
        return Err(Error::NotAPackage {
            reason: format!("it has no {MANIFEST}"),
        });
    }
    if !(is_modest(&archive, MANIFEST) && is_modest(&archive, RESOURCES)) {
        tracing::warn!("the manifest of a package is left unread: it would take too much memory");
        return Ok(Manifest::default());
    }
    let apk = match Apk::new(file) {
        Ok(apk) => apk,
        Err(error) => {
            tracing::debug!("the manifest of a package could not be read: {error}");
            return Ok(Manifest::default());
        }
    };
    let package_name = apk.get_package_name();
    if package_name
        .as_deref()
        .is_some_and(|name| !is_package_name(name))
    {
        return Err(Error::NotAPackage {
            reason: "its package name is not one".to_owned(),
        });
    }
    Ok(Manifest {
        package_name,
        version_name: apk.get_version_name().map(shown),
        version_code: apk.get_version_code().and_then(|code| code.parse().ok()),
        label: apk.get_application_label().map(shown),
        min_sdk_version: apk
            .get_min_sdk_version()
            .and_then(|level| level.parse().ok()),
        target_sdk_version: i32::try_from(apk.get_target_sdk_version()).ok(),
    })
}

/// Whether an entry, if it is there, may be unpacked into memory. What it says of its unpacked size is its word alone,
/// so that the packed size is bounded too.
fn is_modest(archive: &ZipEntry, name: &str) -> bool {
    archive.entry_info(name).is_none_or(|entry| {
        let is_stored = entry.compression_method == ZipEntry::METHOD_STORED && !entry.tampered;
        entry.uncompressed_size <= LARGEST_ENTRY
            && (is_stored || entry.compressed_size <= LARGEST_PACKED)
    })
}

/// A text of the manifest, as long as one of ours may be and without what cannot be stored.
fn shown(text: String) -> String {
    text.chars()
        .filter(|character| !character.is_control())
        .take(100)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn any_file_is_a_package_with_names_that_can_be_stored_or_none() {
        const WORDS: [&str; 12] = [
            "PK\u{3}\u{4}",
            "PK\u{1}\u{2}",
            "PK\u{5}\u{6}",
            "AndroidManifest.xml",
            "\0\0\0\0",
            "resources.arsc",
            "\u{14}\0",
            "\u{13}\0",
            "\u{1}\0",
            "classes.dex",
            "\u{8}\0",
            "\u{1}\0\u{1}\0",
        ];
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("any.apk");
        bolero::check!()
            .with_iterations(300)
            .with_max_len(256)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                for content in [bytes, text.as_bytes()] {
                    fs::write(&file, content).unwrap();
                    if let Ok(manifest) = read_blocking(&file) {
                        assert!(
                            manifest
                                .package_name
                                .is_none_or(|name| is_package_name(&name))
                        );
                        let texts = [manifest.version_name, manifest.label];
                        assert!(
                            texts
                                .iter()
                                .flatten()
                                .all(|text| !text.contains('\0') && text.chars().count() <= 100)
                        );
                    }
                }
            });
    }
}
