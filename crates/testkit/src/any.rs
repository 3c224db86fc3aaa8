//! Any text, for tests of what holds whatever a client sends.

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
