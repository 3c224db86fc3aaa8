//! The rate limits, counted over all replicas: each address as a whole, and each user by what the route costs. A request with
//! an API key counts for the key and for its user, with the same limits: more keys are not more requests. Without Redis
//! everyone passes.
//!
//! | tier | counts | routes | at once, and each second after that |
//! | --- | --- | --- | --- |
//! | `address` | the address | all but probes | `RATE_LIMIT_BURST`, `RATE_LIMIT_PER_SECOND` |
//! | `auth`, `auth-user` | the address, and besides it the user | what changes something below `/auth` | a tenth of those |
//! | `read` | the user | `GET`, `HEAD`, `OPTIONS` | `RATE_LIMIT_USER_BURST`, `RATE_LIMIT_USER_PER_SECOND` |
//! | `write` | the user | all others | a fifth of those |
//! | `upload` | the user | uploads | a twentieth of those |
//! | `auth-key`, `read-key`, `write-key`, `upload-key` | the key, besides its user | those of the user | those of the user |

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use coordination::{Decision, Limit, RateLimiter};
use http::{HeaderMap, Method};
use platform::auth::Subject;
use platform::http::{ask_limits, tell_limit};
use platform::network::network;
use platform::{Env, Settings};

use crate::front::recording::Recording;
use crate::front::refusal::Refusal;
use crate::front::routes::{Kind, Route};
use crate::front::workers;

/// How often each may ask, over all gateways.
#[derive(Clone, Copy, Debug)]
pub struct RateLimits {
    /// Every address.
    pub address: Limit,
    /// An address's sign-ins, and what else changes something below `/auth`.
    pub auth: Limit,
    /// The same of a user.
    pub auth_user: Limit,
    /// A user's requests that change nothing.
    pub read: Limit,
    /// A user's requests that change something.
    pub write: Limit,
    /// A user's uploads.
    pub upload: Limit,
}

impl RateLimits {
    /// Reads `RATE_LIMIT_PER_SECOND` (default 100) and `RATE_LIMIT_BURST` (200) for addresses, and
    /// `RATE_LIMIT_USER_PER_SECOND` (50) and `RATE_LIMIT_USER_BURST` (100) for users; none where `RATE_LIMITS` is off.
    pub fn from_env(env: &mut Env, settings: &Settings) -> Option<Self> {
        let address = (
            env.within("RATE_LIMIT_PER_SECOND", 100, (1, 1_000_000)),
            env.within("RATE_LIMIT_BURST", 200, (1, 1_000_000)),
        );
        let user = (
            env.within("RATE_LIMIT_USER_PER_SECOND", 50, (1, 1_000_000)),
            env.within("RATE_LIMIT_USER_BURST", 100, (1, 1_000_000)),
        );
        settings.rate_limits.then(|| Self::of(address, user))
    }

    /// The limits of all tiers from requests a second and at once, of an address and of a user.
    pub fn of(address: (u32, u32), user: (u32, u32)) -> Self {
        let part = |(rate, burst): (u32, u32), share: u32| {
            let period = Duration::from_secs(u64::from(share));
            Limit::per(rate, period).burst(burst / share)
        };
        Self {
            address: part(address, 1).tier("address"),
            auth: part(address, 10).tier("auth"),
            auth_user: part(address, 10).tier("auth-user"),
            read: part(user, 1).tier("read"),
            write: part(user, 5).tier("write"),
            upload: part(user, 20).tier("upload"),
        }
    }

    /// The limit of an address that a route has beside the one of all routes.
    fn of_address(&self, method: &Method, route: &Route) -> Option<Limit> {
        changes_auth(method, route).then_some(self.auth)
    }

    /// The limit of a user on a route.
    fn of_user(&self, cost: Cost) -> Limit {
        match cost {
            Cost::Read => self.read,
            Cost::Write => self.write,
            Cost::Upload => self.upload,
            Cost::Auth => self.auth_user,
        }
    }

