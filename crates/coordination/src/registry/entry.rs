//! What the registry knows: entries of instances, and snapshots of all of them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// What a replica says about one of its services when it joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announcement {
    /// The service, as `users`.
    pub service: String,
    /// `host:port` that reaches this very instance.
    pub address: String,
    /// The machine.
    pub host: String,
    /// Where the machine stands, as `eu-1a`, where that was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The process.
    pub pid: u32,
    /// The version it runs.
    pub version: String,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// The replica: the same for all services of one process.
    pub replica: String,
}

/// How busy an instance is; told with every heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Load {
    /// Requests that were begun and not answered.
    pub outstanding: u64,
    /// Requests a second, lately.
    pub requests_per_second: f64,
    /// Resident memory of the process.
    pub memory_bytes: u64,
    /// Whether it wants no new requests, because it is leaving.
    pub draining: bool,
}

/// One instance of a service.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// What it said when it joined.
    #[serde(flatten)]
    pub announcement: Announcement,
    /// Its slot.
    pub slot: u32,
    /// Its name: `instance-` and the slot.
    pub instance: String,
    /// When it was last heard of, by the clock of Redis.
    pub heartbeat_at: DateTime<Utc>,
    /// How busy it was then.
    pub load: Load,
}

/// What is stored for an entry: the rest is in its field and in the time before it.
#[derive(Serialize, Deserialize)]
pub struct Stored {
    #[serde(flatten)]
    pub announcement: Announcement,
    pub load: Load,
}

/// The name of the instance in a slot.
pub fn instance_name(slot: u32) -> String {
    format!("instance-{slot}")
}

impl Entry {
    /// Reads what Redis keeps; `None` where another version wrote something this one does not understand.
    pub fn read(field: &str, value: &str) -> Option<Self> {
        let (_, slot) = field.rsplit_once(':')?;
        let (heartbeat, stored) = value.split_once('|')?;
        let stored: Stored = serde_json::from_str(stored).ok()?;
        let slot = slot.parse().ok()?;
        Some(Self {
            announcement: stored.announcement,
            slot,
            instance: instance_name(slot),
            heartbeat_at: DateTime::from_timestamp_millis(heartbeat.parse::<f64>().ok()? as i64)?,
            load: stored.load,
        })
    }
}

/// All instances of all services at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    services: BTreeMap<String, Vec<Entry>>,
}

impl Snapshot {
    /// Sorts entries by service and slot.
    pub fn new(mut entries: Vec<Entry>) -> Self {
        entries.sort_by_key(|entry| entry.slot);
        let mut services: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
        for entry in entries {
            services
                .entry(entry.announcement.service.clone())
                .or_default()
                .push(entry);
        }
        Self { services }
    }

    /// The instances of a service, by slot; empty where there is none.
    pub fn of(&self, service: &str) -> &[Entry] {
        self.services
            .get(service)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// The services that have an instance.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.services.keys().map(String::as_str)
    }

    /// Every instance, by service and slot.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.services.values().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_entry_of_redis_is_an_instance_or_none() {
        const WORDS: [&str; 14] = [
            "users",
            ":",
            "0",
            "|",
            "1700000000000",
            "{",
            "}",
            "1e300",
            "-1",
            "NaN",
            "inf",
            "4294967296",
            "\"load\":{}",
            ".5",
        ];
        let stored = Stored {
            announcement: Announcement {
                service: "users".to_owned(),
                address: "127.0.0.1:1".to_owned(),
                host: "a".to_owned(),
                zone: None,
                pid: 1,
                version: "0.1.0".to_owned(),
                started_at: DateTime::UNIX_EPOCH,
                replica: "r".to_owned(),
            },
            load: Load::default(),
        };
        let json = serde_json::to_string(&stored).unwrap();
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(16)
            .for_each(|bytes: &[u8]| {
                let (half, rest) = bytes.split_at(bytes.len() / 2);
                let (one, other) = (
                    testkit::any::text(half, &WORDS),
                    testkit::any::text(rest, &WORDS),
                );
                if let Some(entry) = Entry::read(&one, &format!("{other}|{json}")) {
                    assert_eq!(entry.announcement, stored.announcement);
                    assert!(
                        one.ends_with(&format!(":{}", entry.slot)) || one.contains(['+', '0']),
                        "{one}"
                    );
                    let told = serde_json::to_value(&entry).unwrap();
                    assert_eq!(told["instance"], instance_name(entry.slot));
                }
                assert_eq!(Entry::read(&one, &other), None, "{one} {other}");
            });
    }
}
