//! Taking what a client sends of an upload.

use axum::body::Body;
use bytes::Bytes;
use chrono::TimeDelta;
use contracts::Timestamp;
use futures::StreamExt;
use tokio::time::{Duration, Instant, timeout_at};
use uuid::Uuid;

use super::db::{self, Part};
use super::{FOLDER, Upload};
use crate::app::manifest::begins_a_zip;
use crate::app::upload::discard;
use crate::{Apps, Error, Result};

/// So many bytes are held in memory before they are stored; what a replica that dies had taken of them is sent again.
const PART: usize = 8 << 20;
/// A client that sends nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// However slowly it comes: the client goes on with another request.
const LONGEST: Duration = Duration::from_secs(2 * 3600);
/// For how long an upload is kept after its last byte came.
const KEPT: TimeDelta = TimeDelta::hours(24);

/// Until when an upload of which something comes now is kept.
pub fn expiry(now: Timestamp) -> Timestamp {
    now + KEPT
}

/// Stores what comes from the offset of the upload on, part by part; what came before a connection broke off too.
///
/// # Errors
/// 409 where the upload has gone on meanwhile, by another connection; 413 where more comes than was announced; 415 where
/// the first bytes are not those of a package; 400 where it breaks off.
pub async fn receive(state: &Apps, mut upload: Upload, body: Body) -> Result<Upload> {
    let mut stream = body.into_data_stream();
    let mut held = Vec::new();
    let ends = Instant::now() + LONGEST;
    loop {
        let next = timeout_at(ends.min(Instant::now() + SILENCE), stream.next()).await;
        let broken = match next {
            Ok(Some(Ok(bytes))) => {
                let end = upload.offset + (held.len() + bytes.len()) as i64;
                if end > upload.length {
                    return Err(Error::TooLarge {
                        limit: upload.length.cast_unsigned(),
                    });
                }
                held.extend_from_slice(&bytes);
                if held.len() >= PART {
                    upload = keep(state, upload, std::mem::take(&mut held)).await?;
                }
                continue;
            }
            Ok(None) => None,
            Ok(Some(Err(error))) => Some(error.to_string()),
            Err(_) => Some(format!(
                "nothing came for {SILENCE:?}, or it took longer than {LONGEST:?}"
            )),
        };
        let upload = keep(state, upload, held).await?;
        return match broken {
            None => Ok(upload),
            Some(reason) => Err(Error::BrokenUpload { reason }),
        };
    }
}

/// Stores the next part and counts it.
async fn keep(state: &Apps, upload: Upload, bytes: Vec<u8>) -> Result<Upload> {
    if bytes.is_empty() {
        return Ok(upload);
    }
    if upload.offset == 0 && bytes.len() >= 4 && !begins_a_zip(&bytes) {
        return Err(Error::NotAPackage {
            reason: "it is not a ZIP archive".to_owned(),
        });
    }
    let part = Part {
        start: upload.offset,
        size: bytes.len() as i64,
        // Of two connections that send the same at once, each has objects of its own.
        object_key: format!("{FOLDER}/{}/{}", upload.id, Uuid::new_v4()),
    };
    state
        .objects
        .put(&part.object_key, Bytes::from(bytes))
        .await?;
    let expires_at = expiry(state.platform.clock.now());
    let mut conn = state.platform.db.acquire().await?;
    // Where the answer is lost the row may be there: the object is left to the sweep.
    let advanced = db::advance(&mut conn, &upload.id, &part, expires_at).await?;
    drop(conn);
    match advanced {
        Some(upload) => Ok(upload),
        None => {
            discard(&state.objects, &part.object_key).await;
            Err(Error::OtherOffset {
                offset: upload.offset,
            })
        }
    }
}
