//! Headers on the way through: what belongs to one hop is taken off, what the next one must know is put on.

use std::net::IpAddr;

use http::Uri;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use platform::auth::IDENTITY_HEADER;
use platform::http::{TRACEPARENT, TRACESTATE, TraceParent};

use crate::front::refusal::Refusal;

/// Names a request in logs and replies.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

const ONE_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Whatever `Connection` names, these stay: the next hop is lost without them, or they are our own word.
const KEPT: [HeaderName; 3] = [header::HOST, header::CONTENT_LENGTH, IDENTITY_HEADER];

/// About how many fields are put on.
pub const ADDED: usize = 16;

/// The longest target of a request.
const TARGET: usize = 8 * 1024;
/// The most that its fields may be together. The server takes a little more, so that it is we who say no.
const FIELDS_SIZE: usize = 24 * 1024;
/// How many fields it may have, lines of cookies not counted. An instance takes 100, some of which we add.
const FIELDS: usize = 80;

/// Refuses a head that is too large to be passed on.
pub fn check_size(target: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let target = target
        .path_and_query()
        .map_or(0, |path| path.as_str().len());
    if target > TARGET {
        return Err(Refusal::TargetTooLong);
    }
    let (mut size, mut count) = (0, 0);
    for (name, value) in headers {
        size += name.as_str().len() + value.len();
        count += usize::from(name != header::COOKIE);
    }
    match size > FIELDS_SIZE || count > FIELDS {
        true => Err(Refusal::HeadTooLarge),
        false => Ok(()),
    }
}

/// How a request reached us.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Names the request.
    pub id: HeaderValue,
    /// Our step in its trace.
    pub trace: TraceParent,
    /// Whether the trace began before us.
    pub traced: bool,
    /// The address of the other end, where it is known.
    pub peer: Option<IpAddr>,
    /// The scheme it used.
    pub scheme: &'static str,
    /// Whether the other end is a proxy of ours, whose word counts.
    pub trusted: bool,
}

impl Arrival {
    /// The address to count by: the peer, or whom a trusted proxy names as its own peer.
    pub fn client(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let named = || {
            let last = headers
                .get_all(FORWARDED_FOR)
                .iter()
                .next_back()?
                .to_str()
                .ok()?;
            last.rsplit(',').next()?.trim().parse().ok()
        };
        self.trusted.then(named).flatten().or(self.peer)
    }

    /// Whether the client came by TLS: to us, or to a trusted proxy.
    pub fn is_secure(&self, headers: &HeaderMap) -> bool {
        let said = headers.get(FORWARDED_PROTO).filter(|_| self.trusted);
        let scheme = said.map_or(self.scheme.as_bytes(), HeaderValue::as_bytes);
        scheme.eq_ignore_ascii_case(b"https")
    }
}

/// The client's id of the request where it is usable, else a new one.
pub fn request_id(headers: &HeaderMap) -> HeaderValue {
    let usable = |value: &&HeaderValue| {
        (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    if let Some(given) = headers.get(REQUEST_ID).filter(usable) {
        return given.clone();
    }
    let id = format!("{:032x}", rand::random::<u128>());
    HeaderValue::try_from(id).expect("hexadecimal digits are a header value")
}

/// Whether the request asks to go on as a WebSocket, the only protocol that passes.
pub fn wants_websocket(headers: &HeaderMap) -> bool {
    let upgrade = headers
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    upgrade && connection_tokens(headers).any(|token| token.eq_ignore_ascii_case(b"upgrade"))
}

/// Takes off what belongs to this hop alone, with what `Connection` names.
pub fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = connection_tokens(headers)
        .filter(|token| {
            ![&b"close"[..], b"keep-alive", b"upgrade"]
                .iter()
                .any(|known| token.eq_ignore_ascii_case(known))
        })
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| !KEPT.contains(name))
        .collect();
    for name in named.iter().chain(&ONE_HOP) {
        headers.remove(name);
    }
}

