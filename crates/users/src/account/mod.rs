//! Accounts: the rules for names and addresses, and how an account is shown.

pub mod admin;
pub mod api;
pub mod contact;
pub mod db;
mod deletion;
pub mod manage;
pub mod overview;
pub mod view;

mod create;

pub use create::create_admin;
pub use deletion::{run_jobs, spawn_jobs};

use serde_json::{Map, Value};

/// The most bytes that preferences may take, as JSON.
const MOST_PREFERENCES: usize = 16 * 1024;
/// The most bytes that all preferences of an account may take, as the database writes them.
const MOST_STORED_PREFERENCES: i32 = 64 * 1024;

/// The form in which names and addresses are stored and compared.
pub fn normal(text: &str) -> String {
    text.trim().to_lowercase()
}

/// 3 to 50 of letters, digits, `_`, `.` and `-`, spaces around it aside.
pub fn username(text: &str, _: &()) -> garde::Result {
    let text = text.trim();
    let fits = (3..=50).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    rule(fits, "must be 3 to 50 characters from a-z 0-9 _ . -")
}

/// A mail address of at most 100 characters.
pub fn email(text: &str, _: &()) -> garde::Result {
    let text = text.trim();
    let fits =
        text.is_ascii() && text.len() <= 100 && garde::rules::email::parse_email(text).is_ok();
    rule(fits, "must be an email address of at most 100 characters")
}

/// A name as people write it: at most 100 characters on one line.
pub fn full_name(text: &str, _: &()) -> garde::Result {
    let fits = text.chars().count() <= 100 && !text.contains(char::is_control);
    rule(
        fits,
        "must be at most 100 characters, none of them a control character",
    )
}

/// 5 to 32 of digits, space and `+ - ( )`.
pub fn phone(text: &str, _: &()) -> garde::Result {
    let fits = (5..=32).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || b" +-()".contains(&byte));
    rule(fits, "must be 5 to 32 characters from 0-9, space, + - ( )")
}

/// The address of a picture on the web.
pub fn avatar(text: &str, _: &()) -> garde::Result {
    let is_url = text.parse::<http::Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
    });
    // What `Uri` lets pass beyond the standard, but stands for itself in no page.
    let strange = |c: char| c.is_control() || c.is_whitespace() || "\"<>\\".contains(c);
    rule(
        is_url && text.len() <= 500 && !text.contains(strange),
        "must be an http(s) URL of at most 500 characters",
    )
}

/// An object that the store can hold.
pub fn preferences(value: &Map<String, Value>, _: &()) -> garde::Result {
    let size = serde_json::to_string(value).map_or(usize::MAX, |text| text.len());
    let storable = value
        .iter()
        .all(|(key, value)| is_storable(key) && holds_storable(value));
    rule(
        size <= MOST_PREFERENCES && storable,
        "must be an object of at most 16 KiB, without the character NUL",
    )
}

/// PostgreSQL's texts hold every character but NUL.
pub fn is_storable(text: &str) -> bool {
    !text.contains('\0')
}

fn holds_storable(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
        Value::String(text) => is_storable(text),
        Value::Array(items) => items.iter().all(holds_storable),
        Value::Object(entries) => entries
            .iter()
            .all(|(key, value)| is_storable(key) && holds_storable(value)),
    }
}

/// A text that the store can hold.
pub fn storable(text: &str, _: &()) -> garde::Result {
    rule(is_storable(text), "must not hold the character NUL")
}

/// Says what is wrong where something does not fit.
pub fn rule(fits: bool, message: &'static str) -> garde::Result {
    if fits {
        Ok(())
    } else {
        Err(garde::Error::new(message))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_and_addresses_are_accepted_as_the_contract_says() {
        let long = "x".repeat(51);
        for (text, fits) in [
            (" Alice.B_c-9 ", true),
            ("abc", true),
            ("ab", false),
            (&long, false),
            ("a b c", false),
            ("ålice", false),
            ("a@b.c", false),
        ] {
            assert_eq!(username(text, &()).is_ok(), fits, "{text}");
        }
        let long = format!("{}@example.com", "x".repeat(100));
        for (text, fits) in [
            ("Alice@Example.com", true),
            ("alice", false),
            ("alice@", false),
            (&long, false),
            ("älice@example.com", false),
        ] {
            assert_eq!(email(text, &()).is_ok(), fits, "{text}");
        }
        assert_eq!(normal(" Alice@Example.com "), "alice@example.com");
    }

    #[test]
    fn the_other_fields_are_accepted_as_the_contract_says() {
        for (text, fits) in [
            ("+86 (138) 000-00", true),
            ("1234", false),
            ("12345a", false),
        ] {
            assert_eq!(phone(text, &()).is_ok(), fits, "{text}");
        }
        for (text, fits) in [
            ("https://example.com/a.png?x=1", true),
            ("ftp://example.com/a", false),
            ("javascript:alert(1)", false),
            ("/a.png", false),
            ("https://example.com/\0", false),
            ("https://example.com/\u{8b}", false),
            ("https://example.com/\"onerror=\"", false),
        ] {
            assert_eq!(avatar(text, &()).is_ok(), fits, "{text}");
        }
        let with = |value: Value| preferences(value.as_object().unwrap(), &()).is_ok();
        assert!(with(json!({ "theme": "dark", "list": [{ "a": 1 }] })));
        assert!(!with(json!({ "list": [{ "a": "\0" }] })));
        assert!(!with(json!({ "text": "x".repeat(MOST_PREFERENCES) })));
    }

    #[test]
    fn any_field_that_is_accepted_can_be_shown_and_stored() {
        const WORDS: [&str; 20] = [
            "alice",
            "@",
            "example",
            ".com",
            "https://",
            "http://",
            "javascript:",
            "+86",
            " ",
            "(138)",
            "-",
            "_",
            ".",
            "\u{202e}",
            "ä",
            "\r\n",
            "0",
            "/a.png",
            "?",
            "#",
        ];
        bolero::check!()
            .with_iterations(3_000)
            .with_max_len(16)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                for is_fit in [
                    username(&text, &()),
                    email(&text, &()),
                    phone(&text, &()),
                    avatar(&text, &()),
                    full_name(&text, &()),
                ] {
                    assert!(
                        is_fit.is_err()
                            || !text.trim().chars().any(char::is_control) && text.len() <= 500,
                        "{text}"
                    );
                }
                for is_fit in [username(&text, &()), email(&text, &())] {
                    let normal = normal(&text);
                    assert!(
                        is_fit.is_err()
                            || normal.is_ascii()
                                && normal == super::normal(&normal)
                                && !normal.contains(' '),
                        "{text}"
                    );
                }
                if avatar(&text, &()).is_ok() {
                    assert!(
                        text.starts_with("http://") || text.starts_with("https://"),
                        "{text}"
                    );
                }
            });
    }

    #[test]
    fn any_preferences_that_are_accepted_can_be_stored() {
        const WORDS: [&str; 4] = ["theme", "list", "dark", "\0"];
        bolero::check!()
            .with_iterations(1_000)
            .with_max_len(64)
            .for_each(|bytes: &[u8]| {
                if let Value::Object(value) = testkit::any::json(bytes, &WORDS) {
                    let text = serde_json::to_string(&value).unwrap();
                    let fits = preferences(&value, &()).is_ok();
                    assert_eq!(
                        fits,
                        text.len() <= MOST_PREFERENCES && !text.contains("\\u0000"),
                        "{text}"
                    );
                }
            });
    }
}
