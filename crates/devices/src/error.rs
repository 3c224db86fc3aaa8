//! What can go wrong in the devices service, and what clients are told.

use axum::response::{IntoResponse, Response};
use contracts::{DeviceId, SnapshotId};
use coordination::PortError;
use http::StatusCode;
use platform::Problem;
use std::time::Duration;

use crate::access::Fault;
use crate::device::RuntimeKind;
use crate::node::placement::{Refusal, counted, told};
use crate::runtime::RuntimeError;

/// The result of a handler.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can tell apart.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such device for this caller.
    #[error("there is no device {device} for the caller")]
    NoSuchDevice {
        /// The device asked for.
        device: DeviceId,
    },
    /// There is no such node.
    #[error("there is no node {node}")]
    NoSuchNode {
        /// The node asked for.
        node: String,
    },
    /// There is a node of this name.
    #[error("there is a node {node} already")]
    NodeExists {
        /// The name.
        node: String,
    },
    /// Devices are on the node.
    #[error("node {node} still has devices, or something of them")]
    NodeOccupied {
        /// The node.
        node: String,
    },
    /// The node has what no other one has.
    #[error(
        "node {node} keeps {snapshots} snapshots and what is on {devices} devices that no other node keeps which is there"
    )]
    NodeKeepsCopies {
        /// The node.
        node: String,
        /// How many snapshots.
        snapshots: i64,
        /// Of how many devices.
        devices: i64,
    },
    /// No node takes the device.
    #[error("no node takes the device: {}", told(refusals))]
    NoRoom {
        /// Why each of them does not.
        refusals: Vec<Refusal>,
    },
    /// The node of a device is down.
    #[error("node {node}, which the device is on, is down")]
    NodeDown {
        /// The node.
        node: String,
    },
    /// A device in a container keeps the sizes that its container was made with.
    #[error(
        "device {device} is in a container and cannot become smaller: make a smaller one instead"
    )]
    CannotShrink {
        /// The device.
        device: DeviceId,
    },
    /// The node of a device has no room for it to grow.
    #[error("node {node} has no room for the device to grow")]
    NoRoomToGrow {
        /// The node.
        node: String,
    },
    /// There is no such saga for this caller.
    #[error("there is no such saga for the caller")]
    NoSuchSaga,
    /// Something else is being done with the device.
    #[error("device {device} is busy")]
    Busy {
        /// The device asked for.
        device: DeviceId,
    },
    /// The device is in error.
    #[error("device {device} is in the error state")]
    InError {
        /// The device asked for.
        device: DeviceId,
    },
    /// Ports could not be leased, or nothing could be said about them.
    #[error("could not lease or list ports")]
    Ports(#[from] PortError),
    /// Sets of ports were found, and each was taken by somebody else.
    #[error("found no ports on node {node} that nobody else has, in {attempts} attempts")]
    PortsContended {
        /// The node.
        node: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// Remote access was refused, or failed.
    #[error(transparent)]
    Access(#[from] Fault),
    /// What runs devices failed.
    #[error("could not do it on the node")]
    Runtime(#[from] RuntimeError),
    /// There is no such snapshot for this caller.
    #[error("there is no snapshot {snapshot} for the caller")]
    NoSuchSnapshot {
        /// The snapshot asked for.
        snapshot: SnapshotId,
    },
    /// The snapshot could not be taken, so there is nothing to restore.
    #[error("snapshot {snapshot} is in the error state")]
    SnapshotInError {
        /// The snapshot asked for.
        snapshot: SnapshotId,
    },
    /// What runs the device keeps no snapshots.
    #[error("device {device} runs in {runtime}, which keeps no snapshots")]
    NoSnapshots {
        /// The device.
        device: DeviceId,
        /// What runs it.
        runtime: RuntimeKind,
    },
    /// More than the owner may have.
    #[error("the quota of {quota} does not allow it: {current} used, {limit} allowed")]
    QuotaExceeded {
        /// Of what, for people.
        quota: &'static str,
        /// The name of the limit in the settings and on the wire.
        key: &'static str,
        /// How much is used, in the unit that the name tells.
        current: i64,
        /// How much is allowed.
        limit: i64,
    },
    /// A lifecycle rule has enough devices by now, or is gone on with elsewhere.
    #[error("the lifecycle rule wants no further device by now")]
    NotWanted,
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// Refused by what all services share.
    #[error("{}", .0.code())]
    Refused(Problem),
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

impl Error {
    /// The same, told with the names of nodes, which are for administrators alone.
    #[must_use]
    pub fn with_nodes(self) -> Self {
        match self {
            Self::NoRoom { .. } | Self::NoRoomToGrow { .. } | Self::NodeDown { .. } => {
                Self::Refused(no_room(self.to_string()))
            }
            other => other,
        }
    }

    /// What clients are told.
    pub fn problem(&self) -> Problem {
        match self {
            Self::NoSuchDevice { .. } => Problem::not_found("device"),
            Self::NoSuchNode { .. } => Problem::not_found("node"),
            Self::NodeExists { .. } => {
                Problem::conflict("CONFLICT", "there is a node of this name already")
            }
            Self::NodeOccupied { .. } => Problem::conflict(
                "CONFLICT",
                "the node still has devices; drain it and wait until they are deleted",
            ),
            Self::NodeKeepsCopies {
                snapshots, devices, ..
            } => Problem::conflict(
                "CONFLICT",
                format!(
                    "the node keeps {snapshots} snapshots and what is on {devices} devices that no other node keeps which is there; drain it and wait until others do, or give them up with a node that is down by ?force=true"
                ),
            ),
            Self::NoRoom { refusals } => {
                no_room(format!("no node takes the device: {}", counted(refusals)))
            }
            Self::NoRoomToGrow { .. } => {
                no_room("the node of the device has no room for it to grow".to_owned())
            }
            Self::NodeDown { .. } => no_room("the node that the device is on is down".to_owned()),
            Self::NoSuchSaga => Problem::not_found("saga"),
            Self::Busy { .. } => Problem::conflict(
                "DEVICE_BUSY",
                "another operation on the device is under way; try again",
            )
            .retry_after(Duration::from_secs(1)),
            Self::CannotShrink { .. } => Problem::conflict("CONFLICT", self.to_string()),
            Self::InError { .. } => Problem::conflict(
                "CONFLICT",
                "the device is in the error state; its `error` says why",
            ),
            Self::Ports(error @ PortError::Exhausted { .. }) => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "NOT_READY",
                error.to_string(),
            )
            .retry_after(Duration::from_secs(60)),
            Self::Ports(PortError::IndexMissing { .. } | PortError::Store(_)) => {
                Problem::not_ready("no ports can be leased at the moment; try again")
            }
            Self::PortsContended { .. } => Problem::not_ready(
                "no free ports were found: others have what was tried; try again",
            ),
            Self::Access(fault) => fault.problem(),
            Self::Runtime(_) => Problem::not_ready("the engine of a node failed; try again"),
            Self::NoSuchSnapshot { .. } => Problem::not_found("snapshot"),
            Self::SnapshotInError { .. } => Problem::conflict(
                "CONFLICT",
                "the snapshot is in the error state: it was not taken, and cannot be restored",
            ),
            Self::NoSnapshots { .. } => Problem::conflict("NOT_SUPPORTED", self.to_string()),
            Self::NotWanted => Problem::conflict("CONFLICT", self.to_string()),
            Self::QuotaExceeded {
                quota,
                key,
                current,
                limit,
            } => quota_exceeded((quota, key), *current, *limit),
            Self::Database(error) => Problem::from_sqlx(error),
            Self::Refused(problem) => problem.clone(),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.problem().respond(&self)
    }
}

fn no_room(message: String) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY", message)
        .retry_after(Duration::from_secs(30))
}

fn quota_exceeded((quota, key): (&str, &str), current: i64, limit: i64) -> Problem {
    let used = format!("{current} used, {limit} allowed");
    let message = format!("the quota of {quota} is exceeded: {used}");
    Problem::new(StatusCode::FORBIDDEN, "QUOTA_EXCEEDED", message).with_field(key, used)
}
