//! What a body may hold: amounts and texts that the store can take.

use contracts::Money;
use serde_json::Value;

/// An amount that moves money: 0.01 to 1 000 000 yuan.
pub fn amount(amount: &Money, (): &()) -> garde::Result {
    if (Money(1)..=Money::MAX_INPUT).contains(amount) {
        Ok(())
    } else {
        Err(garde::Error::new("must be from 0.01 to 1000000"))
    }
}

/// A price: 0 to 1 000 000 yuan.
pub fn price(price: &Money, (): &()) -> garde::Result {
    if (Money::ZERO..=Money::MAX_INPUT).contains(price) {
        Ok(())
    } else {
        Err(garde::Error::new("must be from 0 to 1000000"))
    }
}

/// An amount, where there is one.
pub fn optional_amount(given: &Option<Money>, (): &()) -> garde::Result {
    given.as_ref().map_or(Ok(()), |given| amount(given, &()))
}

/// An amount that corrects a balance: not 0, at most a million yuan either way.
pub fn signed_amount(amount: &Money, (): &()) -> garde::Result {
    if *amount != Money::ZERO && amount.fen().abs() <= Money::MAX_INPUT.fen() {
        Ok(())
    } else {
        Err(garde::Error::new(
            "must not be 0, and at most 1000000 either way",
        ))
    }
}

/// A text of at most 500 characters.
pub fn text(text: &Option<String>, (): &()) -> garde::Result {
    text.as_deref().map_or(Ok(()), |text| bounded(text, 500))
}

/// A text of 1 to 500 characters.
pub fn required_text(text: &str, (): &()) -> garde::Result {
    if text.is_empty() {
        return Err(garde::Error::new("must not be empty"));
    }
    bounded(text, 500)
}

/// A text without NUL.
pub fn plain(text: &str, (): &()) -> garde::Result {
    bounded(text, usize::MAX)
}

/// A reference to something elsewhere: 1 to 128 characters, where there is one.
pub fn reference(text: &Option<String>, (): &()) -> garde::Result {
    match text.as_deref() {
        None => Ok(()),
        Some("") => Err(garde::Error::new("must not be empty")),
        Some(text) => bounded(text, 128),
    }
}

/// Whether a text can be a reference to something elsewhere.
pub fn is_reference(text: &str) -> bool {
    !text.is_empty() && bounded(text, 128).is_ok()
}

/// A JSON object of at most 8 KiB, where there is one.
pub fn metadata(value: &Option<Value>, (): &()) -> garde::Result {
    let Some(value) = value else { return Ok(()) };
    let text = value.to_string();
    if !value.is_object() {
        Err(garde::Error::new("must be an object"))
    } else if text.len() > 8_192 || text.contains("\\u0000") {
        Err(garde::Error::new("must be at most 8 KiB, without NUL"))
    } else {
        Ok(())
    }
}

fn bounded(text: &str, most: usize) -> garde::Result {
    if text.chars().count() > most {
        Err(garde::Error::new(format!(
            "must be at most {most} characters"
        )))
    } else if text.contains('\0') {
        Err(garde::Error::new("must not contain NUL"))
    } else {
        Ok(())
    }
}
