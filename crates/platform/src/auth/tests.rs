//! Nothing that was not signed here is believed, whatever it looks like.

use std::panic::AssertUnwindSafe;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::TimeDelta;
use contracts::{Service, SessionId, UserId};
use http::{HeaderMap, HeaderValue, Method, Request, header};
use sqlx::postgres::PgPoolOptions;

use super::caller::bearer;
use super::vouch::{Vouched, spell};
use super::*;

/// Verifies callers without a store: no session can be looked up.
pub fn auth() -> Auth {
    let db = PgPoolOptions::new().connect_lazy("postgres://nobody@127.0.0.1:1/none");
    let redis = Pool::new(fred::types::config::Config::default(), None, None, None, 1);
    let stores = (
        db.expect("a URL"),
        redis.expect("a pool"),
        Keys::new("test"),
    );
    let (key, secret) = (
        STANDARD.encode([7; 32]).into(),
        "a secret of the services".to_owned().into(),
    );
    Auth::new(
        &key,
        &secret,
        false,
        stores,
        Clock::held_at(Clock::system().now()),
    )
    .expect("a key")
}

fn identity() -> Identity {
    Identity {
        user_id: UserId::new(),
        username: "alice".to_owned(),
        email: "alice@example.com".to_owned(),
        roles: vec!["user".to_owned()],
        tenant_id: None,
        is_super_admin: false,
        session_id: SessionId::new(),
    }
}

