//! Finds the programs of Redis and PostgreSQL.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;

#[cfg(target_os = "macos")]
const INSTALL: &str = "brew install redis postgresql@16";
#[cfg(not(target_os = "macos"))]
const INSTALL: &str = "apt-get install -y redis-server postgresql";

/// Where the programs are.
#[derive(Debug)]
pub struct Binaries {
    /// `redis-server`.
    pub redis: PathBuf,
    /// Folders with both `initdb` and `postgres`, the preferred one first.
    postgres: Vec<PathBuf>,
}

impl Binaries {
    /// Looks in PATH, then where Debian and Homebrew put them; names everything that is missing at once.
    pub fn find() -> Result<Self, Error> {
        let path = env::var_os("PATH").unwrap_or_default();
        let on_path: Vec<_> = env::split_paths(&path)
            .filter(|folder| folder.is_absolute())
            .collect();
        let homebrew = ["/opt/homebrew", "/usr/local"].map(PathBuf::from);

        let redis = on_path
            .iter()
            .cloned()
            .chain(["/usr/bin", "/usr/local/bin"].map(PathBuf::from))
            .chain(homebrew.iter().map(|prefix| prefix.join("bin")))
            .map(|folder| folder.join("redis-server"))
            .find(|program| program.is_file());

        let mut postgres: Vec<_> = on_path
            .iter()
            .filter_map(|folder| cluster_programs(folder))
            .collect();
        postgres.extend(versions(Path::new("/usr/lib/postgresql"), "", "bin"));
        for prefix in &homebrew {
            postgres.extend(versions(&prefix.join("opt"), "postgresql@", "bin"));
        }

        match redis {
            Some(redis) if !postgres.is_empty() => Ok(Self { redis, postgres }),
            redis => {
                let mut missing = Vec::new();
                if redis.is_none() {
                    missing.push("redis-server");
                }
                if postgres.is_empty() {
                    missing.push("PostgreSQL (initdb, postgres)");
                }
                Err(Error::Missing {
                    what: missing.join(" and "),
                    install: INSTALL,
                })
            }
        }
    }

    /// The folder of the preferred PostgreSQL, or of the one that can open an existing cluster.
    pub fn postgres(&self, major: Option<&str>) -> anyhow::Result<&Path> {
        let found = match major {
            None => self.postgres.first(),
            Some(major) => self
                .postgres
                .iter()
                .find(|folder| version(folder).as_deref() == Some(major)),
        };
        found.map(PathBuf::as_path).ok_or_else(|| {
            let major = major.unwrap_or("15");
            anyhow::anyhow!("the data was written by PostgreSQL {major}, which is not installed")
        })
    }
}

/// The real folder of `initdb` and `postgres`, where a folder has both or links to them.
fn cluster_programs(folder: &Path) -> Option<PathBuf> {
    let real = folder.join("initdb").canonicalize().ok()?;
    let folder = real.parent()?;
    folder.join("postgres").is_file().then(|| folder.to_owned())
}

/// `<root>/<prefix><version>/<below>` for every version there is, the highest first.
fn versions(root: &Path, prefix: &str, below: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let number = entry
                .file_name()
                .to_str()?
                .strip_prefix(prefix)?
                .parse()
                .ok()?;
            Some((number, cluster_programs(&entry.path().join(below))?))
        })
        .collect();
    found.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    found.into_iter().map(|(_, folder)| folder).collect()
}

/// The major version of the PostgreSQL in a folder: `15` of `postgres (PostgreSQL) 15.6 (Debian …)`.
fn version(folder: &Path) -> Option<String> {
    let output = Command::new(folder.join("postgres"))
        .arg("--version")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let number = text
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    Some(number.chars().take_while(char::is_ascii_digit).collect())
}
