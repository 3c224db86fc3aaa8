//! Answers are compressed where that is worth it, the client wants it and nothing forbids it: with gzip.
//!
//! A short answer is compressed as a whole, and its length is told. One that is longer, or takes its time, is compressed as
//! it comes; what waits in its compressor is flushed whenever the service pauses, so that a slow stream is not held back.

mod whole;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_compression::Level;
use async_compression::tokio::bufread::GzipEncoder;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt, stream};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::io::{ReaderStream, StreamReader};

use crate::front::BoxBody;

/// Below this many bytes an answer gains nothing.
const WORTH_IT: u64 = 1024;
/// Up to this many bytes an answer is compressed as a whole.
const WHOLE: u64 = 64 * 1024;
/// How long the rest of a short answer is waited for once its head is there.
const PATIENCE: Duration = Duration::from_millis(50);
/// Little work for most of the gain: the compressor runs on the threads that serve.
const LEVEL: u32 = 4;
/// How much compressed data is passed on at once.
const PIECE: usize = 8 * 1024;
/// Answers that are compressed as they come, at once. Each holds a compressor of about 300 KB for as long as its client
/// reads; the others go out as they are.
const STREAMS: usize = 256;

/// Room for the compressors of answers that come in pieces. Clones are the same room.
#[derive(Clone)]
pub struct Compressors(Arc<Semaphore>);

impl Default for Compressors {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS)))
    }
}

/// What a request says of how its answer may be coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Whether gzip is welcome, and no less so than the plain answer.
    gzip: bool,
    /// Whether the answer's bytes will be counted or left out: a part, or the head alone.
    exact: bool,
    /// Whether it names an answer that it has by a weak tag, as ours are that were compressed.
    weak: bool,
}

impl Wish {
    /// Reads a request.
    pub fn of<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        let known = headers.get_all(header::IF_NONE_MATCH);
        Self {
            gzip: wants_gzip(headers),
            exact: request.method() == Method::HEAD || headers.contains_key(header::RANGE),
            weak: known
                .iter()
                .any(|tags| tags.as_bytes().windows(2).any(|two| two == b"W/")),
        }
    }

    /// Compresses an answer, or leaves it as it is. Caches are told of the choice in either case. It waits a moment for
    /// all of a short answer.
    pub async fn fulfil(
        self,
        response: Response<BoxBody>,
        room: &Compressors,
    ) -> Response<BoxBody> {
        if response.status() == StatusCode::NOT_MODIFIED {
            return self.unchanged(response);
        }
        if !is_compressible(&response) {
            return response;
        }
        let length = length(&response);
        let (mut parts, body) = response.into_parts();
        add_vary(&mut parts.headers);
        if !self.gzip || self.exact {
            return Response::from_parts(parts, body);
        }
        let body = match length {
            Some(length) if length <= WHOLE => gather(body).await,
            _ => Gathered::Part(Bytes::new(), body),
        };
        let body = match body {
            Gathered::Whole(bytes) => {
                let Some(packed) = whole::gzip(&bytes) else {
                    return Response::from_parts(parts, BoxBody::from(bytes));
                };
                parts
                    .headers
                    .insert(header::CONTENT_LENGTH, HeaderValue::from(packed.len()));
                BoxBody::from(packed)
            }
            Gathered::Broken(bytes, error) => {
                // As it would have broken off, had it been passed on.
                let rest = stream::iter([Ok(bytes), Err(error)]);
                return Response::from_parts(parts, BoxBody::from_stream(rest));
            }
            Gathered::Part(bytes, body) => {
                let first = stream::iter((!bytes.is_empty()).then_some(Ok(bytes)));
                let body = first.chain(body.into_data_stream());
                let Ok(place) = room.0.clone().try_acquire_owned() else {
                    return Response::from_parts(parts, BoxBody::from_stream(body));
                };
                parts.headers.remove(header::CONTENT_LENGTH);
                let plain = StreamReader::new(TryStreamExt::map_err(body, io::Error::other));
                let level = Level::Precise(LEVEL.cast_signed());
                let packed =
                    ReaderStream::with_capacity(GzipEncoder::with_quality(plain, level), PIECE);
                BoxBody::from_stream(packed.inspect(move |_| {
                    let _until_the_end = &place;
                }))
            }
        };
        let headers = &mut parts.headers;
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.remove(header::ACCEPT_RANGES);
        weaken(headers);
        Response::from_parts(parts, body)
    }

    /// An answer that the client has is told of as it was given (RFC 9110, 15.4.5).
    fn unchanged(self, mut response: Response<BoxBody>) -> Response<BoxBody> {
        let headers = response.headers_mut();
        let plain = headers.contains_key(header::CONTENT_TYPE) && !is_text(headers);
        if !plain && !headers.contains_key(header::CONTENT_ENCODING) {
            add_vary(headers);
            if self.weak {
                weaken(headers);
            }
        }
        response
    }
}

