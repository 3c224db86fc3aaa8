//! Templates: words that admins write for notifications, in place of the built-in ones.

pub mod api;
pub mod db;
pub mod text;

use contracts::{TemplateId, Timestamp};
use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;
use tracing::warn;

use crate::metrics;
use crate::notification::{Channel, Draft, Kind, MAX_MESSAGE, MAX_TITLE};
use text::Fault;

/// The language of a template that names none, and of a user who chose none.
pub const LANGUAGE: &str = "zh-CN";

/// Words for notifications.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    /// Names it.
    pub id: TemplateId,
    /// What programs call it; there is one of a code in a language.
    pub code: String,
    /// What people call it.
    pub name: String,
    /// What its notifications are about.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The heading, with placeholders.
    pub title: String,
    /// The text, with placeholders.
    pub body: String,
    /// The ways its notifications take.
    #[schema(value_type = Vec<Channel>)]
    pub channels: Json<Vec<Channel>>,
    /// The language of its words.
    pub language: String,
    /// Whether it is used.
    pub is_active: bool,
    /// Which version this is, from 1.
    pub version: i32,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

/// What a template said after a change.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// Which, from 1.
    pub version: i32,
    /// What programs called it.
    pub code: String,
    /// What people called it.
    pub name: String,
    /// What its notifications were about.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The heading, with placeholders.
    pub title: String,
    /// The text, with placeholders.
    pub body: String,
    /// The ways its notifications took.
    #[schema(value_type = Vec<Channel>)]
    pub channels: Json<Vec<Channel>>,
    /// The language of its words.
    pub language: String,
    /// The admin who changed it.
    pub changed_by: String,
    /// When.
    pub changed_at: Timestamp,
}

/// A template filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Rendered {
    /// The heading.
    pub title: String,
    /// The text.
    pub body: String,
}

/// Fills in a heading and a text.
///
/// # Errors
/// With the name of the one that cannot be filled in.
pub fn render(
    (title, body): (&str, &str),
    data: &Map<String, Value>,
) -> Result<Rendered, (&'static str, Fault)> {
    Ok(Rendered {
        title: text::fill(title, data, text::MAX_OUTPUT).map_err(|fault| ("title", fault))?,
        body: text::fill(body, data, text::MAX_OUTPUT).map_err(|fault| ("body", fault))?,
    })
}

/// Gives the notification of a domain event the words of the active template of its name, in the user's language before
/// others. One that cannot be filled in leaves the built-in words and is counted: the notification comes in any case.
///
/// # Errors
/// Where the database does not answer: the transaction is lost with it, and the event comes again.
pub async fn dress(conn: &mut PgConnection, draft: &mut Draft, language: &str) -> sqlx::Result<()> {
    let Some(code) = draft.event else {
        return Ok(());
    };
    let Some(template) = db::active(conn, code, language).await? else {
        return Ok(());
    };
    let data = draft.data.clone().unwrap_or_default();
    let words = render((&template.title, &template.body), &data);
    match words {
        Ok(words) if fits(&words) => {
            draft.title = words.title;
            draft.message = words.body;
            draft.channels = template.channels.0;
        }
        refused => {
            let why = match refused {
                Ok(_) => "it is empty or too long".to_owned(),
                Err((field, fault)) => format!("{field}: {fault}"),
            };
            metrics::template_failed(code);
            warn!(template = %template.id, "the template of {code} was not used: {why}");
        }
    }
    Ok(())
}

fn fits(words: &Rendered) -> bool {
    let within = |text: &str, most| (1..=most).contains(&text.chars().count());
    within(&words.title, MAX_TITLE) && within(&words.body, MAX_MESSAGE)
}
