//! Preferences: what users want to be told, by which ways, and when.

pub mod api;
pub mod db;
pub mod hold;

use contracts::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::types::Json;

use crate::delivery::db::Leave;
use crate::notification::{Channel, Draft, Kind, Priority};
use crate::template::LANGUAGE;
use hold::QuietHours;

/// How long what leaves the platform is gathered.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum Digest {
    /// Not at all.
    #[default]
    Off,
    /// Until the next full hour.
    Hourly,
    /// Until nine in the morning.
    Daily,
}

/// What a user wants for the notifications of one type.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Wishes {
    enabled: Option<bool>,
    channels: Option<Json<Vec<Channel>>>,
    email_enabled: Option<bool>,
    sms_enabled: Option<bool>,
    language: Option<String>,
    quiet_hours: Option<Json<QuietHours>>,
    digest: Option<Digest>,
    has_webhook: bool,
}

impl Wishes {
    /// Whether a notification is stored. An urgent one always is.
    pub fn take(&self, priority: Priority) -> bool {
        priority == Priority::Urgent || self.enabled != Some(false)
    }

    /// The language of its words.
    pub fn language(&self) -> &str {
        self.language.as_deref().unwrap_or(LANGUAGE)
    }

    /// The ways that a notification takes. Those that its sender named are narrowed to those that the user chose;
    /// otherwise it takes those that the user chose, and only without a choice those that suggest themselves: the user's
    /// webhook is one of them. What a plain user wrote takes neither mail nor text messages.
    pub fn ways(&self, draft: &Draft) -> Vec<Channel> {
        let chosen = self.channels.as_ref().map(|channels| &channels.0);
        let mut ways = match (chosen, draft.channels_named) {
            (None, true) => draft.channels.clone(),
            (None, false) => [draft.channels.as_slice(), &[Channel::Webhook]].concat(),
            (Some(chosen), false) => chosen.clone(),
            (Some(chosen), true) => {
                let mut named = draft.channels.clone();
                named.retain(|channel| chosen.contains(channel));
                named
            }
        };
        ways.retain(|channel| match channel {
            Channel::Email | Channel::Sms if draft.by_user => false,
            Channel::Email => self.email_enabled != Some(false),
            Channel::Sms => self.sms_enabled != Some(false),
            // One that was named and is not there has failed for its sender to see.
            Channel::Webhook => self.has_webhook || draft.channels_named,
            Channel::Websocket => true,
        });
        without_repeats(ways)
    }

    /// Whether a notification that was to take a way still may, by what the user wants now.
    pub fn still(&self, priority: Priority, way: Channel) -> bool {
        let chosen = self.channels.as_ref().map(|channels| &channels.0);
        let is_on = match way {
            Channel::Email => self.email_enabled != Some(false),
            Channel::Sms => self.sms_enabled != Some(false),
            Channel::Webhook | Channel::Websocket => true,
        };
        is_on && self.take(priority) && chosen.is_none_or(|chosen| chosen.contains(&way))
    }

    /// Until when the user is not to be disturbed by what is not urgent; none where it may come now.
    pub fn quiet_until(&self, now: Timestamp) -> Option<Timestamp> {
        let quiet = self.quiet_hours.as_ref().map(|quiet| &quiet.0);
        let end = hold::leaves_at(quiet, Digest::Off, now);
        (end > now).then_some(end)
    }

    /// When a notification may leave the platform by e-mail, text message or webhook, and whether with others in one
    /// message. An urgent one may at once.
    pub fn leave(&self, priority: Priority, now: Timestamp) -> Leave {
        if priority == Priority::Urgent {
            return Leave {
                at: now,
                together: false,
                urgent: true,
            };
        }
        let quiet = self.quiet_hours.as_ref().map(|quiet| &quiet.0);
        let digest = self.digest.unwrap_or_default();
        Leave {
            at: hold::leaves_at(quiet, digest, now),
            together: digest != Digest::Off,
            urgent: false,
        }
    }
}

/// Each channel once, in its order.
pub fn without_repeats(channels: Vec<Channel>) -> Vec<Channel> {
    let mut once = Vec::new();
    for channel in channels {
        if !once.contains(&channel) {
            once.push(channel);
        }
    }
    once
}

/// Every type there is, with what it is about.
pub const KINDS: [(Kind, &str); 5] = [
    (Kind::System, "The platform itself"),
    (Kind::Billing, "Orders, payments and the balance"),
    (Kind::Device, "Devices"),
    (Kind::Promotion, "Something to buy"),
    (Kind::Security, "The safety of the account"),
];

#[cfg(test)]
mod tests {
    use Channel::{Email, Sms, Webhook, Websocket};

    use super::*;

    fn wishes(channels: Option<Vec<Channel>>) -> Wishes {
        Wishes {
            enabled: None,
            channels: channels.map(Json),
            email_enabled: None,
            sms_enabled: Some(false),
            language: None,
            quiet_hours: None,
            digest: None,
            has_webhook: true,
        }
    }

    #[test]
    fn a_sender_cannot_widen_what_a_user_chose_and_an_event_follows_it() {
        for (chosen, named, channels, ways) in [
            (None, true, vec![Email, Email, Sms], vec![Email]),
            (None, false, vec![Websocket], vec![Websocket, Webhook]),
            (
                Some(vec![Email, Websocket]),
                true,
                vec![Webhook, Email],
                vec![Email],
            ),
            (
                Some(vec![Email, Webhook]),
                false,
                vec![Websocket],
                vec![Email, Webhook],
            ),
            (Some(vec![]), false, vec![Websocket], vec![]),
        ] {
            let draft = Draft::plain("u".parse().unwrap(), channels, named);
            assert_eq!(
                wishes(chosen.clone()).ways(&draft),
                ways,
                "{chosen:?} {named}"
            );
        }
    }

    #[test]
    fn only_what_is_urgent_comes_in_spite_of_its_user() {
        let mut wishes = wishes(None);
        wishes.enabled = Some(false);

        assert!(wishes.take(Priority::Urgent) && !wishes.take(Priority::High));
    }
}
