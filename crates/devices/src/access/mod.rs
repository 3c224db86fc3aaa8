//! Remote access to devices: one-time tickets, tunnels by WebSocket, and commands that the service itself gives by ADB.
//!
//! No port of a device need be open to the world. Who may see a device asks for a ticket, which opens one tunnel to one of
//! its ports, once and soon. A ticket is bound to the *generation* of the device's access, a number that grows in
//! PostgreSQL with whatever ends access: a stop, another owner, other ports. So neither an old ticket nor a connection
//! that was made in the moment of a change leads to the next tenant's phone, whoever holds its port by then.

pub mod adb;
pub mod api;
mod config;
pub mod db;
mod error;
pub mod install;
pub mod package;
pub mod purge;
pub mod reach;
mod relay;
pub mod remote;
pub mod ticket;
pub mod tunnel;
pub mod tunnels;
pub mod words;

use std::sync::Arc;

use contracts::UserId;
use platform::CurrentUser;

pub use config::Config;
pub use error::Fault;
pub use tunnels::Tunnels;

use reach::Commands;

/// Who reaches a device, or fetches what is for it.
#[derive(Clone, Debug)]
pub struct Viewer {
    /// The user.
    pub id: UserId,
    /// Whether the owner rule does not bind.
    pub is_admin: bool,
}

impl Viewer {
    /// Whether what belongs to this owner may be seen.
    pub fn may_see(&self, owner: &UserId) -> bool {
        self.is_admin || self.id == *owner
    }
}

impl From<&CurrentUser> for Viewer {
    fn from(user: &CurrentUser) -> Self {
        Self {
            id: user.id.clone(),
            is_admin: user.is_admin,
        }
    }
}

/// Why access to a device ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// The device was deleted.
    Deleted,
    /// It has another owner, or its rent is over.
    LeaseEnded,
    /// Its owner does not want it to be reached this way.
    Disabled,
    /// It stopped, restarted or moved.
    Stopped,
    /// The session or key of who was let in has ended, or the account was disabled.
    SignedOut,
    /// Nobody could tell for a while whether access holds.
    Unverified,
    /// This replica leaves.
    Leaving,
    /// The client went away.
    ClientLeft,
    /// The device closed the connection.
    DeviceClosed,
    /// Nothing went through for too long.
    Idle,
    /// One side did not take what was sent to it.
    Stalled,
    /// The client sent text.
    NotBinary,
}

impl Ending {
    /// Those that the database tells, by their names there.
    pub const TOLD: [(&'static str, Self); 5] = [
        ("deleted", Self::Deleted),
        ("lease-ended", Self::LeaseEnded),
        ("disabled", Self::Disabled),
        ("stopped", Self::Stopped),
        ("signed-out", Self::SignedOut),
    ];

    /// Reads what the database tells; what is not known ends access, too.
    pub fn told(name: &str) -> Self {
        let known = Self::TOLD.iter().find(|(known, _)| *known == name);
        known.map_or(Self::Unverified, |(_, ending)| *ending)
    }

    /// The code of the WebSocket's close frame. Those of 44xx are to be read as the HTTP status of the last two digits.
    pub const fn close_code(self) -> u16 {
        match self {
            Self::Deleted => 4404,
            Self::LeaseEnded | Self::Disabled => 4403,
            Self::Stopped => 4409,
            Self::SignedOut => 4401,
            Self::Unverified => 1011,
            Self::Leaving => 1012,
            Self::ClientLeft | Self::DeviceClosed => 1000,
            Self::Idle => 1001,
            Self::Stalled => 1013,
            Self::NotBinary => 1003,
        }
    }

    /// One sentence for the client.
    pub const fn message(self) -> &'static str {
        match self {
            Self::Deleted => "the device was deleted",
            Self::LeaseEnded => "the lease of the device has ended",
            Self::Disabled => "access by ADB is disabled on the device",
            Self::Stopped => "the device stopped or restarts; ask for a new ticket once it runs",
            Self::SignedOut => "the session or key that asked for the ticket has ended",
            Self::Unverified => "nobody can tell at the moment whether access holds; try again",
            Self::Leaving => "this instance restarts; connect again",
            Self::ClientLeft => "the client left",
            Self::DeviceClosed => "the device closed the connection",
            Self::Idle => "nothing was sent for too long",
            Self::Stalled => "what was sent is not read",
            Self::NotBinary => "a tunnel takes binary frames alone",
        }
    }

    /// The name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::LeaseEnded => "lease-ended",
            Self::Disabled => "disabled",
            Self::Stopped => "stopped",
            Self::SignedOut => "signed-out",
            Self::Unverified => "unverified",
            Self::Leaving => "leaving",
            Self::ClientLeft => "client-left",
            Self::DeviceClosed => "device-closed",
            Self::Idle => "idle",
            Self::Stalled => "stalled",
            Self::NotBinary => "not-binary",
        }
    }
}

/// What access needs on this replica. Clones share everything.
#[derive(Clone)]
pub struct Access {
    /// The settings.
    pub config: Arc<Config>,
    /// The open tunnels.
    pub tunnels: Tunnels,
    /// The commands under way.
    pub commands: Commands,
}

impl Access {
    /// Nothing is open yet.
    pub fn new(config: &Config) -> Self {
        Self {
            config: Arc::new(config.clone()),
            tunnels: Tunnels::new(config.tunnels),
            commands: Commands::new(config.commands, config.commands_per_device),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_database_tells_is_known_by_its_name_and_fits_a_close_frame() {
        for (name, ending) in Ending::TOLD {
            assert_eq!((Ending::told(name), ending.as_str()), (ending, name));
            // A control frame holds 125 bytes, two of them the code.
            assert!(ending.message().len() <= 123, "{name}");
            assert!((4400..4500).contains(&ending.close_code()), "{name}");
        }
        assert_eq!(Ending::told("something new"), Ending::Unverified);
    }
}
