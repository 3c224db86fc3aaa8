//! What can go wrong, and what the client is told.

use axum::response::{IntoResponse, Response};
use contracts::NotificationId;
use platform::Problem;

use crate::accounts::Away;

/// A call that was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such notification, or not the caller's.
    #[error("notification {0} is not there")]
    NotFound(NotificationId),
    /// The data of a notification is larger than sockets carry.
    #[error("the data is larger than {limit} bytes")]
    DataTooLarge {
        /// The bound, in bytes of JSON.
        limit: usize,
    },
    /// Redis, which keeps who is online, does not answer.
    #[error("who is online is not known")]
    Presence(#[source] fred::error::Error),
    /// No such broadcast.
    #[error("broadcast not found")]
    BroadcastNotFound,
    /// Only what is not over is cancelled.
    #[error("the broadcast is over")]
    BroadcastOver,
    /// The service of users does not answer.
    #[error(transparent)]
    UsersAway(#[from] Away),
    /// No such delivery.
    #[error("delivery not found")]
    DeliveryNotFound,
    /// Only what failed is tried again.
    #[error("the delivery has not failed")]
    DeliveryNotFailed,
    /// The user has set none.
    #[error("webhook not found")]
    WebhookNotFound,
    /// The user wants no notifications of the type.
    #[error("the user has switched off notifications of this type; only urgent ones come")]
    NotWanted,
    /// No such template, or no such version of it.
    #[error("template not found")]
    TemplateNotFound,
    /// The code is taken in that language.
    #[error("a template with this code and language exists")]
    TemplateExists,
    /// The database failed.
    #[error("the database refused")]
    Database(#[from] sqlx::Error),
    /// Refused before the service was asked.
    #[error("refused")]
    Refused(Problem),
}

/// The outcome of a call.
pub type Result<T> = std::result::Result<T, Error>;

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let problem = match &self {
            Self::NotFound(_) => Problem::not_found("notification"),
            Self::DataTooLarge { .. } => Problem::invalid_field("data", self.to_string()),
            Self::TemplateNotFound => Problem::not_found("template"),
            Self::Presence(_) => Problem::not_ready("who is online is not known now; try again"),
            Self::BroadcastNotFound => Problem::not_found("broadcast"),
            Self::UsersAway(away) => Problem::not_ready(away.to_string()),
            Self::DeliveryNotFound => Problem::not_found("delivery"),
            Self::WebhookNotFound => Problem::not_found("webhook"),
            Self::BroadcastOver
            | Self::DeliveryNotFailed
            | Self::NotWanted
            | Self::TemplateExists => Problem::conflict("CONFLICT", self.to_string()),
            Self::Database(error) => Problem::from_sqlx(error),
            Self::Refused(problem) => problem.clone(),
        };
        problem.respond(&self)
    }
}
