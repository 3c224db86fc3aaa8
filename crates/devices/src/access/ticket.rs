//! A ticket: the permission to open one tunnel, bound to who asked for it and to the device as it was then.

use contracts::{ApiKeyId, DeviceId, SessionId, UserId};
use coordination::PortKind;
use platform::CurrentUser;
use platform::auth::Proof;
use sha2::{Digest, Sha256};

/// What a ticket is given for.
#[derive(Clone, Debug)]
pub struct NewTicket {
    /// To which port it leads.
    pub kind: PortKind,
    /// Of which device.
    pub device: DeviceId,
    /// Who asked for it.
    pub user: UserId,
    /// By which session.
    pub session: Option<SessionId>,
    /// By which key.
    pub key: Option<ApiKeyId>,
}

impl NewTicket {
    /// A ticket for whoever calls.
    pub fn of(user: &CurrentUser, device: DeviceId, kind: PortKind) -> Self {
        let (session, key) = match &user.proof {
            Proof::Session(session) => (Some(session.clone()), None),
            Proof::Key(key) => (None, Some(key.clone())),
        };
        Self {
            kind,
            device,
            user: user.id.clone(),
            session,
            key,
        }
    }
}

/// A new secret.
pub fn secret() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

/// What is stored of a secret.
pub fn fingerprint(secret: &str) -> Vec<u8> {
    Sha256::digest(secret).to_vec()
}
