//! Which addresses a user may have us call: public ones alone. Names are resolved here for the connection itself, so that
//! the address that was judged is the one that is connected to, and a name that leads elsewhere a moment later gains
//! nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::time::timeout;

/// How long a name may take to be resolved.
const RESOLVE: Duration = Duration::from_secs(3);

/// What is allowed beyond calls to public addresses by TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Calls without TLS.
    pub plain: bool,
    /// This machine.
    pub loopback: bool,
}

/// Why a URL is not called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No URL, or one for something else.
    #[error("is a URL such as https://example.com/hook")]
    NoUrl,
    /// Without TLS.
    #[error("begins with https://")]
    Plain,
    /// `https://user:password@…`.
    #[error("has no user and no password")]
    Login,
    /// It leads, or may lead, into a private network.
    #[error("leads to an address that is not public")]
    Address,
}

impl Rules {
    /// A URL that may be called, as far as it can be told without resolving its name.
    ///
    /// # Errors
    /// Where it may not.
    pub fn url(self, text: &str) -> Result<Url, Refusal> {
        let url: Url = text.parse().map_err(|_| Refusal::NoUrl)?;
        match url.scheme() {
            "https" => {}
            "http" if self.plain => {}
            "http" => return Err(Refusal::Plain),
            _ => return Err(Refusal::NoUrl),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refusal::Login);
        }
        let host = url.host_str().ok_or(Refusal::NoUrl)?;
        // An address in the URL is connected to without being resolved.
        let bare = host.trim_matches(['[', ']']);
        match bare.parse::<IpAddr>() {
            Ok(address) if !self.allow(address) => Err(Refusal::Address),
            _ => Ok(url),
        }
    }

    /// Whether an address may be connected to.
    pub fn allow(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_public(address) || (self.loopback && address.is_loopback())
    }
}

impl Resolve for Rules {
    fn resolve(&self, name: Name) -> Resolving {
        let rules = *self;
        Box::pin(async move {
            let looking = tokio::net::lookup_host((name.as_str(), 0));
            let found: Vec<SocketAddr> = timeout(RESOLVE, looking).await??.collect();
            // One that is not public among them is one too many: which of them is taken is not ours to say.
            if found.iter().all(|address| rules.allow(address.ip())) {
                Ok(Box::new(found.into_iter()) as Addrs)
            } else {
                Err(Refusal::Address.into())
            }
        })
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

/// All but what IANA keeps for special use, and what clouds answer on for their own machines.
fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = match (a, b, c) {
        (0 | 10 | 127 | 224.., _, _)
        | (100, 64..=127, _)
        | (169, 254, _)
        | (172, 16..=31, _)
        | (192, 0, 0 | 2)
        | (192, 88, 99)
        | (192, 168, _)
        | (198, 18 | 19, _)
        | (198, 51, 100)
        | (203, 0, 113) => true,
        _ => address == Ipv4Addr::new(168, 63, 129, 16),
    };
    !special
}

/// Global unicast, without what carries an IPv4 address that might be private, and without documentation.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    match (a, b) {
        // Teredo, ORCHID, benchmarks and others: 2001::/23. 6to4: 2002::/16. Documentation: 2001:db8::/32, 3fff::/20.
        (0x2001, 0..=0x01ff | 0x0db8) | (0x2002, _) | (0x3fff, 0..=0x0fff) => false,
        (0x2000..=0x3fff, _) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: Rules = Rules {
        plain: false,
        loopback: false,
    };
    const SANDBOX: Rules = Rules {
        plain: true,
        loopback: true,
    };

    #[test]
    fn only_public_addresses_are_called() {
        for address in [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "100.100.100.200",
            "169.254.169.254",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.0.1",
            "198.18.0.1",
            "168.63.129.16",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2002:a00:1::",
            "2001::1",
            "2001:db8::1",
        ] {
            assert!(!STRICT.allow(address.parse().unwrap()), "{address}");
        }
        for address in [
            "8.8.8.8",
            "172.32.0.1",
            "100.63.0.1",
            "2606:4700::1111",
            "2001:4860:4860::8888",
        ] {
            assert!(STRICT.allow(address.parse().unwrap()), "{address}");
        }
        assert!(SANDBOX.allow("127.0.0.1".parse().unwrap()));
        assert!(!SANDBOX.allow("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn a_url_is_judged_however_its_address_is_written() {
        for (text, refusal) in [
            ("http://example.com", Refusal::Plain),
            ("ftp://example.com", Refusal::NoUrl),
            ("nothing", Refusal::NoUrl),
            ("https://user:word@example.com", Refusal::Login),
            ("https://127.0.0.1/x", Refusal::Address),
            ("https://2130706433/", Refusal::Address),
            ("https://0x7f.1/", Refusal::Address),
            ("https://[::ffff:169.254.169.254]/", Refusal::Address),
            ("https://[fd00::1]:8443/", Refusal::Address),
        ] {
            assert_eq!(STRICT.url(text), Err(refusal), "{text}");
        }
        assert!(STRICT.url("https://example.com:8443/hook?x=1").is_ok());
        assert!(SANDBOX.url("http://127.0.0.1:9/").is_ok());
    }

    #[tokio::test]
    async fn a_name_that_leads_home_is_not_resolved() {
        let ask = async |rules: Rules| rules.resolve("localhost".parse().unwrap()).await.is_ok();

        assert!(!ask(STRICT).await);
        assert!(ask(SANDBOX).await);
    }

    #[test]
    fn any_address_that_is_called_is_none_that_the_standard_library_knows_as_special() {
        bolero::check!()
            .with_type::<(u32, u128, bool)>()
            .with_iterations(20_000)
            .for_each(|(v4, v6, is_v4)| {
                let address: IpAddr = match is_v4 {
                    true => Ipv4Addr::from(*v4).into(),
                    false => Ipv6Addr::from(*v6).into(),
                };
                let special = address.is_loopback()
                    || address.is_unspecified()
                    || address.is_multicast()
                    || match address.to_canonical() {
                        IpAddr::V4(v4) => {
                            v4.is_private()
                                || v4.is_link_local()
                                || v4.is_broadcast()
                                || v4.is_documentation()
                        }
                        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
                    };
                assert!(!special || !STRICT.allow(address), "{address}");
            });
    }
}
