//! The environment as a source of settings.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;

/// One setting that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The variable at fault.
    pub variable: String,
    /// What is wrong with it and what would be right; never the value of a secret.
    pub message: String,
}

/// All that is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError(pub Vec<Fault>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} fault(s):", self.0.len())?;
        self.0
            .iter()
            .try_for_each(|fault| write!(f, "\n  {}: {}", fault.variable, fault.message))
    }
}

/// The variables of the process, and the faults found in them so far.
///
/// `NAME_FILE` names a file that holds the value of `NAME`, as mounted secrets do. An empty variable counts as absent.
#[derive(Debug, Default)]
pub struct Env {
    variables: BTreeMap<String, String>,
    faults: Vec<Fault>,
}

impl<'a> FromIterator<(&'a str, &'a str)> for Env {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(variables: I) -> Self {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            variables: variables.into_iter().map(owned).collect(),
            faults: Vec::new(),
        }
    }
}

impl Env {
    /// Reads the process's environment and, below it, an optional file of `NAME=value` lines.
    ///
    /// # Errors
    /// [`ConfigError`] where the file cannot be read or has a line that is neither.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut env = Self::default();
        if let Some(path) = file {
            env.read_file(path);
        }
        // A variable that is no text is nobody's setting.
        let variables = std::env::vars_os();
        env.variables.extend(variables.filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }));
        if env.faults.is_empty() {
            Ok(env)
        } else {
            Err(ConfigError(env.faults))
        }
    }

    /// An environment of the given variables alone.
    pub fn of<const N: usize>(variables: [(&str, &str); N]) -> Self {
        variables.into_iter().collect()
    }

    /// The text of a variable, or of the file that `NAME_FILE` names.
    pub fn text(&mut self, name: &str) -> Option<String> {
        if let Some(value) = self.variables.get(name).filter(|value| !value.is_empty()) {
            return Some(value.clone());
        }
        let path = self
            .variables
            .get(&format!("{name}_FILE"))
            .filter(|path| !path.is_empty())?;
        match std::fs::read_to_string(path) {
            Ok(text) => Some(text.trim_end_matches(['\n', '\r']).to_owned()),
            Err(error) => {
                let message = format!("cannot read {path}: {error}");
                self.fault(format!("{name}_FILE"), message);
                None
            }
        }
    }

    /// A value read by its type's `FromStr`, or the default where the variable is absent.
    pub fn value<T: FromStr<Err: Display>>(&mut self, name: &str, default: T) -> T {
        self.optional(name).unwrap_or(default)
    }

    /// A value read by its type's `FromStr`, where there is one.
    pub fn optional<T: FromStr<Err: Display>>(&mut self, name: &str) -> Option<T> {
        let text = self.text(name)?;
        match text.trim().parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault(name, format!("`{text}` cannot be used: {error}"));
                None
            }
        }
    }

    /// A value between two bounds.
    pub fn within<T: FromStr<Err: Display> + PartialOrd + Display + Copy>(
        &mut self,
        name: &str,
        default: T,
        (least, most): (T, T),
    ) -> T {
        let value = self.value(name, default);
        // Written so that NaN, which is neither, is refused.
        let is_within = value >= least && value <= most;
        if !is_within {
            self.fault(name, format!("{value} is outside {least} to {most}"));
            return default;
        }
        value
    }

    /// A span given in seconds, fractions allowed.
    pub fn seconds(&mut self, name: &str, default: Duration) -> Duration {
        Duration::from_secs_f64(self.within(name, default.as_secs_f64(), (0.01, 31_536_000.0)))
    }

    /// `true`, `false`, `1` or `0`.
    pub fn flag(&mut self, name: &str, default: bool) -> bool {
        match self.text(name).as_deref().map(str::trim) {
            None => default,
            Some("true" | "1") => true,
            Some("false" | "0") => false,
            Some(other) => {
                let message = format!("`{other}` is neither true nor false");
                self.fault(name, message);
                default
            }
        }
    }

    /// A comma-separated list; empty where the variable is absent.
    pub fn list(&mut self, name: &str) -> Vec<String> {
        let text = self.text(name).unwrap_or_default();
        text.split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// A secret of at least `least` bytes, where there is one.
    pub fn secret(&mut self, name: &str, least: usize) -> Option<SecretString> {
        let text = self.text(name)?;
        if text.len() < least {
            self.fault(name, format!("is shorter than {least} bytes"));
            return None;
        }
        Some(text.into())
    }

    /// Records a fault found by the caller.
    pub fn fault(&mut self, variable: impl Into<String>, message: impl Into<String>) {
        self.faults.push(Fault {
            variable: variable.into(),
            message: message.into(),
        });
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`ConfigError`] with every fault found since the environment was loaded.
    pub fn finish(self) -> Result<(), ConfigError> {
        if self.faults.is_empty() {
            Ok(())
        } else {
            Err(ConfigError(self.faults))
        }
    }

    fn read_file(&mut self, path: &Path) {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                return self.fault(
                    "--env-file",
                    format!("cannot read {}: {error}", path.display()),
                );
            }
        };
        for (number, line) in text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line.trim()))
        {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((name, value)) = line.split_once('=') else {
                self.fault(
                    "--env-file",
                    format!("line {number} of {} is not NAME=value", path.display()),
                );
                continue;
            };
            let value = value.trim();
            let unquoted = ['"', '\'']
                .iter()
                .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
            self.variables
                .insert(name.trim().to_owned(), unquoted.unwrap_or(value).to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_told_at_once_and_no_secret_is_shown() {
        let mut env = Env::of([
            ("A", "x"),
            ("B", "maybe"),
            ("C", "short"),
            ("D", "900"),
            ("E", "NaN"),
        ]);

        env.value("A", 1_u16);
        env.flag("B", true);
        env.secret("C", 32);
        env.within("D", 5, (1, 10));
        env.seconds("E", Duration::from_secs(1));

        let text = env.finish().unwrap_err().to_string();
        assert!(
            ["A: ", "B: ", "C: is shorter", "D: 900", "E: NaN"]
                .iter()
                .all(|part| text.contains(part)),
            "{text}"
        );
        assert!(
            !text.contains("short\n") && !text.contains("`short`"),
            "{text}"
        );
    }

    #[test]
    fn a_mounted_file_holds_the_value() {
        let file = std::env::temp_dir().join(format!("env-{}", std::process::id()));
        std::fs::write(&file, "from the file\n").unwrap();
        let mut env = Env::of([("TOKEN_FILE", file.to_str().unwrap())]);

        assert_eq!(env.text("TOKEN").as_deref(), Some("from the file"));

        std::fs::remove_file(file).unwrap();
    }
}
