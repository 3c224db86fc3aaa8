//! The ways in for sockets: who may, what they may ask for. Each transport has a file of its own.

mod door;
pub mod plain;
pub mod socketio;
pub mod stream;
mod transport;

use std::sync::Arc;

use contracts::{SessionId, UserId};
use futures::StreamExt;
use http::{Extensions, HeaderMap, StatusCode, Uri, header};
use platform::http::is_loopback;
use platform::{Platform, Problem};
use serde::Deserialize;
use serde_json::{Value, json};

pub use door::{PLAIN_PATH, wrap};

use crate::hub::{Frame, Goodbye, Hub, Identity, Live, Place, TooMany};
use crate::notification::db::Head;

/// Bytes that a client may send in one message.
pub const MAX_INCOMING: usize = 64 * 1024;
/// Sockets that one user may have at one instance: each may have 256 frames waiting.
const MAX_SOCKETS: usize = 100;
const CHECKS_AT_ONCE: usize = 16;

/// What every transport needs.
#[derive(Clone, Debug)]
pub struct Sockets {
    /// Stores, clock and tokens.
    pub platform: Platform,
    /// The live sockets.
    pub hub: Arc<Hub>,
}

/// What a client says of itself when it connects.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Hello {
    /// The access token.
    pub token: Option<String>,
    /// Whom it claims to be; believed only in the sandbox.
    pub user_id: Option<String>,
    /// The number of the last notification it saw.
    #[serde(deserialize_with = "number")]
    pub last_seq: Option<i64>,
}

/// Where a new socket begins; nowhere if the store did not say.
#[derive(Debug)]
pub enum Arrival {
    /// At a place among its user's notifications.
    User(Option<Place>),
    /// Where all users' notifications stood.
    Anybody(Option<Vec<Head>>),
}

/// Whom to follow from now on.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subscribe {
    user_id: UserId,
    #[serde(default, deserialize_with = "number")]
    last_seq: Option<i64>,
}

/// A number, or a text that reads as one.
fn number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    match Option::<Value>::deserialize(deserializer)? {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => text.parse().map(Some).map_err(serde::de::Error::custom),
        Some(value) => value
            .as_i64()
            .map(Some)
            .ok_or_else(|| serde::de::Error::custom("must be a whole number")),
    }
}

impl Hello {
    /// What the query and the headers say.
    ///
    /// # Errors
    /// 400 where a parameter cannot be read.
    pub fn of(uri: &Uri, headers: &HeaderMap) -> Result<Self, Problem> {
        let mut hello = Self::default();
        for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            match &*name {
                "token" if !value.is_empty() => hello.token = Some(value.into_owned()),
                "userId" if !value.is_empty() => hello.user_id = Some(value.into_owned()),
                "lastSeq" if !value.is_empty() => {
                    let seq = value
                        .parse()
                        .map_err(|_| Problem::invalid_field("lastSeq", "must be a whole number"))?;
                    hello.last_seq = Some(seq);
                }
                _ => {}
            }
        }
        if hello.token.is_none() {
            hello.token = bearer(headers);
        }
        Ok(hello)
    }

    /// What this one says, and where it is silent what the other one does.
    pub fn or(self, other: Self) -> Self {
        Self {
            token: self.token.filter(|token| !token.is_empty()).or(other.token),
            user_id: self.user_id.or(other.user_id),
            last_seq: self.last_seq.or(other.last_seq),
        }
    }
}

/// A header that is no bearer token counts as a bad one.
fn bearer(headers: &HeaderMap) -> Option<String> {
    let text = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .unwrap_or_default();
    let (scheme, token) = text.split_once(' ').unwrap_or_default();
    Some(if scheme.eq_ignore_ascii_case("bearer") {
        token.trim().to_owned()
    } else {
        text.to_owned()
    })
}

impl Sockets {
    /// Who may come in: the holder of a valid token; in the sandbox also a user by name, or nobody.
    ///
    /// # Errors
    /// 401 for everybody else, 429 for who has too many sockets here, 503 where no store can tell.
    pub async fn admit(
        &self,
        hello: &Hello,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Result<Identity, Problem> {
        let in_sandbox = self.platform.auth.sandbox() && is_loopback(headers, extensions);
        if let Some(token) = &hello.token {
            let user = self.platform.auth.authenticate(token).await?;
            let session = user.session()?.clone();
            if self.hub.sockets_of(&user.id) >= MAX_SOCKETS {
                return Err(Problem::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "TOO_MANY_SOCKETS",
                    "this user has 100 sockets at this instance: close some",
                ));
            }
            return Ok(Identity {
                user: Some(user.id),
                credentials: Some((token.as_str().into(), session)),
                is_admin: user.is_admin,
                in_sandbox,
            });
        }
        if !in_sandbox {
            return Err(Problem::unauthenticated("sign in: a token is required"));
        }
        let user = hello.user_id.as_deref().map(str::parse).transpose();
        let user = user.map_err(|error: contracts::InvalidId| {
            Problem::invalid_field("userId", error.to_string())
        })?;
        Ok(Identity {
            user,
            in_sandbox,
            ..Identity::default()
        })
    }