fn add_vary(headers: &mut HeaderMap) {
    headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
}

/// What came of a body in a moment.
enum Gathered {
    Whole(Bytes),
    /// It pauses; the rest is to come.
    Part(Bytes, BoxBody),
    Broken(Bytes, axum::Error),
}

async fn gather(mut body: BoxBody) -> Gathered {
    let mut gathered = Vec::new();
    let until = Instant::now() + PATIENCE;
    loop {
        match timeout_at(until, body.frame()).await {
            Err(_) => return Gathered::Part(gathered.into(), body),
            Ok(None) => return Gathered::Whole(gathered.into()),
            Ok(Some(Err(error))) => return Gathered::Broken(gathered.into(), error),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    // The usual one comes in one piece.
                    if gathered.is_empty() && body.is_end_stream() {
                        return Gathered::Whole(data);
                    }
                    gathered.extend_from_slice(&data);
                }
            }
        }
    }
}

/// Whether an answer is plain, may be changed, and is of a kind and size that gains by it.
fn is_compressible(response: &Response<BoxBody>) -> bool {
    let (status, headers) = (response.status(), response.headers());
    let has_whole_body = !status.is_informational()
        && !matches!(status, StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT);
    has_whole_body
        && !headers.contains_key(header::CONTENT_ENCODING)
        && !headers.contains_key(header::CONTENT_RANGE)
        && !says(headers, header::CACHE_CONTROL, "no-transform")
        && length(response).is_none_or(|length| length >= WORTH_IT)
        && is_text(headers)
}

/// The length, where it is known. Of an answer to HEAD it is only announced.
fn length(response: &Response<BoxBody>) -> Option<u64> {
    let announced = response.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse().ok());
    announced.or_else(|| response.body().size_hint().exact())
}

/// Text and its relatives; not a stream of events, which comes in small pieces that somebody waits for.
fn is_text(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else {
        return false;
    };
    let kind = kind.as_bytes().split(|byte| *byte == b';').next();
    let kind = kind.unwrap_or_default().trim_ascii().to_ascii_lowercase();
    match kind.as_slice() {
        b"text/event-stream" => false,
        b"application/json"
        | b"application/javascript"
        | b"application/xml"
        | b"application/x-ndjson"
        | b"application/yaml"
        | b"application/wasm" => true,
        // Small, and read on its way for the record of the request.
        b"application/problem+json" => false,
        kind => kind.starts_with(b"text/") || kind.ends_with(b"+json") || kind.ends_with(b"+xml"),
    }
}

fn says(headers: &HeaderMap, name: header::HeaderName, word: &str) -> bool {
    let values = headers.get_all(name);
    let mut words = values
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    words.any(|said| said.trim().eq_ignore_ascii_case(word))
}

/// A strong tag promises the same bytes, and these are others.
fn weaken(headers: &mut HeaderMap) {
    let strong = headers
        .get(header::ETAG)
        .filter(|tag| tag.as_bytes().starts_with(b"\""));
    if let Some(strong) = strong
        && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", strong.as_bytes()].concat())
    {
        headers.insert(header::ETAG, weak);
    }
}

