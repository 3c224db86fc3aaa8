//! The media service through its URLs, on real stores.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

mod app;
mod health;
mod make;
mod providers;
mod queue;
mod stitch;
mod tasks;
mod uploads;
mod vendor;
mod work;
