//! Which pages of other origins may call, and what the browser is told.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode, Uri};

use crate::front::BoxBody;

const HEADERS: &str = "Content-Type, Authorization, X-Request-ID, X-API-Key, Idempotency-Key, traceparent, tracestate, Tus-Resumable, Upload-Length, Upload-Offset, Upload-Metadata";
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
const EXPOSED: &str = "X-Request-ID, Retry-After, Idempotent-Replayed, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, RateLimit-Policy, RateLimit, Server-Timing, Location, X-App-Id, Tus-Resumable, Tus-Version, Tus-Extension, Tus-Max-Size, Upload-Length, Upload-Offset, Upload-Expires, Upload-Metadata";

/// The origins whose pages may call with credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origins {
    /// Any page of this machine, for development.
    pub local: bool,
    /// These, as `https://portal.example`.
    pub listed: Vec<String>,
}

impl Origins {
    /// The request's origin, where it may call.
    pub fn admit(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        let text = origin.to_str().ok()?;
        let same = |one: &String| one.trim_end_matches('/').eq_ignore_ascii_case(text);
        let allowed = (self.local && is_local(text)) || self.listed.iter().any(same);
        allowed.then(|| origin.clone())
    }
}

/// The answer to a browser that asks before it calls, or nothing where it does not ask.
pub fn preflight(method: &Method, headers: &HeaderMap) -> Option<http::Response<BoxBody>> {
    let asks = *method == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    asks.then(|| {
        let mut reply = http::Response::new(BoxBody::empty());
        *reply.status_mut() = StatusCode::NO_CONTENT;
        let headers = reply.headers_mut();
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static(METHODS),
        );
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static(HEADERS),
        );
        headers.insert(
            header::ACCESS_CONTROL_MAX_AGE,
            HeaderValue::from_static("600"),
        );
        reply
    })
}

/// Tells the browser whether the page may read the reply. What a service said on this is replaced.
pub fn finish(headers: &mut HeaderMap, origin: Option<HeaderValue>) {
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    let Some(origin) = origin else {
        headers.remove(header::ACCESS_CONTROL_ALLOW_ORIGIN);
        headers.remove(header::ACCESS_CONTROL_ALLOW_CREDENTIALS);
        return;
    };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
        HeaderValue::from_static("true"),
    );
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static(EXPOSED),
    );
}

fn is_local(origin: &str) -> bool {
    let Ok(uri) = origin.parse::<Uri>() else {
        return false;
    };
    let web = matches!(uri.scheme_str(), Some("http" | "https"));
    web && matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]")) && !origin.contains('@')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(origins: &Origins, origin: &str) -> bool {
        let headers = [(header::ORIGIN, HeaderValue::from_str(origin).unwrap())]
            .into_iter()
            .collect();
        origins.admit(&headers).is_some()
    }

    #[test]
    fn in_development_any_page_of_this_machine_may_call() {
        for (origin, may) in [
            ("http://localhost", true),
            ("https://localhost:5173", true),
            ("http://127.0.0.1:3000", true),
            ("http://localhost.evil.example", false),
            ("http://evil.example/localhost", false),
            ("http://localhost@evil.example", false),
            ("file://localhost", false),
            ("null", false),
        ] {
            let origins = Origins {
                local: true,
                listed: Vec::new(),
            };
            assert_eq!(admits(&origins, origin), may, "{origin}");
        }
    }

    #[test]
    fn in_production_only_listed_ones_may() {
        let origins = Origins {
            local: false,
            listed: vec!["https://portal.example/".to_owned()],
        };
        assert!(admits(&origins, "https://portal.example"));
        assert!(!admits(&origins, "http://portal.example"));
        assert!(!admits(&origins, "http://localhost"));
    }

    #[test]
    fn any_origin_that_may_call_is_of_this_machine_to_every_reader() {
        const WORDS: [&str; 20] = [
            "http://",
            "https://",
            "localhost",
            "127.0.0.1",
            "[::1]",
            ":3000",
            "evil.example",
            "@",
            "/",
            "?",
            "#",
            "\\",
            ".",
            "%40",
            "LOCALHOST",
            "null",
            "HTTP://",
            ":",
            "a",
            "http:",
        ];
        let origins = Origins {
            local: true,
            listed: Vec::new(),
        };
        bolero::check!()
            .with_iterations(5_000)
            .with_max_len(8)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                let Ok(value) = HeaderValue::from_str(&text) else {
                    return;
                };
                let headers = HeaderMap::from_iter([(header::ORIGIN, value)]);
                if origins.admit(&headers).is_some() {
                    let url = reqwest::Url::parse(&text).unwrap();
                    let host = url.host_str().unwrap();
                    assert!(
                        ["localhost", "127.0.0.1", "[::1]"].contains(&host),
                        "{text}"
                    );
                    // An origin is scheme, host and port, and nothing else.
                    assert!(
                        url.path() == "/" && !text.ends_with('/') && url.query().is_none(),
                        "{text}"
                    );
                }
            });
    }
}
