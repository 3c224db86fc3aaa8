//! The second factor: codes by time (RFC 6238) that an app shows, and recovery codes for who has lost it.
//!
//! Whoever enables, spends or removes one locks the account first, as sign-in does. So a code counts once, on however many
//! instances it is sent, and no session is opened by the password alone once the factor is on.

pub mod admin;
pub mod api;
pub mod db;
mod vault;

use std::fmt;

use contracts::{Timestamp, UserId};
use hmac::{Hmac, KeyInit, Mac};
use platform::Platform;
use platform::secrets::configured_or_made;
use secrecy::SecretString;
use sha1::Sha1;
use sqlx::PgConnection;

use crate::Users;
use crate::error::{Error, Result};
use crate::token::{self, TokenHash};

pub use vault::Vault;

/// The bytes of a secret: as many as RFC 4226 recommends.
const SECRET: usize = 20;
/// How long a code is shown, in seconds.
const PERIOD: i64 = 30;
/// By how many periods a clock may be ahead or behind.
const SLACK: i64 = 1;
/// The letters of base 32 (RFC 4648).
const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// How many recovery codes there are, and the random bytes of each.
const RECOVERY_CODES: usize = 10;
const RECOVERY_BYTES: usize = 10;

/// What a user sends as the second factor; never printed.
pub enum Sent {
    /// What the app shows.
    Code(u32),
    /// The hash of a recovery code.
    Recovery(TokenHash),
}

/// Whether a sign-in needs more than the password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It does not, or what was sent is right and spent by that.
    Open,
    /// It does, and nothing was sent.
    WantsCode,
    /// What was sent is wrong, or was spent before.
    Wrong,
}

impl Sent {
    /// Reads six digits, or a recovery code in any case and with any hyphens and spaces.
    pub fn read(text: &str) -> Option<Self> {
        let plain: String = text
            .chars()
            .filter(|character| !matches!(character, ' ' | '-'))
            .collect();
        if plain.len() == 6 && plain.bytes().all(|byte| byte.is_ascii_digit()) {
            return plain.parse().ok().map(Self::Code);
        }
        let plain = plain.to_ascii_uppercase();
        let is_recovery = plain.len() == RECOVERY_BYTES * 8 / 5
            && plain.bytes().all(|byte| LETTERS.contains(&byte));
        is_recovery.then(|| Self::Recovery(token::hash(&plain)))
    }
}

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[code]")
    }
}

/// What seals the secrets: with the keys of the settings, or in development with one that the cluster makes for itself.
/// Production without keys has no second factor.
///
/// # Errors
/// Where a key is none, or the database does not answer.
pub async fn vault(
    platform: &Platform,
    keys: Option<SecretString>,
) -> anyhow::Result<Option<Vault>> {
    let keys = match keys {
        None if platform.settings.is_production() => return Ok(None),
        keys => configured_or_made(&platform.db, "TWO_FACTOR_KEYS", keys).await?,
    };
    Vault::new(&keys).map(Some)
}

/// Whether a sign-in may go on, in its transaction, which has locked the account; spends what was sent.
pub async fn pass(
    state: &Users,
    conn: &mut PgConnection,
    user: &UserId,
    sent: Option<&Sent>,
) -> Result<Passage> {
    let Some(factor) = db::find_enabled(conn, user).await? else {
        return Ok(Passage::Open);
    };
    let Some(sent) = sent else {
        return Ok(Passage::WantsCode);
    };
    match spend(state, conn, user, (&factor, sent)).await? {
        true => Ok(Passage::Open),
        false => Ok(Passage::Wrong),
    }
}

/// Spends a code of a factor that is on; `false` where it is wrong, or was spent before.
async fn spend(
    state: &Users,
    conn: &mut PgConnection,
    user: &UserId,
    (factor, sent): (&db::Factor, &Sent),
) -> Result<bool> {
    match sent {
        Sent::Code(code) => {
            // The time that all replicas share, whose code a user may have just sent to another one.
            let now = state.platform.clock.shared(conn).await?;
            let secret = opened(state, user, factor)?;
            match matching(&secret, *code, now, factor.last_step) {
                Some(step) => Ok(db::spend_step(conn, user, step).await?),
                None => Ok(false),
            }
        }
        Sent::Recovery(hash) => Ok(db::spend_recovery(conn, user, hash).await?),
    }
}

fn opened(state: &Users, user: &UserId, factor: &db::Factor) -> Result<[u8; SECRET]> {
    let vault = state.vault.as_deref().ok_or(Error::NoTwoFactorKeys)?;
    vault.open(&factor.secret, user).ok_or(Error::Sealed)
}

