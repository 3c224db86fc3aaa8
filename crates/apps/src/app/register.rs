//! How a stored package becomes an app.

use contracts::{AppId, Event, EventBody, UserId};
use platform::Problem;
use platform::events::emit;
use platform::objects::Written;
use sqlx::PgConnection;

use super::upload::{Fields, discard, key};
use super::{App, AppStatus, db, icon, manifest};
use crate::review::{self, Action};
use crate::{Apps, Error, Result};

/// The app that a package is, by its manifest and by what its uploader says of it; of the two the manifest is right.
///
/// # Errors
/// 415 where it is no package, 400 where nobody tells its name.
pub async fn describe(
    state: &Apps,
    uploader: &UserId,
    id: AppId,
    fields: Fields,
    (key, written): (&str, &Written),
) -> Result<App> {
    let permit = state.readings.acquire().await;
    let (objects, object, size) = (state.objects.clone(), key.to_owned(), written.size);
    let manifest = manifest::read(move || objects.reader(&object, size)).await?;
    drop(permit);
    let icon_key = icon::store(state, &id, manifest.icon).await;
    let package_name = manifest
        .package_name
        .or(fields.package_name)
        .ok_or_else(|| {
            Problem::invalid_field(
                "packageName",
                "is required, since the manifest of the package cannot be read",
            )
        })?;
    let version_name = manifest
        .version_name
        .or(fields.version_name)
        .unwrap_or_else(|| "1.0".to_owned());
    let now = state.platform.clock.now();
    Ok(App {
        id,
        name: fields
            .name
            .or(manifest.label)
            .unwrap_or_else(|| package_name.clone()),
        version: version_name.clone(),
        version_name,
        version_code: manifest.version_code.or(fields.version_code).unwrap_or(1),
        is_latest: true,
        status: AppStatus::PendingReview,
        category: fields.category,
        size: written.size.cast_signed(),
        sha256: written.sha256.clone(),
        description: fields.description,
        min_sdk_version: manifest.min_sdk_version,
        target_sdk_version: manifest.target_sdk_version,
        permissions: manifest.permissions,
        certificate_sha256: manifest.certificate_sha256,
        tags: fields.tags,
        uploader_id: uploader.clone(),
        download_url: String::new(),
        download_count: 0,
        install_count: 0,
        created_at: now,
        updated_at: now,
        seq: 0,
        object_key: key.to_owned(),
        icon_url: None,
        icon_key,
        package_name,
    })
}

/// Writes an app with the news of it. It may name another object than it came with: one with the same content that was
/// there before.
///
/// # Errors
/// 409 where package and version are there already: roll back.
pub async fn insert(tx: &mut PgConnection, mut app: App) -> Result<App> {
    let (id, now) = (app.id.clone(), app.created_at);
    app.object_key = db::share(tx, &app).await?;
    if !db::insert(tx, &app).await? {
        return Err(Error::Exists {
            package_name: app.package_name,
            version_code: app.version_code,
        });
    }
    review::record(tx, &id, Action::Submit, (&app.uploader_id, None), now).await?;
    let body = EventBody::AppUploaded {
        app_id: id.clone(),
        package_name: app.package_name,
        version_code: app.version_code,
    };
    emit(tx, &Event::new(app.uploader_id, now, body)).await?;
    db::find(tx, &id).await?.ok_or(Error::NotFound(id))
}

/// Deletes what was stored for a new app and is named by nobody: its upload was refused, or its content was there already.
pub async fn tidy(state: &Apps, id: &AppId, outcome: &Result<App>) {
    let (package, picture) = (key(id), icon::key(id));
    let (names_package, names_icon) = match outcome {
        Ok(app) => (
            app.object_key == package,
            // None where none was stored.
            app.icon_key.as_ref().is_none_or(|key| *key == picture),
        ),
        // Whether the row is there is not known; an object that it names must not be deleted. The sweep knows later.
        Err(Error::Database(_)) => (true, true),
        Err(_) => (false, false),
    };
    if !names_package {
        discard(&state.objects, &package).await;
    }
    if !names_icon {
        discard(&state.objects, &picture).await;
    }
}
