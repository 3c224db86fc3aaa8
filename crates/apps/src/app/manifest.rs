//! What a package says of itself.

use std::io::{ErrorKind, Read, Seek};

use apk_info_axml::AXML;
use apk_info_zip::{Signature, ZipError};
use bytes::Bytes;

use super::archive::Archive;
use super::icon;
use super::resources::{self, Resources};
use super::upload::is_package_name;
use crate::{Error, Result};

const MANIFEST: &str = "AndroidManifest.xml";
/// Holds the texts that the manifest refers to.
const RESOURCES: &str = "resources.arsc";
/// How large either may be.
const LARGEST: u64 = 128 << 20;
const MOST_PERMISSIONS: usize = 500;

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
    /// What it asks to be allowed.
    pub permissions: Vec<String>,
    /// The SHA-256 of the certificate that it is signed with, hexadecimal.
    pub certificate_sha256: Option<String>,
    /// Its icon, where it has a picture of one.
    pub icon: Option<Bytes>,
}

/// Whether the first bytes are those of a ZIP archive that has entries.
pub fn begins_a_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04")
}

/// Reads the manifest of a package, which `open` opens as often as it is called; one that is a ZIP with a manifest that cannot be read says nothing of itself.
///
/// # Errors
/// Where the file has no `AndroidManifest.xml` or is no whole archive.
pub async fn read<R>(open: impl Fn() -> R + Send + 'static) -> Result<Manifest>
where
    R: Read + Seek + Send + 'static,
{
    tokio::task::spawn_blocking(move || read_blocking(open))
        .await
        .unwrap_or_else(|_| {
            Err(Error::NotAPackage {
                reason: "its reading broke off".to_owned(),
            })
        })
}

fn read_blocking<R>(open: impl Fn() -> R) -> Result<Manifest>
where
    R: Read + Seek + Send + 'static,
{
    let archive = match Archive::read_directory(open) {
        Ok(archive) => archive,
        // What could not be read is not known to be wrong.
        Err(ZipError::IoError(ErrorKind::Other)) => {
            tracing::warn!("a package could not be read from the object store");
            return Err(Error::Unreadable);
        }
        Err(error) => {
            tracing::debug!("a package is no archive: {error}");
            return Err(Error::NotAPackage {
                reason: "it is no whole ZIP archive".to_owned(),
            });
        }
    };
    if !archive.contains(MANIFEST) {
        return Err(Error::NotAPackage {
            reason: format!("it has no {MANIFEST}"),
        });
    }
    let Some((xml, resources)) = parse(&archive) else {
        return Ok(Manifest::default());
    };
    // References are followed here and not by the parser, which does not notice two that refer to each other.
    let raw = |tag, name| xml.get_attribute_value(tag, name, None);
    let of = |tag, name| {
        let value = raw(tag, name)?;
        match value.starts_with('@') {
            true => resources.as_ref()?.text(resources::reference(&value)?),
            false => Some(value),
        }
    };
    let level = |name| of("uses-sdk", name).and_then(|level| level.parse().ok());
    let package_name = of("manifest", "package");
    if package_name
        .as_deref()
        .is_some_and(|name| !is_package_name(name))
    {
        return Err(Error::NotAPackage {
            reason: "its package name is not one".to_owned(),
        });
    }
    let min_sdk_version = level("minSdkVersion");
    let permissions = xml.get_root_attribute_values("uses-permission", "name");
    Ok(Manifest {
        package_name,
        version_name: of("manifest", "versionName").map(shown),
        version_code: of("manifest", "versionCode").and_then(|code| code.parse().ok()),
        label: of("application", "label").map(shown),
        min_sdk_version,
        target_sdk_version: level("targetSdkVersion").or(min_sdk_version).or(Some(1)),
        permissions: permissions
            .take(MOST_PERMISSIONS)
            .map(|name| shown(name.to_owned()))
            .collect(),
        certificate_sha256: archive.signatures().find_map(certificate),
        icon: ["icon", "roundIcon"].into_iter().find_map(|name| {
            let id = resources::reference(&raw("application", name)?)?;
            let fetch = |path: &str| archive.read(path, icon::LARGEST);
            icon::read(fetch, resources.as_ref()?, id)
        }),
    })
}

fn parse<F, R>(archive: &Archive<F>) -> Option<(AXML, Option<Resources>)>
where
    F: Fn() -> R,
    R: Read + Seek + Send + 'static,
{
    let read = |name| archive.read(name, LARGEST);
    // Without its resources a manifest still says what stands in itself.
    let resources = read(RESOURCES).and_then(|bytes| Resources::parse(&bytes));
    match AXML::new(&mut read(MANIFEST)?.as_slice(), None) {
        Ok(xml) => Some((xml, resources)),
        Err(error) => {
            tracing::debug!("the manifest of a package could not be read: {error}");
            None
        }
    }
}

/// The digest of the certificate of a signature. The signature itself is checked by Android, when the package is installed.
fn certificate(signature: Signature) -> Option<String> {
    match signature {
        Signature::V1(signers)
        | Signature::V2(signers)
        | Signature::V3(signers)
        | Signature::V31(signers)
        | Signature::V32(signers) => signers
            .into_iter()
            .next()
            .map(|signer| signer.sha256_fingerprint),
        _ => None,
    }
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
    use std::io::Cursor;

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
        bolero::check!()
            .with_iterations(300)
            .with_max_len(256)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                for content in [bytes, text.as_bytes()] {
                    if let Ok(manifest) = read_blocking(|| Cursor::new(content.to_vec())) {
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
