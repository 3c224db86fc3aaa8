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

/// Adds the fields. Where the client came by TLS, its browser is told for how many seconds it shall ask this host by TLS
/// alone; over a plain connection anybody could have said it.
pub fn finish(headers: &mut HeaderMap, only_by_tls: Option<u32>) {
    for (name, value) in ALWAYS {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    match only_by_tls {
        Some(0) => {}
        Some(seconds) => {
            let age = HeaderValue::try_from(format!("max-age={seconds}"));
            headers
                .entry(header::STRICT_TRANSPORT_SECURITY)
                .or_insert(age.expect("digits are a header value"));
        }
        None => {
            headers.remove(header::STRICT_TRANSPORT_SECURITY);
        }
    }
}
