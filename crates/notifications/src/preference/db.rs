//! SQL of preferences.

use contracts::{Timestamp, UserId};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::hold::QuietHours;
use super::{Digest, Wishes};
use crate::notification::{Channel, Kind};

/// What a user chose for all notifications.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Settings {
    /// Whether e-mail is sent.
    pub email_enabled: bool,
    /// Whether text messages are sent.
    pub sms_enabled: bool,
    /// Whether clients show what comes.
    pub push_enabled: bool,
    /// Whether they make a sound.
    pub sound_enabled: bool,
    /// The language of words.
    pub language: Option<String>,
    /// When nothing leaves the platform.
    pub quiet_hours: Option<Json<QuietHours>>,
    /// How long what leaves it is gathered.
    pub digest: Digest,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            email_enabled: true,
            sms_enabled: true,
            push_enabled: true,
            sound_enabled: true,
            language: None,
            quiet_hours: None,
            digest: Digest::Off,
        }
    }
}

/// What a user chose for a type.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Preference {
    /// The type.
    pub kind: Kind,
    /// Whether its notifications are wanted.
    pub enabled: bool,
    /// The ways they take.
    pub channels: Option<Json<Vec<Channel>>>,
    /// When it was chosen.
    pub updated_at: Timestamp,
}

/// What counts for one notification.
pub async fn wishes(conn: &mut PgConnection, user: &UserId, kind: Kind) -> sqlx::Result<Wishes> {
    sqlx::query_as(
        "-- preference::wishes
        select p.enabled, p.channels, s.email_enabled, s.sms_enabled, s.language, s.quiet_hours, s.digest,
            exists (select 1 from notifications.webhooks w where w.user_id = u.user_id) as has_webhook
        from (select $1 as user_id) u
        left join notifications.settings s on s.user_id = u.user_id
        left join notifications.preferences p on p.user_id = u.user_id and p.kind = $2",
    )
    .bind(user)
    .bind(kind)
    .fetch_one(conn)
    .await
}

/// Lets one change of a user's preferences follow another, until the end of the transaction.
pub async fn lock(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<()> {
    sqlx::query(
        "select pg_advisory_xact_lock(hashtextextended('notifications.preferences:' || $1, 0))",
    )
    .bind(user)
    .execute(conn)
    .await?;
    Ok(())
}

/// What a user chose for all notifications; the defaults where nothing.
pub async fn settings(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<Settings> {
    let stored = sqlx::query_as("select * from notifications.settings where user_id = $1")
        .bind(user)
        .fetch_optional(conn)
        .await?;
    Ok(stored.unwrap_or_default())
}

/// Writes what a user chose for all notifications.
pub async fn put_settings(
    conn: &mut PgConnection,
    user: &UserId,
    settings: &Settings,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- preference::put_settings
        insert into notifications.settings
            (user_id, email_enabled, sms_enabled, push_enabled, sound_enabled, language, quiet_hours, digest, updated_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        on conflict (user_id) do update set email_enabled = $2, sms_enabled = $3, push_enabled = $4, sound_enabled = $5,
            language = $6, quiet_hours = $7, digest = $8, updated_at = $9",
    )
    .bind(user)
    .bind(settings.email_enabled)
    .bind(settings.sms_enabled)
    .bind(settings.push_enabled)
    .bind(settings.sound_enabled)
    .bind(&settings.language)
    .bind(&settings.quiet_hours)
    .bind(settings.digest)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// What a user chose for types.
pub async fn list(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<Vec<Preference>> {
    sqlx::query_as(
        "select kind, enabled, channels, updated_at from notifications.preferences where user_id = $1",
    )
    .bind(user)
    .fetch_all(conn)
    .await
}

/// Chooses for a type; what is not said stays.
pub async fn put(
    conn: &mut PgConnection,
    user: &UserId,
    kind: Kind,
    (enabled, channels): (Option<bool>, Option<Vec<Channel>>),
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- preference::put
        insert into notifications.preferences as p (user_id, kind, enabled, channels, updated_at)
        values ($1, $2, coalesce($3, true), $4, $5)
        on conflict (user_id, kind) do update
            set enabled = coalesce($3, p.enabled), channels = coalesce($4, p.channels), updated_at = $5",
    )
    .bind(user)
    .bind(kind)
    .bind(enabled)
    .bind(channels.map(Json))
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets what a user chose.
pub async fn reset(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<()> {
    for forget in [
        "delete from notifications.preferences where user_id = $1",
        "delete from notifications.settings where user_id = $1",
    ] {
        sqlx::query(forget).bind(user).execute(&mut *conn).await?;
    }
    Ok(())
}
