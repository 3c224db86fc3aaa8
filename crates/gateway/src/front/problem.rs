//! The refusal of a service, read from its answer on the way through.

use bytes::Bytes;
use http::{HeaderMap, header};
use serde::Deserialize;

use crate::front::record::Told;

/// How much of a body is kept for it; a larger refusal is told of by its status alone.
const MOST: usize = 8 * 1024;
/// How much of its words is remembered.
const CODE: usize = 64;
const MESSAGE: usize = 512;
const FIELDS: usize = 16;
const FIELD: usize = 64;

/// The body of a refusal, as far as it has come.
#[derive(Debug, Default)]
pub struct Heard {
    bytes: Vec<u8>,
    too_much: bool,
}

/// What is read of a refusal; the rest is for the client alone.
#[derive(Deserialize)]
struct Body {
    error: String,
    message: String,
    #[serde(default)]
    details: Vec<Detail>,
}

#[derive(Deserialize)]
struct Detail {
    field: String,
}

impl Heard {
    /// Where the answer is a refusal in plain text.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let is_problem = headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"));
        let is_plain = !headers.contains_key(header::CONTENT_ENCODING);
        (is_problem && is_plain).then(Self::default)
    }

    /// A further part of the body.
    pub fn hear(&mut self, data: &Bytes) {
        if self.too_much || self.bytes.len() + data.len() > MOST {
            *self = Self {
                bytes: Vec::new(),
                too_much: true,
            };
            return;
        }
        self.bytes.extend_from_slice(data);
    }

    /// What the whole of it says; nothing where it is none of ours, or was too large.
    pub fn told(&self) -> Option<Told> {
        let body: Body = serde_json::from_slice(&self.bytes).ok()?;
        let fields = body.details.iter().take(FIELDS);
        Some(Told {
            code: cut(&body.error, CODE),
            message: cut(&body.message, MESSAGE),
            fields: fields.map(|detail| cut(&detail.field, FIELD)).collect(),
        })
    }
}

fn cut(text: &str, most: usize) -> Box<str> {
    text[..text.floor_char_boundary(most)].into()
}

#[cfg(test)]
mod tests {
    use bolero::check;
    use http::HeaderValue;
    use serde_json::json;

    use super::*;

    fn heard(parts: &[&[u8]]) -> Option<Told> {
        let mut heard = Heard::default();
        for part in parts {
            heard.hear(&Bytes::copy_from_slice(part));
        }
        heard.told()
    }

    #[test]
    fn a_refusal_is_read_from_its_pieces() {
        let body = json!({
            "error": "VALIDATION_FAILED", "message": "name: is empty",
            "details": [{ "field": "name", "message": "is empty" }], "requestId": "r",
        });
        let body = body.to_string();
        let (first, second) = body.as_bytes().split_at(20);

        let told = heard(&[first, second]).unwrap();

        assert_eq!(
            (&*told.code, &*told.message),
            ("VALIDATION_FAILED", "name: is empty")
        );
        assert_eq!(told.fields, [Box::<str>::from("name")]);
        assert_eq!(heard(&[first]), None);
    }

    #[test]
    fn only_what_says_that_it_is_a_refusal_is_read() {
        let headers = |kind: &'static str| {
            HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))])
        };
        let mut zipped = headers("application/problem+json");
        zipped.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));

        assert!(Heard::of(&headers("application/problem+json")).is_some());
        assert!(Heard::of(&headers("application/json")).is_none());
        assert!(Heard::of(&HeaderMap::new()).is_none());
        assert!(Heard::of(&zipped).is_none());
    }

    #[test]
    fn of_a_long_refusal_nothing_and_of_long_words_the_beginning_is_kept() {
        let long = |message: usize| json!({ "error": "E", "message": "ü".repeat(message) });

        let told = heard(&[long(1000).to_string().as_bytes()]).unwrap();
        assert_eq!(told.message.len(), MESSAGE);
        let piece = vec![b' '; MOST];
        assert_eq!(
            heard(&[&piece, b"{}", b"{\"error\":\"E\",\"message\":\"\"}"]),
            None
        );
    }

    #[test]
    fn any_bytes_of_an_answer_are_kept_within_bounds() {
        check!().for_each(|bytes: &[u8]| {
            let mut heard = Heard::default();
            for piece in bytes.chunks(7) {
                heard.hear(&Bytes::copy_from_slice(piece));
                assert!(heard.bytes.len() <= MOST);
            }
            if let Some(told) = heard.told() {
                assert!(told.code.len() <= CODE && told.message.len() <= MESSAGE);
                assert!(told.fields.len() <= FIELDS);
            }
        });
    }
}
