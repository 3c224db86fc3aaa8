//! Passwords: the rules for new ones, and their hashes.

mod hasher;
pub mod strength;

use std::fmt;

pub use hasher::{Cost, HashError, Hasher};

use crate::secret::SecretText;

/// The longest password accepted, in characters.
const MOST: usize = 100;

/// An Argon2id hash as a PHC string; printed nowhere.
#[derive(Clone, sqlx::Type)]
#[sqlx(transparent)]
pub struct PasswordHash(String);

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hash]")
    }
}

/// The rule for a password that is only compared: 1 to 100 characters.
pub fn sent(password: &SecretText, _: &()) -> garde::Result {
    within(password, 1)
}

/// The rule for the password of a new account: 8 to 100 characters with a letter and a digit.
pub fn new(password: &SecretText, _: &()) -> garde::Result {
    within(password, 8)?;
    let has = |class: fn(char) -> bool| password.expose().contains(class);
    if has(char::is_alphabetic) && has(|character| character.is_ascii_digit()) {
        Ok(())
    } else {
        Err(garde::Error::new("must have a letter and a digit"))
    }
}

/// The rule for a password that takes another's place: also a lower-case and an upper-case letter.
pub fn changed(password: &SecretText, context: &()) -> garde::Result {
    new(password, context)?;
    let has = |class: fn(char) -> bool| password.expose().contains(class);
    if has(char::is_lowercase) && has(char::is_uppercase) {
        Ok(())
    } else {
        Err(garde::Error::new(
            "must have a lower-case letter, an upper-case letter and a digit",
        ))
    }
}

fn within(password: &SecretText, least: usize) -> garde::Result {
    let length = password.expose().chars().count();
    if (least..=MOST).contains(&length) {
        Ok(())
    } else {
        Err(garde::Error::new(format!(
            "must have {least} to {MOST} characters"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_accepted_as_the_contract_says() {
        let long = format!("a1{}", "x".repeat(98));
        let too_long = format!("a1{}", "x".repeat(99));
        let cases = [
            ("abcdefg1", true, false),
            ("Abcdefg1", true, true),
            ("ABCDEFG1", true, false),
            ("密码密码密码密1", true, false),
            (&long, true, false),
            (&too_long, false, false),
            ("abcdef1", false, false),
            ("abcdefgh", false, false),
            ("12345678", false, false),
            ("", false, false),
        ];
        for (text, fits_new, fits_changed) in cases {
            let password = SecretText::from(secrecy::SecretString::from(text));
            assert_eq!(new(&password, &()).is_ok(), fits_new, "{text}");
            assert_eq!(changed(&password, &()).is_ok(), fits_changed, "{text}");
        }
    }
}
