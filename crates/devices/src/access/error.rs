//! Why access is refused.

use std::io;
use std::time::Duration;

use contracts::DeviceId;
use http::StatusCode;
use platform::Problem;

use super::Ending;
use super::adb::AdbError;

/// What a caller can tell apart.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The device does not run.
    #[error("device {device} does not run")]
    NotRunning {
        /// The device asked for.
        device: DeviceId,
    },
    /// Its owner does not want it to be reached by ADB.
    #[error("ADB is disabled on device {device}")]
    Disabled {
        /// The device asked for.
        device: DeviceId,
    },
    /// The user has not used the last tickets yet.
    #[error("{most} tickets of the user wait to be used")]
    TooManyTickets {
        /// How many may.
        most: i64,
    },
    /// So many installations of the user are open already.
    #[error("{most} installations of the user are open")]
    TooManyInstallations {
        /// How many may be.
        most: i64,
    },
    /// The call brings no ticket.
    #[error("a ticket is required")]
    NoTicket,
    /// There is no such ticket for this port of this device.
    #[error("the ticket is none of this device and purpose")]
    UnknownTicket,
    /// It was used before.
    #[error("the ticket was used")]
    UsedTicket,
    /// Its time is over.
    #[error("the ticket has expired")]
    ExpiredTicket,
    /// A ticket no longer counts, or the access that needs none.
    #[error("access has ended: {}", .0.message())]
    EndedTicket(Ending),
    /// The call does not ask to go on as a WebSocket.
    #[error("no WebSocket was asked for")]
    NoUpgrade,
    /// So many tunnels lead to the device already.
    #[error("{most} tunnels lead to device {device}")]
    TooManyTunnels {
        /// The device asked for.
        device: DeviceId,
        /// How many may.
        most: i64,
    },
    /// This replica has no room for another tunnel or command.
    #[error("this replica has no room for another {what}")]
    NoRoom {
        /// A tunnel or a command.
        what: &'static str,
    },
    /// So many commands are under way on the device.
    #[error("too many commands are under way on device {device}")]
    DeviceBusy {
        /// The device asked for.
        device: DeviceId,
    },
    /// The device does not take the connection.
    #[error("could not connect to device {device}")]
    Unreachable {
        /// The device asked for.
        device: DeviceId,
        /// Why not.
        source: io::Error,
    },
    /// The device did not do what it was told by ADB.
    #[error("could not {tried} on device {device}")]
    Adb {
        /// The device asked for.
        device: DeviceId,
        /// What was tried, as a verb phrase.
        tried: &'static str,
        /// Why not.
        source: AdbError,
    },
    /// A package broke off on its way to the device.
    #[error("the package for device {device} broke off")]
    Package {
        /// The device asked for.
        device: DeviceId,
        /// Why.
        source: io::Error,
    },
    /// The device said no.
    #[error("device {device} refused: {said}")]
    Refused {
        /// The device asked for.
        device: DeviceId,
        /// In its words.
        said: String,
    },
}

impl Fault {
    /// What the client is told.
    pub fn problem(&self) -> Problem {
        let down =
            |message: String| Problem::new(StatusCode::BAD_GATEWAY, "UPSTREAM_DOWN", message);
        match self {
            Self::NotRunning { .. } => {
                Problem::conflict("CONFLICT", "the device does not run; start it first")
            }
            Self::Disabled { .. } => Problem::conflict(
                "CONFLICT",
                "ADB is disabled on the device; POST /devices/{id}/adb/enable allows it",
            ),
            Self::TooManyTickets { most } => too_many(format!(
                "{most} tickets wait to be used; use them, or let them expire"
            )),
            Self::TooManyInstallations { most } => too_many(format!(
                "{most} installations wait or are under way; wait until some of them are over"
            )),
            Self::NoTicket => Problem::unauthenticated(
                "a ticket is required: ?ticket=, of the device and its port",
            ),
            Self::UnknownTicket => {
                Problem::unauthenticated("the ticket is not one for this port of this device")
            }
            Self::UsedTicket => {
                Problem::unauthenticated("the ticket was used: each opens one tunnel")
            }
            Self::ExpiredTicket => {
                Problem::unauthenticated("the ticket has expired; ask for a new one")
            }
            Self::EndedTicket(ending) => match ending {
                Ending::Deleted => Problem::not_found("device"),
                Ending::SignedOut => Problem::unauthenticated(ending.message()),
                Ending::LeaseEnded => Problem::forbidden(ending.message()),
                Ending::Unverified => Problem::not_ready(ending.message()),
                _ => Problem::conflict("CONFLICT", ending.message()),
            },
            Self::NoUpgrade => {
                Problem::invalid_field("Upgrade", "a tunnel is a WebSocket of version 13")
            }
            Self::TooManyTunnels { most, .. } => too_many(format!(
                "{most} tunnels lead to the device; close one of them"
            )),
            Self::NoRoom { what } => Problem::not_ready(format!(
                "this instance has no room for another {what}; try again"
            )),
            Self::DeviceBusy { .. } => {
                too_many("too many commands are under way on the device; wait for one".to_owned())
            }
            Self::Unreachable { .. } => {
                down("the device does not take the connection; it may be starting".to_owned())
            }
            Self::Adb { source, tried, .. } => match source {
                AdbError::WantsKey => Problem::conflict(
                    "CONFLICT",
                    "the device lets nobody in by ADB without a key that was confirmed on its screen",
                ),
                AdbError::Late => Problem::new(
                    StatusCode::GATEWAY_TIMEOUT,
                    "UPSTREAM_TIMEOUT",
                    format!("the device did not {tried} in time"),
                ),
                AdbError::Io(_) | AdbError::NotAdb | AdbError::Refused | AdbError::Malformed => {
                    down(format!("the device did not {tried}"))
                }
            },
            Self::Package { .. } => down(
                "the package broke off on its way, and nothing was installed; try again".to_owned(),
            ),
            Self::Refused { said, .. } => Problem::conflict("CONFLICT", said.clone()),
        }
    }
}

fn too_many(message: String) -> Problem {
    let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "RATE_LIMITED", message);
    problem.retry_after(Duration::from_secs(1))
}
