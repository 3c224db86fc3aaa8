//! The object store: files by key, streamed both ways.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use contracts::Timestamp;
use futures::{Stream, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{
    GetOptions, GetRange, GetResult, GetResultPayload, MultipartUpload, ObjectStore, ObjectStoreExt,
};
use sha2::{Digest, Sha256};

/// The size of the parts in which an object is written; so much of an upload is in memory at a time.
const PART: usize = 8 << 20;

/// Keeps files.
#[derive(Clone, Debug)]
pub struct Objects(Arc<dyn ObjectStore>);

/// The object store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("could not {tried} an object")]
pub struct ObjectError {
    tried: &'static str,
    source: object_store::Error,
}

impl ObjectError {
    /// Whether there is no such object.
    pub fn is_absent(&self) -> bool {
        matches!(self.source, object_store::Error::NotFound { .. })
    }
}

/// An object that is being written. It becomes visible when it is finished, never before.
pub struct Writing {
    upload: Box<dyn MultipartUpload>,
    part: Vec<u8>,
    hash: Sha256,
    /// How many bytes came so far.
    pub size: u64,
}

/// An object that was written whole.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its length in bytes.
    pub size: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
}

impl Objects {
    /// Opens the folder, which is made where it is missing.
    ///
    /// # Errors
    /// Where it cannot be made or read.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| {
            format!(
                "making the object folder {}: correct OBJECTS_FOLDER",
                folder.display()
            )
        })?;
        let store = LocalFileSystem::new_with_prefix(folder)
            .with_context(|| format!("opening the object folder {}", folder.display()))?
            .with_automatic_cleanup(false)
            // What was promised to be stored is on the disk, not only in the memory of the machine.
            .with_fsync(true);
        Ok(Self(Arc::new(store)))
    }

    /// Begins to write an object.
    ///
    /// # Errors
    /// Where the store does not answer.
    pub async fn write(&self, key: &str) -> Result<Writing, ObjectError> {
        let upload = self
            .0
            .put_multipart(&Key::from(key))
            .await
            .map_err(|source| ObjectError {
                tried: "begin",
                source,
            })?;
        Ok(Writing {
            upload,
            part: Vec::new(),
            hash: Sha256::new(),
            size: 0,
        })
    }

    /// Writes a small object at once.
    ///
    /// # Errors
    /// Where the store does not answer.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<(), ObjectError> {
        let put = self.0.put(&Key::from(key), bytes.into()).await;
        put.map(|_| ()).map_err(|source| ObjectError {
            tried: "write",
            source,
        })
    }

    /// Reads a small object whole.
    ///
    /// # Errors
    /// Where it is not there or the store does not answer.
    pub async fn bytes(&self, key: &str) -> Result<Bytes, ObjectError> {
        let object = self.read(key, None).await?;
        object.bytes().await.map_err(|source| ObjectError {
            tried: "read",
            source,
        })
    }

    /// Reads an object, or a range of it.
    ///
    /// # Errors
    /// Where it is not there or the store does not answer.
    pub async fn read(&self, key: &str, range: Option<GetRange>) -> Result<GetResult, ObjectError> {
        let options = GetOptions {
            range,
            ..GetOptions::default()
        };
        self.0
            .get_opts(&Key::from(key), options)
            .await
            .map_err(|source| ObjectError {
                tried: "read",
                source,
            })
    }

    /// The object as a file, where the store is a folder.
    ///
    /// # Errors
    /// Where it is not there.
    pub async fn file(&self, key: &str) -> Result<Option<std::path::PathBuf>, ObjectError> {
        match self.read(key, None).await?.payload {
            GetResultPayload::File(_, path) => Ok(Some(path)),
            GetResultPayload::Stream(_) => Ok(None),
        }
    }

    /// The keys below a folder of objects that were last written before a moment, as a stream.
    pub fn written_before(
        &self,
        folder: &str,
        moment: Timestamp,
    ) -> impl Stream<Item = Result<String, ObjectError>> + use<> {
        let listed = self.0.list(Some(&Key::from(folder)));
        listed
            .try_filter_map(move |object| {
                let is_old = object.last_modified < moment.utc();
                std::future::ready(Ok(is_old.then(|| object.location.to_string())))
            })
            .map_err(|source| ObjectError {
                tried: "list",
                source,
            })
    }

    /// Deletes an object; one that is not there is no error.
    ///
    /// # Errors
    /// Where the store does not answer.
    pub async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        match self.0.delete(&Key::from(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(ObjectError {
                tried: "delete",
                source,
            }),
        }
    }
}

impl Writing {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// Where the store does not answer.
    pub async fn push(&mut self, bytes: &Bytes) -> Result<(), ObjectError> {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        self.part.extend_from_slice(bytes);
        if self.part.len() >= PART {
            self.flush().await?;
        }
        Ok(())
    }

    /// Makes the object visible.
    ///
    /// # Errors
    /// Where the store does not answer; nothing is visible then.
    pub async fn finish(mut self) -> Result<Written, ObjectError> {
        self.flush().await?;
        self.upload.complete().await.map_err(|source| ObjectError {
            tried: "finish",
            source,
        })?;
        Ok(Written {
            size: self.size,
            sha256: hex::encode(self.hash.finalize()),
        })
    }

    /// Leaves nothing behind.
    pub async fn abort(mut self) {
        if let Err(error) = self.upload.abort().await {
            tracing::warn!("an upload that broke off left parts in the object store: {error}");
        }
    }

    async fn flush(&mut self) -> Result<(), ObjectError> {
        if self.part.is_empty() {
            return Ok(());
        }
        let part = std::mem::take(&mut self.part);
        self.upload
            .put_part(part.into())
            .await
            .map_err(|source| ObjectError {
                tried: "write",
                source,
            })
    }
}
