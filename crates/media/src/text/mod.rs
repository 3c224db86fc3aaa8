//! Texts: templates that are filled in, subtitles, and lines of text as a picture.

use std::collections::BTreeMap;

use platform::problem::FieldFault;
use serde::{Deserialize, Serialize};

use crate::stitch::Colour;

const MOST_LINES: usize = 500;

/// What is made of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextMode {
    /// The text itself, filled in.
    #[default]
    Text,
    /// Subtitles, as `SubRip` has them.
    Subtitles,
    /// A PNG of the text, its lines broken to fit.
    Image,
}

/// How a text is made. What a client leaves out has its default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TextParams {
    /// What is made of it.
    pub mode: TextMode,
    /// `weekly_drop`, `product_showcase`, or a text of one's own with `{name}` for values.
    pub template: String,
    /// What is filled in.
    pub values: BTreeMap<String, String>,
    /// Subtitles, in their order.
    pub lines: Vec<Subtitle>,
    /// The most characters of a line of subtitles; wide ones count twice.
    pub columns: usize,
    /// Width of the picture in pixels.
    pub width: u32,
    /// Height of a letter in pixels.
    pub size: u32,
    /// The colour of the letters.
    pub colour: Colour,
    /// The colour behind them.
    pub background: Colour,
}

/// A subtitle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subtitle {
    /// Seconds.
    pub start: f64,
    /// Seconds.
    pub end: f64,
    /// What is said.
    pub text: String,
}

impl Default for TextParams {
    fn default() -> Self {
        Self {
            mode: TextMode::Text,
            template: String::new(),
            values: BTreeMap::new(),
            lines: Vec::new(),
            columns: 42,
            width: 800,
            size: 48,
            colour: Colour([0x22; 3]),
            background: Colour([0xF5; 3]),
        }
    }
}

impl TextParams {
    /// What is wrong with them.
    pub fn faults(&self) -> Vec<FieldFault> {
        let mut faults = Vec::new();
        let mut fault = |field: &str, message: String| {
            let field = format!("params.{field}");
            faults.push(FieldFault { field, message });
        };
        if self.mode == TextMode::Subtitles {
            if self.lines.is_empty() || self.lines.len() > MOST_LINES {
                fault("lines", format!("must be 1 to {MOST_LINES}"));
            }
            let mut last = 0.0;
            for (index, line) in self.lines.iter().enumerate() {
                let is_ordered = line.start >= last && line.end > line.start && line.end < 86_400.0;
                if !is_ordered || line.text.trim().is_empty() {
                    fault(
                        &format!("lines[{index}]"),
                        "must have a text, and begin after the one before and before its own end"
                            .to_owned(),
                    );
                }
                last = line.end;
            }
        } else if let Err(missing) = self.text() {
            fault(&missing, "is needed by the template".to_owned());
        }
        if !(8..=200).contains(&self.columns) {
            fault("columns", "must be 8 to 200".to_owned());
        }
        if !(64..=2048).contains(&self.width) {
            fault("width", "must be 64 to 2048 pixels".to_owned());
        }
        if !(8..=200).contains(&self.size) || self.size * 2 > self.width {
            fault(
                "size",
                "must be 8 to 200 pixels, and at most half the width".to_owned(),
            );
        }
        faults
    }

    /// The template with its values; the name of what is missing.
    pub fn text(&self) -> Result<String, String> {
        let template = match self.template.as_str() {
            "" => return Err("template".to_owned()),
            "weekly_drop" => "{title}\nNew this week: {items}\nFrom {price}",
            "product_showcase" => "{product}\n{description}\n{price}",
            own => own,
        };
        let mut text = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            text.push_str(before);
            match after.split_once('}') {
                Some((name, after)) if is_name(name) => {
                    let value = self.values.get(name);
                    text.push_str(value.ok_or_else(|| format!("values.{name}"))?);
                    rest = after;
                }
                _ => {
                    text.push('{');
                    rest = after;
                }
            }
        }
        text.push_str(rest);
        Ok(text)
    }

    /// The subtitles as a file.
    pub fn subtitles(&self) -> String {
        let block = |(index, line): (usize, &Subtitle)| {
            let text = wrap(&line.text, self.columns).join("\n");
            format!(
                "{}\n{} --> {}\n{text}\n\n",
                index + 1,
                stamp(line.start),
                stamp(line.end)
            )
        };
        self.lines.iter().enumerate().map(block).collect()
    }
}