/// Reads `Accept-Encoding` (RFC 9110, 12.5.3).
fn wants_gzip(headers: &HeaderMap) -> bool {
    let (mut gzip, mut any, mut plain) = (None, None, None);
    let values = headers.get_all(header::ACCEPT_ENCODING);
    let values = values.iter().filter_map(|value| value.to_str().ok());
    for one in values.flat_map(|value| value.split(',')) {
        let (coding, weight) = one.split_once(';').unwrap_or((one, ""));
        let weight = match weight.trim() {
            "" => Some(1.0),
            weight => weight
                .strip_prefix(['q', 'Q'])
                .and_then(|weight| weight.trim().strip_prefix('=')?.trim().parse::<f32>().ok())
                .filter(|weight| (0.0..=1.0).contains(weight)),
        };
        match coding.trim() {
            name if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") => {
                gzip = weight;
            }
            name if name.eq_ignore_ascii_case("identity") => plain = weight,
            "*" => any = weight,
            _ => {}
        }
    }
    let gzip = gzip.or(any).unwrap_or(0.0);
    gzip > 0.0 && gzip >= plain.unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_used_where_it_is_welcome() {
        for (accepted, wanted) in [
            ("gzip", true),
            ("br, gzip;q=0.5", true),
            ("GZIP ; Q=1.0", true),
            ("x-gzip", true),
            ("*", true),
            ("deflate, *;q=0.1", true),
            ("gzip;q=0", false),
            ("*, gzip;q=0.000", false),
            ("*;q=0", false),
            ("identity", false),
            ("identity;q=1, gzip;q=0.5", false),
            ("identity;q=0.5, gzip", true),
            ("identity;q=0, gzip;q=0.1", true),
            ("br", false),
            ("gzip;q=2", false),
            ("gzip;level=9", false),
            ("", false),
        ] {
            let value = HeaderValue::from_static(accepted);
            let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, value)]);
            assert_eq!(wants_gzip(&headers), wanted, "{accepted:?}");
        }
        assert!(!wants_gzip(&HeaderMap::new()));
    }

    #[test]
    fn text_is_compressed_and_what_is_packed_or_waited_for_is_not() {
        for (kind, gains) in [
            ("text/html", true),
            ("application/json; charset=utf-8", true),
            ("application/problem+json", false),
            ("application/ld+json", true),
            ("image/svg+xml", true),
            ("Application/JSON", true),
            ("text/event-stream", false),
            ("text/event-stream;charset=utf-8", false),
            ("image/png", false),
            ("application/vnd.android.package-archive", false),
            ("application/octet-stream", false),
        ] {
            let value = HeaderValue::from_static(kind);
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, value)]);
            assert_eq!(is_text(&headers), gains, "{kind}");
        }
        assert!(!is_text(&HeaderMap::new()));
    }

    #[test]
    fn any_wish_for_gzip_is_one_that_names_it() {
        const WORDS: [&str; 18] = [
            "gzip", "x-gzip", "identity", "*", "br", ";q=", "0", "1", "0.5", ",", ", ", ";", "q",
            "=", "NaN", "-1", "GZIP", "0.000",
        ];
        bolero::check!()
            .with_iterations(5_000)
            .with_max_len(10)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                let Ok(value) = HeaderValue::from_str(&text) else {
                    return;
                };
                let wants = wants_gzip(&HeaderMap::from_iter([(header::ACCEPT_ENCODING, value)]));
                assert!(
                    !wants || text.to_ascii_lowercase().contains("gzip") || text.contains('*'),
                    "{text}"
                );
                // Who refuses it in a header of its own does not get it.
                let mut both = HeaderMap::from_iter([(
                    header::ACCEPT_ENCODING,
                    HeaderValue::from_static("gzip;q=0, *;q=0"),
                )]);
                assert!(!wants_gzip(&both));
                both.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
                assert!(wants_gzip(&both));
            });
    }
}
