//! What browsers are told so that an answer is not misused: not guessed at, not framed, not told about elsewhere.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// What holds for every answer unless the service said something else about it. The policy says nothing of scripts, so
/// that the page of the documentation works.
const ALWAYS: [(HeaderName, &str); 4] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::CONTENT_SECURITY_POLICY, "frame-ancestors 'none'"),
    (header::REFERRER_POLICY, "no-referrer"),
];
/// For a year the browser asks by TLS alone.
const ONLY_BY_TLS: &str = "max-age=31536000";

/// Adds the fields. `secure` says that the client came by TLS: over a plain connection anybody could have said the rest.
pub fn finish(headers: &mut HeaderMap, secure: bool) {
    for (name, value) in ALWAYS {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    if secure {
        headers
            .entry(header::STRICT_TRANSPORT_SECURITY)
            .or_insert(HeaderValue::from_static(ONLY_BY_TLS));
    } else {
        headers.remove(header::STRICT_TRANSPORT_SECURITY);
    }
}
