//! Limits: what a user may have, from the settings, from what was paid, and from what an admin set.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Stands for no limit, in the settings, in the store and on the wire.
pub const UNLIMITED: i64 = -1;

/// What is limited.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
pub enum Limit {
    /// Devices that are not deleted.
    #[serde(rename = "maxDevices")]
    Devices,
    /// Devices that run or shall.
    #[serde(rename = "maxConcurrentDevices")]
    RunningDevices,
    /// Processor cores of one device.
    #[serde(rename = "maxCpuCoresPerDevice")]
    CpuCoresOfDevice,
    /// Memory of one device.
    #[serde(rename = "maxMemoryMBPerDevice")]
    MemoryOfDevice,
    /// Storage of one device.
    #[serde(rename = "maxStorageGBPerDevice")]
    StorageOfDevice,
    /// Processor cores of all devices.
    #[serde(rename = "totalCpuCores")]
    CpuCores,
    /// Memory of all devices.
    #[serde(rename = "totalMemoryGB")]
    Memory,
    /// Storage of all devices.
    #[serde(rename = "totalStorageGB")]
    Storage,
    /// Bandwidth.
    #[serde(rename = "maxBandwidthMbps")]
    Bandwidth,
    /// Traffic of a calendar month.
    #[serde(rename = "monthlyTrafficGB")]
    MonthlyTraffic,
    /// Hours that devices run on a day.
    #[serde(rename = "maxUsageHoursPerDay")]
    HoursOfDay,
    /// Hours that devices run in a calendar month.
    #[serde(rename = "maxUsageHoursPerMonth")]
    HoursOfMonth,
}

impl Limit {
    /// All of them, in the order of the contract.
    pub const ALL: [Self; 12] = [
        Self::Devices,
        Self::RunningDevices,
        Self::CpuCoresOfDevice,
        Self::MemoryOfDevice,
        Self::StorageOfDevice,
        Self::CpuCores,
        Self::Memory,
        Self::Storage,
        Self::Bandwidth,
        Self::MonthlyTraffic,
        Self::HoursOfDay,
        Self::HoursOfMonth,
    ];

    /// Its name in the settings, in the store and on the wire.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Devices => "maxDevices",
            Self::RunningDevices => "maxConcurrentDevices",
            Self::CpuCoresOfDevice => "maxCpuCoresPerDevice",
            Self::MemoryOfDevice => "maxMemoryMBPerDevice",
            Self::StorageOfDevice => "maxStorageGBPerDevice",
            Self::CpuCores => "totalCpuCores",
            Self::Memory => "totalMemoryGB",
            Self::Storage => "totalStorageGB",
            Self::Bandwidth => "maxBandwidthMbps",
            Self::MonthlyTraffic => "monthlyTrafficGB",
            Self::HoursOfDay => "maxUsageHoursPerDay",
            Self::HoursOfMonth => "maxUsageHoursPerMonth",
        }
    }

    /// What a refusal calls it, with its unit.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::RunningDevices => "running devices",
            Self::CpuCoresOfDevice => "CPU cores of a device",
            Self::MemoryOfDevice => "memory of a device in MB",
            Self::StorageOfDevice => "storage of a device in GB",
            Self::CpuCores => "CPU cores",
            Self::Memory => "memory in GB",
            Self::Storage => "storage in GB",
            Self::Bandwidth => "bandwidth in Mbps",
            Self::MonthlyTraffic => "traffic of a month in GB",
            Self::HoursOfDay => "hours of a day",
            Self::HoursOfMonth => "hours of a month",
        }
    }

    /// What a user without a plan has in development, and in production.
    const fn defaults(self) -> (i64, i64) {
        match self {
            Self::Devices => (50, 2),
            Self::RunningDevices => (50, 1),
            Self::CpuCoresOfDevice => (16, 2),
            Self::MemoryOfDevice => (32_768, 4_096),
            Self::StorageOfDevice => (1_024, 10),
            Self::CpuCores => (200, 4),
            Self::Memory => (400, 8),
            Self::Storage => (1_000, 20),
            Self::Bandwidth => (UNLIMITED, 5),
            Self::MonthlyTraffic => (UNLIMITED, 50),
            Self::HoursOfDay => (UNLIMITED, 8),
            Self::HoursOfMonth => (UNLIMITED, 100),
        }
    }
}

