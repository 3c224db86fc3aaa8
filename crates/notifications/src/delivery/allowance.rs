//! How many mails and text messages leave for one user on one day: whoever finds out how to have many sent, sends no more.

use contracts::Timestamp;
use sqlx::PgConnection;

use super::db::Claimed;
use crate::notification::Channel;

/// The most messages to one user on a day in UTC. Those that are not urgent leave a half of it to those that are.
pub const fn most(channel: Channel, urgent: bool) -> Option<i32> {
    match (channel, urgent) {
        (Channel::Email, false) => Some(50),
        (Channel::Email, true) => Some(100),
        (Channel::Sms, false) => Some(20),
        (Channel::Sms, true) => Some(40),
        (Channel::Websocket | Channel::Webhook, _) => None,
    }
}

/// Counts the message of a delivery that is held, once, however often it is tried; `false` where the day has no more. The row
/// of its user makes replicas wait for each other: call it in a transaction, and roll back where it is `false`.
///
/// # Errors
/// Where the database does not answer: roll back.
pub async fn take(
    conn: &mut PgConnection,
    claimed: &Claimed,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let Some(most) = most(claimed.channel, claimed.urgent) else {
        return Ok(true);
    };
    let counted = sqlx::query(
        "-- allowance::count
        update notifications.deliveries set counted = true
        where id = $1 and fencing_token = $2 and state = 'running' and not counted",
    )
    .bind(&claimed.id)
    .bind(claimed.fencing_token)
    .execute(&mut *conn)
    .await?;
    if counted.rows_affected() == 0 {
        return Ok(true);
    }
    let taken = sqlx::query(
        "-- allowance::take
        insert into notifications.allowances as a (user_id, channel, day, messages) values ($1, $2, $3, 1)
        on conflict (user_id, channel) do update
            set day = $3, messages = case when a.day = $3 then a.messages + 1 else 1 end
            where a.day <> $3 or a.messages < $4",
    )
    .bind(&claimed.user_id)
    .bind(claimed.channel)
    .bind(now.utc().date_naive())
    .bind(most)
    .execute(conn)
    .await?;
    Ok(taken.rows_affected() > 0)
}
