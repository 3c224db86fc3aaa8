//! The services by name, with the ports and names that clients know.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One of the seven services.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// The front door.
    Gateway,
    /// Accounts, sessions, tokens.
    Users,
    /// Devices, their ports and runtimes.
    Devices,
    /// Application packages.
    Apps,
    /// Media tasks.
    Media,
    /// Plans, orders, payments, ledger.
    Billing,
    /// Notifications and sockets.
    Notifications,
}

/// A name that no service has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no service `{0}`: there are gateway, users, devices, apps, media, billing, notifications")]
pub struct UnknownService(String);

impl Service {
    /// All services, in the order of their ports.
    pub const ALL: [Self; 7] = [
        Self::Gateway,
        Self::Users,
        Self::Devices,
        Self::Apps,
        Self::Media,
        Self::Billing,
        Self::Notifications,
    ];

    /// The name by which roles, registry and metrics know it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Users => "users",
            Self::Devices => "devices",
            Self::Apps => "apps",
            Self::Media => "media",
            Self::Billing => "billing",
            Self::Notifications => "notifications",
        }
    }

    /// The name that `/health` shows, as existing clients know it.
    pub const fn public_name(self) -> &'static str {
        match self {
            Self::Gateway => "api-gateway",
            Self::Users => "user-service",
            Self::Devices => "device-service",
            Self::Apps => "app-service",
            Self::Media => "media-service",
            Self::Billing => "billing-service",
            Self::Notifications => "notification-service",
        }
    }

    /// The well-known port.
    pub const fn port(self) -> u16 {
        match self {
            Self::Gateway => 30_000,
            Self::Users => 30_001,
            Self::Devices => 30_002,
            Self::Apps => 30_003,
            Self::Media => 30_004,
            Self::Billing => 30_005,
            Self::Notifications => 30_006,
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Service {
    type Err = UnknownService;

    fn from_str(text: &str) -> Result<Self, UnknownService> {
        Self::ALL
            .into_iter()
            .find(|service| service.name() == text)
            .ok_or_else(|| UnknownService(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_service_is_known_by_its_one_name_and_nothing_else_is() {
        for service in Service::ALL {
            let json = serde_json::to_string(&service).unwrap();
            assert_eq!(json, format!("\"{}\"", service.name()));
            assert_eq!(service.name().parse(), Ok(service));
        }
        bolero::check!()
            .with_type::<String>()
            .with_iterations(1_000)
            .for_each(|text| {
                let known = Service::ALL.into_iter().find(|one| one.name() == text);
                assert_eq!(text.parse::<Service>().ok(), known);
                let json = serde_json::to_string(text).unwrap();
                assert_eq!(serde_json::from_str::<Service>(&json).ok(), known);
            });
    }
}
