//! The icon of a package: the densest picture that its manifest names, kept beside the package.

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use contracts::AppId;
use http::{HeaderMap, StatusCode, header};
use platform::http::Path;
use platform::problem::{ProblemBody, causes};
use platform::{CurrentUser, Problem};
use tracing::warn;

use super::api::visible;
use super::download::names;
use super::resources::Resources;
use crate::{Apps, Result};

/// Where icons lie in the object store.
pub const FOLDER: &str = "icons";
/// Bytes of the largest icon.
pub const LARGEST: u64 = 1 << 20;
/// Pixels of its longer side.
const LONGEST_SIDE: u32 = 4096;
/// How many pictures are tried.
const TRIES: usize = 8;
/// How long a browser keeps it without asking.
const FRESH: &str = "private, max-age=3600";

/// What the bytes of a picture are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Picture {
    /// Portable network graphics.
    Png,
    /// WebP.
    Webp,
}

impl Picture {
    /// Tells by the first bytes, never by a name: of anything else nobody shall be told that it is a picture.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(b"RIFF") && bytes.get(8..15) == Some(b"WEBPVP8") {
            return Some(Self::Webp);
        }
        let rest = bytes.strip_prefix(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")?;
        let side = |at: usize| {
            let four = rest.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_be_bytes(four))
        };
        let sides = 1..=LONGEST_SIDE;
        (sides.contains(&side(0)?) && sides.contains(&side(4)?)).then_some(Self::Png)
    }

    /// Its media type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Webp => "image/webp",
        }
    }
}

/// Where the icon of a new app lies.
pub fn key(id: &AppId) -> String {
    format!("{FOLDER}/{id}")
}

/// The icon that a resource is, of all its files the densest that is a picture; none where it has no more than drawings. `fetch`
/// reads a file of the package.
pub fn read(
    fetch: impl Fn(&str) -> Option<Vec<u8>>,
    resources: &Resources,
    id: u32,
) -> Option<Bytes> {
    let files = resources.files(id);
    let inside = files.iter().filter(|file| is_inside(&file.path));
    let pictures =
        inside.filter(|file| file.path.ends_with(".png") || file.path.ends_with(".webp"));
    pictures.take(TRIES).find_map(|file| {
        let bytes = fetch(&file.path)?;
        Picture::of(&bytes).is_some().then(|| bytes.into())
    })
}

/// Whether a path is one of an entry of the archive and of nothing else.
fn is_inside(path: &str) -> bool {
    path.len() <= 1024
        && !path.contains(['\\', '\0', ':'])
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Stores the icon of a new app; where the store does not take it, the app has none.
pub async fn store(state: &Apps, id: &AppId, icon: Option<Bytes>) -> Option<String> {
    let key = key(id);
    match state.objects.put(&key, icon?).await {
        Ok(()) => Some(key),
        Err(error) => {
            warn!(app.id = %id, "the icon of an app was not stored: {}", causes(&error));
            None
        }
    }
}

/// Fetches the icon of an app.
#[utoipa::path(get, path = "/apps/{app_id}/icon", tag = "apps", params(("app_id" = AppId, Path)), responses((status = 200, description = "the icon, also as image/webp", content_type = "image/png"), (status = 304, description = "not changed"), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn find_icon(
    State(state): State<Apps>,
    user: CurrentUser,
    Path(id): Path<AppId>,
    headers: HeaderMap,
) -> Result<Response> {
    let app = visible(&state, &user, id).await?;
    let none = || Problem::not_found("icon");
    let key = app.icon_key.ok_or_else(none)?;
    // One content has one icon.
    let etag = format!("\"{}\"", app.sha256);
    let known = headers.get(header::IF_NONE_MATCH);
    let cached = [
        (header::ETAG, etag.clone()),
        (header::CACHE_CONTROL, FRESH.to_owned()),
    ];
    if known.is_some_and(|known| names(known, &etag)) {
        return Ok((StatusCode::NOT_MODIFIED, cached).into_response());
    }
    let bytes = match state.objects.bytes(&key).await {
        // Deleted between the row and its object.
        Err(error) if error.is_absent() => return Err(none().into()),
        bytes => bytes?,
    };
    let picture = Picture::of(&bytes).ok_or_else(none)?;
    let plain = [
        (header::CONTENT_TYPE, picture.content_type()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'"),
    ];
    Ok((cached, plain, Body::from(bytes)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pictures_of_a_modest_size_are_pictures() {
        let png = |width: u32, height: u32| {
            let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
            png.extend(width.to_be_bytes());
            png.extend(height.to_be_bytes());
            png
        };
        assert_eq!(Picture::of(&png(192, 192)), Some(Picture::Png));
        assert_eq!(Picture::of(b"RIFF\x10\0\0\0WEBPVP8L"), Some(Picture::Webp));
        for bytes in [
            png(0, 192),
            png(192, 100_000),
            png(192, 192)[..20].to_vec(),
            b"<html><script>alert(1)</script>".to_vec(),
            b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec(),
            b"RIFF\x10\0\0\0WAVEfmt ".to_vec(),
            b"GIF89a".to_vec(),
            Vec::new(),
        ] {
            assert_eq!(Picture::of(&bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_path_stays_in_the_archive() {
        assert!(is_inside("res/mipmap-xxhdpi-v4/ic_launcher.png"));
        for path in [
            "",
            "/etc/x.png",
            "../x.png",
            "res/../../x.png",
            "c:\\x.png",
            "res//x.png",
            "x\0.png",
        ] {
            assert!(!is_inside(path), "{path}");
        }
    }
}
