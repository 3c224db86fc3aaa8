//! How providers do, for admins.

use axum::extract::State;
use contracts::Timestamp;
use platform::Admin;
use platform::http::{Json, Path};
use platform::problem::ProblemBody;
use serde::Serialize;

use super::health::check;
use super::{Provider, db};
use crate::task::LOCAL;
use crate::{Error, Media, Result};

/// How a provider does.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProviderView {
    /// What it is called.
    #[serde(rename = "ref")]
    reference: String,
    /// `local`, `http` or `scf`.
    kind: &'static str,
    /// `up`, `degraded` or `down`.
    state: String,
    /// `open` while nothing new is sent there, else `closed`.
    circuit: &'static str,
    /// Lower ones are asked first.
    priority: i32,
    /// The share among those of one priority.
    weight: u32,
    /// Steps that it has.
    running: i64,
    /// Steps that it may have.
    limit: i64,
    /// How long it took to answer the last check.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<i64>,
    /// The share of calls that worked, of the last 24 hours.
    #[serde(rename = "successRate24h", skip_serializing_if = "Option::is_none")]
    success_rate: Option<f64>,
    /// Calls in a row that failed.
    consecutive_failures: i32,
    /// When it was last checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_check_at: Option<Timestamp>,
    /// Why the last failed check failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
    /// When it last came back.
    #[serde(skip_serializing_if = "Option::is_none")]
    recovered_at: Option<Timestamp>,
}

/// Shows how all providers do, this one included.
#[utoipa::path(get, path = "/media/providers", tag = "media", responses((status = 200, body = Vec<ProviderView>), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_providers(
    _: Admin,
    State(state): State<Media>,
) -> Result<Json<Vec<ProviderView>>> {
    let mut views = vec![ProviderView {
        reference: LOCAL.to_owned(),
        kind: LOCAL,
        state: "up".to_owned(),
        circuit: "closed",
        priority: 0,
        weight: 1,
        running: i64::try_from(state.config.workers - state.cores.available_permits())
            .unwrap_or_default(),
        limit: i64::try_from(state.config.workers).unwrap_or(i64::MAX),
        latency_ms: None,
        success_rate: None,
        consecutive_failures: 0,
        last_check_at: None,
        last_error: None,
        recovered_at: None,
    }];
    for provider in state.providers.iter() {
        views.push(view(&state, provider).await?);
    }
    Ok(Json(views))
}

/// Checks a provider now.
#[utoipa::path(post, path = "/media/providers/{ref}/check", tag = "media", params(("ref" = String, Path)), responses((status = 200, body = ProviderView), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn check_provider(
    _: Admin,
    State(state): State<Media>,
    Path(name): Path<String>,
) -> Result<Json<ProviderView>> {
    let provider = state.providers.find(&name).ok_or(Error::NoProvider)?;
    check(&state, provider).await?;
    Ok(Json(view(&state, provider).await?))
}

async fn view(state: &Media, provider: &Provider) -> Result<ProviderView> {
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    let standing = db::standing(&mut conn, provider.name(), now).await?;
    let settings = provider.settings();
    Ok(ProviderView {
        reference: provider.name().to_owned(),
        kind: settings.function.kind(),
        state: standing.state,
        circuit: if standing.is_open { "open" } else { "closed" },
        priority: settings.priority,
        weight: settings.weight,
        running: standing.running,
        limit: settings.limit,
        latency_ms: standing.latency_ms,
        success_rate: standing.success_rate,
        consecutive_failures: standing.failures,
        last_check_at: standing.last_check_at,
        last_error: standing.last_error,
        recovered_at: standing.recovered_at,
    })
}
