//! Who is calling: the address, and the id of the request.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts};
use http::request::Parts;
use http::{Extensions, HeaderMap, Uri, header};

/// The id that names a request in logs and replies: the client's `X-Request-ID`, or one of ours.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

/// The address of the client that a call began with: the nearest one to us in `X-Forwarded-For` that is not in a
/// private network, where our own proxies are; where all are, the nearest. What stands left of it is the client's word,
/// and proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

impl<S: Sync> FromRequestParts<S> for ClientAddress {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let peer = peer(&parts.extensions);
        if !is_internal(peer) {
            return Ok(Self(peer));
        }
        let hops: Vec<IpAddr> = forwarded(&parts.headers).collect();
        let outside = hops.iter().rev().find(|hop| !is_internal(**hop));
        Ok(Self(outside.or(hops.last()).copied().unwrap_or(peer)))
    }
}

/// Whether a call comes from this machine: the peer and every address it was forwarded for are loopback. A gateway
/// appends the true peer, so a call from elsewhere cannot pass for a local one; nor can one that a browser on this
/// machine makes for a page of another site.
pub fn is_loopback(headers: &HeaderMap, extensions: &Extensions) -> bool {
    peer(extensions).is_loopback()
        && forwarded(headers).all(|address| address.is_loopback())
        && !is_for_a_foreign_page(headers)
}

/// Whether a browser makes the call for a page of another site, which must not act as if it were on this machine.
fn is_for_a_foreign_page(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return false;
    };
    let origin = origin
        .to_str()
        .ok()
        .and_then(|text| text.parse::<Uri>().ok());
    let host = origin.as_ref().and_then(Uri::host);
    !host.is_some_and(|host| {
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    })
}

/// Whether a call comes from this machine or a private network, with nobody else in between.
pub fn is_private_call(headers: &HeaderMap, extensions: &Extensions) -> bool {
    is_internal(peer(extensions)) && forwarded(headers).all(is_internal)
}

