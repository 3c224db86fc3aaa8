//! Text messages, by a provider that is called over HTTP: a signed POST of `{id, to, text}`.

use std::time::Duration;

use http::header;
use platform::{Platform, standard_webhook};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use secrecy::{ExposeSecret, SecretSlice};
use serde_json::json;

use super::{Carrier, Failure, Parcel, contact};
use crate::Config;
use crate::accounts::Accounts;

const CONNECT: Duration = Duration::from_secs(3);
const WHOLE: Duration = Duration::from_secs(10);
/// The most characters of a message.
const MOST: usize = 500;
/// Room for the words that say how many more there are.
const MORE: usize = 30;

/// The way of text messages.
#[derive(Debug)]
pub struct Sms {
    platform: Platform,
    client: Client,
    accounts: Accounts,
    provider: Option<(Url, SecretSlice<u8>)>,
}

impl Sms {
    /// Connects when it is used.
    ///
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn new(platform: &Platform, config: &Config, accounts: Accounts) -> anyhow::Result<Self> {
        let client = Client::builder()
            .redirect(Policy::none())
            .connect_timeout(CONNECT)
            .timeout(WHOLE);
        let bytes = |text: &str| text.as_bytes().to_vec().into();
        let provider = config.sms.as_ref();
        Ok(Self {
            platform: platform.clone(),
            client: client.build()?,
            accounts,
            provider: provider.map(|sms| (sms.url.clone(), bytes(sms.secret.expose_secret()))),
        })
    }
}

impl Carrier for Sms {
    async fn carry(&self, parcel: &Parcel) -> Result<(), Failure> {
        let Some((url, secret)) = &self.provider else {
            return Err(Failure::Final(
                "no provider of text messages is set up".to_owned(),
            ));
        };
        let contact = contact(&self.accounts, &parcel.user_id).await?;
        let phone = contact
            .phone
            .ok_or_else(|| Failure::Final("the user has no phone number".to_owned()))?;
        let body = json!({ "id": parcel.id, "to": phone, "text": text(parcel) }).to_string();
        let now = self.platform.clock.now().utc().timestamp();
        let mut request = self
            .client
            .post(url.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header("idempotency-key", &parcel.id);
        for (name, value) in standard_webhook::sign(secret, &parcel.id, now, body.as_bytes()) {
            request = request.header(name, value);
        }
        let answer = request.body(body).send().await;
        let answer = answer.map_err(|error| Failure::Passing(error.without_url().to_string()))?;
        let said = format!("the provider answered {}", answer.status().as_u16());
        match answer.status().as_u16() {
            200..=299 => Ok(()),
            // What it will never send, and what it may send later.
            400 | 404 | 422 => Err(Failure::Final(said)),
            _ => Err(Failure::Passing(said)),
        }
    }
}

fn text(parcel: &Parcel) -> String {
    let lines: Vec<String> = parcel
        .notifications
        .iter()
        .map(|one| format!("{}: {}", one.title, one.message))
        .collect();
    fitted(&lines)
}

/// What fits of lines: whole ones, and how many there are besides. A first one that is too long by itself is cut.
fn fitted(lines: &[String]) -> String {
    let mut text = String::new();
    let mut length = 0;
    for (told, line) in lines.iter().enumerate() {
        let left = lines.len() - told;
        let (gap, wide) = (usize::from(told > 0), line.chars().count());
        // As long as anything follows, there must be room to say how much.
        let room = MOST - if left > 1 { MORE } else { 0 };
        if length + gap + wide > room {
            if told > 0 {
                return format!("{text}\n… and {left} more in the app");
            }
            let cut: String = line.chars().take(room - 1).collect();
            return match left {
                1 => format!("{cut}…"),
                _ => format!("{cut}…\n… and {} more in the app", left - 1),
            };
        }
        if told > 0 {
            text.push('\n');
        }
        text.push_str(line);
        length += gap + wide;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_message_ends_with_a_whole_line_and_says_how_many_are_missing() {
        let few = vec!["one".to_owned(), "two".to_owned()];
        assert_eq!(fitted(&few), "one\ntwo");
        let many = vec!["ä".repeat(99); 100];
        let text = fitted(&many);
        assert_eq!(text.lines().count(), 5);
        assert!(text.ends_with("\n… and 96 more in the app"), "{text}");
        for (first, count) in [(498, 2), (500, 1), (1_000, 1), (1_000, 100)] {
            let text = fitted(&vec!["ä".repeat(first); count]);
            assert!(text.chars().count() <= MOST, "{first} {count}");
            assert_eq!(text.contains('…'), (first, count) != (500, 1));
        }
    }
}