    /// Fixes from where on a socket is given notifications. It comes before everything else, so that nothing falls
    /// between what the client knows and what it is given.
    pub async fn arrive(&self, live: &Arc<Live>, last_seq: Option<i64>) -> Arrival {
        match &live.identity.user {
            // One user is never too many.
            Some(user) => Arrival::User(
                self.hub
                    .take_place(live, user, last_seq)
                    .await
                    .ok()
                    .flatten(),
            ),
            None => Arrival::Anybody(self.hub.look_around(live).await),
        }
    }

    /// Greets a socket and gives it what it missed.
    pub async fn welcome(&self, live: &Arc<Live>, client_id: &str, arrival: Arrival) {
        let mut greeting = json!({
            "message": "Connected to the notification service",
            "clientId": client_id,
            "instance": self.platform.instance(contracts::Service::Notifications),
            "timestamp": self.platform.clock.now(),
        });
        let mut seq = None;
        if let Arrival::User(Some(place)) = &arrival {
            // Whoever is cut off before the first notification comes back with this one; what is caught up comes after it.
            seq = Some(place.seq);
            greeting["seq"] = place.seq.into();
            if let Some(recovered) = place.recovered {
                greeting["recovered"] = recovered.into();
            }
        }
        let _ = live.send(&Frame::welcome(seq, greeting));
        match arrival {
            Arrival::User(Some(place)) => self.hub.catch_up(live, place).await,
            Arrival::Anybody(Some(heads)) => self.hub.watch_all(live, heads),
            Arrival::User(None) | Arrival::Anybody(None) => {}
        }
    }

    /// `subscribe`: the answer, and the following itself after it.
    pub async fn subscribe(&self, live: &Arc<Live>, ask: Result<Subscribe, ()>) -> Arc<Frame> {
        let Ok(ask) = ask else {
            return malformed("subscribe", "{userId}");
        };
        if !live.identity.may_follow(&ask.user_id) {
            return Frame::error(
                "FORBIDDEN",
                "only your own notifications can be subscribed to",
            );
        }
        match self.hub.follow(live, &ask.user_id, ask.last_seq).await {
            Ok(recovered) => {
                let mut said = json!({
                    "userId": ask.user_id,
                    "message": "Subscribed to notifications",
                });
                if let Some(recovered) = recovered {
                    said["recovered"] = recovered.into();
                }
                Frame::new("subscribed", said)
            }
            Err(TooMany) => Frame::error("TOO_MANY", "a socket follows at most 100 users"),
        }
    }

    /// `unsubscribe`: the answer.
    pub fn unsubscribe(&self, live: &Live, ask: Result<Subscribe, ()>) -> Arc<Frame> {
        let Ok(ask) = ask else {
            return malformed("unsubscribe", "{userId}");
        };
        self.hub.unfollow(live, &ask.user_id);
        answer(
            "unsubscribed",
            "userId",
            ask.user_id.as_str(),
            "Unsubscribed from notifications",
        )
    }

    /// Ends the sockets of sessions that have ended and of tokens that have expired: all, or those of one session.
    pub async fn check_sessions(&self, session: Option<&SessionId>) {
        let held = self.hub.held_by(session);
        futures::stream::iter(held)
            .for_each_concurrent(CHECKS_AT_ONCE, async |live| {
                let Some((token, session)) = &live.identity.credentials else {
                    return;
                };
                let now = self.platform.clock.now();
                // Where no store can tell, sockets stay: they were let in by a valid token.
                let living = self
                    .platform
                    .auth
                    .sessions()
                    .is_living(session, now)
                    .await
                    .unwrap_or(true);
                if !living || self.platform.auth.tokens().verify(token, now).is_err() {
                    self.hub.cut(&live, Goodbye::SessionEnded);
                }
            })
            .await;
    }
}

/// An answer that names what it is about, and says it in words.
pub fn answer(event: &'static str, field: &str, value: &str, message: &str) -> Arc<Frame> {
    Frame::new(event, json!({ field: value, "message": message }))
}

/// The refusal of a message that cannot be read.
pub fn malformed(event: &str, shape: &str) -> Arc<Frame> {
    Frame::error("VALIDATION_FAILED", &format!("{event} wants {shape}"))
}