/// Turns a client's headers into those that an instance gets.
pub fn forward(headers: &mut HeaderMap, arrival: &Arrival, host: Option<HeaderValue>) {
    strip(headers);
    // Once, not step by step.
    headers.reserve(ADDED);
    // We answer the expectation ourselves, by reading the body, and pass no trailers on.
    headers.remove(header::EXPECT);
    headers.remove(header::TRAILER);
    if let Some(peer) = arrival.peer {
        let mut chain = String::new();
        for value in headers
            .get_all(FORWARDED_FOR)
            .iter()
            .filter_map(|value| value.to_str().ok())
        {
            chain.push_str(value);
            chain.push_str(", ");
        }
        chain.push_str(&peer.to_canonical().to_string());
        if let Ok(chain) = HeaderValue::try_from(chain) {
            headers.insert(FORWARDED_FOR, chain);
        }
    }
    join_cookies(headers);
    if !arrival.trusted || !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(arrival.scheme));
    }
    let host = host.unwrap_or_else(|| HeaderValue::from_static("localhost"));
    if !arrival.trusted || !headers.contains_key(FORWARDED_HOST) {
        headers.insert(FORWARDED_HOST, host.clone());
    }
    headers.insert(header::HOST, host);
    headers.insert(REQUEST_ID, arrival.id.clone());
    headers.insert(TRACEPARENT, arrival.trace.header());
    if !arrival.traced {
        headers.remove(TRACESTATE);
    }
}

