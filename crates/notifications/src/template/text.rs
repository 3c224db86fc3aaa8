//! Filling in placeholders, within bounds. A placeholder is a name, or a path of names: `{{orderNo}}`, `{{device.name}}`.
//! There are no statements, filters, calls or other templates, so that what an admin writes can neither run long nor
//! reach anything but the data of one notification.

use std::io;
use std::sync::LazyLock;

use minijinja::value::{Serde, Value, ValueKind};
use minijinja::{AutoEscape, Environment, UndefinedBehavior, escape_formatter};
use serde_json::Map;

/// The most bytes that a filled-in text may have.
pub const MAX_OUTPUT: usize = 64 * 1024;
/// The most placeholders in one text.
const MAX_PLACEHOLDERS: usize = 100;
/// Steps of the engine: a placeholder takes a few, each of its names one.
const FUEL: u64 = 10_000;
const MAX_NAME: usize = 200;

static ENGINE: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut engine = Environment::empty();
    engine.set_auto_escape_callback(|_| AutoEscape::Html);
    // A notification that lacks its amount is worse than the built-in words.
    engine.set_undefined_behavior(UndefinedBehavior::Strict);
    engine.set_fuel(Some(FUEL));
    // The engine would write truths as Python does.
    engine.set_formatter(
        |output, state, value| match (value.kind(), value.is_true()) {
            (ValueKind::Bool, true) => output.write_str("true").map_err(Into::into),
            (ValueKind::Bool, false) => output.write_str("false").map_err(Into::into),
            _ => escape_formatter(output, state, value),
        },
    );
    engine
});

/// Why a text is none, or could not be filled in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// `{%` or `{#`.
    #[error("statements and comments are not taken, only placeholders such as {{{{name}}}}")]
    Statement,
    /// `{{` without `}}`.
    #[error("a placeholder is not closed: {0}")]
    Open(String),
    /// Something else than names between the braces.
    #[error("a placeholder is a name such as {{{{orderNo}}}} or {{{{device.name}}}}, not `{0}`")]
    NoName(String),
    /// More than the bound.
    #[error("it has more than {MAX_PLACEHOLDERS} placeholders")]
    TooMany,
    /// The data has no such name, or the engine found something else.
    #[error("{0}")]
    Unfilled(String),
    /// Filled in, it is longer than the bound.
    #[error("filled in, it is longer than {0} bytes")]
    TooLong(usize),
}

/// The names of a text's placeholders, in its order.
///
/// # Errors
/// Where it is no text of a template.
pub fn placeholders(text: &str) -> Result<Vec<&str>, Fault> {
    if text.contains("{%") || text.contains("{#") {
        return Err(Fault::Statement);
    }
    let shown = |text: &str| text.chars().take(40).collect::<String>();
    let mut names = Vec::new();
    let mut rest = text;
    while let Some((_, begun)) = rest.split_once("{{") {
        let (inside, after) = begun
            .split_once("}}")
            .ok_or_else(|| Fault::Open(shown(begun)))?;
        let name = inside.trim();
        if !is_path(name) {
            return Err(Fault::NoName(shown(name)));
        }
        if names.len() == MAX_PLACEHOLDERS {
            return Err(Fault::TooMany);
        }
        names.push(name);
        rest = after;
    }
    Ok(names)
}

/// A text with its placeholders filled in; values are escaped for HTML.
///
/// # Errors
/// Where it is no text of a template, the data lacks a name, or the outcome would be longer than `most` bytes.
pub fn fill(
    text: &str,
    data: &Map<String, serde_json::Value>,
    most: usize,
) -> Result<String, Fault> {
    placeholders(text)?;
    let unfilled = |error: minijinja::Error| {
        let told = error
            .detail()
            .map_or_else(|| error.kind().to_string(), str::to_owned);
        Fault::Unfilled(told)
    };
    let template = ENGINE.template_from_str(text).map_err(unfilled)?;
    // The engine tells of an undefined value, and not of which.
    let lacking = placeholders(text)?
        .into_iter()
        .find(|name| is_lacking(data, name));
    if let Some(name) = lacking {
        return Err(Fault::Unfilled(format!("the data has no `{name}`")));
    }
    let mut output = Bounded {
        bytes: Vec::new(),
        most,
    };
    let filled = template
        .render_captured_to(Value::from(Serde(data)), &mut output)
        .map(|_| ());
    match filled {
        Ok(()) => {
            String::from_utf8(output.bytes).map_err(|_| Fault::Unfilled("no text".to_owned()))
        }
        Err(_) if output.most == 0 => Err(Fault::TooLong(most)),
        Err(error) => Err(unfilled(error)),
    }
}

