//! What replicas wrote.

use std::fs;
use std::path::Path;

/// The text of a log, empty before the first line.
pub fn read(path: &Path) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// The lines that contain a text.
pub fn containing(path: &Path, text: &str) -> Vec<String> {
    read(path)
        .lines()
        .filter(|line| line.contains(text))
        .map(str::to_owned)
        .collect()
}

/// The last lines, for a message about a failure.
pub fn tail(path: &Path) -> String {
    let text = read(path);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
