//! Heartbeats: what another of our services says of a device that it hears from.

use axum::extract::State;
use contracts::DeviceId;
use garde::Validate;
use platform::http::{Json, Path};
use platform::{Caller, Problem};
use serde::{Deserialize, Serialize};

use super::db;
use crate::{Devices, Error, error::Result};

/// What a device says that it uses. What is left out stays as it was last known; what is measured later replaces it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// Percent of its cores.
    #[garde(range(min = 0.0, max = 100.0))]
    pub cpu_usage: Option<f64>,
    /// Percent; counts where `memoryUsed` is left out.
    #[garde(range(min = 0.0, max = 100.0))]
    pub memory_usage: Option<f64>,
    /// Percent; counts where `storageUsed` is left out.
    #[garde(range(min = 0.0, max = 100.0))]
    pub storage_usage: Option<f64>,
    /// Megabytes.
    #[garde(range(min = 0.0, max = 1_048_576.0))]
    pub memory_used: Option<f64>,
    /// Megabytes.
    #[garde(range(min = 0.0, max = 1_048_576.0))]
    pub storage_used: Option<f64>,
}

/// The heartbeat was heard.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Heard {
    message: String,
}

/// Takes down that a device lives, and what it uses. Only our services say so; said twice or late it changes nothing more.
#[utoipa::path(post, path = "/devices/{id}/heartbeat", tag = "metrics", params(("id" = String, Path)), request_body = Heartbeat,
    responses((status = 200, body = Heard), (status = 400), (status = 403, description = "The caller is none of our services"), (status = 404)))]
pub async fn hear_heartbeat(
    State(state): State<Devices>,
    caller: Caller,
    Path(id): Path<DeviceId>,
    Json(body): Json<Heartbeat>,
) -> Result<Json<Heard>> {
    match caller {
        Caller::Service(_) => {}
        Caller::User(_) => return Err(Problem::forbidden("only services may do this").into()),
        Caller::Sandbox => return Err(Problem::unauthenticated("only services may do this").into()),
    }
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    if !db::hear(&mut conn, &id, &body, now).await? {
        return Err(Error::NoSuchDevice { device: id });
    }
    Ok(Json(Heard {
        message: "the heartbeat was heard".into(),
    }))
}