/// What a transport does when a socket was ended by us: the last frame that says why, where it was not told before.
pub fn farewell(live: &Live) -> Option<(Goodbye, Option<Arc<Frame>>)> {
    let goodbye = live.goodbye()?;
    let reason = match goodbye {
        Goodbye::Leaving => live.untold_restart(),
        _ => Some(Frame::error(goodbye.code(), goodbye.message())),
    };
    Some((goodbye, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_read_from_query_and_header() {
        let uri: Uri = "/ws/notifications?token=a&lastSeq=7&userId=u%201"
            .parse()
            .unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, "Bearer b".parse().unwrap());

        let hello = Hello::of(&uri, &headers).unwrap();
        let by_header = Hello::of(&"/".parse().unwrap(), &headers).unwrap();

        assert_eq!(
            (
                hello.token.as_deref(),
                hello.user_id.as_deref(),
                hello.last_seq
            ),
            (Some("a"), Some("u 1"), Some(7))
        );
        assert_eq!(by_header.token.as_deref(), Some("b"));
        assert!(Hello::of(&"/?lastSeq=x".parse().unwrap(), &headers).is_err());
    }

    #[test]
    fn rooms_are_ones_own_unless_the_sandbox_is_open() {
        let alice = Identity {
            user: "alice".parse().ok(),
            ..Identity::default()
        };
        let admin = Identity {
            is_admin: true,
            ..alice.clone()
        };
        let guest = Identity {
            in_sandbox: true,
            ..Identity::default()
        };

        assert!(
            alice.may_join("user:alice") && !alice.may_join("user:bob") && !alice.may_join("admin")
        );
        assert!(admin.may_join("admin") && !admin.may_join("user:bob"));
        assert!(guest.may_join("anything"));
    }

    #[test]
    fn any_message_of_a_client_is_understood_or_refused() {
        const WORDS: [&str; 16] = [
            "event",
            "data",
            "subscribe",
            "unsubscribe",
            "ping",
            "userId",
            "lastSeq",
            "alice",
            "7",
            "token",
            "room",
            "-1",
            "user:alice",
            "9223372036854775808",
            "",
            "a b",
        ];
        bolero::check!()
            .with_iterations(3_000)
            .with_max_len(48)
            .for_each(|bytes: &[u8]| {
                let json = testkit::any::json(bytes, &WORDS);
                if !json.is_object() {
                    return;
                }
                if let Ok(ask) = serde_json::from_value::<Subscribe>(json.clone()) {
                    assert!(contracts::id::is_valid(ask.user_id.as_str()), "{json}");
                    let said = &json["lastSeq"];
                    let number = said.as_i64().or_else(|| said.as_str()?.parse().ok());
                    assert_eq!(ask.last_seq, number, "{json}");
                }
                if let Ok(hello) = serde_json::from_value::<Hello>(json.clone()) {
                    assert_eq!(hello.token.as_deref(), json["token"].as_str(), "{json}");
                }
                let incoming = serde_json::from_str::<plain::Incoming>(&json.to_string());
                assert!(incoming.is_err() || json["event"].is_string(), "{json}");
                let room = serde_json::from_value::<socketio::Room>(json.clone());
                assert!(room.is_err() || json["room"].is_string(), "{json}");
            });
    }

    #[test]
    fn any_query_and_header_say_who_comes_or_are_refused() {
        const WORDS: [&str; 12] = [
            "token=", "userId=", "lastSeq=", "&", "7", "abc", "%00", "+", "Bearer ", "bearer", "-",
            "x.y.z",
        ];
        bolero::check!()
            .with_iterations(3_000)
            .with_max_len(16)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                let mut headers = HeaderMap::new();
                if let Ok(value) = text.parse() {
                    headers.insert(header::AUTHORIZATION, value);
                }
                let bears = headers.contains_key(header::AUTHORIZATION);
                let Ok(uri) = format!("/?{text}").parse::<Uri>() else {
                    return;
                };
                match Hello::of(&uri, &headers) {
                    // Who shows a header is never nobody.
                    Ok(hello) => {
                        assert!(hello.token.is_some() || !bears, "{text}");
                        assert!(hello.user_id.is_none_or(|id| !id.is_empty()), "{text}");
                    }
                    Err(problem) => {
                        assert_eq!(problem.fields().collect::<Vec<_>>(), ["lastSeq"], "{text}")
                    }
                }
            });
    }

    #[test]
    fn any_room_is_joined_by_its_owner_alone() {
        const WORDS: [&str; 8] = ["user:", "alice", "admin", "bob", ":", "user:alice", "a", ""];
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(6)
            .for_each(|bytes: &[u8]| {
                let room = testkit::any::text(bytes, &WORDS);
                let alice = Identity {
                    user: "alice".parse().ok(),
                    credentials: None,
                    is_admin: false,
                    in_sandbox: false,
                };
                assert_eq!(alice.may_join(&room), room == "user:alice", "{room}");
                let admin = Identity {
                    is_admin: true,
                    user: None,
                    ..alice
                };
                assert_eq!(admin.may_join(&room), room == "admin", "{room}");
            });
    }
}
