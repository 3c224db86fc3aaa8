//! What can go wrong, and what the client is told.

use axum::response::{IntoResponse, Response};
use contracts::AppId;
use http::StatusCode;
use platform::Problem;
use platform::objects::ObjectError;

use crate::app::AppStatus;

/// A call that was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The package is larger than allowed.
    #[error("the package is larger than {limit} bytes")]
    TooLarge {
        /// The bound, in bytes.
        limit: u64,
    },
    /// The file is no Android package.
    #[error("the file is not an Android package: {reason}")]
    NotAPackage {
        /// What is missing.
        reason: String,
    },
    /// The package and version are there already.
    #[error("version {version_code} of {package_name} is there already")]
    Exists {
        /// The package.
        package_name: String,
        /// Its version.
        version_code: i64,
    },
    /// The upload broke off or was malformed.
    #[error("the upload could not be read: {reason}")]
    BrokenUpload {
        /// What the reader met.
        reason: String,
    },
    /// The app does not stand where the step begins.
    #[error("the app is {}; this is for one that is {}", .status.as_str(), names(.wanted))]
    WrongStatus {
        /// Where it stands.
        status: AppStatus,
        /// Where it would have to stand.
        wanted: &'static [AppStatus],
    },
    /// No such app, or not the caller's.
    #[error("app {0} is not there")]
    NotFound(AppId),
    /// The object store failed.
    #[error("could not use the object store")]
    Objects(#[from] ObjectError),
    /// The database failed.
    #[error("could not use the database")]
    Database(#[from] sqlx::Error),
    /// Refused before the service was asked.
    #[error("refused")]
    Refused(Problem),
}

/// The outcome of a call.
pub type Result<T> = std::result::Result<T, Error>;

fn names(statuses: &[AppStatus]) -> String {
    let names: Vec<&str> = statuses.iter().map(|status| status.as_str()).collect();
    names.join(" or ")
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let problem = match &self {
            Self::TooLarge { .. } => {
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", self.to_string())
            }
            Self::NotAPackage { .. } => Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "BAD_TYPE",
                self.to_string(),
            ),
            Self::Exists { .. } | Self::WrongStatus { .. } => {
                Problem::conflict("CONFLICT", self.to_string())
            }
            Self::BrokenUpload { .. } => Problem::invalid_field("file", self.to_string()),
            Self::NotFound(_) => Problem::not_found("app"),
            Self::Objects(_) => Problem::not_ready("the object store does not answer; try again"),
            Self::Database(error) => Problem::from_sqlx(error),
            Self::Refused(problem) => problem.clone(),
        };
        problem.respond(&self)
    }
}
