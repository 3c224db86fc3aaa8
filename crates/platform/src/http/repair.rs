//! Finds every fault of a JSON value, not only the first.
//!
//! Serde stops at the first field it cannot read. Here that field is noted and replaced by a placeholder of a type
//! that serde accepts, and the value is read again, until it can be read whole or the bound is reached.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::problem::FieldFault;

const MOST_FAULTS: usize = 24;

/// What was read, where placeholders could complete it, and the faults in their order.
pub fn read<T: DeserializeOwned>(mut value: Value) -> (Option<T>, Vec<FieldFault>) {
    let mut faults: Vec<FieldFault> = Vec::new();
    while faults.len() < MOST_FAULTS {
        let fault = match try_read::<T>(&value) {
            Ok(read) => return (Some(read), faults),
            Err(fault) => fault,
        };
        let replaced = placeholders(&fault.message)
            .into_iter()
            .find_map(|placeholder| {
                let candidate = with(value.clone(), &fault.steps, placeholder)?;
                match try_read::<T>(&candidate) {
                    Err(next) if next.steps == fault.steps => None,
                    _ => Some(candidate),
                }
            });
        faults.push(FieldFault {
            field: fault.field(),
            message: readable(&fault.message),
        });
        match replaced {
            Some(candidate) => value = candidate,
            None => break,
        }
    }
    (None, faults)
}

#[derive(Debug)]
enum Step {
    Key(String),
    Index(usize),
}

impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Key(a), Self::Key(b)) => a == b,
            (Self::Index(a), Self::Index(b)) => a == b,
            _ => false,
        }
    }
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

fn with(mut value: Value, steps: &[Step], placeholder: Value) -> Option<Value> {
    let mut place = &mut value;
    for step in steps {
        place = match step {
            Step::Key(key) => place
                .as_object_mut()?
                .entry(key.as_str())
                .or_insert(Value::Null),
            Step::Index(index) => place.get_mut(*index)?,
        };
    }
    *place = placeholder;
    Some(value)
}

fn readable(message: &str) -> String {
    if message.starts_with("missing field") {
        "is required".to_owned()
    } else {
        message.to_owned()
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

        let fields: Vec<_> = faults.iter().map(|fault| fault.field.as_str()).collect();
        assert!(read.is_some());
        assert_eq!(
            fields,
            [
                "user",
                "method",
                "lines[0].price",
                "lines[0].itemName",
                "lines[1].price",
                "count"
            ]
        );
        assert_eq!(faults[5].message, "is required");
    }

    #[test]
    fn a_good_value_is_read_as_it_is() {
        let value = json!({ "user": "u", "method": "balance", "count": 2, "lines": [] });

        let (read, faults) = super::read::<Ask>(value);

        assert!(faults.is_empty() && read.is_some_and(|ask| ask.count == 2));
    }
}
