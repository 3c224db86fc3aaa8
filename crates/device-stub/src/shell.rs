//! The device's shell: a handful of the commands that people and programs send to Android.

use crate::device::{Device, DeviceProfile};
use crate::screen::screenshot;

/// A line that has printed more is not gone on with.
pub const MOST_OUTPUT: usize = 1 << 20;

/// What a command line printed, and how it ended.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Outcome {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub status: u8,
}

/// Runs a command line: commands with `;`, `&&` and `||` between them.
pub fn run(device: &Device, line: &str) -> Outcome {
    let mut whole = Outcome::default();
    let mut goes_on = true;
    for part in parse(line) {
        match part {
            Part::Command(words) if goes_on && !words.is_empty() => {
                let outcome = command(device, &words);
                whole.stdout.extend(outcome.stdout);
                whole.stderr.extend(outcome.stderr);
                whole.status = outcome.status;
                if words[0] == "exit" || whole.stdout.len() + whole.stderr.len() > MOST_OUTPUT {
                    break;
                }
            }
            Part::Command(_) => {}
            Part::Then => goes_on = true,
            Part::And => goes_on = whole.status == 0,
            Part::Or => goes_on = whole.status != 0,
        }
    }
    whole
}

/// The name a file is installed under: its own, without folder and ending.
pub fn package_name(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    let name = name.strip_suffix(".apk").unwrap_or(name);
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '_'
            }
        })
        .take(255)
        .collect()
}

#[derive(Debug, Eq, PartialEq)]
enum Part {
    Command(Vec<String>),
    Then,
    And,
    Or,
}

/// Splits a line into words, quotes and backslashes as in a shell.
fn parse(line: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(q), c) if c == q => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => word.get_or_insert_default().extend(letters.next()),
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                word.get_or_insert_default();
                quote = Some(letter);
            }
            (None, c)
                if c == ';'
                    || c == '\n'
                    || (matches!(c, '&' | '|') && letters.peek() == Some(&c)) =>
            {
                words.extend(word.take());
                parts.push(Part::Command(std::mem::take(&mut words)));
                parts.push(match c {
                    '&' => Part::And,
                    '|' => Part::Or,
                    _ => Part::Then,
                });
                if matches!(c, '&' | '|') {
                    letters.next();
                }
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    parts.push(Part::Command(words));
    parts
}

fn command(device: &Device, words: &[String]) -> Outcome {
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let profile = device.profile();
    match words[..] {
        ["getprop"] => {
            let lines = properties(profile)
                .into_iter()
                .map(|(name, value)| format!("[{name}]: [{value}]\n"));
            done(lines.collect::<String>())
        }
        ["getprop", name, ref rest @ ..] => {
            let value = properties(profile)
                .into_iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| value);
            let value = value.unwrap_or_else(|| rest.first().copied().unwrap_or_default().into());
            done(format!("{value}\n"))
        }
        ["echo", "-n", ref rest @ ..] => done(rest.join(" ")),
        ["echo", ref rest @ ..] => done(format!("{}\n", rest.join(" "))),
        ["pm", ref rest @ ..] | ["cmd", "package", ref rest @ ..] => package_manager(device, rest),
        ["screencap", ..] => Outcome {
            stdout: screenshot(profile.width, profile.height),
            ..Outcome::default()
        },
        ["wm", "size"] => done(format!(
            "Physical size: {}x{}\n",
            profile.width, profile.height
        )),
        ["wm", "density"] => done(format!("Physical density: {}\n", profile.density)),
        ["logcat", "-c"] => {
            device.clear_log();
            done(String::new())
        }
        ["logcat", ref rest @ ..] => {
            let wanted = rest.iter().position(|word| *word == "-t");
            let wanted = wanted.and_then(|position| rest.get(position + 1)?.parse().ok());
            let log = device.log();
            let first = log.len().saturating_sub(wanted.unwrap_or(usize::MAX));
            let lines: String = log[first..]
                .iter()
                .map(|line| format!("{line}\n"))
                .collect();
            done(format!("--------- beginning of main\n{lines}"))
        }
        ["log", ref rest @ ..] => {
            device.write_log(format!("I/log     (    1): {}", rest.join(" ")));
            done(String::new())
        }
        ["seq", last] => {
            let last: u32 = last.parse().unwrap_or_default();
            let mut lines = String::new();
            for number in 1..=last {
                if lines.len() > MOST_OUTPUT {
                    break;
                }
                lines.push_str(&format!("{number}\n"));
            }
            done(lines)
        }
        ["am", "start", ..] => done("Starting: Intent { }\n".into()),
        ["monkey", ..] => done("Events injected: 1\n".into()),
        ["rm", ref rest @ ..] => {
            let mut paths = rest.iter().filter(|word| !word.starts_with('-'));
            let forced = rest
                .iter()
                .any(|word| word.starts_with('-') && word.contains('f'));
            match paths.find(|path| !device.remove_file(path) && !forced) {
                Some(path) => failed(1, format!("rm: {path}: No such file or directory\n")),
                None => done(String::new()),
            }
        }
        ["id"] => done("uid=2000(shell) gid=2000(shell)\n".into()),
        ["whoami"] => done("shell\n".into()),
        ["exit", status] => Outcome {
            status: status.parse().unwrap_or(2),
            ..Outcome::default()
        },
        ["false"] => Outcome {
            status: 1,
            ..Outcome::default()
        },
        [
            "true" | "exit" | "sync" | "sleep" | "input" | "am" | "settings" | "svc" | "setprop"
            | "wm",
            ..,
        ] => done(String::new()),
        [unknown, ..] => failed(
            127,
            format!("/system/bin/sh: {unknown}: inaccessible or not found\n"),
        ),
        [] => done(String::new()),
    }
}

