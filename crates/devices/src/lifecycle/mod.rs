//! Lifecycle rules: what is done with devices again and again without anybody asking.
//!
//! A rule has a schedule, and is executed once for each of its due times in the whole cluster: whoever sees it due inserts
//! the execution under a unique constraint. An execution is leased; it goes through its devices in the order of their ids,
//! each in a transaction that also says how far it is. So any replica goes on where another one died, and nothing is
//! done or counted twice.

pub mod api;
pub mod db;
pub mod effects;
pub mod run;
pub mod view;

use chrono::{DateTime, Utc};
use contracts::UserId;
use coordination::cron::{Schedule, TimeZone};
use garde::Validate;
use platform::Problem;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How many rules there may be.
pub const MOST_RULES: i64 = 100;
/// A schedule has so many fields: none for seconds, so that it is due once a minute at most.
const FIELDS: usize = 5;

/// What a rule does.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
#[sqlx(type_name = "text", rename_all = "kebab-case")]
pub enum RuleType {
    /// Deletes devices that nobody has touched for long.
    Cleanup,
    /// Keeps devices of a template ready.
    Autoscaling,
    /// Takes snapshots.
    Backup,
    /// Warns of the end of devices.
    ExpirationWarning,
}

impl RuleType {
    /// Its name on the wire, in tables and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cleanup => "cleanup",
            Self::Autoscaling => "autoscaling",
            Self::Backup => "backup",
            Self::ExpirationWarning => "expiration-warning",
        }
    }
}

/// What a rule does exactly, by its type.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// See [`RuleType::Cleanup`].
    Cleanup(Cleanup),
    /// See [`RuleType::Autoscaling`].
    Autoscaling(Autoscaling),
    /// See [`RuleType::Backup`].
    Backup(Backup),
    /// See [`RuleType::ExpirationWarning`].
    ExpirationWarning(ExpirationWarning),
}

/// Deletes devices that have been in error or stopped, and unchanged, for so many days. Those that a rule keeps ready stay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Validate)]
#[serde(rename_all = "camelCase")]
pub struct Cleanup {
    /// 1 to 3650; devices in error stay where it is left out.
    #[garde(range(min = 1, max = 3650))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_days: Option<i32>,
    /// 1 to 3650; stopped devices stay where it is left out.
    #[garde(range(min = 1, max = 3650))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped_days: Option<i32>,
}

/// Keeps so many stopped devices of a template in a group of a user. A device leaves them by being started, or by another
/// group; what is too much is left alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Validate)]
#[serde(rename_all = "camelCase")]
pub struct Autoscaling {
    /// A template that is public or the user's own.
    #[garde(length(chars, min = 1, max = 64))]
    pub template_id: String,
    /// Whose the devices are, and whose quota they count to.
    #[garde(skip)]
    pub user_id: UserId,
    /// The group they are in.
    #[garde(length(chars, min = 1, max = 100))]
    pub group_name: String,
    /// How many are stopped and ready, 1 to 100.
    #[garde(range(min = 1, max = 100))]
    pub ready: i64,
    /// How many devices the group has at most, running ones with them, 1 to 500; default 100.
    #[garde(range(min = 1, max = 500))]
    #[serde(default = "hundred")]
    pub max: i64,
}

/// Takes a snapshot of each running or stopped device, and keeps the last few that it took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Validate)]
#[serde(rename_all = "camelCase")]
pub struct Backup {
    /// How many finished snapshots of a device are kept of this rule, 1 to 50 and fewer than a device may have; default 3.
    #[garde(range(min = 1, max = 50))]
    #[serde(default = "three")]
    pub keep: i64,
    /// The devices of this user alone.
    #[garde(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// The devices of this group alone.
    #[garde(length(chars, min = 1, max = 100))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_name: Option<String>,
}

/// Tells the users of devices that end within so many days, once for a device and end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Validate)]
#[serde(rename_all = "camelCase")]
pub struct ExpirationWarning {
    /// 1 to 365; default 3.
    #[garde(range(min = 1, max = 365))]
    #[serde(default = "three_days")]
    pub days: i32,
}

fn hundred() -> i64 {
    100
}

fn three() -> i64 {
    3
}

fn three_days() -> i32 {
    3
}

