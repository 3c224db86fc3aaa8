//! Operations on devices: what a wish means in each state, and the queue that carries it out, one at a time for each
//! device, on whichever replica comes first.

pub mod api;
pub mod db;
pub mod overdue;
pub mod ports;
pub mod repair;
pub mod steps;
pub mod worker;

use serde::{Deserialize, Serialize};

use crate::device::Status;

names! {
    /// What is to be done with a device.
    Kind, "operation" {
        /// Bring it into being.
        Create = "create",
        /// Make it run.
        Start = "start",
        /// Make it stop.
        Stop = "stop",
        /// Make it run afresh.
        Restart = "restart",
        /// Remove it and give its ports back.
        Delete = "delete",
        /// See what became of it, and make it what it shall be.
        Repair = "repair",
        /// Keep what is on it.
        Snapshot = "snapshot",
        /// Bring back what was on it.
        Restore = "restore",
        /// Remove what was kept of it.
        Forget = "forget",
        /// Take it to another node with all that is on it.
        Move = "move",
    }
}

/// What a client can ask of a device that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// That it runs.
    Start,
    /// That it stops.
    Stop,
    /// That it runs afresh.
    Restart,
}

/// What a wish means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The device is as wished, or on its way.
    Nothing,
    /// The creation under way shall end with the device running.
    CreateRunning,
    /// Nothing stands before it: the status changes with the acceptance.
    Begin(Kind, Status),
    /// It comes after what is under way.
    Queue(Kind),
    /// The same is waiting already.
    Join,
    /// A device in error takes no wishes.
    Refuse,
}

/// Decides what a wish means for a device in a status, with what was last queued behind the operation under way.
pub fn decide(wish: Wish, status: Status, waiting: Option<Kind>) -> Decision {
    let kind = match wish {
        Wish::Start => Kind::Start,
        Wish::Stop => Kind::Stop,
        Wish::Restart => Kind::Restart,
    };
    if let Some(waiting) = waiting {
        let same = waiting == kind || (wish == Wish::Start && waiting == Kind::Restart);
        return if same {
            Decision::Join
        } else {
            Decision::Queue(kind)
        };
    }
    match (wish, status) {
        (_, Status::Error | Status::Deleting | Status::Deleted) => Decision::Refuse,
        (Wish::Start, Status::Creating) => Decision::CreateRunning,
        (Wish::Start, Status::Starting | Status::Running)
        | (Wish::Stop, Status::Stopping | Status::Stopped) => Decision::Nothing,
        (Wish::Start, Status::Stopped) => Decision::Begin(kind, Status::Starting),
        (Wish::Stop, Status::Running) => Decision::Begin(kind, Status::Stopping),
        (Wish::Restart, Status::Running | Status::Stopped) => {
            Decision::Begin(kind, Status::Rebooting)
        }
        (Wish::Start, Status::Stopping | Status::Rebooting)
        | (Wish::Stop, Status::Creating | Status::Starting | Status::Rebooting)
        | (
            Wish::Restart,
            Status::Creating | Status::Starting | Status::Stopping | Status::Rebooting,
        ) => Decision::Queue(kind),
    }
}

/// Whether it may end with a device that boots.
pub const fn boots(kind: Kind) -> bool {
    match kind {
        Kind::Create | Kind::Start | Kind::Restart | Kind::Repair | Kind::Restore | Kind::Move => {
            true
        }
        Kind::Stop | Kind::Delete | Kind::Snapshot | Kind::Forget => false,
    }
}

/// The status with which an operation ends well; a creation, a repair, a restore and a move may also end stopped. `None` where it leaves
/// the status as it is.
pub const fn goal(kind: Kind) -> Option<Status> {
    match kind {
        Kind::Create | Kind::Start | Kind::Restart | Kind::Repair | Kind::Restore | Kind::Move => {
            Some(Status::Running)
        }
        Kind::Stop => Some(Status::Stopped),
        Kind::Delete => Some(Status::Deleted),
        Kind::Snapshot | Kind::Forget => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wish_in_every_state_means_what_the_contract_says() {
        use Decision::{Begin, CreateRunning, Nothing, Queue, Refuse};
        use Kind::{Restart, Start, Stop};
        let table = [
            (Status::Creating, CreateRunning, Queue(Stop), Queue(Restart)),
            (Status::Starting, Nothing, Queue(Stop), Queue(Restart)),
            (
                Status::Running,
                Nothing,
                Begin(Stop, Status::Stopping),
                Begin(Restart, Status::Rebooting),
            ),
            (Status::Stopping, Queue(Start), Nothing, Queue(Restart)),
            (
                Status::Stopped,
                Begin(Start, Status::Starting),
                Nothing,
                Begin(Restart, Status::Rebooting),
            ),
            (Status::Rebooting, Queue(Start), Queue(Stop), Queue(Restart)),
            (Status::Error, Refuse, Refuse, Refuse),
            (Status::Deleting, Refuse, Refuse, Refuse),
            (Status::Deleted, Refuse, Refuse, Refuse),
        ];

        assert_eq!(table.len(), Status::ALL.len());
        for (status, start, stop, restart) in table {
            assert_eq!(decide(Wish::Start, status, None), start, "start, {status}");
            assert_eq!(decide(Wish::Stop, status, None), stop, "stop, {status}");
            assert_eq!(
                decide(Wish::Restart, status, None),
                restart,
                "restart, {status}"
            );
        }
    }

    #[test]
    fn what_waits_already_is_joined_and_the_opposite_comes_after_it() {
        use Decision::{Join, Queue};
        let table = [
            (Wish::Start, Kind::Start, Join),
            (Wish::Start, Kind::Restart, Join),
            (Wish::Start, Kind::Stop, Queue(Kind::Start)),
            (Wish::Stop, Kind::Stop, Join),
            (Wish::Stop, Kind::Start, Queue(Kind::Stop)),
            (Wish::Restart, Kind::Restart, Join),
            (Wish::Restart, Kind::Start, Queue(Kind::Restart)),
        ];

        for (wish, waiting, decision) in table {
            assert_eq!(
                decide(wish, Status::Stopping, Some(waiting)),
                decision,
                "{wish:?} behind {waiting}"
            );
        }
    }
}
