//! A replica whose clock is wrong.

use std::path::Path;

/// Where packages put the library that shifts a clock.
const LIBRARIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
];

/// The variables that shift the wall clock of a process, as in `+5m`; its monotonic clock stays as it is.
///
/// # Errors
/// Where libfaketime is not installed.
pub fn shifted(offset: &str) -> anyhow::Result<[(&'static str, &str); 4]> {
    let library = LIBRARIES
        .iter()
        .find(|library| Path::new(library).exists())
        .ok_or_else(|| anyhow::anyhow!("libfaketime is missing: tests/install installs it"))?;
    Ok([
        ("LD_PRELOAD", library),
        ("FAKETIME", offset),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ])
}
