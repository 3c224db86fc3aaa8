//! What can be said about the ports of a node: who holds which, and what rests and why.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{PortKind, PortSet};

/// Why a port rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestReason {
    /// Its owner gave it back a moment ago.
    Returned,
    /// Its owner no longer renewed it.
    Expired,
    /// A program that is none of ours listens on it.
    ForeignProcess,
    /// The operating system does not let us listen on it.
    NotPermitted,
    /// Its lease outlived the index's knowledge of it; it rests until that has ended.
    Leased,
}

impl RestReason {
    /// Every reason there is.
    pub const ALL: [Self; 5] = [
        Self::Returned,
        Self::Expired,
        Self::ForeignProcess,
        Self::NotPermitted,
        Self::Leased,
    ];

    /// The name in stores and texts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Returned => "returned",
            Self::Expired => "expired",
            Self::ForeignProcess => "foreign-process",
            Self::NotPermitted => "not-permitted",
            Self::Leased => "leased",
        }
    }

    /// The reverse of [`RestReason::as_str`].
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }
}

impl fmt::Display for RestReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set that somebody holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldSet {
    /// Who.
    pub owner: String,
    /// Which ports.
    pub ports: PortSet,
    /// Since when, by the clock of Redis; after a loss of its data, since the rebuild.
    pub since: DateTime<Utc>,
    /// When the lease ends unless it is renewed.
    pub until: DateTime<Utc>,
}

/// A port that nobody may have for the time being.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestingPort {
    /// Its kind.
    pub kind: PortKind,
    /// Its number.
    pub port: u16,
    /// Why.
    pub reason: RestReason,
    /// Since when, by the clock of Redis.
    pub since: DateTime<Utc>,
    /// When it can be leased again.
    pub until: DateTime<Utc>,
}

/// What the database knows of the ports of a node: all that is left where Redis lost its data.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// Who holds which set.
    pub held: Vec<(String, PortSet)>,
    /// What rests.
    pub resting: Vec<RecordedRest>,
}

/// A port that rests, as the database tells it.
#[derive(Clone, Copy, Debug)]
pub struct RecordedRest {
    /// Its kind.
    pub kind: PortKind,
    /// Its number.
    pub port: u16,
    /// Why.
    pub reason: RestReason,
    /// For how long so far.
    pub rested: Duration,
    /// For how long still.
    pub left: Duration,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Ports taken back because nobody renewed them.
    pub expired: u32,
    /// Ports whose rest was over.
    pub woken: u32,
    /// Whether a further sweep would find more.
    pub more: bool,
    /// By how many ports of a kind the index is wrong, with some in no place or in two, which a store that drops single keys
    /// or a moving slot of a cluster brings about: call [`super::PortPool::reconcile`].
    pub lost: u32,
}

/// Reads the answer of `leases.lua`, lowest port first; `None` where it is none.
pub fn held_sets(answer: &[String]) -> Option<Vec<HeldSet>> {
    let sets = answer.chunks(2).map(|row| {
        let [owner, entry] = row else { return None };
        let mut numbers = entry.split(',');
        let mut port = || numbers.next()?.parse().ok();
        let ports = PortSet {
            adb: port()?,
            webrtc: port()?,
            scrcpy: port()?,
        };
        Some(HeldSet {
            owner: owner.clone(),
            ports,
            since: moment(numbers.next()?)?,
            until: moment(numbers.next()?)?,
        })
    });
    let mut sets: Vec<HeldSet> = sets.collect::<Option<_>>()?;
    sets.sort_by_key(|set| set.ports.adb);
    Some(sets)
}

/// Reads the answer of `resting.lua`, by kind and number; `None` where it is none.
pub fn resting_ports(answer: &[String]) -> Option<Vec<RestingPort>> {
    let ports = answer.chunks(3).map(|row| {
        let [name, end, rest] = row else {
            return None;
        };
        let (kind, port) = name.split_once(':')?;
        let (reason, since) = rest.split_once(',')?;
        Some(RestingPort {
            kind: PortKind::parse(kind)?,
            port: port.parse().ok()?,
            reason: RestReason::parse(reason)?,
            since: moment(since)?,
            until: moment(end)?,
        })
    });
    let mut ports: Vec<RestingPort> = ports.collect::<Option<_>>()?;
    ports.sort_by_key(|resting| (resting.kind.as_str(), resting.port));
    Some(ports)
}

fn moment(milliseconds: &str) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(milliseconds.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_named_alike_in_stores_and_in_json() {
        for reason in RestReason::ALL {
            assert_eq!(RestReason::parse(reason.as_str()), Some(reason));
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }

    #[test]
    fn any_answer_of_redis_is_leases_and_rests_or_none() {
        const WORDS: [&str; 16] = [
            "owner",
            ",",
            "5555",
            "8080",
            "27183",
            "1700000000000",
            "adb",
            "webrtc",
            ":",
            "returned",
            "65536",
            "-1",
            "",
            "x",
            "5555,8080,27183,1,2",
            "adb:5555",
        ];
        bolero::check!()
            .with_type::<Vec<Vec<u8>>>()
            .with_iterations(1_000)
            .for_each(|rows| {
                let answer: Vec<String> = rows
                    .iter()
                    .map(|row| testkit::any::text(&row[..row.len().min(6)], &WORDS))
                    .collect();
                if let Some(sets) = held_sets(&answer) {
                    assert_eq!(sets.len() * 2, answer.len());
                    assert!(sets.is_sorted_by_key(|set| set.ports.adb));
                }
                if let Some(rests) = resting_ports(&answer) {
                    assert_eq!(rests.len() * 3, answer.len());
                }
            });
        bolero::check!()
            .with_type::<(u16, u16, u16, i32)>()
            .with_iterations(500)
            .for_each(|(adb, webrtc, scrcpy, since)| {
                let told = [
                    "o".to_owned(),
                    format!("{adb},{webrtc},{scrcpy},{since},{since}"),
                ];
                let sets = held_sets(&told).unwrap();
                assert_eq!(
                    sets[0].ports,
                    PortSet {
                        adb: *adb,
                        webrtc: *webrtc,
                        scrcpy: *scrcpy
                    }
                );
                assert_eq!(sets[0].since.timestamp_millis(), i64::from(*since));
            });
    }
}
