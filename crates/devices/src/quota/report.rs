//! How quotas show themselves to clients.

use std::collections::BTreeMap;

use contracts::{PlanId, Timestamp, UserId};
use serde::Serialize;

use super::{Limit, Limits, Quota, Status, TRAFFIC_GB, UNLIMITED, used};

/// A quota as clients see it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Quota)]
pub struct QuotaView {
    id: String,
    user_id: UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan_id: Option<PlanId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan_name: Option<String>,
    #[schema(inline)]
    status: Status,
    /// By name; -1 is no limit.
    limits: Limits,
    usage: UsageView,
    valid_from: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_until: Option<Timestamp>,
    auto_renew: bool,
}

/// What is used.
#[derive(Clone, Copy, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageView {
    current_devices: i64,
    current_concurrent_devices: i64,
    used_cpu_cores: i64,
    #[serde(rename = "usedMemoryGB")]
    used_memory_gb: f64,
    #[serde(rename = "usedStorageGB")]
    used_storage_gb: f64,
    /// Not measured: 0.
    current_bandwidth_mbps: f64,
    #[serde(rename = "monthlyTrafficUsedGB")]
    monthly_traffic_used_gb: f64,
    today_usage_hours: f64,
    monthly_usage_hours: f64,
    last_updated_at: Timestamp,
}

/// A limit that is nearly used up.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Alert {
    /// devices, cpu, memory, storage, bandwidth, monthlyTraffic, dailyUsageHours or monthlyUsageHours.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// How much of it is used, in percent.
    pub percentage: f64,
    /// One sentence.
    pub message: String,
}

/// A quota with what its numbers mean.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageStats {
    user_id: UserId,
    quota: QuotaView,
    /// How much of each limit is used, in percent; 0 where there is no limit.
    usage_percentages: BTreeMap<&'static str, f64>,
    /// How much is left; -1 where there is no limit.
    remaining: BTreeMap<&'static str, f64>,
    alerts: Vec<Alert>,
}

/// What the statistics tell of, by the names of the contract.
const MEASURED: [(&str, Limit); 8] = [
    ("devices", Limit::Devices),
    ("cpu", Limit::CpuCores),
    ("memory", Limit::Memory),
    ("storage", Limit::Storage),
    ("bandwidth", Limit::Bandwidth),
    ("monthlyTraffic", Limit::MonthlyTraffic),
    ("dailyUsageHours", Limit::HoursOfDay),
    ("monthlyUsageHours", Limit::HoursOfMonth),
];

impl Quota {
    /// How clients see it.
    pub fn view(self, now: Timestamp) -> QuotaView {
        let amount = |limit| self.amount(limit);
        let usage = UsageView {
            current_devices: self.used.devices,
            current_concurrent_devices: self.used.running,
            used_cpu_cores: self.used.cpu_cores,
            used_memory_gb: amount(Limit::Memory),
            used_storage_gb: amount(Limit::Storage),
            current_bandwidth_mbps: 0.0,
            monthly_traffic_used_gb: amount(Limit::MonthlyTraffic),
            today_usage_hours: amount(Limit::HoursOfDay),
            monthly_usage_hours: amount(Limit::HoursOfMonth),
            last_updated_at: now.max(self.updated_at),
        };
        let (plan_id, plan_name) = self.plan.unzip();
        QuotaView {
            id: self.id,
            user_id: self.user_id,
            plan_id,
            plan_name,
            status: self.status,
            limits: self.limits,
            usage,
            valid_from: self.valid_from,
            valid_until: self.valid_until,
            auto_renew: self.auto_renew,
        }
    }

    /// The same with what its numbers mean.
    pub fn stats(self, now: Timestamp) -> UsageStats {
        let measured = || MEASURED.into_iter();
        UsageStats {
            user_id: self.user_id.clone(),
            usage_percentages: measured()
                .map(|(name, limit)| (name, self.percentage(limit)))
                .collect(),
            remaining: measured()
                .map(|(name, limit)| (name, self.remaining(limit)))
                .collect(),
            alerts: self.alerts(80.0),
            quota: self.view(now),
        }
    }

    /// The limits that are used to this part, in percent, or more.
    pub fn alerts(&self, threshold: f64) -> Vec<Alert> {
        let near = MEASURED.into_iter().filter_map(|(kind, limit)| {
            let percentage = self.percentage(limit);
            let allowed = self.limits.of(limit)?;
            (percentage >= threshold).then(|| Alert {
                kind,
                percentage,
                message: format!(
                    "the quota of {} is used to {percentage} %: {} of {allowed}",
                    limit.name(),
                    used(&self.used, limit)
                ),
            })
        });
        near.collect()
    }

    /// How much of a limit is used, in percent with one decimal; 0 where there is no limit.
    pub fn percentage(&self, limit: Limit) -> f64 {
        match self.limits.of(limit) {
            None => 0.0,
            Some(0) if self.amount(limit) > 0.0 => 100.0,
            Some(0) => 0.0,
            Some(allowed) => round(self.amount(limit) * 100.0 / allowed as f64, 1),
        }
    }

    fn remaining(&self, limit: Limit) -> f64 {
        match self.limits.of(limit) {
            None => UNLIMITED as f64,
            Some(allowed) => round((allowed as f64 - self.amount(limit)).max(0.0), 2),
        }
    }

    /// How much is used of a limit, in its unit, with two decimals.
    fn amount(&self, limit: Limit) -> f64 {
        let exact = match limit {
            Limit::Memory => self.used.memory_mb as f64 / 1024.0,
            Limit::Storage => self.used.storage_mb as f64 / 1024.0,
            Limit::MonthlyTraffic => self.used.traffic as f64 / TRAFFIC_GB as f64,
            Limit::HoursOfDay => self.used.minutes_today as f64 / 60.0,
            Limit::HoursOfMonth => self.used.minutes_of_month as f64 / 60.0,
            limit => used(&self.used, limit) as f64,
        };
        round(exact, 2)
    }
}

fn round(number: f64, decimals: i32) -> f64 {
    let scale = 10_f64.powi(decimals);
    (number * scale).round() / scale
}