/// Whether an address can only be reached inside a private network.
pub fn is_internal(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// The address at the other end of the connection; an unknown one counts as foreign.
pub fn peer(extensions: &Extensions) -> IpAddr {
    extensions
        .get::<ConnectInfo<SocketAddr>>()
        .map_or(IpAddr::V4(Ipv4Addr::BROADCAST), |info| {
            info.0.ip().to_canonical()
        })
}

fn forwarded(headers: &HeaderMap) -> impl Iterator<Item = IpAddr> {
    headers.get_all("x-forwarded-for").iter().flat_map(|value| {
        // What cannot be read counts as foreign, so that a strange header never opens anything.
        value
            .to_str()
            .unwrap_or("255.255.255.255")
            .split(',')
            .map(|hop| address(hop.trim()).unwrap_or(IpAddr::V4(Ipv4Addr::BROADCAST)))
    })
}

/// An address as proxies write it: bare, in brackets, or with a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let address = bare.parse().ok().or_else(with_port)?;
    Some(IpAddr::to_canonical(&address))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    async fn client(peer: &str, forwarded: &str) -> String {
        let request = Request::get("/").header("x-forwarded-for", forwarded);
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        parts
            .extensions
            .insert(ConnectInfo(SocketAddr::new(peer.parse().unwrap(), 1)));
        let Ok(ClientAddress(address)) = ClientAddress::from_request_parts(&mut parts, &()).await;
        address.to_string()
    }

    #[tokio::test]
    async fn a_client_cannot_choose_its_own_address() {
        assert_eq!(client("127.0.0.1", "1.2.3.4, 9.9.9.9").await, "9.9.9.9");
        assert_eq!(
            client("127.0.0.1", "1.2.3.4, 9.9.9.9, 10.0.0.1").await,
            "9.9.9.9"
        );
        assert_eq!(client("8.8.8.8", "1.2.3.4").await, "8.8.8.8");
        assert_eq!(client("127.0.0.1", "127.0.0.5").await, "127.0.0.5");
        assert_eq!(client("10.0.0.9", "10.1.1.1, 10.2.2.2").await, "10.2.2.2");
        assert_eq!(
            client("::1", "[2001:db8::7]:443, ::ffff:10.0.0.1").await,
            "2001:db8::7"
        );
        assert_eq!(client("127.0.0.1", "9.9.9.9:51000").await, "9.9.9.9");
    }

    #[test]
    fn only_calls_that_never_left_the_machine_are_local() {
        let local = |peer: &str, forwarded: Option<&str>| {
            let mut request = Request::get("/");
            if let Some(forwarded) = forwarded {
                request = request.header("x-forwarded-for", forwarded);
            }
            let (mut parts, ()) = request.body(()).unwrap().into_parts();
            parts
                .extensions
                .insert(ConnectInfo(SocketAddr::new(peer.parse().unwrap(), 1)));
            is_loopback(&parts.headers, &parts.extensions)
        };

        assert!(
            local("127.0.0.1", None)
                && local("::1", Some("127.0.0.1"))
                && local("::ffff:127.0.0.1", None)
        );
        assert!(
            !local("10.0.0.1", None)
                && !local("127.0.0.1", Some("127.0.0.1, 10.0.0.1"))
                && !local("127.0.0.1", Some("nonsense"))
        );
    }

    #[test]
    fn a_page_of_another_site_is_not_local() {
        let foreign = |origin: &'static str| {
            let value = http::HeaderValue::from_static(origin);
            is_for_a_foreign_page(&HeaderMap::from_iter([(header::ORIGIN, value)]))
        };

        assert!(
            [
                "http://localhost:3000",
                "http://127.0.0.1",
                "https://[::1]:1"
            ]
            .iter()
            .all(|origin| !foreign(origin))
        );
        assert!(
            [
                "https://example.com",
                "null",
                "http://localhost.example.com",
                ""
            ]
            .iter()
            .all(|origin| foreign(origin))
        );
        assert!(!is_for_a_foreign_page(&HeaderMap::new()));
    }

    #[test]
    fn any_hop_from_elsewhere_is_no_local_call() {
        const WORDS: [&str; 16] = [
            "127.0.0.1",
            "::1",
            "[::1]",
            "[::1]:80",
            "127.0.0.1:9",
            "8.8.8.8",
            "unknown",
            ",",
            ", ",
            "::ffff:127.0.0.1",
            "10.0.0.1",
            "[",
            "]",
            "0x7f.1",
            "127.1",
            "::ffff:8.8.8.8",
        ];
        let mut extensions = Extensions::new();
        extensions.insert(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 1))));
        let extensions = std::panic::AssertUnwindSafe(extensions);
        bolero::check!()
            .with_iterations(3_000)
            .with_max_len(8)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                let Ok(value) = http::HeaderValue::from_str(&text) else {
                    return;
                };
                let headers = HeaderMap::from_iter([(
                    http::HeaderName::from_static("x-forwarded-for"),
                    value,
                )]);
                let from_here = is_loopback(&headers, &extensions);
                let local = |hop: &str| {
                    hop.contains("127.") || hop.contains("::1") && !hop.contains("8.8.8.8")
                };
                assert!(!from_here || text.split(',').all(local), "{text}");
                assert!(
                    !from_here || is_private_call(&headers, &extensions),
                    "{text}"
                );
                let elsewhere = format!("{text},8.8.8.8");
                let elsewhere = http::HeaderValue::from_str(&elsewhere).unwrap();
                let headers = HeaderMap::from_iter([(
                    http::HeaderName::from_static("x-forwarded-for"),
                    elsewhere,
                )]);
                assert!(
                    !is_loopback(&headers, &extensions) && !is_private_call(&headers, &extensions),
                    "{text}"
                );
            });
    }
}
