//! Any text and any JSON, for tests of what holds whatever a client sends.

use serde_json::{Number, Value};

/// What words are joined by, and what a reader may not expect.
const ODD: [char; 16] = [
    ' ',
    '/',
    '.',
    ',',
    ';',
    ':',
    '=',
    '-',
    '%',
    '"',
    '\0',
    '\t',
    '\n',
    '0',
    'é',
    '\u{1f4f1}',
];

/// Reads random bytes as a text of these words, with odd characters in between: so it gets behind the first check of
/// its reader, and a fuzzer that changes a byte changes a word.
pub fn text(bytes: &[u8], words: &[&str]) -> String {
    let mut text = String::new();
    for byte in bytes {
        let half = usize::from(byte / 2);
        if byte % 2 == 0 && !words.is_empty() {
            text.push_str(words[half % words.len()]);
        } else if half < 96 {
            text.push(ODD[half % ODD.len()]);
        } else {
            text.push(char::from(*byte));
        }
    }
    text
}

/// Reads random bytes as JSON with these names and texts; it is as deep as two of the bytes say, and no larger than they
/// are many.
pub fn json(bytes: &[u8], words: &[&str]) -> Value {
    value(&mut bytes.iter().copied(), words, 6)
}

fn value(bytes: &mut impl Iterator<Item = u8>, words: &[&str], deep: usize) -> Value {
    let Some(kind) = bytes.next() else {
        return Value::Null;
    };
    let mut next = || usize::from(bytes.next().unwrap_or_default());
    match kind % 16 {
        0..4 if deep > 0 => {
            let length = next() % 12;
            let mut field = || (name(bytes, words), value(bytes, words, deep - 1));
            (0..length).map(|_| field()).collect()
        }
        4 | 5 if deep > 0 => {
            let length = next() % 6;
            (0..length).map(|_| value(bytes, words, deep - 1)).collect()
        }
        6 => Value::Null,
        7 => Value::Bool(next() % 2 == 0),
        8 => Value::from(next()),
        9 => Value::from(-(next() as f64) / 100.0),
        10 => Value::from([i64::MIN, i64::MAX, 0, 1 << 53][next() % 4]),
        11 => Number::from_f64([1e300, 1e-300, 0.1, -0.0][next() % 4])
            .map_or(Value::Null, Value::Number),
        12 => Value::from(["", "\0", "é\u{1f4f1}", " a "][next() % 4]),
        13 => Value::from("long ".repeat(next() * 4)),
        _ => Value::from(name(bytes, words)),
    }
}

fn name(bytes: &mut impl Iterator<Item = u8>, words: &[&str]) -> String {
    let place = usize::from(bytes.next().unwrap_or_default());
    words
        .get(place % words.len().max(1))
        .copied()
        .unwrap_or_default()
        .to_owned()
}
