//! Presence: who is online, on how many sockets. Each instance keeps what it sees in Redis, for a few seconds at a time: what
//! an instance that died kept is gone with them, and what Redis lost is written anew.

pub mod api;
pub mod board;

use std::collections::{BTreeMap, HashMap};

use contracts::UserId;
use serde::Serialize;

/// Who is online on one instance, with the number of sockets.
pub type Seen = HashMap<UserId, i64>;

/// Whether a user is online.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Presence {
    /// Who.
    pub user_id: UserId,
    /// Whether there is a socket at all.
    pub online: bool,
    /// How many sockets are open on all instances.
    pub sockets: i64,
    /// On how many instances they are.
    pub instances: i64,
}

impl Presence {
    /// Nobody is there.
    pub fn away(user_id: UserId) -> Self {
        Self {
            user_id,
            online: false,
            sockets: 0,
            instances: 0,
        }
    }

    /// Counts what an instance sees.
    pub fn count(&mut self, sockets: i64) {
        self.online = true;
        self.sockets += sockets;
        self.instances += 1;
    }
}

/// Puts together what instances see, in the order of the users.
pub fn together(seen: impl IntoIterator<Item = Seen>) -> Vec<Presence> {
    let mut users: BTreeMap<UserId, Presence> = BTreeMap::new();
    for (user, sockets) in seen.into_iter().flatten() {
        let presence = users.entry(user.clone());
        presence
            .or_insert_with(|| Presence::away(user))
            .count(sockets);
    }
    users.into_values().collect()
}

/// What one instance has to write: who came or has another number of sockets, and who went.
pub fn changes(before: &Seen, now: &Seen) -> (Seen, Vec<UserId>) {
    let changed = now
        .iter()
        .filter(|(user, sockets)| before.get(*user) != Some(*sockets));
    let gone = before.keys().filter(|user| !now.contains_key(*user));
    (
        changed
            .map(|(user, sockets)| (user.clone(), *sockets))
            .collect(),
        gone.cloned().collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(users: &[(&str, i64)]) -> Seen {
        let users = users.iter();
        users
            .map(|(user, sockets)| (user.parse().unwrap(), *sockets))
            .collect()
    }

    #[test]
    fn what_instances_see_is_added_up() {
        let all = together([seen(&[("a", 2), ("b", 1)]), seen(&[("a", 3)]), seen(&[])]);

        let told: Vec<_> = all
            .iter()
            .map(|one| (one.user_id.as_str(), one.sockets, one.instances))
            .collect();
        assert_eq!(told, [("a", 5, 2), ("b", 1, 1)]);
    }

    #[test]
    fn any_changes_lead_from_what_was_to_what_is() {
        bolero::check!()
            .with_type::<(Vec<(u8, u8)>, Vec<(u8, u8)>)>()
            .with_iterations(1_000)
            .for_each(|(before, now)| {
                let seen = |users: &[(u8, u8)]| -> Seen {
                    let users = users.iter();
                    users
                        .map(|(user, sockets)| {
                            (
                                format!("u{}", user % 8).parse().unwrap(),
                                i64::from(*sockets),
                            )
                        })
                        .collect()
                };
                let (mut before, now) = (seen(before), seen(now));
                let (changed, gone) = changes(&before, &now);
                before.extend(changed);
                before.retain(|user, _| !gone.contains(user));
                assert_eq!(before, now);
            });
    }
}
