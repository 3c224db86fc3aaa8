//! Which requests are given less time than the others, by their path.

use std::str::FromStr;
use std::time::Duration;

/// The longest there is: services end their work after it.
const LONGEST: f64 = 8.0;

/// Times for paths and what is below them; the longest path that fits counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlines(Vec<(String, Duration)>);

impl Default for Deadlines {
    fn default() -> Self {
        // A payment provider gives up, and calls again, after 5 s.
        Self(vec![("/webhooks".to_owned(), Duration::from_secs(5))])
    }
}

impl Deadlines {
    /// How long the head of a reply may take, where the path has a time of its own.
    pub fn of(&self, path: &str) -> Option<Duration> {
        let fits = |prefix: &str| {
            path.strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let found = self.0.iter().find(|(prefix, _)| fits(prefix));
        found.map(|(_, within)| *within)
    }
}

impl FromStr for Deadlines {
    type Err = String;

    /// Reads `/webhooks=5,/reports=2.5`.
    fn from_str(text: &str) -> Result<Self, String> {
        let entry = |entry: &str| {
            let (path, seconds) = entry
                .split_once('=')
                .filter(|(path, _)| path.len() > 1 && path.starts_with('/') && !path.ends_with('/'))
                .ok_or_else(|| format!("`{entry}` is not a path and seconds, as /webhooks=5"))?;
            let seconds = seconds
                .parse()
                .ok()
                .filter(|n| (0.01..=LONGEST).contains(n));
            let seconds = seconds
                .ok_or_else(|| format!("the seconds of `{entry}` are not 0.01 to {LONGEST}"))?;
            Ok((path.to_owned(), Duration::from_secs_f64(seconds)))
        };
        let entries = text.split(',').map(str::trim).filter(|one| !one.is_empty());
        let mut entries = entries.map(entry).collect::<Result<Vec<_>, String>>()?;
        entries.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        Ok(Self(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_path_that_fits_counts() {
        let deadlines: Deadlines = "/stats=3, /stats/daily=0.5,/webhooks=5".parse().unwrap();
        for (path, millis) in [
            ("/stats", Some(3000)),
            ("/stats/x", Some(3000)),
            ("/stats/daily/x", Some(500)),
            ("/statsy", None),
            ("/", None),
        ] {
            let within = deadlines.of(path);
            assert_eq!(within, millis.map(Duration::from_millis), "{path}");
        }
        assert_eq!("".parse(), Ok(Deadlines(Vec::new())));
        for bad in [
            "stats=3",
            "/stats",
            "/stats=9",
            "/stats=0",
            "/=1",
            "/stats/=1",
            "/a=x",
        ] {
            assert!(bad.parse::<Deadlines>().is_err(), "{bad}");
        }
    }

    #[test]
    fn any_setting_that_is_read_gives_times_within_bounds() {
        const WORDS: [&str; 14] = [
            "/stats", "=", "3", ",", "/a", "0.5", "8", "NaN", "inf", "-1", "1e-9", " ", "/", "/a/b",
        ];
        bolero::check!()
            .with_iterations(3_000)
            .with_max_len(12)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                let Ok(deadlines) = text.parse::<Deadlines>() else {
                    return;
                };
                for path in ["/stats", "/a", "/a/b", "/a/b/c", "/statsx", "/"] {
                    let within = deadlines.of(path).map(|within| within.as_secs_f64());
                    assert!(
                        within.is_none_or(|within| (0.01..=LONGEST).contains(&within)),
                        "{text}"
                    );
                }
                assert_eq!(deadlines.of("/"), None, "{text}");
            });
    }
}
