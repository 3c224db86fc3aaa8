//! Apps on devices: the service of devices does it, asked for the caller; here apps are known by their ids.

pub mod api;
pub mod devices;
pub mod on_device;
