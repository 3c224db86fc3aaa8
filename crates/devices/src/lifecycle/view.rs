//! Rules and executions as they are stored and shown.

use contracts::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::RuleType;

/// A rule.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LifecycleRule {
    /// Names the rule.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What it does.
    #[serde(rename = "type")]
    #[sqlx(rename = "type")]
    pub kind: RuleType,
    /// Whether its schedule counts.
    pub enabled: bool,
    /// Of rules that are due at once, the higher one is first.
    pub priority: i32,
    /// A cron expression.
    pub schedule: String,
    /// Whose clocks the schedule follows.
    pub time_zone: String,
    /// What it does exactly.
    #[schema(value_type = Object)]
    pub config: Value,
    /// When it was last executed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_executed_at: Option<Timestamp>,
    /// When it is due next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_execution_at: Option<Timestamp>,
    /// How often it was executed.
    pub execution_count: i64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// An execution of a rule.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Execution {
    /// Names the execution.
    #[serde(rename = "executionId")]
    pub id: String,
    /// The rule, which may be gone.
    pub rule_id: String,
    /// What it was called.
    pub rule_name: String,
    /// What it did.
    #[serde(rename = "type")]
    #[sqlx(rename = "type")]
    pub kind: RuleType,
    /// The due time it is for; left out where somebody asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<Timestamp>,
    /// running, completed, or failed where it was stopped or nothing could be done.
    pub status: String,
    /// How many devices it did something with.
    pub affected: i32,
    /// With how many it could not.
    pub failed: i32,
    /// Why not, for the first twenty.
    #[schema(value_type = Vec<Object>)]
    pub errors: Value,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
}

/// How rules of a type have done.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TypeStats {
    /// What they do.
    #[serde(rename = "type")]
    #[sqlx(rename = "type")]
    pub kind: RuleType,
    /// How many rules there are.
    pub rules: i64,
    /// How many of them are enabled.
    pub enabled: i64,
    /// How many executions are remembered.
    pub executions: i64,
    /// How many of them run.
    pub running: i64,
    /// How many devices they did something with.
    pub affected: i64,
    /// With how many they could not.
    pub failed: i64,
    /// When the last one began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_executed_at: Option<Timestamp>,
    /// When the next one is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_execution_at: Option<Timestamp>,
}
