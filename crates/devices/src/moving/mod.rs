//! Taking devices from a node that is drained, with what is on them and their snapshots: each by an operation of its own, a
//! few at a time. Until the one transaction that gives a device to its new node, it is what it was, where it was.

pub mod back;
pub mod db;
mod handover;
pub mod jobs;
pub mod steps;

use contracts::DeviceId;
use serde::Serialize;

/// How far the draining of a node is.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// Devices that are still on it.
    pub left: i64,
    /// Devices that are being moved, some of which are on their new node already.
    pub moving: i64,
    /// Devices that could not be moved so far, and why, at most 100 of them.
    pub failed: Vec<Stuck>,
}

/// A device that a draining node has not got rid of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stuck {
    /// Which.
    pub device_id: DeviceId,
    /// How often it was tried since the draining began.
    pub attempts: i64,
    /// What the last attempt said, or what has to be done before there can be one.
    pub reason: String,
}
