//! A task: what a user wants made, its steps, and what became of it.

pub mod api;
pub mod db;
mod plan;

use std::fmt;

use contracts::{TaskId, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use plan::{CreateTask, Offer, Plan};

/// Who does the work that is done here.
pub const LOCAL: &str = "local";

/// What is to be made.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum TaskType {
    /// A picture without its background.
    BasicClean,
    /// Twelve shots of one garment on a model.
    #[serde(rename = "model_pose12")]
    #[sqlx(rename = "model_pose12")]
    ModelPose12,
    /// A video from a script.
    VideoGenerate,
    /// Pictures side by side in a grid.
    ImageStitch,
    /// A video from clips and pictures.
    VideoCompose,
    /// A text from a template.
    TextProcess,
}

/// Where a task, or a step of it, stands. The last four are final.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum TaskStatus {
    /// It waits for a worker.
    Queued,
    /// A provider has accepted it.
    Submitted,
    /// It is being made.
    Running,
    /// It was made.
    Succeeded,
    /// It could not be made.
    Failed,
    /// Its user, or an admin, no longer wanted it.
    Cancelled,
    /// Its deadline passed first.
    Expired,
}

/// Who goes first. Within a class the users take turns.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[repr(i16)]
pub enum Priority {
    /// After the others.
    Low = 0,
    /// As usual.
    #[default]
    Normal = 1,
    /// Before the others.
    High = 2,
}

/// What a user wants made.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// Names the task.
    pub id: TaskId,
    /// Whose it is.
    pub user_id: UserId,
    /// What is to be made.
    #[serde(rename = "type")]
    #[sqlx(rename = "type")]
    pub kind: TaskType,
    /// Where it stands.
    pub status: TaskStatus,
    /// Who goes first.
    pub priority: Priority,
    /// How much is done, 0 to 100.
    pub progress: i16,
    /// The keys of the uploads it is made from.
    pub input_urls: Vec<String>,
    /// How it is made, defaults included.
    pub params: Value,
    /// Its parts, in their order.
    #[sqlx(skip)]
    pub steps: Vec<Step>,
    /// Where the results are fetched, below this service.
    #[sqlx(skip)]
    pub result_urls: Vec<String>,
    /// Why it failed, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// Why it failed, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// The credits it cost.
    pub credit_cost: i32,
    /// Whether they were given back.
    pub refunded: bool,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it came to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// Keys of the objects that were made.
    #[serde(skip)]
    pub results: Vec<String>,
}

/// A part of a task.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Its place, from 0.
    pub index: i16,
    /// What it makes.
    #[serde(rename = "type")]
    #[sqlx(rename = "type")]
    pub kind: TaskType,
    /// Who does it.
    pub provider: String,
    /// How the provider names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_ref: Option<String>,
    /// Where it stands.
    pub status: TaskStatus,
    /// How often it was begun.
    pub attempts: i16,
    /// When it was first begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it came to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// Why the last attempt failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip)]
    task_id: TaskId,
    #[serde(skip)]
    params: Value,
}

/// How a task ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was made; the keys of the objects.
    Succeeded(Vec<String>),
    /// It could not be made.
    Failed {
        /// Why, for programs.
        code: &'static str,
        /// Why, for people.
        message: String,
    },
    /// Somebody no longer wanted it.
    Cancelled,
    /// Its deadline passed.
    Expired,
}

impl TaskType {
    /// Those that are made here.
    pub const LOCAL: [Self; 3] = [Self::ImageStitch, Self::VideoCompose, Self::TextProcess];

    /// Whether it can be made here.
    pub const fn is_local(self) -> bool {
        matches!(
            self,
            Self::ImageStitch | Self::VideoCompose | Self::TextProcess
        )
    }

    /// Whether it does no harm that two providers make it: it costs nothing there.
    pub const fn may_run_twice(self) -> bool {
        self.is_local()
    }

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BasicClean => "basic_clean",
            Self::ModelPose12 => "model_pose12",
            Self::VideoGenerate => "video_generate",
            Self::ImageStitch => "image_stitch",
            Self::VideoCompose => "video_compose",
            Self::TextProcess => "text_process",
        }
    }
}

impl TaskStatus {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Submitted => "submitted",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for TaskStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Task {
    /// A task as it begins.
    pub fn new(user_id: UserId, plan: Plan, now: Timestamp) -> Self {
        let id = TaskId::new();
        let steps = plan.steps.into_iter().zip(0..).map(|(step, index)| Step {
            index,
            kind: step.kind,
            provider: step.provider,
            provider_ref: None,
            status: TaskStatus::Queued,
            attempts: 0,
            started_at: None,
            completed_at: None,
            error: None,
            task_id: id.clone(),
            params: step.params,
        });
        let steps = steps.collect();
        Self {
            id,
            user_id,
            kind: plan.kind,
            status: TaskStatus::Queued,
            priority: plan.priority,
            progress: 0,
            input_urls: plan.inputs,
            params: plan.params,
            steps,
            result_urls: Vec::new(),
            error_code: None,
            error_message: None,
            credit_cost: 0,
            refunded: false,
            created_at: now,
            updated_at: now,
            completed_at: None,
            results: Vec::new(),
        }
    }

    /// With what stands in other rows, or follows from its own.
    fn completed(mut self, steps: Vec<Step>) -> Self {
        self.steps = steps;
        self.result_urls = (0..self.results.len())
            .map(|index| format!("/media/tasks/{}/results/{index}", self.id))
            .collect();
        self
    }
}

impl Ending {
    /// The status it leads to.
    pub fn status(&self) -> TaskStatus {
        match self {
            Self::Succeeded(_) => TaskStatus::Succeeded,
            Self::Failed { .. } => TaskStatus::Failed,
            Self::Cancelled => TaskStatus::Cancelled,
            Self::Expired => TaskStatus::Expired,
        }
    }

    /// The objects that were made.
    pub fn results(&self) -> &[String] {
        match self {
            Self::Succeeded(results) => results,
            Self::Failed { .. } | Self::Cancelled | Self::Expired => &[],
        }
    }

    /// Why it failed, for programs.
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::Failed { code, .. } => Some(code),
            Self::Expired => Some("TIMEOUT"),
            Self::Succeeded(_) | Self::Cancelled => None,
        }
    }

    /// Why it failed, for people.
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Failed { message, .. } => Some(message),
            Self::Expired => Some("it was not done before its deadline"),
            Self::Succeeded(_) | Self::Cancelled => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_on_the_wire() {
        for kind in [
            TaskType::BasicClean,
            TaskType::ModelPose12,
            TaskType::VideoGenerate,
            TaskType::ImageStitch,
            TaskType::VideoCompose,
            TaskType::TextProcess,
        ] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        for status in [
            TaskStatus::Queued,
            TaskStatus::Submitted,
            TaskStatus::Running,
            TaskStatus::Succeeded,
            TaskStatus::Failed,
            TaskStatus::Cancelled,
            TaskStatus::Expired,
        ] {
            assert_eq!(serde_json::to_value(status).unwrap(), status.name());
        }
    }
}
