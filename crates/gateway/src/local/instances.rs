//! The instances of the cluster, from its registry.

use axum::extract::State;
use coordination::Entry;
use platform::Admin;
use platform::http::Json;
use platform::problem::ProblemBody;
use serde::Serialize;

use super::Local;

/// Every instance of every service, on all machines.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceList {
    /// By service and slot: service, instance, address, host, pid, version, startedAt, heartbeatAt, load, health.
    #[schema(value_type = Vec<Object>)]
    instances: Vec<Instance>,
}

/// An entry of the registry, and how it does in a word.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    #[serde(flatten)]
    entry: Entry,
    health: &'static str,
}

impl Instance {
    /// Says of an entry how it does.
    pub fn of(entry: &Entry) -> Self {
        let health = if entry.load.draining {
            "draining"
        } else {
            "ready"
        };
        Self {
            entry: entry.clone(),
            health,
        }
    }

    /// `ready` or `draining`.
    pub fn health(&self) -> &'static str {
        self.health
    }
}

/// Every instance of every service, as the registry had them within the last second; without Redis, as it had them last.
#[utoipa::path(get, path = "/gateway/instances", tag = "gateway", responses(
    (status = 200, body = InstanceList), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_instances(State(local): State<Local>, _: Admin) -> Json<InstanceList> {
    let snapshot = local.snapshots.borrow().clone();
    Json(InstanceList {
        instances: snapshot.entries().map(Instance::of).collect(),
    })
}
