//! The reconciler: what the engines have, what the database says and what Redis leases are compared, and every difference is
//! put right or reported. It touches only containers that bear the mark of this cluster, by the very identity it saw.

pub mod api;
pub mod db;
pub mod job;
pub mod ports;

use contracts::{DeviceId, Timestamp};
use coordination::PortSet;
use serde::{Deserialize, Serialize};

use crate::device::Status;

names! {
    /// What was found and done.
    Action, "action" {
        /// A container without a device was seen for the first time.
        OrphanFound = "orphan-found",
        /// It was removed, since its grace was over.
        OrphanRemoved = "orphan-removed",
        /// A device is not what it shall be: an operation puts it right.
        Repair = "repair",
        /// That was tried often enough: the device is in error.
        GivenUp = "given-up",
        /// A stopped device has no container any more.
        ContainerMissing = "container-missing",
        /// A device's leases were missing in Redis.
        LeaseRestored = "lease-restored",
        /// Redis leases ports to nobody, for longer than a creation takes.
        LeaseUnowned = "lease-unowned",
    }
}

/// A container of this cluster, as its engine lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// By which it is removed: a container that takes its name later stays.
    pub id: String,
    /// The device it says it is for.
    pub device: String,
    /// Whether it runs.
    pub running: bool,
    /// The ports of the node that it is reached by, while it runs.
    pub ports: Option<PortSet>,
}

/// A device as the database has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which one.
    pub id: DeviceId,
    /// Where it stands.
    pub status: Status,
    /// Whether something is being done with it.
    pub busy: bool,
    /// Its ports.
    pub ports: PortSet,
    /// When it last changed.
    pub changed: Timestamp,
}

/// A difference between an engine and the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// No device of the node has this container.
    Orphan(Container),
    /// A device is not what it shall be.
    Broken {
        /// Which one.
        device: DeviceId,
        /// How it differs, for people.
        how: String,
    },
    /// A stopped device has no container; its next start makes one.
    Missing {
        /// Which one.
        device: DeviceId,
    },
}

/// What differs between the containers of a node and its devices, whose rows were read before the containers were listed and
/// after it: what came into being in between is no orphan, and what changed in between, or is being changed, is left alone.
pub fn differences(before: &[Row], containers: Vec<Container>, rows: &[Row]) -> Vec<Difference> {
    let mut differences = Vec::new();
    let at_rest = |row: &&Row| !row.busy && before.contains(row);
    for row in rows.iter().filter(at_rest) {
        let container = containers
            .iter()
            .find(|container| container.device == row.id.as_str());
        let how = match (row.status, container) {
            (Status::Running, None) => "it shall run and has no container".to_owned(),
            (Status::Running, Some(container)) if !container.running => {
                "it shall run and its container does not".to_owned()
            }
            (Status::Running, Some(container)) => {
                match container.ports.filter(|ports| *ports != row.ports) {
                    Some(ports) => {
                        format!("its container has {ports:?} in place of {:?}", row.ports)
                    }
                    None => continue,
                }
            }
            (Status::Stopped, Some(container)) if container.running => {
                "it shall not run and its container does".to_owned()
            }
            (Status::Stopped, None) => {
                differences.push(Difference::Missing {
                    device: row.id.clone(),
                });
                continue;
            }
            (
                Status::Stopped
                | Status::Creating
                | Status::Starting
                | Status::Stopping
                | Status::Rebooting
                | Status::Error
                | Status::Deleting
                | Status::Deleted,
                _,
            ) => continue,
        };
        differences.push(Difference::Broken {
            device: row.id.clone(),
            how,
        });
    }
    let orphans = containers
        .into_iter()
        .filter(|container| rows.iter().all(|row| container.device != row.id.as_str()));
    differences.extend(orphans.map(Difference::Orphan));
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, status: Status) -> Row {
        Row {
            id: id.parse().unwrap(),
            status,
            busy: false,
            ports: ports(5555),
            changed: chrono::DateTime::UNIX_EPOCH.into(),
        }
    }

    fn ports(adb: u16) -> PortSet {
        PortSet {
            adb,
            webrtc: 8080,
            scrcpy: 27183,
        }
    }

    fn container(device: &str, running: bool) -> Container {
        Container {
            id: format!("c-{device}"),
            device: device.into(),
            running,
            ports: running.then(|| ports(5555)),
        }
    }

    fn broken(device: &str, how: &str) -> Difference {
        Difference::Broken {
            device: device.parse().unwrap(),
            how: how.into(),
        }
    }

    #[test]
    fn what_is_as_it_shall_be_makes_no_difference() {
        let rows = [row("a", Status::Running), row("b", Status::Stopped)];
        let containers = vec![container("a", true), container("b", false)];
        assert!(differences(&rows, containers, &rows).is_empty());
    }

    #[test]
    fn every_difference_is_found() {
        let mut moved = container("ports", true);
        moved.ports = Some(ports(5556));
        let rows = [
            row("gone", Status::Running),
            row("dead", Status::Running),
            row("up", Status::Stopped),
            row("ports", Status::Running),
            row("none", Status::Stopped),
        ];
        let containers = vec![
            container("dead", false),
            container("up", true),
            moved,
            container("nobody", true),
        ];

        let found = differences(&rows, containers, &rows);

        assert_eq!(
            found,
            [
                broken("gone", "it shall run and has no container"),
                broken("dead", "it shall run and its container does not"),
                broken("up", "it shall not run and its container does"),
                broken(
                    "ports",
                    &format!(
                        "its container has {:?} in place of {:?}",
                        ports(5556),
                        ports(5555)
                    )
                ),
                Difference::Missing {
                    device: "none".parse().unwrap()
                },
                Difference::Orphan(container("nobody", true)),
            ]
        );
    }

    #[test]
    fn what_something_is_done_with_is_left_alone() {
        let statuses = [
            Status::Creating,
            Status::Starting,
            Status::Stopping,
            Status::Rebooting,
            Status::Error,
            Status::Deleting,
        ];
        for status in statuses {
            let rows = [row("a", status)];
            for containers in [Vec::new(), vec![container("a", true)]] {
                assert!(differences(&rows, containers, &rows).is_empty());
            }
        }
        let busy = Row {
            busy: true,
            ..row("a", Status::Running)
        };
        let rows = [busy];
        assert!(differences(&rows, Vec::new(), &rows).is_empty());
        // It became running while the containers were listed.
        let (before, after) = ([row("a", Status::Starting)], [row("a", Status::Running)]);
        assert!(differences(&before, Vec::new(), &after).is_empty());
    }
}