/// The period whose code this is: the present one or one beside it, and later than the last that counted.
fn matching(secret: &[u8; SECRET], sent: u32, now: Timestamp, after: i64) -> Option<i64> {
    let present = now.utc().timestamp() / PERIOD;
    (present - SLACK..=present + SLACK)
        .filter(|step| *step > after)
        .find(|step| code(secret, step.unsigned_abs()) == sent)
}

/// The code of a period (RFC 4226, six digits).
fn code(secret: &[u8; SECRET], step: u64) -> u32 {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(&step.to_be_bytes());
    let digest = mac.finalize().into_bytes();
    let start = usize::from(digest[digest.len() - 1] & 0xf);
    let mut four = [0; 4];
    four.copy_from_slice(&digest[start..start + 4]);
    (u32::from_be_bytes(four) & 0x7fff_ffff) % 1_000_000
}

/// Bytes in base 32, where their bits are a multiple of five.
fn base32(bytes: &[u8]) -> String {
    let bit = |at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    let letter =
        |group: usize| (0..5).fold(0, |sum, at| sum << 1 | usize::from(bit(group * 5 + at)));
    (0..bytes.len() * 8 / 5)
        .map(|group| char::from(LETTERS[letter(group)]))
        .collect()
}

/// A recovery code for a user, as `ABCD-EFGH-IJKL-MNOP`.
fn recovery_code() -> String {
    let random: [u8; RECOVERY_BYTES] = rand::random();
    let mut code = base32(&random);
    for at in [12, 8, 4] {
        code.insert(at, '-');
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET_OF_THE_RFC: &[u8; SECRET] = b"12345678901234567890";

    #[test]
    fn codes_are_those_of_the_specification() {
        for (seconds, expected) in [
            (59, 287_082),
            (1_111_111_109, 81_804),
            (1_111_111_111, 50_471),
            (1_234_567_890, 5_924),
            (2_000_000_000, 279_037),
            (20_000_000_000, 353_130),
        ] {
            assert_eq!(code(SECRET_OF_THE_RFC, seconds / 30), expected, "{seconds}");
        }
        let of_steps: Vec<u32> = (0..4).map(|step| code(SECRET_OF_THE_RFC, step)).collect();
        assert_eq!(of_steps, [755_224, 287_082, 359_152, 969_429]);
    }

    #[test]
    fn a_code_counts_one_period_around_its_own_and_never_after_a_later_one() {
        let now = chrono::DateTime::from_timestamp(2_000_000_000, 0).unwrap();
        let now = Timestamp::from(now);
        let present = 2_000_000_000 / 30;
        for (step, after, counts) in [
            (present, 0, true),
            (present - 1, 0, true),
            (present + 1, 0, true),
            (present - 2, 0, false),
            (present + 2, 0, false),
            (present, present - 1, true),
            (present, present, false),
            (present - 1, present, false),
            (present + 1, present, true),
        ] {
            let sent = code(SECRET_OF_THE_RFC, step);
            let found = matching(SECRET_OF_THE_RFC, sent, now, i64::try_from(after).unwrap());
            assert_eq!(found.is_some(), counts, "{step} after {after}");
        }
    }

    #[test]
    fn base_32_is_that_of_the_specification() {
        assert_eq!(base32(b"fooba"), "MZXW6YTB");
        assert_eq!(
            base32(SECRET_OF_THE_RFC),
            "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
        );
    }

    #[test]
    fn what_was_sent_is_read_as_people_write_it() {
        let recovery = recovery_code();
        assert_eq!(recovery.len(), 19);
        let hash = token::hash(&recovery.replace('-', ""));
        for text in [
            recovery.clone(),
            recovery.to_lowercase(),
            recovery.replace('-', " "),
            recovery.replace('-', ""),
        ] {
            let read = Sent::read(&text);
            assert!(
                matches!(read, Some(Sent::Recovery(read)) if read == hash),
                "{text}"
            );
        }
        assert!(matches!(Sent::read("012 345"), Some(Sent::Code(12_345))));
        for text in [
            "",
            "12345",
            "1234567",
            "12345a",
            "+12345",
            "１２３４５６",
            "AAAA-AAAA-AAAA-AAA1",
        ] {
            assert!(Sent::read(text).is_none(), "{text}");
        }
        assert_eq!(format!("{:?}", Sent::Code(12_345)), "[code]");
    }
}
