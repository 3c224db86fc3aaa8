//! The routes of preferences.

use std::collections::BTreeMap;

use axum::extract::State;
use contracts::{Timestamp, UserId};
use garde::Validate;
use platform::http::{Json, Path, Query};
use platform::problem::ProblemBody;
use platform::{CurrentUser, Problem};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use sqlx::PgConnection;

use super::db::{self, Preference, Settings};
use super::hold::QuietHours;
use super::{Digest, KINDS, without_repeats};
use crate::notification::api::OfUser;
use crate::notification::{Channel, Kind};
use crate::template::{LANGUAGE, api::is_language};
use crate::{Notifications, Result};

const TAG: &str = "notification-preferences";

/// What a user wants.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Preferences {
    /// Whose they are.
    user_id: UserId,
    /// Whether e-mail is sent.
    email_enabled: bool,
    /// Whether text messages are sent.
    sms_enabled: bool,
    /// Whether clients show what comes.
    push_enabled: bool,
    /// Whether they make a sound.
    sound_enabled: bool,
    /// The language of words.
    language: String,
    /// When nothing that is not urgent leaves by e-mail, text message or webhook.
    #[serde(skip_serializing_if = "Option::is_none")]
    quiet_hours: Option<QuietHours>,
    /// How long what leaves by them is gathered.
    digest: Digest,
    /// Which types are wanted.
    categories: BTreeMap<&'static str, bool>,
    /// Every type.
    preferences: Vec<TypePreference>,
}

/// What a user wants for a type.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TypePreference {
    notification_type: Kind,
    enabled: bool,
    enabled_channels: Vec<Channel>,
    /// Absent where nothing was chosen yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    updated_at: Option<Timestamp>,
}

/// A choice for a type. What is left out stays.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PutPreference {
    /// The user; only admins name others.
    #[garde(skip)]
    user_id: Option<UserId>,
    /// Whether its notifications are wanted.
    #[garde(skip)]
    enabled: Option<bool>,
    /// The ways they take.
    #[garde(inner(length(max = 8)))]
    enabled_channels: Option<Vec<Channel>>,
}

/// Many choices at once: a list of types, or settings.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PutPreferences {
    /// The user; only admins name others.
    #[garde(skip)]
    user_id: Option<UserId>,
    /// A list of `{notificationType, enabled?, enabledChannels?}`, or an object of settings: `emailEnabled`,
    /// `smsEnabled`, `pushEnabled`, `soundEnabled`, `language`, `quietHours` (null for none), `digest`, `categories`.
    #[garde(skip)]
    #[schema(value_type = Object)]
    preferences: Value,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TypeChoice {
    #[serde(alias = "type")]
    notification_type: Kind,
    enabled: Option<bool>,
    enabled_channels: Option<Vec<Channel>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SettingsChoice {
    email_enabled: Option<bool>,
    sms_enabled: Option<bool>,
    push_enabled: Option<bool>,
    sound_enabled: Option<bool>,
    language: Option<String>,
    /// `null` takes them away.
    #[serde(default, deserialize_with = "present")]
    quiet_hours: Option<Option<QuietHours>>,
    digest: Option<Digest>,
    #[serde(default)]
    categories: BTreeMap<Kind, bool>,
}

/// A type of notifications.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KindMeta {
    #[serde(rename = "type")]
    kind: Kind,
    description: &'static str,
    default_channels: [Channel; 1],
    available_channels: [Channel; 4],
}