fn is_lacking(data: &Map<String, serde_json::Value>, path: &str) -> bool {
    let mut names = path.split('.');
    let first = names.next().and_then(|name| data.get(name));
    let found = names.fold(first, |value, name| value?.get(name));
    found.is_none_or(serde_json::Value::is_null)
}

fn is_path(text: &str) -> bool {
    let is_name = |name: &str| {
        let mut letters = name.bytes();
        letters
            .next()
            .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
            && letters.all(|next| next.is_ascii_alphanumeric() || next == b'_')
    };
    text.len() <= MAX_NAME && text.split('.').all(is_name)
}

/// Takes so many bytes and refuses more.
struct Bounded {
    bytes: Vec<u8>,
    /// 0 once more came.
    most: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + more.len() > self.most {
            self.most = 0;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn data(value: serde_json::Value) -> Map<String, serde_json::Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn placeholders_are_filled_in_and_values_escaped() {
        let data = data(json!({ "name": "<b>Ann</b>", "order": { "no": 7 }, "paid": true }));

        let filled = fill(
            "Hi {{name}}: {{ order.no }}, {{paid}} <i>",
            &data,
            MAX_OUTPUT,
        );

        assert_eq!(
            filled.unwrap(),
            "Hi &lt;b&gt;Ann&lt;&#x2f;b&gt;: 7, true <i>"
        );
        assert_eq!(fill("as it is", &data, MAX_OUTPUT).unwrap(), "as it is");
    }

    #[test]
    fn what_is_more_than_a_name_is_no_placeholder() {
        for text in [
            "{% for i in x %}{% endfor %}",
            "{% include 'other' %}",
            "{# note #}",
            "{{ 'x' * 100000000 }}",
            "{{ name|safe }}",
            "{{ a ~ b }}",
            "{{ f() }}",
            "{{ a[0] }}",
            "{{}}",
            "{{ name",
            "{{ {{name}} }}",
            "{{ a..b }}",
            "{{- name -}}",
        ] {
            assert!(placeholders(text).is_err(), "{text}");
        }
        let many = "{{a}}".repeat(MAX_PLACEHOLDERS + 1);
        assert_eq!(placeholders(&many), Err(Fault::TooMany));
    }

    #[test]
    fn what_the_data_lacks_and_what_grows_too_long_is_refused() {
        let data = data(json!({ "long": "x".repeat(1_000), "nothing": null, "deep": { "a": 1 } }));

        assert!(fill("{{absent}}", &data, 10).is_err());
        assert!(fill("{{nothing}}", &data, 10).is_err());
        assert!(fill("{{deep.b.c}}", &data, 10).is_err());
        assert_eq!(fill("{{long}}", &data, 999), Err(Fault::TooLong(999)));
        assert_eq!(fill("{{long}}", &data, 1_000).unwrap().len(), 1_000);
        assert_eq!(fill("{{deep.a}}", &data, 10).unwrap(), "1");
    }

    #[test]
    fn any_text_and_data_fill_in_or_are_refused() {
        const WORDS: [&str; 16] = [
            "{{", "}}", "a", ".", "{%", "%}", "{#", " ", "true", "none", "if", "<", "_b", "0",
            "loop", "self",
        ];
        let data = data(
            json!({ "a": "<", "_b": { "a": [1, 2] }, "true": 1, "if": "x", "loop": 2, "self": 3 }),
        );
        bolero::check!()
            .with_iterations(3_000)
            .with_max_len(48)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                if let Ok(filled) = fill(&text, &data, 4_096) {
                    assert!(filled.len() <= 4_096, "{text}");
                }
            });
    }
}
