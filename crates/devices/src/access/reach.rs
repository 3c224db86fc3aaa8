//! Connecting to a device, and being sure that it is the device and not who has its port by now.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use contracts::DeviceId;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{Ending, Fault, Viewer, db};
use crate::error::Result;
use crate::{Devices, Error};

/// How long a device may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(3);

/// Connects to a port of a device.
///
/// # Errors
/// [`Fault::Unreachable`].
pub async fn dial(device: &DeviceId, address: &str, port: u16) -> Result<TcpStream, Fault> {
    let unreachable = |source| Fault::Unreachable {
        device: device.clone(),
        source,
    };
    let connected = timeout(CONNECT, TcpStream::connect((address, port))).await;
    let stream = connected
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(unreachable)?;
    // Without it, what is typed comes late.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Connects to the ADB port of a device that somebody may see, and looks afterwards whether it was still the device's: who looks
/// only before may speak to whoever got the port in between.
///
/// # Errors
/// Where it is not theirs to see, does not run, does not want ADB, or does not take the connection.
pub async fn adb(state: &Devices, viewer: &Viewer, id: &DeviceId) -> Result<TcpStream> {
    let target = async || {
        let mut conn = state.platform.db.acquire().await?;
        let target = db::target(&mut conn, id).await?;
        let target = target.filter(|target| viewer.may_see(&target.user_id));
        let target = target.ok_or_else(|| Error::NoSuchDevice { device: id.clone() })?;
        let device = id.clone();
        if target.is_over {
            return Err(Fault::EndedTicket(Ending::LeaseEnded).into());
        }
        match (target.is_running, target.adb_enabled) {
            (false, _) => Err(Fault::NotRunning { device }.into()),
            (true, false) => Err(Fault::Disabled { device }.into()),
            (true, true) => Ok::<_, Error>(target),
        }
    };
    let before = target().await?;
    let port = u16::try_from(before.adb_port).unwrap_or_default();
    let stream = dial(id, &before.address, port).await?;
    if target().await? != before {
        return Err(Fault::NotRunning { device: id.clone() }.into());
    }
    Ok(stream)
}

/// The commands that this replica gives to devices. Clones share everything.
#[derive(Clone)]
pub struct Commands {
    room: Arc<Semaphore>,
    per_device: usize,
    under_way: Arc<Mutex<HashMap<DeviceId, usize>>>,
}

/// The room for a command, given back when it is dropped.
pub struct Turn {
    commands: Commands,
    device: DeviceId,
    _room: OwnedSemaphorePermit,
}

impl Commands {
    /// Room for so many on all devices, and on each.
    pub fn new(most: usize, per_device: usize) -> Self {
        Self {
            room: Arc::new(Semaphore::new(most)),
            per_device,
            under_way: Arc::default(),
        }
    }

    /// Takes the room for one.
    ///
    /// # Errors
    /// [`Fault::NoRoom`], [`Fault::DeviceBusy`].
    pub fn begin(&self, device: &DeviceId) -> Result<Turn, Fault> {
        let room = self.room.clone().try_acquire_owned();
        let room = room.map_err(|_| Fault::NoRoom { what: "command" })?;
        {
            let mut under_way = self.under_way();
            let count = under_way.entry(device.clone()).or_default();
            if *count >= self.per_device {
                return Err(Fault::DeviceBusy {
                    device: device.clone(),
                });
            }
            *count += 1;
        }
        Ok(Turn {
            commands: self.clone(),
            device: device.clone(),
            _room: room,
        })
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<DeviceId, usize>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut under_way = self.commands.under_way();
        if let Some(count) = under_way.get_mut(&self.device) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(&self.device);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_so_many_commands_and_all_together_so_many() {
        let commands = Commands::new(3, 2);
        let (one, other) = (DeviceId::new(), DeviceId::new());

        let first = commands.begin(&one).unwrap();
        let _second = commands.begin(&one).unwrap();
        assert!(matches!(
            commands.begin(&one),
            Err(Fault::DeviceBusy { .. })
        ));
        let _third = commands.begin(&other).unwrap();
        assert!(matches!(commands.begin(&other), Err(Fault::NoRoom { .. })));

        drop(first);
        assert!(commands.begin(&one).is_ok());
        assert_eq!(commands.under_way().len(), 2);
    }
}