/// Shows what a user wants.
#[utoipa::path(get, path = "/notifications/preferences", tag = TAG, params(OfUser),
    responses((status = 200, body = Preferences), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn find_preferences(
    State(state): State<Notifications>,
    user: CurrentUser,
    Query(query): Query<OfUser>,
) -> Result<Json<Preferences>> {
    let owner = user.acting_for(query.user_id)?;
    let mut conn = state.platform.db.acquire().await?;
    show(&mut conn, owner).await
}

/// Chooses for a type.
#[utoipa::path(put, path = "/notifications/preferences/{type}", tag = TAG, params(("type" = String, Path), OfUser), request_body = PutPreference,
    responses((status = 200, body = Preferences), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn put_preference(
    State(state): State<Notifications>,
    user: CurrentUser,
    Path(kind): Path<String>,
    Query(query): Query<OfUser>,
    Json(body): Json<PutPreference>,
) -> Result<Json<Preferences>> {
    let owner = user.acting_for(body.user_id.or(query.user_id))?;
    let kind = serde_json::from_value(Value::String(kind))
        .map_err(|_| Problem::not_found("notification type"))?;
    let choice = (body.enabled, body.enabled_channels.map(without_repeats));
    let mut tx = state.platform.db.begin().await?;
    db::lock(&mut tx, &owner).await?;
    db::put(&mut tx, &owner, kind, choice, state.platform.clock.now()).await?;
    let shown = show(&mut tx, owner).await?;
    tx.commit().await?;
    Ok(shown)
}

/// Chooses for many types, or changes settings.
#[utoipa::path(post, path = "/notifications/preferences/batch", tag = TAG, request_body = PutPreferences,
    responses((status = 200, body = Preferences), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn put_preferences(
    State(state): State<Notifications>,
    user: CurrentUser,
    Json(body): Json<PutPreferences>,
) -> Result<Json<Preferences>> {
    let owner = user.acting_for(body.user_id)?;
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    db::lock(&mut tx, &owner).await?;
    match body.preferences {
        list @ Value::Array(_) => {
            let choices: Vec<TypeChoice> = read(list)?;
            if choices.len() > 100 {
                return Err(fault("has 100 entries at most").into());
            }
            for choice in choices {
                let channels = choice.enabled_channels.map(without_repeats);
                let wanted = (choice.enabled, channels);
                db::put(&mut tx, &owner, choice.notification_type, wanted, now).await?;
            }
        }
        object @ Value::Object(_) => {
            let choice: SettingsChoice = read(object)?;
            for (kind, enabled) in &choice.categories {
                db::put(&mut tx, &owner, *kind, (Some(*enabled), None), now).await?;
            }
            let settings = db::settings(&mut tx, &owner).await?;
            let settings = changed(settings, choice)?;
            db::put_settings(&mut tx, &owner, &settings, now).await?;
        }
        _ => return Err(fault("is a list or an object").into()),
    }
    let shown = show(&mut tx, owner).await?;
    tx.commit().await?;
    Ok(shown)
}

/// Forgets what a user chose.
#[utoipa::path(post, path = "/notifications/preferences/reset", tag = TAG, request_body = OfUser,
    responses((status = 200, body = Preferences), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn reset_preferences(
    State(state): State<Notifications>,
    user: CurrentUser,
    Json(body): Json<OfUser>,
) -> Result<Json<Preferences>> {
    let owner = user.acting_for(body.user_id)?;
    let mut tx = state.platform.db.begin().await?;
    db::lock(&mut tx, &owner).await?;
    db::reset(&mut tx, &owner).await?;
    let shown = show(&mut tx, owner).await?;
    tx.commit().await?;
    Ok(shown)
}

/// Tells which types there are.
#[utoipa::path(get, path = "/notifications/preferences/meta/types", tag = TAG,
    responses((status = 200, body = Vec<KindMeta>), (status = 401, body = ProblemBody)))]
pub async fn list_types(_: CurrentUser) -> Json<Vec<KindMeta>> {
    let types = KINDS.map(|(kind, description)| KindMeta {
        kind,
        description,
        default_channels: [Channel::Websocket],
        available_channels: Channel::ALL,
    });
    Json(types.into())
}

async fn show(conn: &mut PgConnection, user_id: UserId) -> Result<Json<Preferences>> {
    let settings = db::settings(conn, &user_id).await?;
    let chosen = db::list(conn, &user_id).await?;
    let of = |kind| chosen.iter().find(|preference| preference.kind == kind);
    let preferences: Vec<_> = KINDS.map(|(kind, _)| shown(kind, of(kind))).into();
    Ok(Json(Preferences {
        user_id,
        email_enabled: settings.email_enabled,
        sms_enabled: settings.sms_enabled,
        push_enabled: settings.push_enabled,
        sound_enabled: settings.sound_enabled,
        language: settings.language.unwrap_or_else(|| LANGUAGE.to_owned()),
        quiet_hours: settings.quiet_hours.map(|quiet| quiet.0),
        digest: settings.digest,
        categories: preferences
            .iter()
            .map(|preference| (preference.notification_type.name(), preference.enabled))
            .collect(),
        preferences,
    }))
}

fn shown(kind: Kind, chosen: Option<&Preference>) -> TypePreference {
    let channels = chosen.and_then(|preference| preference.channels.clone());
    TypePreference {
        notification_type: kind,
        enabled: chosen.is_none_or(|preference| preference.enabled),
        enabled_channels: channels.map_or_else(|| vec![Channel::Websocket], |channels| channels.0),
        updated_at: chosen.map(|preference| preference.updated_at),
    }
}

fn changed(old: Settings, choice: SettingsChoice) -> std::result::Result<Settings, Problem> {
    if let Some(language) = &choice.language
        && let Err(wrong) = is_language(language, &())
    {
        return Err(Problem::invalid_field(
            "preferences.language",
            wrong.to_string(),
        ));
    }
    Ok(Settings {
        email_enabled: choice.email_enabled.unwrap_or(old.email_enabled),
        sms_enabled: choice.sms_enabled.unwrap_or(old.sms_enabled),
        push_enabled: choice.push_enabled.unwrap_or(old.push_enabled),
        sound_enabled: choice.sound_enabled.unwrap_or(old.sound_enabled),
        language: choice.language.or(old.language),
        quiet_hours: match choice.quiet_hours {
            Some(quiet) => quiet.map(sqlx::types::Json),
            None => old.quiet_hours,
        },
        digest: choice.digest.unwrap_or(old.digest),
    })
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> std::result::Result<T, Problem> {
    serde_json::from_value(value).map_err(|error| fault(&error.to_string()))
}

fn fault(told: &str) -> Problem {
    Problem::invalid_field("preferences", told)
}

/// Tells `null` from what is left out.
fn present<'de, D: Deserializer<'de>>(
    reader: D,
) -> std::result::Result<Option<Option<QuietHours>>, D::Error> {
    Option::deserialize(reader).map(Some)
}