    /// The same of one of his keys: a count of its own.
    fn of_key(&self, cost: Cost) -> Limit {
        self.of_user(cost).tier(match cost {
            Cost::Read => "read-key",
            Cost::Write => "write-key",
            Cost::Upload => "upload-key",
            Cost::Auth => "auth-key",
        })
    }

    /// All that is asked about who is known.
    fn of_subject<'a>(
        &self,
        cost: Cost,
        subject: Subject<'a>,
    ) -> impl Iterator<Item = (&'a str, Limit)> {
        let of_key = subject.key.map(|key| (key.as_str(), self.of_key(cost)));
        std::iter::once((subject.user.as_str(), self.of_user(cost))).chain(of_key)
    }
}

/// What a route costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cost {
    Read,
    Write,
    Upload,
    Auth,
}

impl Cost {
    fn of(method: &Method, route: &Route) -> Self {
        match route.kind {
            // A resumable upload is counted when it begins, and not with each of its parts.
            Kind::Upload if *method == Method::PATCH => Self::Write,
            Kind::Upload => Self::Upload,
            // A long poll sends with POST what a socket sends without asking anybody.
            Kind::Engine(_) | Kind::Tunnel => Self::Read,
            Kind::Command => Self::Write,
            Kind::Plain if method.is_safe() => Self::Read,
            Kind::Plain if changes_auth(method, route) => Self::Auth,
            Kind::Plain => Self::Write,
        }
    }
}

fn changes_auth(method: &Method, route: &Route) -> bool {
    let in_auth = route.path.path().starts_with("/auth/");
    route.kind == Kind::Plain && in_auth && !method.is_safe()
}

/// Asked before every request that is not a probe.
#[derive(Clone, Debug)]
pub struct Limits {
    limiters: Limiters,
    limits: RateLimits,
}

/// By what each thread asks Redis: one for those that are no workers of the door, and then one for each worker.
#[derive(Clone, Debug)]
pub struct Limiters(Arc<[RateLimiter]>);

impl Limiters {
    /// A worker that has none of its own takes that of the others.
    pub fn new(of_others: RateLimiter, of_workers: Vec<RateLimiter>) -> Self {
        Self(std::iter::once(of_others).chain(of_workers).collect())
    }

    fn here(&self) -> &RateLimiter {
        self.0.get(workers::number()).unwrap_or(&self.0[0])
    }
}

impl Limits {
    /// Limits every address and user alike.
    pub fn new(limiters: Limiters, limits: RateLimits) -> Self {
        Self { limiters, limits }
    }

    /// Where the request stands as one of its address and, where they are known, of its user and key: by one question to Redis. Nothing
    /// can be said without it.
    pub async fn ask(
        &self,
        method: &Method,
        route: &Route,
        client: Option<IpAddr>,
        subject: Option<Subject<'_>>,
    ) -> Standing {
        let address = client.map(|address| network(address).to_string());
        let mut asks = Vec::with_capacity(4);
        if let Some(address) = &address {
            asks.push((address.as_str(), self.limits.address));
            let of_address = self.limits.of_address(method, route);
            asks.extend(of_address.map(|limit| (address.as_str(), limit)));
        }
        if let Some(subject) = subject {
            asks.extend(self.limits.of_subject(Cost::of(method, route), subject));
        }
        Standing(ask_limits(self.limiters.here(), &asks).await)
    }

    /// Where a request of which the address was asked about stands as one of its user and key.
    pub async fn ask_of(&self, method: &Method, route: &Route, subject: Subject<'_>) -> Standing {
        let cost = Cost::of(method, route);
        let asks: Vec<_> = self.limits.of_subject(cost, subject).collect();
        Standing(ask_limits(self.limiters.here(), &asks).await)
    }
}

/// What the limits said to a request.
#[derive(Debug, Default)]
pub struct Standing(Vec<Decision>);

