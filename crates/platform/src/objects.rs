//! The object store: files by key, streamed both ways.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use contracts::Timestamp;
use futures::{Stream, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{
    ClientOptions, GetOptions, GetRange, GetResult, MultipartUpload, ObjectStore, ObjectStoreExt,
    RetryConfig,
};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use crate::config::{Bucket, ObjectsAt};

/// The size of the parts in which an object is written; so much of an upload is in memory at a time.
const PART: usize = 8 << 20;
const S3_CONNECT: Duration = Duration::from_secs(5);
const S3_SILENCE: Duration = Duration::from_secs(20);
const S3_RETRIES: Duration = Duration::from_secs(60);
/// A reader fetches so many bytes at a time …
const WINDOW: u64 = 256 << 10;
/// … and so many in all: who reads more of a file than that to learn what it is, is led by the nose.
const MOST_READ: u64 = 512 << 20;

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
    /// Opens the folder, which is made where it is missing, or the bucket, which is not asked before it is used.
    ///
    /// # Errors
    /// Where the folder cannot be made or read, or what is said of the bucket makes no sense.
    pub fn open(at: &ObjectsAt) -> anyhow::Result<Self> {
        match at {
            ObjectsAt::Folder(folder) => Self::in_folder(folder),
            ObjectsAt::S3(bucket) => Self::in_bucket(bucket),
        }
    }

    fn in_folder(folder: &Path) -> anyhow::Result<Self> {
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

    fn in_bucket(bucket: &Bucket) -> anyhow::Result<Self> {
        let client = ClientOptions::new()
            .with_allow_http(true)
            .with_connect_timeout(S3_CONNECT)
            // A large object takes as long as it takes, while bytes come.
            .with_timeout_disabled()
            .with_read_timeout(S3_SILENCE);
        let retries = RetryConfig {
            max_retries: 4,
            retry_timeout: S3_RETRIES,
            ..RetryConfig::default()
        };
        let mut store = AmazonS3Builder::new()
            .with_bucket_name(&bucket.name)
            .with_region(&bucket.region)
            .with_access_key_id(&bucket.access_key_id)
            .with_secret_access_key(bucket.secret_access_key.expose_secret())
            .with_client_options(client)
            .with_retry(retries);
        if let Some(endpoint) = &bucket.endpoint {
            store = store.with_endpoint(endpoint);
        }
        let store = store.build().with_context(|| {
            format!(
                "using the bucket {}: correct the settings OBJECTS_S3_*",
                bucket.name
            )
        })?;
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

    /// An object of a size as a reader that may go to and fro, for a thread that may block.
    pub fn reader(&self, key: &str, size: u64) -> ObjectReader {
        ObjectReader {
            objects: self.clone(),
            key: key.to_owned(),
            size,
            at: 0,
            left: MOST_READ,
            window: (0, Bytes::new()),
            runtime: Handle::current(),
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

/// Reads an object in pieces; see [`Objects::reader`].
pub struct ObjectReader {
    objects: Objects,
    key: String,
    size: u64,
    at: u64,
    left: u64,
    window: (u64, Bytes),
    runtime: Handle,
}

impl Read for ObjectReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.size || into.is_empty() {
            return Ok(0);
        }
        let (start, window) = &self.window;
        let is_inside = (*start..*start + window.len() as u64).contains(&self.at);
        if !is_inside {
            self.fetch()?;
        }
        let (start, window) = &self.window;
        let from = usize::try_from(self.at - start).map_err(io::Error::other)?;
        let count = into.len().min(window.len() - from);
        into[..count].copy_from_slice(&window[from..from + count]);
        self.at += count as u64;
        Ok(count)
    }
}

impl ObjectReader {
    fn fetch(&mut self) -> io::Result<()> {
        let range = self.at..self.size.min(self.at + WINDOW);
        let length = range.end - range.start;
        self.left = self
            .left
            .checked_sub(length)
            .ok_or_else(|| io::Error::other("more of the object was to be read than is allowed"))?;
        let fetching = async {
            let object = self.objects.read(&self.key, Some(GetRange::Bounded(range)));
            let bytes = object.await.map_err(io::Error::other)?.bytes();
            bytes.await.map_err(io::Error::other)
        };
        let bytes = self.runtime.block_on(fetching)?;
        if bytes.len() as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.window = (self.at, bytes);
        Ok(())
    }
}

impl Seek for ObjectReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = to.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
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