impl Rule {
    /// Reads the configuration of a rule; fields that are unknown are left out.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn read(kind: RuleType, config: &Value) -> Result<Self, Problem> {
        let rule = match kind {
            RuleType::Cleanup => {
                let cleanup: Cleanup = read(config)?;
                if cleanup.error_days.is_none() && cleanup.stopped_days.is_none() {
                    return Err(Problem::invalid_field(
                        "config",
                        "must have errorDays or stoppedDays",
                    ));
                }
                Self::Cleanup(cleanup)
            }
            RuleType::Autoscaling => {
                let scaling: Autoscaling = read(config)?;
                if scaling.ready > scaling.max {
                    return Err(Problem::invalid_field(
                        "config.ready",
                        "must not be above max",
                    ));
                }
                Self::Autoscaling(scaling)
            }
            RuleType::Backup => Self::Backup(read(config)?),
            RuleType::ExpirationWarning => Self::ExpirationWarning(read(config)?),
        };
        Ok(rule)
    }

    /// The configuration as it is kept.
    pub fn config(&self) -> Value {
        let config = match self {
            Self::Cleanup(config) => serde_json::to_value(config),
            Self::Autoscaling(config) => serde_json::to_value(config),
            Self::Backup(config) => serde_json::to_value(config),
            Self::ExpirationWarning(config) => serde_json::to_value(config),
        };
        config.unwrap_or_default()
    }
}

fn read<T: Validate<Context = ()> + for<'de> Deserialize<'de>>(
    config: &Value,
) -> Result<T, Problem> {
    let fault = |text: String| Problem::invalid_field("config", text);
    let read = T::deserialize(config).map_err(|error| fault(error.to_string()))?;
    match read.validate() {
        Ok(()) => Ok(read),
        Err(report) => Err(fault(report.to_string().trim().to_owned())),
    }
}

/// Reads a schedule, and tells its first due time after a moment.
///
/// # Errors
/// 400 where it is none of five fields.
pub fn next_due(
    schedule: &str,
    zone: &str,
    now: DateTime<Utc>,
) -> Result<Option<DateTime<Utc>>, Problem> {
    let zone: TimeZone = zone.parse().map_err(|_| {
        Problem::invalid_field("timeZone", "must be a time zone such as Europe/Berlin")
    })?;
    let read = Schedule::parse("lifecycle", schedule, zone, std::time::Duration::ZERO);
    let has_fields = schedule.split_whitespace().count() == FIELDS;
    match read {
        Ok(read) if has_fields => Ok(read.next(now)),
        _ => Err(Problem::invalid_field(
            "schedule",
            "must be a cron expression of five fields such as 0 3 * * *",
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rule_says_what_it_does_within_bounds() {
        for (kind, config, fits) in [
            (RuleType::Cleanup, json!({ "errorDays": 7 }), true),
            (RuleType::Cleanup, json!({}), false),
            (RuleType::Cleanup, json!({ "stoppedDays": 0 }), false),
            (RuleType::Cleanup, json!(null), false),
            (RuleType::Backup, json!({}), true),
            (RuleType::Backup, json!({ "keep": 51 }), false),
            (RuleType::ExpirationWarning, json!({}), true),
            (RuleType::ExpirationWarning, json!({ "days": 0 }), false),
            (
                RuleType::Autoscaling,
                json!({ "templateId": "t", "userId": "u", "groupName": "g", "ready": 2 }),
                true,
            ),
            (
                RuleType::Autoscaling,
                json!({ "templateId": "t", "userId": "u", "groupName": "g", "ready": 3, "max": 2 }),
                false,
            ),
            (RuleType::Autoscaling, json!({ "ready": 3 }), false),
        ] {
            let read = Rule::read(kind, &config);
            assert_eq!(read.is_ok(), fits, "{kind:?} {config}");
            if let Ok(rule) = read {
                assert_eq!(Rule::read(kind, &rule.config()).unwrap(), rule);
            }
        }
    }

    #[test]
    fn a_schedule_is_due_by_the_clocks_of_its_zone_and_not_too_often() {
        let now = "2026-07-01T00:00:00Z".parse().unwrap();
        let due = |schedule, zone| next_due(schedule, zone, now);
        let at = due("0 3 * * *", "Europe/Berlin").unwrap().unwrap();
        assert_eq!(at, "2026-07-01T01:00:00Z".parse::<DateTime<Utc>>().unwrap());
        for (schedule, zone) in [
            ("nonsense", "UTC"),
            ("0 3 * * *", "Mars/Olympus"),
            ("*/5 * * * * *", "UTC"),
            ("0,30 0 3 * * *", "UTC"),
        ] {
            assert!(due(schedule, zone).is_err(), "{schedule} {zone}");
        }
    }
}