fn package_manager(device: &Device, words: &[&str]) -> Outcome {
    let installed = |name: &str| device.packages().contains_key(name);
    match *words {
        ["list", "packages", ref rest @ ..] => {
            let wanted = rest
                .iter()
                .find(|word| !word.starts_with('-'))
                .copied()
                .unwrap_or_default();
            let packages = device.packages();
            let lines = packages
                .keys()
                .filter(|name| name.contains(wanted))
                .map(|name| format!("package:{name}\n"));
            done(lines.collect())
        }
        ["install", ref rest @ ..] => {
            let Some(path) = operand(rest) else {
                return failed(1, "Error: no package specified\n".into());
            };
            let Some(file) = device.file(path) else {
                return failed(1, format!("Error: Unable to open file: {path}\n"));
            };
            verdict(
                device
                    .install(&package_name(path), &file)
                    .map_err(str::to_owned),
            )
        }
        ["uninstall", ref rest @ ..] => {
            let removed = operand(rest).is_some_and(|name| device.uninstall(name));
            verdict(if removed {
                Ok(())
            } else {
                Err("DELETE_FAILED_INTERNAL_ERROR".into())
            })
        }
        ["path", name] if installed(name) => done(format!("package:/data/app/{name}/base.apk\n")),
        ["path", _] => Outcome {
            status: 1,
            ..Outcome::default()
        },
        [
            "clear" | "enable" | "grant" | "revoke" | "force-stop",
            name,
            ..,
        ] if installed(name) => done("Success\n".into()),
        [verb, ..] => failed(255, format!("Unknown command: {verb}\n")),
        [] => failed(255, "Error: no command specified\n".into()),
    }
}

/// What `pm` prints; Android says it on its output and tells a failure by the status, too.
pub fn verdict(result: Result<(), String>) -> Outcome {
    match result {
        Ok(()) => done("Success\n".into()),
        Err(reason) => Outcome {
            status: 1,
            ..done(format!("Failure [{reason}]\n"))
        },
    }
}

/// The first word that is neither an option nor an option's value.
fn operand<'a>(words: &[&'a str]) -> Option<&'a str> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "-i" | "-S" | "--user" | "--install-location" | "--abi" => {
                words.next();
            }
            option if option.starts_with('-') => {}
            operand => return Some(operand),
        }
    }
    None
}

fn properties(profile: &DeviceProfile) -> Vec<(&'static str, String)> {
    vec![
        ("ro.boot.serialno", profile.name.clone()),
        ("ro.build.version.release", profile.android_version.clone()),
        (
            "ro.build.version.sdk",
            sdk(&profile.android_version).to_string(),
        ),
        ("ro.product.cpu.abi", "x86_64".into()),
        ("ro.product.device", "stub".into()),
        ("ro.product.manufacturer", "Cloudphone".into()),
        ("ro.product.model", profile.model.clone()),
        ("ro.product.name", profile.name.clone()),
        ("ro.serialno", profile.name.clone()),
        ("ro.sf.lcd_density", profile.density.to_string()),
        ("sys.boot_completed", "1".into()),
    ]
}

fn sdk(android_version: &str) -> u32 {
    let major: u32 = android_version
        .split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .unwrap_or(14);
    match major {
        ..=10 => 19 + major,
        11 => 30,
        12 => 31,
        _ => major.saturating_add(20),
    }
}

fn done(text: String) -> Outcome {
    Outcome {
        stdout: text.into_bytes(),
        ..Outcome::default()
    }
}

