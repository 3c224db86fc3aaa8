//! Where a replica stands, and how far the instances are from it.

/// A machine, and the zone it stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locality {
    /// The machine's name.
    pub host: String,
    /// Its zone, where that was told.
    pub zone: Option<String>,
}

/// How far an instance is, nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distance {
    /// On the same machine.
    Host,
    /// In the same zone.
    Zone,
    /// Elsewhere, or nobody knows where.
    Far,
}

impl Locality {
    /// This machine.
    pub fn here(zone: Option<String>) -> Self {
        Self {
            host: hostname(),
            zone,
        }
    }

    /// How far another one is.
    pub fn distance(&self, other: &Self) -> Distance {
        if self.host == other.host {
            Distance::Host
        } else if self.zone.is_some() && self.zone == other.zone {
            Distance::Zone
        } else {
            Distance::Far
        }
    }
}

impl Distance {
    /// The word for it in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Zone => "zone",
            Self::Far => "far",
        }
    }
}

/// The name of this machine.
pub fn hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "unknown".to_owned())
}
