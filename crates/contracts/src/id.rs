//! Identifiers: opaque texts of 1 to 64 characters from `A-Z a-z 0-9 _ . : -`. The ones we make are lower-case UUIDs
//! of version 7, so that they sort by the time of their making.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

/// The longest identifier accepted, in characters.
pub const MAX_LENGTH: usize = 64;

/// A text that is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id is 1 to 64 characters from A-Z a-z 0-9 _ . : -")]
pub struct InvalidId;

/// Whether a text may stand as an identifier.
pub fn is_valid(text: &str) -> bool {
    (1..=MAX_LENGTH).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte))
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, sqlx::Type, utoipa::ToSchema)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        #[schema(value_type = String, example = "0198f3c2-7d1e-7c4a-9b1d-6f2f3a9c1e55")]
        pub struct $name(String);

        impl $name {
            /// Makes a new identifier that sorts after those made before it.
            #[expect(clippy::new_without_default, reason = "a default id would hide that a new one is made")]
            #[expect(clippy::disallowed_methods, reason = "the one place that makes ids")]
            pub fn new() -> Self {
                Self(Uuid::now_v7().to_string())
            }

            /// Returns the identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                if is_valid(text) { Ok(Self(text.to_owned())) } else { Err(InvalidId) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

ids! {
    /// A person who rents devices.
    UserId,
    /// A sign-in of a user; the `sid` of its tokens.
    SessionId,
    /// A secret by which a program acts for its user.
    ApiKeyId,
    /// A rented Android device.
    DeviceId,
    /// What was on a device at a moment.
    SnapshotId,
    /// An uploaded application package.
    AppId,
    /// A package on its way in, part by part.
    UploadId,
    /// A decision about an uploaded package.
    ReviewId,
    /// A billing plan: a slug such as `basic`.
    PlanId,
    /// A purchase of a plan.
    OrderId,
    /// A movement on the ledger.
    TransactionId,
    /// A message to one user.
    NotificationId,
    /// A message to many users.
    BroadcastId,
    /// Words for notifications.
    TemplateId,
    /// A media task.
    TaskId,
    /// Credits set aside for a media task.
    CreditHoldId,
    /// A domain event in the outbox.
    EventId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_clients_send_and_refuses_the_rest() {
        for text in ["test", "test-device-001", "A.b:c_d-9", &"x".repeat(64)] {
            assert!(text.parse::<UserId>().is_ok(), "{text}");
        }
        for text in ["", "a b", "ä", "a/b", &"x".repeat(65)] {
            assert!(text.parse::<UserId>().is_err(), "{text}");
        }
    }

    #[test]
    fn new_ids_sort_by_the_time_of_their_making() {
        let ids: Vec<_> = (0..100).map(|_| DeviceId::new()).collect();

        assert!(ids.is_sorted());
    }

    #[test]
    fn any_text_that_is_an_id_is_plain_and_survives_json() {
        bolero::check!()
            .with_type::<String>()
            .with_iterations(2_000)
            .for_each(|text| {
                let json = serde_json::to_string(text).unwrap();
                let read = serde_json::from_str::<OrderId>(&json);
                assert_eq!(read.is_ok(), is_valid(text));
                if let Ok(id) = read {
                    assert_eq!(id.as_str(), text);
                    assert_eq!(text.parse(), Ok(id.clone()));
                    assert_eq!(serde_json::to_string(&id).unwrap(), json);
                    let is_plain =
                        |byte: u8| byte.is_ascii_graphic() && !b"/%\\\"'".contains(&byte);
                    assert!(text.bytes().all(is_plain));
                }
            });
    }
}
