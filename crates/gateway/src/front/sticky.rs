//! Socket.IO sessions: every request of one goes to the instance that opened it, whichever gateway it reaches.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coordination::Keys;
use fred::clients::Pool;
use fred::interfaces::KeysInterface;
use fred::types::Expiration;
use serde::Deserialize;
use tokio::time::timeout;
use tracing::warn;

use crate::front::group::Group;
use crate::front::instance::Instance;

/// Sessions remembered in this process, in each of two generations.
const REMEMBERED: usize = 16_384;
/// How long Redis may take.
const PATIENCE: Duration = Duration::from_millis(500);
/// The first packet of a session is smaller than this.
pub const OPEN_PACKET: usize = 64 * 1024;

/// What the query of an Engine.IO request says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineQuery {
    /// The protocol's version.
    pub version: u8,
    /// Long polling rather than a WebSocket.
    pub polling: bool,
    /// The session, which the first request does not have.
    pub sid: Option<String>,
}

impl EngineQuery {
    /// Reads a query, where it is one of Engine.IO.
    pub fn read(query: Option<&str>) -> Option<Self> {
        let query = query?;
        // The service behind us counts what comes first, too: both must mean the same session.
        let first = |name: &str| {
            let mut pairs = query.split('&');
            pairs.find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        Some(Self {
            version: first("EIO")?.parse().ok()?,
            polling: first("transport") == Some("polling"),
            sid: first("sid").map(str::to_owned),
        })
    }
}

/// Finds the session in the first packet of a reply: `0{"sid":"…",…}`.
pub fn opened(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Open {
        sid: String,
    }
    let first = body
        .split(|byte| *byte == 0x1e)
        .next()?
        .strip_prefix(b"0")?;
    let open: Open = serde_json::from_slice(first).ok()?;
    is_session(&open.sid).then_some(open.sid)
}

fn is_session(sid: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=64).contains(&sid.len()) && sid.bytes().all(plain)
}

/// Which instance has which session.
pub struct Sessions {
    redis: Option<Pool>,
    keys: Keys,
    ttl: Duration,
    known: Mutex<Generations>,
}

#[derive(Default)]
struct Generations {
    young: HashMap<String, Home>,
    old: HashMap<String, Home>,
}

/// Where a session lives.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Home {
    id: Arc<str>,
    address: Arc<str>,
    told: Instant,
}

impl Sessions {
    /// Sessions that Redis remembers for all gateways, and this process for itself.
    pub fn new(redis: Option<Pool>, keys: Keys, ttl: Duration) -> Self {
        Self {
            redis,
            keys,
            ttl,
            known: Mutex::default(),
        }
    }

    /// Remembers where a session lives. Whoever asks after this finds it, on any gateway.
    pub async fn remember(&self, sid: &str, instance: &Instance) {
        let home = Home {
            id: instance.id.as_str().into(),
            address: instance.address.clone(),
            told: Instant::now(),
        };
        self.known().insert(sid, home.clone());
        self.tell(sid, &home).await;
    }

    /// The instance that has a session, where it is still there.
    pub async fn find(&self, sid: &str, group: &Group) -> Option<Arc<Instance>> {
        if !is_session(sid) {
            return None;
        }
        let known = self.known().get(sid);
        let home = match known {
            Some(home) if home.told.elapsed() < self.ttl / 3 => home,
            Some(home) => {
                let home = Home {
                    told: Instant::now(),
                    ..home
                };
                self.known().insert(sid, home.clone());
                self.tell(sid, &home).await;
                home
            }
            None => {
                let home = self.ask(sid).await?;
                self.known().insert(sid, home.clone());
                self.tell(sid, &home).await;
                home
            }
        };
        let instance = group.find(&home.id, &home.address);
        if instance.is_none() {
            self.known().remove(sid);
        }
        instance
    }

    /// Forgets a session whose instance does not answer.
    pub fn forget(&self, sid: &str) {
        self.known().remove(sid);
    }

    async fn tell(&self, sid: &str, home: &Home) {
        let Some(redis) = &self.redis else { return };
        let (key, value) = (self.key(sid), format!("{} {}", home.address, home.id));
        let ttl = Expiration::PX(i64::try_from(self.ttl.as_millis()).unwrap_or(i64::MAX));
        let told = timeout(
            PATIENCE,
            redis.set::<(), _, _>(key, value, Some(ttl), None, false),
        )
        .await;
        if !matches!(told, Ok(Ok(()))) {
            // This gateway still knows it; a client that reaches another one opens a new session.
            warn!(
                "a Socket.IO session could not be shared with the other gateways: redis does not answer"
            );
        }
    }

