//! Uploads: the permission to send one file to an address that nobody can guess, and the file that came.

pub mod api;
pub mod cleanup;
pub mod db;

use chrono::TimeDelta;
use contracts::UserId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The largest file, in bytes.
pub const MAX_SIZE: usize = 10 << 20;
/// How long an address takes a file.
pub const VALID: TimeDelta = TimeDelta::minutes(30);
/// How long a file is kept.
pub const KEPT: TimeDelta = TimeDelta::days(7);
/// How often a file may come whole and yet not be taken, as when the reply is lost.
pub const MOST_TRIES: i16 = 10;

/// The kinds of files that are taken.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[sqlx(type_name = "text")]
pub enum ContentType {
    /// A JPEG picture.
    #[serde(rename = "image/jpeg")]
    #[sqlx(rename = "image/jpeg")]
    Jpeg,
    /// A PNG picture.
    #[serde(rename = "image/png")]
    #[sqlx(rename = "image/png")]
    Png,
    /// A WebP picture.
    #[serde(rename = "image/webp")]
    #[sqlx(rename = "image/webp")]
    Webp,
}

impl ContentType {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::Webp => "image/webp",
        }
    }

    /// The kind of file that begins so.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xFF, 0xD8, 0xFF, ..] => Some(Self::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Some(Self::Png),
            [
                b'R',
                b'I',
                b'F',
                b'F',
                _,
                _,
                _,
                _,
                b'W',
                b'E',
                b'B',
                b'P',
                ..,
            ] => Some(Self::Webp),
            _ => None,
        }
    }
}

/// The secret of an address, and what is stored of it.
pub fn ticket() -> (String, Vec<u8>) {
    let secret = hex::encode(rand::random::<[u8; 32]>());
    let stored = fingerprint(&secret);
    (secret, stored)
}

/// What is stored of a secret.
pub fn fingerprint(secret: &str) -> Vec<u8> {
    Sha256::digest(secret).to_vec()
}

/// A new key for a user's file. What could mislead in the name is replaced.
pub fn key(user: &UserId, file_name: &str) -> String {
    let folder = hex::encode(rand::random::<[u8; 16]>());
    let name = file_name.rsplit(['/', '\\']).next().unwrap_or_default();
    let name: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .take(100)
        .collect();
    let name = match name.trim_matches('.') {
        "" => "file",
        name => name,
    };
    format!("input/{user}/{folder}/{name}")
}

/// The object that a try writes.
pub fn object_key(key: &str, attempt: i16) -> String {
    format!("{key}.{attempt}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_lead_elsewhere() {
        let user: UserId = "u-1".parse().unwrap();
        for (name, safe) in [
            ("a.png", "a.png"),
            ("../../etc/passwd", "passwd"),
            ("C:\\x\\b c.jpg", "b_c.jpg"),
            ("..", "file"),
            ("", "file"),
            ("图.webp", "_.webp"),
        ] {
            let key = key(&user, name);
            let parts: Vec<_> = key.split('/').collect();
            assert_eq!(
                (parts.len(), parts[0], parts[1], parts[3]),
                (4, "input", "u-1", safe)
            );
            assert_eq!(parts[2].len(), 32);
        }
    }

    #[test]
    fn kinds_are_told_by_the_first_bytes() {
        assert_eq!(
            ContentType::of(b"\xFF\xD8\xFF\xE0"),
            Some(ContentType::Jpeg)
        );
        assert_eq!(
            ContentType::of(b"\x89PNG\r\n\x1a\n0"),
            Some(ContentType::Png)
        );
        assert_eq!(
            ContentType::of(b"RIFF0000WEBPVP8 "),
            Some(ContentType::Webp)
        );
        for bytes in [&b""[..], b"GIF89a", b"RIFF0000WAVE", b"<svg>"] {
            assert_eq!(ContentType::of(bytes), None);
        }
    }

    #[test]
    fn any_name_of_a_file_makes_a_key_in_its_users_folder() {
        const WORDS: [&str; 10] = ["..", "/", "\\", ".png", "a", ".", "\0", "%2e", "图", "~"];
        let user: UserId = "u-1".parse().unwrap();
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(160)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                let key = key(&user, &text);
                let name = key
                    .strip_prefix("input/u-1/")
                    .and_then(|rest| rest.get(33..))
                    .unwrap();
                assert!(
                    (1..=100).contains(&name.len()) && !name.starts_with('.'),
                    "{key}"
                );
                assert!(
                    name.bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)),
                    "{key}"
                );
            });
    }

    #[test]
    fn any_bytes_are_of_a_kind_by_their_first_ones_alone() {
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(24)
            .for_each(|bytes: &[u8]| {
                let heads: [&[u8]; 4] =
                    [b"\xFF\xD8\xFF", b"\x89PNG\r\n\x1a\n", b"RIFF0000WEBP", b""];
                for head in heads {
                    let file = [head, bytes].concat();
                    let kind = ContentType::of(&file);
                    assert!(kind.is_some() || head.is_empty());
                    assert_eq!(ContentType::of(&file[..file.len().min(12)]), kind);
                }
            });
    }
}
