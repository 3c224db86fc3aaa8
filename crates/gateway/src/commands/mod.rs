//! What the binary does beside serving.

mod admin;
mod database;
mod status;

use std::io::Write;

use platform::Env;

use crate::serve::Config;

pub use admin::create_admin;
pub use database::migrate;
pub use status::status;

/// Lists every fault of the configuration; none is told, too.
pub fn check_config(env: Env) -> anyhow::Result<i32> {
    let config = Config::from_env(env)?;
    say(&format!(
        "the configuration is right, for the profile {}",
        config.settings.profile.name()
    ))?;
    Ok(0)
}

/// Prints the OpenAPI document of all services.
pub fn openapi() -> anyhow::Result<i32> {
    say(&crate::docs::document().to_pretty_json()?)?;
    Ok(0)
}

/// Prints a line; a reader that went away is no failure.
fn say(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        outcome => Ok(outcome?),
    }
}
