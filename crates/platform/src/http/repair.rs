//! Finds every fault of a JSON value, not only the first.
//!
//! Serde stops at the first field it cannot read. Here that field is noted and replaced by a placeholder of a type
//! that serde accepts, and the value is read again, until it can be read whole or a bound is reached.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::problem::FieldFault;

/// The most faults that are told.
pub const MOST_FAULTS: usize = 24;
/// How often a value is read, in all.
const MOST_READINGS: usize = 96;
/// The weight up to which a value is read again: each reading costs as much as the first.
const HEAVY: usize = 4 << 10;
const LONGEST_FIELD: usize = 120;
const LONGEST_MESSAGE: usize = 240;

/// What was read, where placeholders could complete it, and the faults in their order.
pub fn read<T: DeserializeOwned>(mut value: Value) -> (Option<T>, Vec<FieldFault>) {
    let mut unread = match try_read::<T>(&value) {
        Ok(read) => return (Some(read), Vec::new()),
        Err(unread) => unread,
    };
    let mut faults = vec![unread.fault()];
    let mut readings = if weight(&value) > HEAVY {
        0
    } else {
        MOST_READINGS
    };
    while faults.len() < MOST_FAULTS {
        match read_past::<T>(&mut value, &unread, &mut readings) {
            Some(Ok(read)) => return (Some(read), faults),
            Some(Err(next)) => {
                faults.push(next.fault());
                unread = next;
            }
            None => break,
        }
    }
    (None, faults)
}

/// Puts a placeholder where reading stopped and reads on: to the end, or to the next fault.
fn read_past<T: DeserializeOwned>(
    value: &mut Value,
    unread: &Unread,
    readings: &mut usize,
) -> Option<Result<T, Unread>> {
    for placeholder in placeholders(&unread.message) {
        *readings = readings.checked_sub(1)?;
        *place(value, &unread.steps)? = placeholder;
        match try_read::<T>(value) {
            Err(next) if next.steps == unread.steps => {}
            outcome => return Some(outcome),
        }
    }
    None
}

/// How much there is to read: about one for each value and for each eight bytes of text.
fn weight(value: &Value) -> usize {
    1 + match value {
        Value::String(text) => text.len() / 8,
        Value::Array(items) => items.iter().map(weight).sum(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| name.len() / 8 + weight(value))
            .sum(),
        _ => 0,
    }
}

#[derive(Debug, PartialEq)]
enum Step {
    Key(String),
    Index(usize),
}

struct Unread {
    steps: Vec<Step>,
    message: String,
}

impl Unread {
    fn field(&self) -> String {
        let mut field = String::new();
        for step in &self.steps {
            match step {
                Step::Key(key) if field.is_empty() => field.push_str(key),
                Step::Key(key) => {
                    field.push('.');
                    field.push_str(key);
                }
                Step::Index(index) => field.push_str(&format!("[{index}]")),
            }
        }
        if field.is_empty() {
            "body".to_owned()
        } else {
            field
        }
    }

    fn fault(&self) -> FieldFault {
        let message = if self.message.starts_with("missing field") {
            "is required".to_owned()
        } else {
            shortened(&in_json_words(&self.message), LONGEST_MESSAGE)
        };
        FieldFault {
            field: shortened(&self.field(), LONGEST_FIELD),
            message,
        }
    }
}

fn try_read<T: DeserializeOwned>(value: &Value) -> Result<T, Unread> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let mut steps: Vec<Step> = error
            .path()
            .iter()
            .filter_map(|segment| match segment {
                serde_path_to_error::Segment::Map { key } => Some(Step::Key(key.clone())),
                serde_path_to_error::Segment::Seq { index } => Some(Step::Index(*index)),
                _ => None,
            })
            .collect();
        let message = error.inner().to_string();
        // A missing field is told at its parent; the fault is the field's.
        if let Some(name) = message
            .strip_prefix("missing field `")
            .and_then(|rest| rest.strip_suffix('`'))
        {
            steps.push(Step::Key(name.to_owned()));
        }
        Unread { steps, message }
    })
}

/// Values of every JSON type; where the message lists the variants of an enumeration, its first one.
fn placeholders(message: &str) -> Vec<Value> {
    let variant = message
        .split_once("expected ")
        .and_then(|(_, rest)| rest.split('`').nth(1));
    let mut values: Vec<Value> = variant.map(|name| json!(name)).into_iter().collect();
    values.extend([
        json!("x"),
        json!(1),
        json!(false),
        json!([]),
        json!({}),
        json!("2020-01-01T00:00:00Z"),
        Value::Null,
    ]);
    values
}

fn place<'a>(value: &'a mut Value, steps: &[Step]) -> Option<&'a mut Value> {
    let mut place = value;
    for step in steps {
        place = match step {
            Step::Key(key) => place
                .as_object_mut()?
                .entry(key.as_str())
                .or_insert(Value::Null),
            Step::Index(index) => place.get_mut(*index)?,
        };
    }
    Some(place)
}

