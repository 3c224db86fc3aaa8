//! Installing apps of the service of apps: queued for each device, and carried out by whichever replica comes first. To install
//! an app twice is harmless, so that whoever goes on after a worker that died begins anew.

pub mod api;
pub mod db;
pub mod installed;
pub mod on_device;
pub mod removal;
pub mod worker;

use crate::access::Fault;
use crate::access::adb::AdbError;
use crate::error::Error;

/// What becomes of an installation that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// To try again would change nothing.
    Fail,
    /// It is tried again, so many times.
    Retry,
    /// It is tried again: the device or the service of apps is away, which says nothing about the app.
    Wait,
}

/// Judges why an installation did not succeed.
pub fn judge(error: &Error) -> Next {
    match error {
        Error::NoSuchDevice { .. } => Next::Fail,
        Error::Access(fault) => match fault {
            Fault::Refused { .. } | Fault::Disabled { .. } | Fault::EndedTicket(_) => Next::Fail,
            Fault::Adb {
                source: AdbError::WantsKey,
                ..
            } => Next::Fail,
            Fault::NotRunning { .. }
            | Fault::NoRoom { .. }
            | Fault::DeviceBusy { .. }
            | Fault::Unreachable { .. } => Next::Wait,
            _ => Next::Retry,
        },
        Error::Refused(problem) if problem.status().is_client_error() => Next::Fail,
        Error::Refused(_) | Error::Database(_) => Next::Wait,
        _ => Next::Retry,
    }
}

#[cfg(test)]
mod tests {
    use contracts::DeviceId;
    use platform::Problem;

    use super::*;

    #[test]
    fn what_the_device_or_its_owner_refuses_is_final_and_what_is_away_is_waited_for() {
        let device = DeviceId::new();
        let adb = |source| Fault::Adb {
            device: device.clone(),
            tried: "install the app",
            source,
        };
        let said = "no".to_owned();
        let refused = Fault::Refused {
            device: device.clone(),
            said,
        };
        let stopped = Fault::NotRunning {
            device: device.clone(),
        };
        for (error, next) in [
            (refused.into(), Next::Fail),
            (adb(AdbError::WantsKey).into(), Next::Fail),
            (Problem::not_found("app").into(), Next::Fail),
            (adb(AdbError::Late).into(), Next::Retry),
            (stopped.into(), Next::Wait),
            (Problem::not_ready("away").into(), Next::Wait),
        ] {
            let error: Error = error;
            assert_eq!(judge(&error), next, "{error}");
        }
    }
}
