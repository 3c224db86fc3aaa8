//! Packages to be uploaded: archives of one manifest that says nothing, and so much that does not compress.

use std::path::{Path, PathBuf};

use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt, BufWriter, SeekFrom};

const MANIFEST: (&[u8], &[u8]) = (b"AndroidManifest.xml", b"<manifest/>");
const CODE: &[u8] = b"classes.dex";
const BLOCK: usize = 1 << 20;

/// A package on the disk.
pub struct Package {
    /// Where it lies.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Where its code begins.
    code: u64,
}

impl Package {
    /// Writes one of so many mebibytes of code.
    pub async fn write(path: &Path, mebibytes: u32) -> anyhow::Result<Self> {
        let length = mebibytes << 20;
        let mut file = BufWriter::new(File::create(path).await?);
        let (name, content) = MANIFEST;
        let manifest = head(name, u32::try_from(content.len())?)?;
        let code = head(CODE, length)?;
        let first = [b"PK\x03\x04", manifest.as_slice(), name, content].concat();
        let second = [b"PK\x03\x04", code.as_slice(), CODE].concat();
        file.write_all(&first).await?;
        file.write_all(&second).await?;
        let begins = u64::try_from(first.len() + second.len())?;
        let block = block();
        for _ in 0..mebibytes {
            file.write_all(&block).await?;
        }
        let offset = u32::try_from(first.len())?.to_le_bytes();
        let directory = [
            &b"PK\x01\x02\x14\0"[..],
            &manifest,
            &[0; 14],
            name,
            b"PK\x01\x02\x14\0",
            &code,
            &[0; 10],
            &offset,
            CODE,
        ]
        .concat();
        file.write_all(&directory).await?;
        let at = u32::try_from(begins)? + length;
        file.write_all(b"PK\x05\x06\0\0\0\0\x02\0\x02\0").await?;
        file.write_all(&u32::try_from(directory.len())?.to_le_bytes())
            .await?;
        file.write_all(&at.to_le_bytes()).await?;
        file.write_all(&[0, 0]).await?;
        file.flush().await?;
        let size = file.get_ref().metadata().await?.len();
        Ok(Self {
            path: path.to_owned(),
            size,
            code: begins,
        })
    }

    /// Makes it another content, so that it is stored as if it had never been.
    pub async fn change(&self, turn: u64) -> anyhow::Result<()> {
        let mut file = File::options().write(true).open(&self.path).await?;
        file.seek(SeekFrom::Start(self.code)).await?;
        file.write_all(&turn.to_le_bytes()).await?;
        Ok(file.sync_all().await?)
    }
}

/// What stands both before a stored entry and in the directory; nobody here checks the checksum.
fn head(name: &[u8], size: u32) -> anyhow::Result<Vec<u8>> {
    let (size, name) = (size.to_le_bytes(), u16::try_from(name.len())?.to_le_bytes());
    Ok([
        &[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &[0; 4],
        &size,
        &size,
        &name,
        &[0, 0],
    ]
    .concat())
}

/// Bytes that look like chance (xorshift).
fn block() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = Vec::with_capacity(BLOCK);
    while block.len() < BLOCK {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        block.extend(state.to_le_bytes());
    }
    block
}
