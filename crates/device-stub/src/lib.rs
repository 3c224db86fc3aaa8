//! A tiny program that behaves like an Android device on its ports: ADB, a page where a device would offer WebRTC,
//! and scrcpy's greeting. It stands in for Android in tests and demonstrations; its memory is bounded.

mod adb;
mod device;
mod listen;
mod page;
mod scrcpy;
mod screen;
mod shell;

pub use adb::{MAX_DATA, Message, command};
pub use device::{Contents, Device, DeviceProfile, Package, Vitals};
pub use listen::{BindError, Bound, PortKind, Ports};
