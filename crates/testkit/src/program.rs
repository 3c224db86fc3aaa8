//! Finds the `gateway` program that belongs to the running test.

use std::env;
use std::path::{Path, PathBuf};

/// The program named by the environment, else the one that cargo built beside the test.
pub fn gateway() -> anyhow::Result<PathBuf> {
    for variable in ["NEXTEST_BIN_EXE_gateway", "CARGO_BIN_EXE_gateway"] {
        if let Some(path) = env::var_os(variable) {
            return Ok(path.into());
        }
    }
    let test = env::current_exe()?;
    // target/debug/deps/test, target/debug/test, or target/debug/build/…: the profile's folder is above.
    let beside = test
        .ancestors()
        .skip(1)
        .take(4)
        .map(|folder| folder.join("gateway"));
    let configured =
        env::var_os("CARGO_TARGET_DIR").map(|folder| Path::new(&folder).join("debug/gateway"));
    let found = beside.chain(configured).find(|path| path.is_file());
    found.ok_or_else(|| {
        anyhow::anyhow!(
            "no program gateway near {}: run `cargo build -p gateway`",
            test.display()
        )
    })
}
