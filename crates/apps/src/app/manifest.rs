//! What a package says of itself.

use std::path::PathBuf;

use apk_info::Apk;

use crate::{Error, Result};

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
    tokio::task::spawn_blocking(move || read_blocking(&file)).await.unwrap_or_else(|_| {
        Err(Error::NotAPackage { reason: "its reading broke off".to_owned() })
    })
}

fn read_blocking(file: &std::path::Path) -> Result<Manifest> {
    match Apk::new(file) {
        Ok(apk) => Ok(Manifest {
            package_name: apk.get_package_name(),
            version_name: apk.get_version_name(),
            version_code: apk.get_version_code().and_then(|code| code.parse().ok()),
            label: apk.get_application_label(),
            min_sdk_version: apk.get_min_sdk_version().and_then(|level| level.parse().ok()),
            target_sdk_version: i32::try_from(apk.get_target_sdk_version()).ok(),
        }),
        Err(error) => {
            let archive = apk_info_zip::ZipEntry::open(file)
                .map_err(|error| Error::NotAPackage { reason: error.to_string() })?;
            if archive.contains("AndroidManifest.xml") {
                tracing::debug!("the manifest of a package could not be read: {error}");
                Ok(Manifest::default())
            } else {
                Err(Error::NotAPackage { reason: "it has no AndroidManifest.xml".to_owned() })
            }
        }
    }
}
