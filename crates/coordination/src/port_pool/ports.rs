//! Kinds of ports, their ranges on a node, and one set of them.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// What a port of a device is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortKind {
    /// Debug bridge.
    Adb,
    /// Video in the browser.
    Webrtc,
    /// Video in the scrcpy client.
    Scrcpy,
}

impl PortKind {
    /// Every kind, in the order of a set.
    pub const ALL: [Self; 3] = [Self::Adb, Self::Webrtc, Self::Scrcpy];

    /// The name in keys and texts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Adb => "adb",
            Self::Webrtc => "webrtc",
            Self::Scrcpy => "scrcpy",
        }
    }

    /// The reverse of [`PortKind::as_str`].
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl fmt::Display for PortKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The three ports of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortSet {
    /// Debug bridge.
    pub adb: u16,
    /// Video in the browser.
    pub webrtc: u16,
    /// Video in the scrcpy client.
    pub scrcpy: u16,
}

impl PortSet {
    /// The port of a kind.
    pub fn of(self, kind: PortKind) -> u16 {
        match kind {
            PortKind::Adb => self.adb,
            PortKind::Webrtc => self.webrtc,
            PortKind::Scrcpy => self.scrcpy,
        }
    }

    /// As arguments of a script, in the order of its kinds.
    pub fn arguments(self) -> [String; 3] {
        [
            self.adb.to_string(),
            self.webrtc.to_string(),
            self.scrcpy.to_string(),
        ]
    }
}

/// Which ports a node gives to devices. All replicas of a cluster must agree on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRanges {
    /// Debug bridge, 5555 to 6554 unless configured.
    pub adb: RangeInclusive<u16>,
    /// Video in the browser, 8080 to 9079 unless configured.
    pub webrtc: RangeInclusive<u16>,
    /// Video in the scrcpy client, 27183 to 28182 unless configured.
    pub scrcpy: RangeInclusive<u16>,
}

impl Default for PortRanges {
    fn default() -> Self {
        Self {
            adb: 5555..=6554,
            webrtc: 8080..=9079,
            scrcpy: 27183..=28182,
        }
    }
}

impl PortRanges {
    /// The ports of one kind.
    pub fn of(&self, kind: PortKind) -> &RangeInclusive<u16> {
        match kind {
            PortKind::Adb => &self.adb,
            PortKind::Webrtc => &self.webrtc,
            PortKind::Scrcpy => &self.scrcpy,
        }
    }

    /// How many ports of one kind there are.
    pub fn total(&self, kind: PortKind) -> u32 {
        u32::try_from(self.of(kind).len()).unwrap_or(u32::MAX)
    }

    /// The ranges as one text, after the version of the index: one built for another text is built anew.
    pub fn layout(&self) -> String {
        let one =
            |kind: PortKind| format!("{kind}={}-{}", self.of(kind).start(), self.of(kind).end());
        format!(
            "3;{};{};{}",
            one(PortKind::Adb),
            one(PortKind::Webrtc),
            one(PortKind::Scrcpy)
        )
    }
}
