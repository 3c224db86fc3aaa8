//! Words for a device, which must hold nothing that its shell would obey, and words of a device, as they are read.

use std::collections::BTreeMap;

/// Refuses what would end early where it is read.
pub fn without_nul(text: &str, _: &()) -> garde::Result {
    match text.contains('\0') {
        true => Err(garde::Error::new("must not contain NUL")),
        false => Ok(()),
    }
}

/// Refuses what is no list of tags and priorities, and whatever logcat or a shell would obey.
pub fn log_filter(text: &str, _: &()) -> garde::Result {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:*/-".contains(&byte);
    let mut words = text.split_whitespace();
    let fits = words.all(|word| !word.starts_with('-') && word.bytes().all(is_part));
    match fits && text.len() <= 200 {
        true => Ok(()),
        false => Err(garde::Error::new(
            "must be tags and priorities such as ActivityManager:I *:S, 200 characters at most",
        )),
    }
}

/// Refuses what cannot be the name of an app.
pub fn is_package_name(text: &str, _: &()) -> garde::Result {
    let is_part = |part: &str| {
        let mut bytes = part.bytes();
        bytes
            .next()
            .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    match text.contains('.') && text.len() <= 255 && text.split('.').all(is_part) {
        true => Ok(()),
        false => Err(garde::Error::new(
            "must be a package such as com.example.app",
        )),
    }
}

/// The first line of what a device said, as far as it may stand in a sentence.
pub fn first_line(said: &str) -> String {
    let line = said.lines().find(|line| !line.trim().is_empty());
    line.unwrap_or("it said nothing")
        .chars()
        .take(200)
        .collect()
}

/// The names in lines such as `package:com.example.app`.
pub fn packages(said: &str) -> Vec<String> {
    let names = said
        .lines()
        .filter_map(|line| line.trim().strip_prefix("package:"));
    names.map(str::to_owned).collect()
}

/// The properties in lines such as `[ro.product.model]: [Pixel]`; a value may have several lines.
pub fn properties(said: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open: Option<(String, String)> = None;
    for line in said.lines() {
        let (name, mut value) = match open.take() {
            Some((name, value)) => (name, format!("{value}\n{line}")),
            None => match line
                .strip_prefix('[')
                .and_then(|rest| rest.split_once("]: ["))
            {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None => continue,
            },
        };
        match value.ends_with(']') {
            true => {
                value.pop();
                found.insert(name, value);
            }
            false => open = Some((name, value)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_read_as_a_device_prints_them() {
        let said = "[a.b]: [one]\n[empty]: []\nrubbish\n[long]: [first\nsecond]\n[in]: [[x]]\n[open]: [never";
        let read = properties(said);

        let expected = [
            ("a.b", "one"),
            ("empty", ""),
            ("in", "[x]"),
            ("long", "first\nsecond"),
        ];
        let read: Vec<(&str, &str)> = read.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn filters_and_packages_hold_nothing_that_a_shell_or_logcat_would_obey() {
        for (text, fits) in [
            ("ActivityManager:I *:S", true),
            ("", true),
            ("-f /data/x", false),
            ("a;reboot", false),
            ("$(id)", false),
            ("'", false),
        ] {
            assert_eq!(log_filter(text, &()).is_ok(), fits, "{text}");
        }
        for (text, fits) in [
            ("com.example.app", true),
            ("com.example.App_2", true),
            ("app", false),
            ("com..app", false),
            ("com.example.app;id", false),
            ("-k.b", false),
            ("com.2x", false),
        ] {
            assert_eq!(is_package_name(text, &()).is_ok(), fits, "{text}");
        }
    }

    #[test]
    fn any_output_is_read_as_packages_and_properties() {
        const WORDS: [&str; 10] = [
            "package:",
            "com.example",
            "[",
            "]: [",
            "]",
            "\n",
            "[a]: [b]\n",
            "[a]: [b",
            "]\n",
            "\r\n",
        ];
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(24)
            .for_each(|bytes: &[u8]| {
                let said = testkit::any::text(bytes, &WORDS);
                for name in packages(&said) {
                    assert!(said.contains(&name) && !name.contains('\n'));
                }
                for (name, value) in properties(&said) {
                    assert!(said.contains(&format!("[{name}]: [")), "{said}");
                    assert!(value.len() <= said.len());
                }
                assert!(first_line(&said).chars().count() <= 200);
                if log_filter(&said, &()).is_ok() {
                    assert!(!said.contains(['\'', ';', '$', '`', '\\']), "{said}");
                }
            });
    }
}