/// A text with one byte changed, cut or put in.
fn forged(text: &str, (place, byte, how): (u16, u8, u8)) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let place = usize::from(place) % bytes.len();
    match how % 3 {
        0 => bytes[place] = byte,
        1 => bytes.truncate(place),
        _ => bytes.insert(place, byte),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Hexadecimal digits mean the same in capitals.
fn means_the_same(one: &str, other: &str) -> bool {
    let split = |text: &str| {
        text.rsplit_once('.')
            .map(|(text, tag)| (text.to_owned(), tag.to_ascii_lowercase()))
    };
    split(one) == split(other)
}

#[tokio::test]
async fn any_credential_that_was_not_signed_here_proves_nothing() {
    let auth = AssertUnwindSafe(auth());
    let now = auth.0.0.clock.now();
    let uri = "/internal/x?y=z".parse().unwrap();
    let good = auth.service_credential(Service::Billing, now, &Method::POST, "/internal/x");
    let verify = |text: &str, method: &Method| auth.verify_credential(text, method, &uri, now);
    assert_eq!(verify(&good, &Method::POST), Some(Service::Billing));
    assert_eq!(verify(&good, &Method::PUT), None);

    bolero::check!()
        .with_type::<(u16, u8, u8)>()
        .with_iterations(2_000)
        .for_each(|change| {
            let forged = forged(&good, *change);
            let proved = verify(&forged, &Method::POST).is_some();
            assert_eq!(proved, means_the_same(&forged, &good), "{forged}");
        });
    bolero::check!()
        .with_iterations(2_000)
        .with_max_len(24)
        .for_each(|bytes: &[u8]| {
            const WORDS: [&str; 10] = [
                "billing",
                "users",
                "identity",
                ".",
                "1700000000",
                "-",
                "00",
                "ff",
                "9223372036854775807",
                "\n",
            ];
            let text = testkit::any::text(bytes, &WORDS);
            assert_eq!(verify(&text, &Method::POST), None, "{text}");
            assert_eq!(
                verify(&format!("{text}.{good}"), &Method::POST),
                None,
                "{text}"
            );
        });
}

#[tokio::test]
async fn any_word_that_no_gateway_gave_for_this_request_is_nobodys() {
    let auth = AssertUnwindSafe(auth());
    let (now, identity) = (auth.0.0.clock.now(), identity());
    let (target, id) = (
        "/devices?a=b".parse().unwrap(),
        HeaderValue::from_static("request-1"),
    );
    let occasion = Occasion {
        method: &Method::GET,
        target: &target,
        request_id: &id,
    };
    let good = auth.vouch(&spell(&identity), occasion, now);
    let good = good.to_str().unwrap();
    let vouched = |target: &str, word: &str| {
        let word = HeaderValue::from_str(word).ok()?;
        let request = Request::get(target)
            .header("x-request-id", &id)
            .header(IDENTITY_HEADER, word);
        match auth.vouched(&request.body(()).ok()?.into_parts().0)? {
            Vouched::Session(identity) => Some(identity),
            Vouched::Key(_) => panic!("there is no key"),
        }
    };
    assert_eq!(vouched("/devices?a=b", good), Some(identity.clone()));
    assert_eq!(vouched("/devices", good), None);

    bolero::check!()
        .with_type::<(u16, u8, u8)>()
        .with_iterations(2_000)
        .for_each(|change| {
            let forged = forged(good, *change);
            let believed = vouched("/devices?a=b", &forged).is_some();
            assert_eq!(believed, means_the_same(&forged, good), "{forged}");
        });
    bolero::check!()
        .with_iterations(1_000)
        .with_max_len(24)
        .for_each(|bytes: &[u8]| {
            const WORDS: [&str; 6] = [".", "1700000000", "e30", "00", "ff", "-1"];
            let text = testkit::any::text(bytes, &WORDS);
            assert_eq!(vouched("/devices?a=b", &text), None, "{text}");
            assert_eq!(
                vouched("/devices?a=b", &format!("{text}{good}")).is_some(),
                text.is_empty(),
                "{text}"
            );
        });
    // A credential of a service is no word, though the same key signs both.
    let credential = auth.service_credential(Service::Gateway, now, &Method::GET, "/devices");
    assert_eq!(vouched("/devices?a=b", &credential), None);
}

#[tokio::test]
async fn any_token_that_was_changed_is_none_of_ours() {
    let auth = AssertUnwindSafe(auth());
    let now = auth.0.0.clock.now();
    let good = auth
        .tokens()
        .issue(identity(), now, TimeDelta::hours(1))
        .unwrap();
    assert!(auth.verify(&good).is_ok());

    bolero::check!()
        .with_type::<(u16, u8, u8)>()
        .with_iterations(300)
        .for_each(|change| {
            let forged = forged(&good, *change);
            assert_eq!(auth.verify(&forged).is_ok(), forged == good, "{forged}");
        });
    bolero::check!()
        .with_iterations(1_000)
        .with_max_len(32)
        .for_each(|bytes: &[u8]| {
            const WORDS: [&str; 6] = [
                ".",
                "eyJhbGciOiJub25lIn0",
                "eyJhbGciOiJFZERTQSJ9",
                "e30",
                "AAAA",
                "-_",
            ];
            assert!(auth.verify(&testkit::any::text(bytes, &WORDS)).is_err());
        });
}

#[test]
fn any_header_bears_the_token_behind_its_scheme_or_is_refused() {
    const WORDS: [&str; 8] = [
        "Bearer", "bearer", "BEARER ", " ", "Basic ", "a.b.c", "Bearer x", ",",
    ];
    bolero::check!()
        .with_iterations(2_000)
        .with_max_len(8)
        .for_each(|bytes: &[u8]| {
            let text = testkit::any::text(bytes, &WORDS);
            let Ok(value) = HeaderValue::from_str(&text) else {
                return;
            };
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
            match bearer(&headers) {
                Ok(token) => {
                    let token = token.unwrap();
                    assert!(
                        text.to_ascii_lowercase().starts_with("bearer ")
                            && text.trim_end().ends_with(token),
                        "{text}"
                    );
                    assert_eq!(token, token.trim());
                }
                Err(error) => assert_eq!(error, AuthError::Malformed),
            }
        });
    assert_eq!(bearer(&HeaderMap::new()), Ok(None));
}
