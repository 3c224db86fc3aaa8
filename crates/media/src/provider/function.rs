//! What is said to a function, and what it answers. One address takes every message; `action` tells which it is.

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::task::TaskType;

/// The most outputs of a step.
pub const MOST_OUTPUTS: usize = 16;

/// A way to call a function.
pub trait Function: Send + Sync {
    /// Sends a message, at a time in seconds, and gives the answer.
    fn call(&self, body: Vec<u8>, now: i64) -> BoxFuture<'_, Result<Vec<u8>, Refusal>>;
}

/// A message.
#[derive(Debug, Serialize)]
#[serde(
    tag = "action",
    rename_all = "snake_case",
    rename_all_fields = "camelCase"
)]
pub enum Message<'a> {
    /// Make this, once for each reference.
    Submit {
        /// How we name it.
        reference: &'a str,
        /// What is to be made.
        #[serde(rename = "type")]
        kind: TaskType,
        /// Where what it is made from can be fetched.
        input_urls: &'a [String],
        /// How it is made.
        params: &'a Value,
        /// Where its end may be told.
        #[serde(skip_serializing_if = "Option::is_none")]
        callback_url: Option<String>,
    },
    /// Have you taken this?
    Find {
        /// How we name it.
        reference: &'a str,
    },
    /// How do these go?
    Query {
        /// How the function names them.
        ids: &'a [&'a str],
    },
    /// Nobody wants this any more.
    Cancel {
        /// How we name it.
        reference: &'a str,
        /// How the function names it.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
    },
    /// How do you do?
    Health,
}

/// The answer to a submission or a search.
#[derive(Debug, Deserialize)]
pub struct Taken {
    /// How the function names it; absent where it has not taken it.
    #[serde(default)]
    pub id: Option<String>,
}

/// The answer to a query.
#[derive(Debug, Deserialize)]
pub struct Answer {
    /// How those go that it knows.
    pub tasks: Vec<Report>,
}

/// How a step goes at a provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// How the function names it.
    #[serde(default)]
    pub id: String,
    /// Where it stands.
    pub status: Reported,
    /// How much is done, 0 to 100.
    #[serde(default)]
    pub progress: Option<u8>,
    /// Where the files can be fetched that were made, 1 to 16.
    #[serde(default)]
    pub output_urls: Vec<String>,
    /// Why it failed.
    #[serde(default)]
    pub error_message: Option<String>,
}

/// Where a step stands at a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reported {
    /// It waits there.
    #[serde(alias = "queued", alias = "pending")]
    Submitted,
    /// It is being made.
    #[serde(alias = "processing")]
    Running,
    /// It was made.
    #[serde(alias = "completed", alias = "success")]
    Succeeded,
    /// It was not.
    #[serde(alias = "error")]
    Failed,
}

/// Why a function did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The message surely had no effect, and may be sent again.
    #[error("not taken: {0}")]
    NotTaken(String),
    /// It said no, and will say so again.
    #[error("refused: {0}")]
    Refused(String),
    /// No answer, or none that tells whether it was done.
    #[error("unclear: {0}")]
    Unclear(String),
}

impl Report {
    /// Whether it will not change any more.
    pub fn is_final(&self) -> bool {
        matches!(self.status, Reported::Succeeded | Reported::Failed)
    }
}
