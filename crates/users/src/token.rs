//! Tokens that open something once: 256 random bits, of which only the hash is kept.

use secrecy::SecretString;
use sha2::{Digest, Sha256};

/// The hash by which a token is known to the database. A plain one will do: nobody guesses 256 bits.
pub type TokenHash = [u8; 32];

/// A token for a client, and its hash for us.
#[derive(Debug)]
pub struct Token {
    /// For the client, once.
    pub text: SecretString,
    /// For the database.
    pub hash: TokenHash,
}

impl Token {
    /// Makes a token that never was.
    pub fn new() -> Self {
        let random: [u8; 32] = rand::random();
        let text = hex::encode(random);
        Self {
            hash: hash(&text),
            text: text.into(),
        }
    }
}

/// The hash of a token as a client sent it.
pub fn hash(text: &str) -> TokenHash {
    Sha256::digest(text.as_bytes()).into()
}
