//! Fetching packages.

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use contracts::AppId;
use futures::TryStreamExt;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use object_store::GetRange;
use platform::Problem;
use platform::http::Path;
use platform::problem::ProblemBody;

use super::api::visible;
use super::db;
use super::link::Right;
use crate::{Apps, Error, Result};

/// Fetches a package, whole or a range of it, as a user who may see the app or by a signed link.
#[utoipa::path(get, path = "/apps/{app_id}/download", tag = "apps", params(("app_id" = AppId, Path), ("expires" = Option<i64>, Query, description = "of a signed link"), ("signature" = Option<String>, Query, description = "of a signed link")), responses((status = 200, description = "the package", content_type = "application/vnd.android.package-archive"), (status = 206, description = "the range asked for"), (status = 304, description = "not changed"), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 416, body = ProblemBody)))]
pub async fn download_app(
    State(state): State<Apps>,
    right: Right,
    Path(id): Path<AppId>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response> {
    let app = match right {
        Right::User(user) => visible(&state, &user, id).await?,
        Right::Link => {
            let found = db::find(&mut *state.platform.db.acquire().await?, &id).await?;
            found.ok_or(Error::NotFound(id))?
        }
    };
    let etag = format!("\"{}\"", app.sha256);
    if headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|known| names(known, &etag))
    {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response());
    }
    let size = app.size.cast_unsigned();
    // A part of something else that the client has is of no use to it.
    let is_same = headers
        .get(header::IF_RANGE)
        .is_none_or(|known| known.as_bytes() == etag.as_bytes());
    let wanted = headers
        .get(header::RANGE)
        .filter(|_| is_same)
        .and_then(|value| range(value.to_str().ok()?));
    if wanted.as_ref().is_some_and(|range| {
        matches!(range, GetRange::Bounded(span) if span.start >= size)
            || matches!(range, GetRange::Offset(from) if *from >= size)
    }) {
        let problem = Problem::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "VALIDATION_FAILED",
            format!("the package has {size} bytes"),
        );
        return Ok((
            [(header::CONTENT_RANGE, format!("bytes */{size}"))],
            problem,
        )
            .into_response());
    }
    let object = match state.objects.read(&app.object_key, wanted.clone()).await {
        // Deleted between the row and its object.
        Err(error) if error.is_absent() => return Err(Error::NotFound(app.id)),
        object => object?,
    };
    if wanted.is_none() && method == Method::GET {
        db::count_download(&mut *state.platform.db.acquire().await?, &app.id).await?;
    }
    let span = object.range.clone();
    let mut response =
        Body::from_stream(object.into_stream().map_err(std::io::Error::other)).into_response();
    let set = response.headers_mut();
    let values = [
        (
            header::CONTENT_TYPE,
            "application/vnd.android.package-archive".to_owned(),
        ),
        (header::CONTENT_LENGTH, (span.end - span.start).to_string()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::ETAG, etag),
        (
            header::CONTENT_DISPOSITION,
            format!(
                "attachment; filename=\"{}-{}.apk\"",
                app.package_name, app.version_code
            ),
        ),
    ];
    for (name, value) in values {
        set.insert(name, value.parse().map_err(|_| Problem::internal())?);
    }
    if wanted.is_some() {
        let content_range = format!("bytes {}-{}/{size}", span.start, span.end - 1);
        set.insert(
            header::CONTENT_RANGE,
            content_range.parse().map_err(|_| Problem::internal())?,
        );
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// Whether `If-None-Match` names this tag, or all.
pub fn names(known: &HeaderValue, etag: &str) -> bool {
    let text = known.to_str().unwrap_or_default();
    text.split(',')
        .map(str::trim)
        .any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == etag)
}

/// The first span of a `Range` header; several spans, and what cannot be read, count as none (RFC 9110 allows it).
fn range(text: &str) -> Option<GetRange> {
    let spec = text
        .strip_prefix("bytes=")
        .filter(|spec| !spec.contains(','))?;
    let (from, to) = spec.trim().split_once('-')?;
    match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(from), Ok(to)) if from <= to => Some(GetRange::Bounded(from..to.saturating_add(1))),
        (Ok(from), Err(_)) if to.is_empty() => Some(GetRange::Offset(from)),
        (Err(_), Ok(last)) if from.is_empty() && last > 0 => Some(GetRange::Suffix(last)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        assert_eq!(range("bytes=0-9"), Some(GetRange::Bounded(0..10)));
        assert_eq!(range("bytes=5-"), Some(GetRange::Offset(5)));
        assert_eq!(range("bytes=-5"), Some(GetRange::Suffix(5)));
        for text in [
            "bytes=9-0",
            "bytes=0-1,3-4",
            "items=0-1",
            "bytes=",
            "bytes=a-b",
        ] {
            assert_eq!(range(text), None, "{text}");
        }
    }

    #[test]
    fn any_range_that_is_read_is_one_span() {
        const WORDS: [&str; 10] = [
            "bytes=",
            "0",
            "-",
            "9",
            "18446744073709551615",
            ",",
            " ",
            "5",
            "+1",
            "items=",
        ];
        bolero::check!()
            .with_iterations(3_000)
            .with_max_len(8)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                match range(&text) {
                    Some(GetRange::Bounded(span)) => assert!(span.start < span.end, "{text}"),
                    Some(GetRange::Suffix(last)) => assert!(last > 0, "{text}"),
                    Some(GetRange::Offset(_)) | None => {}
                }
                assert!(
                    range(&text).is_none()
                        || text.starts_with("bytes=") && !text.contains([',', '+']),
                    "{text}"
                );
            });
    }

    #[test]
    fn any_list_of_tags_names_the_one_that_stands_in_it() {
        const WORDS: [&str; 8] = ["\"a\"", "W/", "*", ",", ", ", "\"", "a", "\"b\""];
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(8)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                let Ok(value) = HeaderValue::from_str(&text) else {
                    return;
                };
                assert!(
                    !names(&value, "\"a\"") || text.contains("\"a\"") || text.contains('*'),
                    "{text}"
                );
                let Ok(value) = HeaderValue::from_str(&format!("{text}, W/\"a\"")) else {
                    return;
                };
                assert!(names(&value, "\"a\""), "{text}");
            });
    }
}
