//! Making an app of a whole upload.

use std::time::Duration;

use contracts::{AppId, UploadId};
use futures::TryStreamExt;
use platform::objects::Written;
use platform::problem::causes;
use tokio::time::Instant;
use tracing::{info, warn};

use super::db::{self, Part};
use super::{Upload, UploadStatus};
use crate::app::upload::{self as packages, discard};
use crate::app::{App, manifest, register};
use crate::{Apps, Error, Result};

/// For how long a worker holds an upload unless it says that it goes on.
const LEASE: Duration = Duration::from_secs(30);
/// So often an upload is tried whose workers die or whose stores fail.
const MOST_ATTEMPTS: i32 = 8;

/// Assembles one upload that waits for it, or this one; `false` where there is none.
///
/// # Errors
/// Where a store does not answer: it is tried again when the lease is over. Where this one is no app: it is so for good.
pub async fn assemble_next(state: &Apps, id: Option<&UploadId>) -> Result<bool> {
    let claimed = db::claim(&mut *state.platform.db.acquire().await?, id, LEASE).await?;
    let Some(upload) = claimed else {
        return Ok(false);
    };
    if upload.attempts > MOST_ATTEMPTS {
        let reason = "it could not be assembled: the replicas that tried ended or their stores failed, again and again";
        end(state, &upload, reason).await?;
        return Ok(true);
    }
    match assemble(state, &upload).await {
        Ok(()) => {}
        Err(error) if error.is_passing() => return Err(error),
        Err(error) => {
            end(state, &upload, &error.reason()).await?;
            if id.is_some() {
                return Err(error);
            }
        }
    }
    Ok(true)
}

async fn assemble(state: &Apps, upload: &Upload) -> Result<()> {
    let parts = db::parts(&mut *state.platform.db.acquire().await?, &upload.id).await?;
    let id = AppId::new();
    let key = packages::key(&id);
    let written = join(state, upload, &parts, &key).await?;
    let stored = store(state, upload, id.clone(), &key, &written).await;
    register::tidy(state, &id, &stored).await;
    stored?;
    forget(state, &parts).await;
    Ok(())
}

/// Joins the parts to one object.
async fn join(state: &Apps, upload: &Upload, parts: &[Part], key: &str) -> Result<Written> {
    let mut writing = state.objects.write(key).await?;
    let mut renewed = Instant::now();
    let joining = async {
        for part in parts {
            let object = state.objects.read(&part.object_key, None).await?;
            let mut stream = object.into_stream();
            while let Some(bytes) = stream.try_next().await.map_err(|_| Error::Unreadable)? {
                if writing.size == 0 && bytes.len() >= 4 && !manifest::begins_a_zip(&bytes) {
                    return Err(Error::NotAPackage {
                        reason: "it is not a ZIP archive".to_owned(),
                    });
                }
                writing.push(&bytes).await?;
                if renewed.elapsed() > LEASE / 3 {
                    let mut conn = state.platform.db.acquire().await?;
                    if !db::renew(&mut conn, upload, LEASE).await? {
                        return Err(Error::Unreadable);
                    }
                    renewed = Instant::now();
                }
            }
        }
        Ok(())
    };
    match joining.await {
        Ok(()) if writing.size == upload.length.cast_unsigned() => Ok(writing.finish().await?),
        Ok(()) => {
            writing.abort().await;
            Err(Error::Unreadable)
        }
        Err(error) => {
            writing.abort().await;
            Err(error)
        }
    }
}

/// Writes the app and that the upload is one, both or neither.
async fn store(
    state: &Apps,
    upload: &Upload,
    id: AppId,
    key: &str,
    written: &Written,
) -> Result<App> {
    let fields = upload.fields.0.clone();
    let app = register::describe(state, &upload.user_id, id, fields, (key, written)).await?;
    let mut tx = state.platform.db.begin().await?;
    let app = register::insert(&mut tx, app).await?;
    if !db::finish(&mut tx, upload, Ok(&app.id)).await? {
        return Err(Error::Unreadable);
    }
    tx.commit().await?;
    info!(app.id = %app.id, upload.id = %upload.id, "assembled version {} of {}, {} bytes", app.version_code, app.package_name, app.size);
    Ok(app)
}

/// Ends an upload that is no app.
async fn end(state: &Apps, upload: &Upload, reason: &str) -> Result<()> {
    let mut conn = state.platform.db.acquire().await?;
    let parts = db::parts(&mut conn, &upload.id).await?;
    let is_ours = db::finish(&mut conn, upload, Err(reason)).await?;
    drop(conn);
    if is_ours {
        info!(upload.id = %upload.id, "an upload was refused: {reason}");
        forget(state, &parts).await;
    }
    Ok(())
}

async fn forget(state: &Apps, parts: &[Part]) {
    for part in parts {
        discard(&state.objects, &part.object_key).await;
    }
}

/// Assembles an upload that is whole, where nobody else does, and tells how it stands then.
///
/// # Errors
/// Where it is no app.
pub async fn settle(state: &Apps, upload: Upload) -> Result<Upload> {
    if upload.status != UploadStatus::Assembling {
        return Ok(upload);
    }
    if let Err(error) = assemble_next(state, Some(&upload.id)).await {
        if !error.is_passing() {
            return Err(error);
        }
        warn!(upload.id = %upload.id, "an upload was not assembled yet: {}", causes(&error));
        return Ok(upload);
    }
    let now = state.platform.clock.now();
    let found = db::find(&mut *state.platform.db.acquire().await?, &upload.id, now).await?;
    Ok(found.unwrap_or(upload))
}
