//! Reviews: the way of an app between its uploader, the reviewers and the shelf, and the record of who decided what.

pub mod api;
mod db;

use contracts::{AppId, ReviewId, Timestamp, UserId};
use serde::{Deserialize, Serialize};

use crate::app::AppStatus;

pub use db::record;

/// A step on an app's way to the shelf.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Action {
    /// The uploader asks for a review.
    Submit,
    /// A reviewer accepts it.
    Approve,
    /// A reviewer refuses it.
    Reject,
    /// A reviewer gives it back to its uploader.
    RequestChanges,
    /// It is put on the shelf.
    Publish,
    /// It is taken from the shelf.
    Unpublish,
}

impl Action {
    /// Where an app must stand for it.
    const fn from(self) -> &'static [AppStatus] {
        use AppStatus::{Approved, Available, PendingReview, Rejected, Unavailable, Uploading};
        match self {
            Self::Submit => &[Uploading, Rejected],
            Self::Approve | Self::Reject | Self::RequestChanges => &[PendingReview],
            Self::Publish => &[Approved, Unavailable],
            Self::Unpublish => &[Approved, Available],
        }
    }

    /// Where the app stands after it.
    const fn to(self) -> AppStatus {
        match self {
            Self::Submit => AppStatus::PendingReview,
            Self::Approve => AppStatus::Approved,
            Self::Reject => AppStatus::Rejected,
            Self::RequestChanges => AppStatus::Uploading,
            Self::Publish => AppStatus::Available,
            Self::Unpublish => AppStatus::Unavailable,
        }
    }

    /// Whether the uploader may do it; everything else is for reviewers.
    const fn is_uploaders(self) -> bool {
        matches!(self, Self::Submit)
    }

    /// Whether its reason must be given.
    const fn needs_comment(self) -> bool {
        matches!(self, Self::Reject | Self::RequestChanges)
    }
}

/// What was decided about an app.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Review {
    /// Names the decision.
    pub id: ReviewId,
    /// The app, which may be gone.
    pub application_id: AppId,
    /// What was done.
    pub action: Action,
    /// Who did it.
    pub reviewer_id: UserId,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// When.
    pub created_at: Timestamp,
}
