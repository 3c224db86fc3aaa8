//! The rate limit per client address, counted over all replicas. Without Redis everyone passes.

use std::net::{IpAddr, Ipv6Addr};

use coordination::{Decision, Limit, RateLimiter};
use platform::http::ask_limit;

/// Asked before every request that is not a probe.
#[derive(Clone, Debug)]
pub struct AddressLimit {
    limiter: RateLimiter,
    limit: Limit,
}

impl AddressLimit {
    /// Limits every address alike.
    pub fn new(limiter: RateLimiter, limit: Limit) -> Self {
        Self {
            limiter,
            limit: limit.tier("address"),
        }
    }

    /// Where the address stands; nothing can be said without Redis.
    pub async fn ask(&self, address: IpAddr) -> Option<Decision> {
        let subject = counted(address).to_string();
        ask_limit(&self.limiter, &subject, self.limit).await
    }
}

/// Whoever has one IPv6 address has its whole /64.
fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_counts_as_one() {
        for (address, whole) in [
            ("203.0.113.9", "203.0.113.9"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ] {
            assert_eq!(counted(address.parse().unwrap()).to_string(), whole);
        }
    }
}