fn failed(status: u8, text: String) -> Outcome {
    Outcome {
        stderr: text.into_bytes(),
        status,
        ..Outcome::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Pushed;

    fn says(device: &Device, line: &str) -> (String, u8) {
        let outcome = run(device, line);
        (
            String::from_utf8([outcome.stdout, outcome.stderr].concat()).unwrap(),
            outcome.status,
        )
    }

    #[test]
    fn lines_are_split_as_a_shell_does() {
        let device = Device::new(DeviceProfile::default());
        for (line, expected) in [
            ("echo a  'b  c' \"d e\" f\\ g", ("a b  c d e f g\n", 0)),
            ("false && echo no; echo yes", ("yes\n", 0)),
            ("false || echo else", ("else\n", 0)),
            ("exit 7; echo no", ("", 7)),
            (
                "nonsense",
                ("/system/bin/sh: nonsense: inaccessible or not found\n", 127),
            ),
            ("getprop ro.product.model", ("Cloudphone Stub\n", 0)),
            ("getprop no.such fallback", ("fallback\n", 0)),
            ("", ("", 0)),
        ] {
            assert_eq!(
                says(&device, line),
                (expected.0.to_owned(), expected.1),
                "{line}"
            );
        }
    }

    #[test]
    fn a_pushed_app_is_installed_listed_and_removed() {
        let device = Device::new(DeviceProfile::default());
        let path = "/data/local/tmp/com.example.app.apk";
        assert_eq!(says(&device, &format!("pm install -r {path}")).1, 1);
        device.push(
            path.into(),
            Pushed {
                bytes: 9,
                is_archive: true,
            },
        );

        assert_eq!(
            says(&device, &format!("pm install -r -i store '{path}'")),
            ("Success\n".into(), 0)
        );
        assert_eq!(
            says(&device, "pm list packages"),
            ("package:com.example.app\n".into(), 0)
        );
        assert_eq!(
            says(&device, "pm uninstall com.example.app"),
            ("Success\n".into(), 0)
        );
        assert_eq!(says(&device, "pm uninstall com.example.app").1, 1);
    }

    #[test]
    fn what_is_no_archive_is_not_installed() {
        let device = Device::new(DeviceProfile::default());
        device.push(
            "/data/local/tmp/a.apk".into(),
            Pushed {
                bytes: 9,
                is_archive: false,
            },
        );

        let (text, status) = says(&device, "pm install /data/local/tmp/a.apk");

        assert!(
            text.starts_with("Failure [INSTALL_PARSE_FAILED_NOT_APK") && status == 1,
            "{text}"
        );
    }

    #[test]
    fn any_words_in_quotes_are_what_was_quoted() {
        bolero::check!()
            .with_type::<Vec<String>>()
            .with_iterations(500)
            .for_each(|words| {
                let quoted = words
                    .iter()
                    .map(|word| format!("'{}'", word.replace('\'', "'\\''")));
                let line = quoted.collect::<Vec<_>>().join(" ");
                assert_eq!(parse(&line), [Part::Command(words.clone())], "{line}");
            });
    }

    #[test]
    fn any_line_ends_and_prints_within_bounds() {
        const WORDS: [&str; 24] = [
            "getprop",
            "echo",
            "pm",
            "list",
            "packages",
            "install",
            "-S",
            "screencap",
            "wm",
            "size",
            "rm",
            "-f",
            "exit",
            "256",
            "false",
            ";",
            "&&",
            "||",
            "'",
            "\"",
            "\\",
            "cmd package uninstall",
            " ",
            "ro.build.version.sdk",
        ];
        let device = Device::new(DeviceProfile::default());
        bolero::check!()
            .with_iterations(500)
            .with_max_len(512)
            .for_each(|bytes: &[u8]| {
                let words = bytes
                    .iter()
                    .map(|byte| match WORDS.get(usize::from(*byte) / 2) {
                        Some(word) if byte % 2 == 0 => format!("{word} "),
                        Some(word) => (*word).to_owned(),
                        None => char::from(*byte).to_string(),
                    });
                let line: String = words.collect();
                let outcome = run(&device, &line);
                let longest = 1 << 16;
                assert!(
                    outcome.stdout.len() + outcome.stderr.len() <= MOST_OUTPUT + longest,
                    "{line}"
                );
            });
    }

    #[test]
    fn a_line_of_faults_is_not_gone_on_with_for_ever() {
        let device = Device::new(DeviceProfile::default());
        let outcome = run(&device, &"no;".repeat(MOST_OUTPUT / 16));
        assert!(outcome.stderr.len() <= MOST_OUTPUT + 1024);
    }

    #[test]
    fn any_version_of_android_has_an_api_level() {
        bolero::check!()
            .with_type::<u32>()
            .with_iterations(500)
            .for_each(|major| {
                assert!(sdk(&format!("{major}.1")) >= 19);
            });
        assert!(sdk(&u32::MAX.to_string()) >= 19);
    }
}
