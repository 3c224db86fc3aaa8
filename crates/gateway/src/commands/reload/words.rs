//! What a successor said before it ended, from the file that its output goes to.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde_json::Value;

/// How much of the file is read at most, from its end.
const MOST: u64 = 64 * 1024;

/// The last error that was written to a file since it was so long; nothing where there is none.
pub fn last_error(file: &Path, since: u64) -> Option<String> {
    let mut file = File::open(file).ok()?;
    let until = file.metadata().ok()?.len();
    let from = since.max(until.saturating_sub(MOST)).min(until);
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).ok()?;
    error_in(&String::from_utf8_lossy(&bytes))
}

/// Of a log, in JSON or as text, or of what a command says that fails.
fn error_in(text: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().enumerate().rev().find_map(|(at, line)| {
        if let Ok(line) = serde_json::from_str::<Value>(line) {
            let said = line["message"]
                .as_str()
                .filter(|_| line["level"] == "ERROR");
            return said.map(str::to_owned);
        }
        // Lines that are set in belong to the one before.
        let rest = lines[at + 1..]
            .iter()
            .take_while(|line| line.starts_with("  "));
        let whole = || {
            let rest = rest.map(|line| format!("\n{line}"));
            rest.fold(String::new(), |whole, line| whole + &line)
        };
        let (before, said) = line
            .strip_prefix("error: ")
            .map(|said| ("", said))
            .or_else(|| line.split_once(" ERROR "))?;
        (before.len() < 64).then(|| said.trim().to_owned() + &whole())
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_last_error_of_a_log_is_found_however_it_is_written() {
        for (text, error) in [
            (
                "{\"level\":\"ERROR\",\"message\":\"old\"}\n{\"level\":\"ERROR\",\"message\":\"new\"}\n{\"level\":\"INFO\",\"message\":\"late\"}\n",
                Some("new"),
            ),
            (
                "2026-01-01T00:00:00Z ERROR request{id=1}: no store\n2026-01-01T00:00:01Z  INFO bye\n",
                Some("request{id=1}: no store"),
            ),
            (
                "error: the configuration has 2 fault(s):\n  A: is missing\n  B: is wrong\nlater\n",
                Some("the configuration has 2 fault(s):\n  A: is missing\n  B: is wrong"),
            ),
            ("all is well\n", None),
            ("", None),
        ] {
            assert_eq!(error_in(text).as_deref(), error, "{text}");
        }
    }

    #[test]
    fn what_stood_in_the_file_before_is_not_the_successors() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "error: of yesterday").unwrap();
        let since = file.as_file().metadata().unwrap().len();
        assert_eq!(last_error(file.path(), since), None);

        writeln!(file, "error: of today").unwrap();

        assert_eq!(last_error(file.path(), since).as_deref(), Some("of today"));
        assert_eq!(last_error(Path::new("/nowhere"), 0), None);
    }
}