/// Says what was expected in the words of JSON: `expected u16` means nothing to a client.
fn in_json_words(message: &str) -> String {
    let Some((told, expected)) = message.rsplit_once("expected ") else {
        return message.to_owned();
    };
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number from 0",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" | "bool" => "true or false",
        "a sequence" => "a list",
        "a map" => "an object",
        other if other.starts_with("struct ") => "an object",
        other => other,
    };
    format!("{told}expected {expected}")
}

/// Messages repeat what the client sent, however long that was.
fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use contracts::{Money, UserId};
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Method {
        Wechat,
        Balance,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase")]
    #[expect(dead_code, reason = "only read")]
    struct Line {
        item_name: String,
        price: Money,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Ask {
        user: UserId,
        method: Option<Method>,
        count: u8,
        lines: Vec<Line>,
    }

    #[test]
    fn every_fault_is_found_with_its_path() {
        let value = json!({ "user": "not an id", "method": "cash", "lines": [{ "price": 1.005 }, { "itemName": "a", "price": "1" }] });

        let (read, faults) = super::read::<Ask>(value);

        // The order of an object's fields is serde_json's matter, which a feature changes.
        let mut fields: Vec<_> = faults.iter().map(|fault| fault.field.as_str()).collect();
        fields.sort_unstable();
        assert!(read.is_some());
        assert_eq!(
            fields,
            [
                "count",
                "lines[0].itemName",
                "lines[0].price",
                "lines[1].price",
                "method",
                "user"
            ]
        );
        let count = faults.iter().find(|fault| fault.field == "count");
        assert_eq!(count.unwrap().message, "is required");
    }

    #[test]
    fn a_fault_is_told_in_the_words_of_json() {
        let value = json!({ "user": "u", "count": "two", "lines": 5 });

        let (_, faults) = super::read::<Ask>(value);

        let of = |field: &str| faults.iter().find(|fault| fault.field == field);
        assert_eq!(
            of("count").unwrap().message,
            "invalid type: string \"two\", expected a whole number from 0"
        );
        assert_eq!(
            of("lines").unwrap().message,
            "invalid type: integer `5`, expected a list"
        );
    }

    #[test]
    fn a_good_value_is_read_as_it_is() {
        let value = json!({ "user": "u", "method": "balance", "count": 2, "lines": [] });

        let (read, faults) = super::read::<Ask>(value);

        assert!(faults.is_empty() && read.is_some_and(|ask| ask.count == 2));
    }

    #[test]
    fn a_large_or_hopeless_value_is_not_read_over_and_over() {
        let many = |count: usize| {
            let lines: Vec<Value> = (0..count).map(|_| json!({ "price": "x" })).collect();
            json!({ "user": "u", "count": 2, "lines": lines })
        };

        assert_eq!(super::read::<Ask>(many(100)).1.len(), MOST_FAULTS);
        assert_eq!(super::read::<Ask>(many(50_000)).1.len(), 1);
        let long = json!({ "user": "ä ".repeat(300_000), "count": "x".repeat(300_000) });
        let (_, faults) = super::read::<Ask>(long);
        assert!(
            faults
                .iter()
                .all(|fault| fault.message.chars().count() <= LONGEST_MESSAGE + 1)
        );
    }

    #[derive(Debug, Deserialize)]
    #[serde(tag = "type", content = "data", rename_all = "camelCase")]
    #[expect(dead_code, reason = "only read")]
    enum Said {
        One(Ask),
        Many {
            asks: Vec<Ask>,
            others: std::collections::BTreeMap<String, u8>,
        },
        Nothing,
    }

    fn read_any<T: DeserializeOwned>(value: &Value) {
        let (read, faults) = super::read::<T>(value.clone());
        assert_eq!(
            faults.is_empty(),
            serde_json::from_value::<T>(value.clone()).is_ok(),
            "{value}"
        );
        assert!(read.is_some() || !faults.is_empty(), "{value}");
        assert!(faults.len() <= MOST_FAULTS);
        for fault in faults {
            assert!(
                !fault.field.is_empty() && !fault.message.is_empty(),
                "{value}"
            );
            assert!(fault.field.chars().count() <= LONGEST_FIELD + 1);
            assert!(fault.message.chars().count() <= LONGEST_MESSAGE + 1);
        }
    }

    #[test]
    fn any_value_is_read_or_its_faults_are_told_by_their_fields() {
        const WORDS: [&str; 20] = [
            "user",
            "method",
            "count",
            "lines",
            "itemName",
            "price",
            "type",
            "data",
            "one",
            "many",
            "nothing",
            "asks",
            "others",
            "wechat",
            "balance",
            "",
            "1",
            "a.b",
            "x",
            "2020-01-01T00:00:00Z",
        ];
        bolero::check!()
            .with_iterations(400)
            .with_max_len(256)
            .for_each(|bytes: &[u8]| {
                let value = testkit::any::json(bytes, &WORDS);
                read_any::<Ask>(&value);
                read_any::<Vec<Ask>>(&value);
                read_any::<Said>(&value);
                read_any::<contracts::Event>(&value);
                read_any::<crate::auth::Claims>(&value);
                read_any::<Value>(&value);
            });
    }
}