impl Standing {
    /// The limit that decides: the one that refuses for the longest time, else the one that has the fewest left.
    pub fn narrowest(&self) -> Option<&Decision> {
        let refusal = self.0.iter().filter(|decision| !decision.allowed);
        let refusal = refusal.max_by_key(|decision| decision.retry_after);
        refusal.or_else(|| self.0.iter().min_by_key(|decision| decision.remaining))
    }

    /// Refuses a request that has to wait, and notes what was said.
    pub fn admit(&self, recording: &mut Recording) -> Result<(), Refusal> {
        let Some(narrowest) = self.narrowest() else {
            return Ok(());
        };
        recording.limit(narrowest);
        match narrowest.allowed {
            true => Ok(()),
            false => Err(Refusal::TooFast {
                wait: narrowest.retry_after,
            }),
        }
    }

    /// Adds what was said to the same request later.
    pub fn add(&mut self, later: Self) {
        self.0.extend(later.0);
    }

    /// Tells the client, the deciding one first.
    pub fn tell(&self, headers: &mut HeaderMap) {
        let Some(narrowest) = self.narrowest() else {
            return;
        };
        tell_limit(narrowest, headers);
        for decision in self.0.iter().filter(|decision| *decision != narrowest) {
            tell_limit(decision, headers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::routes::route;

    #[test]
    fn a_route_has_the_tier_of_what_it_costs() {
        let limits = RateLimits::of((100, 200), (50, 100));
        for (method, uri, of_user, of_address) in [
            (
                Method::POST,
                "/api/auth/login",
                limits.auth_user,
                Some(limits.auth),
            ),
            (Method::GET, "/auth/me", limits.read, None),
            (Method::GET, "/api/devices?a=b", limits.read, None),
            (Method::DELETE, "/devices/7", limits.write, None),
            (Method::POST, "/api/apps/upload", limits.upload, None),
            (Method::POST, "/apps/uploads", limits.upload, None),
            (Method::PATCH, "/apps/uploads/7", limits.write, None),
            (
                Method::POST,
                "/socket.io/?EIO=4&transport=polling&sid=a",
                limits.read,
                None,
            ),
        ] {
            let route = route(&method, &uri.parse().unwrap());
            let found = (
                limits.of_user(Cost::of(&method, &route)),
                limits.of_address(&method, &route),
            );
            assert_eq!(found, (of_user, of_address), "{method} {uri}");
        }
        assert_eq!(limits.write, Limit::per_second(10).burst(20).tier("write"));
        let small = RateLimits::of((1, 1), (1, 1));
        assert_eq!(
            small.upload,
            Limit::per(1, Duration::from_secs(20)).tier("upload")
        );
    }

    #[test]
    fn the_narrowest_limit_is_told() {
        let decision = |tier, allowed, remaining, wait| Decision {
            allowed,
            retry_after: Duration::from_secs(wait),
            remaining,
            reset: Duration::from_secs(1),
            limit: 10,
            window: Duration::from_secs(1),
            tier,
        };
        for (standing, tier) in [
            (
                vec![
                    decision("address", true, 3, 0),
                    decision("read", true, 1, 0),
                ],
                "read",
            ),
            (
                vec![
                    decision("address", false, 0, 1),
                    decision("read", false, 0, 5),
                ],
                "read",
            ),
            (
                vec![
                    decision("address", false, 0, 1),
                    decision("read", true, 0, 0),
                ],
                "address",
            ),
        ] {
            let standing = Standing(standing);
            assert_eq!(standing.narrowest().unwrap().tier, tier);
            let mut headers = HeaderMap::new();
            standing.tell(&mut headers);
            assert_eq!(headers.get_all("ratelimit-policy").iter().count(), 2);
            let told = standing.narrowest().unwrap().remaining.to_string();
            assert_eq!(headers["ratelimit-remaining"], told.as_str());
        }
    }
}