/// Limits by name; where it is all that holds for a user, none is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object, example = json!({ "maxDevices": 50, "maxConcurrentDevices": 50 }))]
pub struct Limits(pub BTreeMap<Limit, i64>);

impl Limits {
    /// What a user has without a plan.
    pub fn defaults(production: bool) -> Self {
        let of = |limit: Limit| match (limit.defaults(), production) {
            ((development, _), false) => development,
            ((_, production), true) => production,
        };
        Self(Limit::ALL.map(|limit| (limit, of(limit))).into())
    }

    /// A limit; `None` where there is none.
    pub fn of(&self, limit: Limit) -> Option<i64> {
        let value = self.0.get(&limit).copied();
        value.filter(|value| *value != UNLIMITED)
    }

    /// Of each limit the one that allows more; what a grant does not name stays.
    pub fn raised_by(mut self, grant: &Self) -> Self {
        for (limit, value) in &mut self.0 {
            match (*value, grant.0.get(limit)) {
                (UNLIMITED, _) | (_, None) => {}
                (_, Some(&UNLIMITED)) => *value = UNLIMITED,
                (own, Some(granted)) => *value = own.max(*granted),
            }
        }
        self
    }

    /// With these in the place of its own.
    pub fn overridden_by(mut self, overrides: &Self) -> Self {
        self.0.extend(&overrides.0);
        self
    }

    /// With nothing allowed.
    pub fn closed(mut self) -> Self {
        self.0.values_mut().for_each(|value| *value = 0);
        self
    }

    /// Whether each of them is no limit, 0 or more.
    pub fn are_valid(&self) -> bool {
        self.0.values().all(|value| *value >= UNLIMITED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits<const N: usize>(pairs: [(Limit, i64); N]) -> Limits {
        Limits(pairs.into())
    }

    #[test]
    fn what_was_paid_raises_and_what_an_admin_set_holds() {
        let own = limits([
            (Limit::Devices, 2),
            (Limit::CpuCores, UNLIMITED),
            (Limit::Memory, 8),
        ]);
        let grant = limits([
            (Limit::Devices, 5),
            (Limit::CpuCores, 10),
            (Limit::Memory, 4),
        ]);
        let overrides = limits([(Limit::Devices, 1)]);

        let raised = own.raised_by(&grant);
        assert_eq!(raised.of(Limit::Devices), Some(5));
        assert_eq!(raised.of(Limit::CpuCores), None);
        assert_eq!(raised.of(Limit::Memory), Some(8));
        let unlimited = raised
            .clone()
            .raised_by(&limits([(Limit::Memory, UNLIMITED)]));
        assert_eq!(unlimited.of(Limit::Memory), None);

        assert_eq!(
            raised.clone().overridden_by(&overrides).of(Limit::Devices),
            Some(1)
        );
        assert_eq!(raised.closed().of(Limit::CpuCores), Some(0));
    }

    #[test]
    fn the_defaults_name_every_limit_and_read_back() {
        for production in [false, true] {
            let limits = Limits::defaults(production);
            assert!(Limit::ALL.iter().all(|limit| limits.0.contains_key(limit)));
            let wire = serde_json::to_value(&limits).unwrap();
            assert_eq!(wire["maxDevices"], if production { 2 } else { 50 });
            assert!(
                Limit::ALL.iter().all(|limit| wire[limit.key()].is_i64()),
                "{wire}"
            );
            assert_eq!(serde_json::from_value::<Limits>(wire).unwrap(), limits);
        }
    }
}
