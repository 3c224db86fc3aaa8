//! The settings of remote access.

use std::time::Duration;

use platform::Env;

/// The settings of remote access.
#[derive(Clone, Debug)]
pub struct Config {
    /// `DEVICE_TICKET_SECONDS`: how long a ticket opens a tunnel. Default 60.
    pub ticket: Duration,
    /// `DEVICE_TICKETS_PER_USER`: how many tickets of a user may wait to be used. Default 100.
    pub tickets_per_user: i64,
    /// `DEVICE_TUNNELS`: how many tunnels this replica carries. Default 1024.
    pub tunnels: usize,
    /// `DEVICE_TUNNELS_PER_DEVICE`: how many tunnels lead to a device, through all replicas. Default 16.
    pub tunnels_per_device: i64,
    /// `DEVICE_TUNNEL_IDLE_SECONDS`: how long nothing may go through a tunnel. Default 3600.
    pub tunnel_idle: Duration,
    /// `DEVICE_COMMANDS`: how many commands this replica gives to devices at a time. Default 64.
    pub commands: usize,
    /// `DEVICE_COMMANDS_PER_DEVICE`: how many of them to one device. Default 4.
    pub commands_per_device: usize,
}

impl Config {
    /// Reads the settings; what is wrong with them is recorded in `env`.
    pub fn from_env(env: &mut Env) -> Self {
        Self {
            ticket: env.seconds("DEVICE_TICKET_SECONDS", Duration::from_secs(60)),
            tickets_per_user: env.within("DEVICE_TICKETS_PER_USER", 100, (1, 10_000)),
            tunnels: env.within("DEVICE_TUNNELS", 1024, (1, 65_536)),
            tunnels_per_device: env.within("DEVICE_TUNNELS_PER_DEVICE", 16, (1, 1024)),
            tunnel_idle: env.seconds("DEVICE_TUNNEL_IDLE_SECONDS", Duration::from_secs(3600)),
            commands: env.within("DEVICE_COMMANDS", 64, (1, 4096)),
            commands_per_device: env.within("DEVICE_COMMANDS_PER_DEVICE", 4, (1, 64)),
        }
    }
}
