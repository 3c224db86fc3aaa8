//! Whether a password is one that somebody guesses: by the estimate of zxcvbn (Wheeler, USENIX Security 2016).

use platform::Problem;
use platform::config::Profile;
use tokio::task::spawn_blocking;
use zxcvbn::{Score, zxcvbn};

use crate::Users;
use crate::secret::SecretText;

/// Guessed only by who tries more than a hundred million times, which the lock of an account does not let anybody do.
const LEAST: Score = Score::Two;

/// Refuses what is guessed soon, in production alone; names and addresses of the user make it no better.
///
/// # Errors
/// 400 at the field.
pub async fn check(
    state: &Users,
    field: &'static str,
    password: &SecretText,
    about: &[&str],
) -> Result<(), Problem> {
    if state.platform.settings.profile != Profile::Production {
        return Ok(());
    }
    let password = password.clone();
    let about: Vec<String> = about.iter().map(|text| (*text).to_owned()).collect();
    // A few milliseconds for a long one.
    let rated = spawn_blocking(move || guessable(password.expose(), &about)).await;
    match rated {
        Ok(None) => Ok(()),
        Ok(Some(why)) => Err(Problem::invalid_field(field, why)),
        Err(_) => Err(Problem::internal()),
    }
}

/// Why a password is guessed soon.
fn guessable(password: &str, about: &[String]) -> Option<String> {
    // An address is its parts, too.
    let parts = about
        .iter()
        .flat_map(|text| text.split(|c: char| !c.is_alphanumeric()));
    let words: Vec<&str> = about.iter().map(String::as_str).chain(parts).collect();
    let rated = zxcvbn(password, &words);
    if rated.score() >= LEAST {
        return None;
    }
    let warning = rated.feedback().and_then(|feedback| feedback.warning());
    Some(match warning {
        Some(warning) => format!("is guessed soon: {warning}"),
        None => "is guessed soon: take a longer one, of several words".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_everybody_takes_is_guessed_and_names_of_the_user_do_not_help() {
        let about = [
            "marmalade".to_owned(),
            "marmalade.jones@example.com".to_owned(),
        ];
        for text in ["Passw0rd", "Abcdefg1", "Marmalade1", "Jones1234"] {
            assert!(guessable(text, &about).is_some(), "{text}");
        }
        for text in ["correct1 Horse battery", "tK9#vQ2x!pL4"] {
            assert_eq!(guessable(text, &about), None, "{text}");
        }
    }
}
