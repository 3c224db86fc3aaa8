//! Texts that come from anywhere, as PostgreSQL can keep them.

/// An error with its causes. A text of PostgreSQL holds no NUL, so another character stands for each.
pub fn of_error(error: &anyhow::Error) -> String {
    format!("{error:#}").replace('\0', "\u{fffd}")
}