/// Puts the request for a WebSocket, or its acceptance, back on.
pub fn upgrade(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// HTTP/2 may send cookies in several lines, HTTP/1.1 may not.
fn join_cookies(headers: &mut HeaderMap) {
    let lines = headers.get_all(header::COOKIE);
    if lines.iter().nth(1).is_none() {
        return;
    }
    let lines: Vec<&[u8]> = lines.iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// What `Connection` names; a name beside one that is no text is one, too.
fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(header::CONNECTION).iter();
    values
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        let mut map = HeaderMap::new();
        for (name, value) in lines.iter().map(line) {
            map.append(name, value);
        }
        map
    }

    fn arrival(trusted: bool) -> Arrival {
        Arrival {
            id: HeaderValue::from_static("id"),
            trace: TraceParent::begin(),
            traced: false,
            peer: "203.0.113.9".parse().ok(),
            scheme: "http",
            trusted,
        }
    }

    #[test]
    fn the_peer_is_appended_and_nothing_before_it_is_lost() {
        let mut map = headers(&[
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2, 3.3.3.3"),
        ]);

        forward(&mut map, &arrival(false), None);

        assert_eq!(
            map["x-forwarded-for"],
            "1.1.1.1, 2.2.2.2, 3.3.3.3, 203.0.113.9"
        );
        assert_eq!(map.get_all("x-forwarded-for").iter().count(), 1);
    }

    #[test]
    fn connection_takes_its_names_along_but_not_ours() {
        let mut map = headers(&[
            ("connection", "close, x-private, X-Forwarded-For, Host"),
            ("x-private", "1"),
            ("x-forwarded-for", "1.1.1.1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("accept", "*/*"),
        ]);

        forward(
            &mut map,
            &arrival(false),
            Some(HeaderValue::from_static("shop.example")),
        );

        assert_eq!(map["host"], "shop.example");
        assert_eq!(map["x-forwarded-for"], "203.0.113.9");
        assert_eq!(map["accept"], "*/*");
        for gone in [
            "connection",
            "x-private",
            "te",
            "transfer-encoding",
            "upgrade",
            "expect",
        ] {
            assert!(!map.contains_key(gone), "{gone}");
        }
    }

    #[test]
    fn scheme_and_host_are_believed_from_a_trusted_proxy_only() {
        let said = [
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "shop.example"),
            ("x-forwarded-for", "9.9.9.9, 8.8.8.8"),
        ];
        for (trusted, proto, client) in [(true, "https", "8.8.8.8"), (false, "http", "203.0.113.9")]
        {
            let mut map = headers(&said);
            assert_eq!(arrival(trusted).client(&map), client.parse().ok());
            forward(
                &mut map,
                &arrival(trusted),
                Some(HeaderValue::from_static("a")),
            );
            assert_eq!(map["x-forwarded-proto"], proto);
        }
    }

    #[test]
    fn an_unusable_request_id_is_replaced() {
        let long = "x".repeat(129);
        for (given, kept) in [
            ("abc-1", true),
            ("", false),
            ("a b", false),
            (long.as_str(), false),
        ] {
            let map: HeaderMap = [(REQUEST_ID, HeaderValue::from_str(given).unwrap())]
                .into_iter()
                .collect();
            assert_eq!(request_id(&map) == given, kept, "{given:?}");
        }
    }

    #[test]
    fn any_headers_lose_what_is_of_one_hop_and_say_nothing_in_our_name() {
        const NAMES: [&str; 20] = [
            "connection",
            "keep-alive",
            "proxy-connection",
            "te",
            "transfer-encoding",
            "upgrade",
            "expect",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host",
            "x-request-id",
            "traceparent",
            "tracestate",
            "host",
            "cookie",
            "x-a",
            "x-b",
            "content-length",
            "x-cloudphone-identity",
            "accept",
        ];
        bolero::check!()
            .with_type::<(Vec<(u8, Vec<u8>)>, bool, bool)>()
            .with_iterations(2_000)
            .for_each(|(lines, trusted, traced)| {
                let mut map = HeaderMap::new();
                for (name, value) in lines {
                    let text = testkit::any::text(&value[..value.len().min(8)], &NAMES);
                    let name = NAMES[usize::from(*name) % NAMES.len()];
                    for value in [HeaderValue::from_bytes(value), HeaderValue::from_str(&text)]
                        .into_iter()
                        .flatten()
                    {
                        map.append(name, value);
                    }
                }
                let named: Vec<HeaderName> = map
                    .get_all(header::CONNECTION)
                    .iter()
                    .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
                    .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
                    .collect();
                let arrival = Arrival {
                    traced: *traced,
                    ..arrival(*trusted)
                };
                let peer = arrival.peer.unwrap().to_string();
                let said_state = map.contains_key(TRACESTATE) && !named.contains(&TRACESTATE);
                forward(
                    &mut map,
                    &arrival,
                    Some(HeaderValue::from_static("a.example")),
                );

                let only = |name: &HeaderName| {
                    let mut values = map.get_all(name).iter();
                    let value = values.next().cloned();
                    assert_eq!(values.next(), None, "{name}");
                    value.unwrap()
                };
                for gone in ONE_HOP.iter().chain([&header::EXPECT]) {
                    assert!(!map.contains_key(gone), "{gone}");
                }
                for name in named
                    .iter()
                    .filter(|name| ["x-a", "x-b", "accept", "cookie"].contains(&name.as_str()))
                {
                    assert!(!map.contains_key(name), "{name}");
                }
                assert_eq!(only(&header::HOST), "a.example");
                assert_eq!(only(&REQUEST_ID), arrival.id);
                assert_eq!(only(&TRACEPARENT), arrival.trace.header());
                assert!(only(&FORWARDED_FOR).to_str().unwrap().ends_with(&peer));
                assert_eq!(map.contains_key(TRACESTATE), said_state && *traced);
                if !trusted {
                    assert_eq!(only(&FORWARDED_PROTO), "http");
                    assert_eq!(only(&FORWARDED_HOST), "a.example");
                }
                assert!(map.get_all(header::COOKIE).iter().count() <= 1);
            });
    }

    #[test]
    fn any_request_id_that_is_kept_is_short_and_visible() {
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(160)
            .for_each(|bytes: &[u8]| {
                let Ok(value) = HeaderValue::from_bytes(bytes) else {
                    return;
                };
                let id = request_id(&HeaderMap::from_iter([(REQUEST_ID, value.clone())]));
                let text = id.to_str().unwrap();
                assert!(
                    (1..=128).contains(&text.len())
                        && text.bytes().all(|byte| byte.is_ascii_graphic())
                );
                assert!(id == value || text.len() == 32);
            });
    }

    #[test]
    fn any_hops_name_a_client_by_the_last_one_where_they_are_trusted() {
        const WORDS: [&str; 8] = [
            "1.2.3.4",
            ", ",
            "2001:db8::1",
            "unknown",
            "[::1]:80",
            ",",
            "::ffff:1.2.3.4",
            " ",
        ];
        bolero::check!()
            .with_iterations(1_000)
            .with_max_len(8)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                let Ok(value) = HeaderValue::from_str(&text) else {
                    return;
                };
                let map = HeaderMap::from_iter([(FORWARDED_FOR, value)]);
                let peer = arrival(false).peer;
                assert_eq!(arrival(false).client(&map), peer);
                let last = text
                    .rsplit(',')
                    .next()
                    .and_then(|last| last.trim().parse().ok());
                assert_eq!(arrival(true).client(&map), last.or(peer), "{text}");
            });
    }
}
