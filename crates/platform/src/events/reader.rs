//! The reading end of the stream: what came for one group.

use std::collections::HashMap;
use std::time::Duration;

use contracts::Event;
use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike, StreamsInterface};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{FIELD, STREAM};
use crate::Platform;
use crate::redis::Switches;

const BATCH: u64 = 64;
/// Below the command time-out of the clients.
const BLOCK_MILLISECONDS: u64 = 1_000;
const CLOSE_DEADLINE: Duration = Duration::from_millis(500);
/// All readers of a group share a name: with nothing pending in Redis nothing is anybody's own.
const READER: &str = "any";

type Entries = HashMap<String, Vec<(String, HashMap<String, String>)>>;

/// Reads the stream for a group, on a connection of its own: a read that blocks holds it.
pub struct Reader {
    client: Client,
    key: String,
    group: &'static str,
    switches: Switches,
}

impl Reader {
    pub async fn connect(platform: &Platform, group: &'static str) -> anyhow::Result<Self> {
        Ok(Self {
            client: crate::redis::short_lived(&platform.redis_url).await?,
            key: platform.keys.key(STREAM),
            group,
            switches: platform.redis_switches.clone(),
        })
    }

    /// Reads what came. Nothing is kept pending in Redis: the outbox publishes again what was not handled.
    pub async fn read(&mut self) -> anyhow::Result<Vec<Event>> {
        let (count, block) = (Some(BATCH), Some(BLOCK_MILLISECONDS));
        let reading = self
            .client
            .xreadgroup_map(self.group, READER, count, block, true, &self.key, ">");
        let answer: Result<Entries, Error> = tokio::select! {
            answer = reading => answer,
            () = self.switches.away(&self.client) => anyhow::bail!("another server is the master of Redis now"),
        };
        match answer {
            Ok(entries) => Ok(entries.into_values().flatten().filter_map(event).collect()),
            // Nothing came in the time of the block: the answer is nil, which is no map.
            Err(error) if is_nil(&error) => Ok(Vec::new()),
            Err(error) if error.details().contains("NOGROUP") => {
                self.make_group().await?;
                Ok(Vec::new())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Redis is new or has lost its data. From the stream's beginning: handling twice has no second effect.
    async fn make_group(&self) -> Result<(), Error> {
        let made = self
            .client
            .xgroup_create::<(), _, _, _>(&self.key, self.group, "0", true)
            .await;
        match made {
            // Another replica was quicker.
            Err(error) if error.details().contains("BUSYGROUP") => Ok(()),
            made => made,
        }
    }

    /// Connects anew: the client does not notice that a server has gone silent during a read that blocks.
    pub async fn renew(&mut self, platform: &Platform) {
        match crate::redis::short_lived(&platform.redis_url).await {
            Ok(client) => {
                let old = std::mem::replace(&mut self.client, client);
                close(&old).await;
            }
            Err(error) => debug!(
                "no new connection for the events of {}: {error:#}",
                self.group
            ),
        }
    }

    /// Ends the connection.
    pub async fn close(&self) {
        close(&self.client).await;
    }
}

fn is_nil(error: &Error) -> bool {
    *error.kind() == ErrorKind::NotFound
        || (*error.kind() == ErrorKind::Parse && error.details().contains("Cannot convert to map"))
}

async fn close(client: &Client) {
    let _ = timeout(CLOSE_DEADLINE, client.quit()).await;
}

fn event((id, fields): (String, HashMap<String, String>)) -> Option<Event> {
    let text = fields.get(FIELD)?;
    serde_json::from_str(text)
        .inspect_err(|error| {
            warn!("the stream entry {id} is not an event, left to newer replicas: {error}");
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use contracts::{EventBody, Timestamp, UserId};

    use super::*;

    fn read(text: &str) -> Option<Event> {
        event((
            "1-0".to_owned(),
            HashMap::from([(FIELD.to_owned(), text.to_owned())]),
        ))
    }

    #[test]
    fn any_entry_of_the_stream_is_an_event_that_was_sent_or_none() {
        const WORDS: [&str; 16] = [
            "id",
            "userId",
            "occurredAt",
            "type",
            "data",
            "user.locked",
            "until",
            "2025-10-22T08:00:00.000Z",
            "u1",
            "username",
            "user.registered",
            "session.ended",
            "sessionId",
            "name",
            "deviceId",
            "device.created",
        ];
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(96)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::json(bytes, &WORDS).to_string();
                for text in [text, testkit::any::text(bytes, &WORDS)] {
                    if let Some(event) = read(&text) {
                        let again = serde_json::to_string(&event).unwrap();
                        assert_eq!(read(&again), Some(event), "{text}");
                    }
                }
            });
        bolero::check!()
            .with_type::<(String, i32)>()
            .with_iterations(500)
            .for_each(|(username, seconds)| {
                let at: Timestamp = chrono::DateTime::from_timestamp(i64::from(*seconds), 0)
                    .unwrap()
                    .into();
                for body in [
                    EventBody::UserRegistered {
                        username: username.clone(),
                    },
                    EventBody::UserLocked { until: at },
                ] {
                    let sent = Event::new(UserId::new(), at, body);
                    assert_eq!(read(&serde_json::to_string(&sent).unwrap()), Some(sent));
                }
            });
    }
}