/// Breaks a text into lines of at most so many columns: between words where it can, within one that is longer, and
/// before any wide character. Lines that the text has stay.
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        let mut used = 0;
        for word in words(paragraph) {
            let wide: usize = word.chars().map(columns_of).sum();
            if used + wide > columns && !line.is_empty() {
                lines.push(std::mem::take(&mut line).trim_end().to_owned());
                used = 0;
            }
            if line.is_empty() && word.trim().is_empty() {
                continue;
            }
            for c in word.chars() {
                if used + columns_of(c) > columns && !line.is_empty() {
                    lines.push(std::mem::take(&mut line).trim_end().to_owned());
                    used = 0;
                }
                line.push(c);
                used += columns_of(c);
            }
        }
        lines.push(line.trim_end().to_owned());
    }
    lines
}

/// The pieces between which a line may be broken.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut last = None;
    for c in text.chars().filter(|c| !c.is_control()) {
        let kind = (c.is_whitespace(), columns_of(c) == 2);
        match words.last_mut() {
            Some(word) if last == Some(kind) && !kind.1 => word.push(c),
            _ => words.push(c.to_string()),
        }
        last = Some(kind);
    }
    words
}

/// East Asian characters are twice as wide.
fn columns_of(c: char) -> usize {
    let is_wide = matches!(u32::from(c), 0x1100..=0x115F | 0x2E80..=0xA4CF | 0xAC00..=0xD7A3 | 0xF900..=0xFAFF
        | 0xFE30..=0xFE6F | 0xFF00..=0xFF60 | 0xFFE0..=0xFFE6 | 0x1F300..=0x1FAFF | 0x20000..=0x3FFFD);
    if is_wide { 2 } else { 1 }
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn stamp(seconds: f64) -> String {
    let millis = (seconds * 1000.0).round() as u64;
    let (hours, minutes) = (millis / 3_600_000, millis / 60_000 % 60);
    format!(
        "{hours:02}:{minutes:02}:{:02},{:03}",
        millis / 1000 % 60,
        millis % 1000
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled_in_or_its_lack_is_named() {
        let mut params = TextParams {
            template: "{who} has {n} {braces}: {} {not a name} }".to_owned(),
            values: [("who", "Ann"), ("n", "{who}"), ("braces", "x")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ..TextParams::default()
        };
        // A value is not read as a template again.
        assert_eq!(params.text().unwrap(), "Ann has {who} x: {} {not a name} }");

        params.values.remove("n");
        assert_eq!(params.faults()[0].field, "params.values.n");
        params.template = "product_showcase".to_owned();
        assert_eq!(params.faults()[0].field, "params.values.product");
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrap("the quick brown fox", 9), ["the quick", "brown fox"]);
        assert_eq!(wrap("a\n\nb", 9), ["a", "", "b"]);
        assert_eq!(wrap("incomprehensible", 8), ["incompre", "hensible"]);
        assert_eq!(wrap("云手机平台", 4), ["云手", "机平", "台"]);
    }

    #[test]
    fn any_text_is_broken_into_lines_that_fit_and_nothing_is_lost() {
        const WORDS: [&str; 8] = ["a", "word", " ", "云手机", "\n", "-", "  ", "é"];
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(48)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                let lines = wrap(&text, 8);
                assert!(
                    lines
                        .iter()
                        .all(|line| line.chars().map(columns_of).sum::<usize>() <= 8)
                );
                let bare = |text: &str| -> String {
                    text.chars()
                        .filter(|c| !c.is_whitespace() && !c.is_control())
                        .collect()
                };
                assert_eq!(bare(&lines.concat()), bare(&text));
            });
    }

    #[test]
    fn subtitles_are_stamped_and_in_order() {
        let line = |start, end| Subtitle {
            start,
            end,
            text: "Hello there".to_owned(),
        };
        let mut params = TextParams {
            mode: TextMode::Subtitles,
            lines: vec![line(0.0, 1.5), line(3661.25, 3662.0)],
            columns: 8,
            ..TextParams::default()
        };
        assert!(params.faults().is_empty());
        assert_eq!(
            params.subtitles(),
            "1\n00:00:00,000 --> 00:00:01,500\nHello\nthere\n\n2\n01:01:01,250 --> 01:01:02,000\nHello\nthere\n\n"
        );

        params.lines.swap(0, 1);
        assert_eq!(params.faults()[0].field, "params.lines[1]");
    }
}