    async fn ask(&self, sid: &str) -> Option<Home> {
        let asked = self.redis.as_ref()?.get::<Option<String>, _>(self.key(sid));
        let asked = timeout(PATIENCE, asked).await;
        let value = asked.ok()?.ok()??;
        let (address, id) = value.split_once(' ')?;
        Some(Home {
            id: id.into(),
            address: address.into(),
            told: Instant::now(),
        })
    }

    fn key(&self, sid: &str) -> String {
        self.keys.key(&format!("gateway:session:{sid}"))
    }

    fn known(&self) -> MutexGuard<'_, Generations> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn insert(&mut self, sid: &str, home: Home) {
        if self.young.len() >= REMEMBERED && !self.young.contains_key(sid) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(sid.to_owned(), home);
    }

    fn get(&mut self, sid: &str) -> Option<Home> {
        if let Some(home) = self.young.get(sid) {
            return Some(home.clone());
        }
        let home = self.old.remove(sid)?;
        self.insert(sid, home.clone());
        Some(home)
    }

    fn remove(&mut self, sid: &str) {
        self.young.remove(sid);
        self.old.remove(sid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_is_read_from_the_open_packet() {
        let open = br#"0{"sid":"aB3_-x","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000}"#;
        assert_eq!(opened(open).as_deref(), Some("aB3_-x"));
        assert_eq!(
            opened(&[&open[..], b"\x1e40"].concat()).as_deref(),
            Some("aB3_-x")
        );
        for bad in [
            &b""[..],
            b"4{}",
            b"0{",
            br#"0{"sid":""}"#,
            br#"0{"sid":"a b"}"#,
            br#"{"sid":"a"}"#,
        ] {
            assert_eq!(opened(bad), None);
        }
    }

    #[test]
    fn the_query_is_read() {
        let read = |query| EngineQuery::read(Some(query));
        let query = |polling, sid: Option<&str>| {
            Some(EngineQuery {
                version: 4,
                polling,
                sid: sid.map(str::to_owned),
            })
        };
        assert_eq!(read("EIO=4&transport=polling&t=x"), query(true, None));
        assert_eq!(
            read("transport=websocket&EIO=4&sid=a"),
            query(false, Some("a"))
        );
        assert_eq!(read("transport=polling"), None);
        assert_eq!(EngineQuery::read(None), None);
    }

    #[test]
    fn memory_is_bounded_and_keeps_what_is_used() {
        let home = Home {
            id: "a".into(),
            address: "b".into(),
            told: Instant::now(),
        };
        let mut known = Generations::default();
        for round in 0..4 * REMEMBERED {
            known.insert(&round.to_string(), home.clone());
            assert!(known.get("0").is_some(), "used all the time");
        }
        assert!(known.young.len() + known.old.len() <= 2 * REMEMBERED);
        assert!(known.get("1").is_none());
    }

    #[test]
    fn any_packet_opens_a_plain_session_or_none() {
        const WORDS: [&str; 10] = [
            "0",
            "{\"sid\":\"",
            "\"}",
            "aB3_-",
            "\u{1e}",
            "4",
            "\",\"upgrades\":[]",
            "\\u0041",
            "\\",
            "\"sid\":1",
        ];
        bolero::check!()
            .with_iterations(3_000)
            .with_max_len(24)
            .for_each(|bytes: &[u8]| {
                assert_eq!(opened(bytes).filter(|sid| !is_session(sid)), None);
                let text = testkit::any::text(bytes, &WORDS);
                if let Some(sid) = opened(text.as_bytes()) {
                    assert!(is_session(&sid), "{text}");
                }
                let plain: String = text
                    .chars()
                    .filter(char::is_ascii_alphanumeric)
                    .take(64)
                    .collect();
                let said = format!("0{{\"pingInterval\":1,\"sid\":\"{plain}\"}}\u{1e}{text}");
                assert_eq!(
                    opened(said.as_bytes()),
                    Some(plain).filter(|plain| !plain.is_empty())
                );
            });
    }

    #[test]
    fn any_query_goes_on_with_what_came_first_as_its_service_reads_it() {
        const WORDS: [&str; 8] = [
            "EIO=4",
            "&",
            "&sid=",
            "abc",
            "&transport=",
            "polling",
            "websocket",
            "&EIO=",
        ];
        bolero::check!()
            .with_iterations(3_000)
            .with_max_len(16)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                let first = EngineQuery {
                    version: 4,
                    polling: true,
                    sid: Some("abc".to_owned()),
                };
                let query = format!("sid=abc&EIO=4&transport=polling&{text}");
                assert_eq!(EngineQuery::read(Some(&query)), Some(first), "{text}");

                if let Some(sid) = EngineQuery::read(Some(&text)).and_then(|query| query.sid) {
                    assert!(
                        text.contains(&format!("sid={sid}")) && !sid.contains('&'),
                        "{text}"
                    );
                }
            });
    }
}
